"""A slice of ``make chaos``, at most three minutes: broken runs end like the unbroken one and leave nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.chaos.__main__ import break_fakes, break_local
from benchmarks.chaos.faults import FEWEST, KINDS, MOST, plan_faults
from benchmarks.chaos.tally import Tally


def assert_clean(tally: Tally, least_runs: int) -> None:
    assert tally.notes == []
    assert tally.clean
    assert tally.runs >= least_runs
    assert tally.faults >= tally.runs


def test_faults_are_the_same_for_the_same_seed_and_every_kind_comes_round() -> None:
    plans = [plan_faults(seed, 200) for seed in range(100)]
    assert plans == [plan_faults(seed, 200) for seed in range(100)]
    assert {fault.kind for plan in plans for fault in plan} == set(KINDS)
    assert all(FEWEST <= len(plan) <= MOST for plan in plans)
    assert all(plan == sorted(plan, key=lambda fault: fault.at_line) for plan in plans)


def test_drivers_that_are_broken_end_like_those_that_are_not() -> None:
    assert_clean(break_local(range(5), budget_s=45.0), least_runs=1)


def test_clusters_that_are_broken_end_like_those_that_are_not() -> None:
    assert_clean(break_fakes(range(5), budget_s=75.0), least_runs=1)
