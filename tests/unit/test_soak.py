"""The soak's simulated samplers are a world like any other: a small run over them ends, under every policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import Watch, plan_of
from benchmarks.soak_world import SimulatedSamplers
from safer_ray.core.loop import LoopState, fold
from safer_ray.core.policies import POLICIES, Limits
from safer_ray.driver import Pace, drive
from safer_ray.journal import JOURNAL, History, Journal


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_small_soak_ends_and_its_journal_folds_to_the_same_items(tmp_path: Path, policy: str) -> None:
    state, watch = LoopState.of(plan_of(500, policy)), Watch()
    world, journal = SimulatedSamplers(20, levels=2, siblings=4), Journal.create(tmp_path / "run", {"name": "soak"})
    pace = Pace(policy=POLICIES[policy], limits=Limits(max_in_flight=40, max_tries=3), silence_s=0.0)
    drive(state, world, journal, pace=pace, observe=watch.look)
    journal.close()
    assert state.lost_items == 0
    assert watch.events >= 500 * 2 * 2
    assert world.now_s > 0
    again = fold(plan_of(500, policy), History(tmp_path / "run" / JOURNAL).events())
    assert [bytes(p.done) for p in again.phases] == [bytes(p.done) for p in state.phases]
    assert again.current is None
