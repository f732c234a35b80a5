"""A slice of ``make chaos``: broken runs end like the unbroken one and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.chaos.faults import FEWEST, KINDS, MOST, plan_faults

REPOSITORY = Path(__file__).parents[2]
MUST_BE_0 = (
    *("lost", "duplicates", "trained_twice", "differing_ledgers", "hung", "leaked_processes"),
    *("leaked_shared_memory", "tracebacks"),
)
ON_A_CLUSTER, LOCAL = 2, 2


def test_faults_are_the_same_for_the_same_seed_and_every_kind_comes_round() -> None:
    plans = [plan_faults(seed, 200) for seed in range(100)]
    assert plans == [plan_faults(seed, 200) for seed in range(100)]
    assert {fault.kind for plan in plans for fault in plan} == set(KINDS)
    assert all(FEWEST <= len(plan) <= MOST for plan in plans)
    assert all(plan == sorted(plan, key=lambda fault: fault.at_line) for plan in plans)


@pytest.mark.timeout(620)
def test_broken_runs_end_like_unbroken_ones_and_leave_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own: it starts a cluster, and this one may have joined another."""
    figures = tmp_path / "chaos.json"
    words = [f"--runs={ON_A_CLUSTER + LOCAL}", f"--local={LOCAL}", "--slots=1", "--real=0", f"--json={figures}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *words],
        cwd=REPOSITORY,
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert figures.exists(), result.stderr[-3000:]
    tally = json.loads(figures.read_text(encoding="utf-8"))
    assert tally["runs"] == ON_A_CLUSTER + LOCAL, tally
    assert tally["faults"] >= tally["runs"]
    assert {name: tally[name] for name in MUST_BE_0} == dict.fromkeys(MUST_BE_0, 0), tally["notes"]
