"""Exploring ahead on a real local cluster: rounds really overlap, and nothing is staler than it may be."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import events_of, published_versions, tiny_job

from safer_ray import specs
from safer_ray.backends.fake import FakeLearnerSpec
from safer_ray.cluster.learner_group import LearnerGroup
from safer_ray.cluster.training import LearnerPlan, Training
from safer_ray.core.events import Dropped, Event, Judged, Lost, Published, Stepped
from safer_ray.core.loop import LoopState
from safer_ray.core.plan import Phase
from safer_ray.records import Outcome, Rollout, StepPair, WeightsRef
from safer_ray.run import execute
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table


def unwatched(state: LoopState, event: Event, at: float) -> None:
    """Look at nothing."""


def place_of(events: list[Event], kind: type[Event], phase: str) -> int:
    """Return where the first event of a kind and phase stands in the journal."""
    return next(at for at, event in enumerate(events) if isinstance(event, kind) and event.phase == phase)


@pytest.mark.parametrize(("policy", "lag"), [("one_round_ahead", 1), ("fully_async", 2)])
def test_a_round_is_explored_while_the_one_before_trains_and_nothing_is_staler_than_the_lag(
    local_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, lag: int
) -> None:
    monkeypatch.setattr(specs, "FakeLearnerSpec", partial(FakeLearnerSpec, delay_s=0.05))
    prep, run_dir = tiny_job(f"loop.policy={policy}", "erpo.rounds=3"), RunDir(tmp_path)
    execute(prep, run_dir, observe=unwatched)
    events = events_of(run_dir)
    assert place_of(events, Judged, "explore-2") < place_of(events, Published, "publish-2")
    assert place_of(events, Stepped, "erpo-1") < place_of(events, Published, "publish-2")
    assert published_versions(run_dir) == [1, 2, 3, 4]
    assert [event for event in events if isinstance(event, Dropped | Lost)] == []
    ends = Counter((event.phase, event.item) for event in events if isinstance(event, Judged) and event.final)
    assert ends == Counter((phase.name, item) for phase in prep.phases for item in range(phase.items))
    ages = Counter[int]()
    for number in (1, 2, 3):
        pairs = from_table(read_table(run_dir.round(number) / "pairs.arrow"), StepPair)
        ages.update(number - pair.policy_version for pair in pairs)
        rollouts = from_table(read_table(run_dir.round(number) / "rollouts.arrow"), Rollout)
        asked = [prompt.prompt_id for prompt in prep.by_phase[f"explore-{number}"]]
        first = Counter(rollout.prompt_id for rollout in rollouts if rollout.first_step == 0)
        assert first == dict.fromkeys(asked, prep.config.erpo.siblings)
    assert ages[1] + ages[2] > 0
    assert set(ages) <= set(range(lag + 1))
    for version, checkpoint in enumerate(("base", "sft", "erpo-1", "erpo-2", "erpo-3")):
        outcomes = from_table(read_table(run_dir.evaluation(checkpoint)), Outcome)
        assert {outcome.policy_version for outcome in outcomes} == {version}


class Group:
    """A learner group that only knows what it was built from."""

    node = ""

    def __init__(self, built_from: str, log: list[str]) -> None:
        self.built_from = built_from
        self.log = log

    async def publish(self, version: int) -> WeightsRef:
        self.log.append(f"{self.built_from} publishes {version}")
        return WeightsRef(version=version, uri=f"fake://{self.built_from}", checksum="c")

    async def close(self) -> None:
        self.log.append(f"{self.built_from} closes")

    def stop(self) -> None:
        self.log.append(f"{self.built_from} stops")


def test_a_run_that_stopped_between_training_and_publishing_serves_what_it_served_until_it_publishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The learner of the resumed run is a stage further than the weights its samplers have to go on with."""
    log = list[str]()

    async def start(spec: str, *args: object, **kwargs: object) -> Group:
        return Group(spec, log)

    monkeypatch.setattr(LearnerGroup, "start", start)
    plan: Any = LearnerPlan(after=lambda phase: phase.name if phase else "erpo-1", ask=None, threads=1, restarts=0)
    patience: Any = SimpleNamespace(start_s=1.0, call_s=1.0)
    sft = Phase(name="sft", kind="sft", version=1, checkpoint="sft")

    async def restored(group: LearnerGroup) -> None:
        raise AssertionError("no rank was lost")

    async def resumed() -> None:
        training = Training(plan, patience, restored)
        assert (await training.run_behind(sft, lambda group: group.publish(1))).uri == "fake://sft"
        assert training.trained is None
        assert (await training.run(lambda group: group.publish(2))).uri == "fake://erpo-1"
        await training.run(lambda group: group.publish(3))

    asyncio.run(resumed())
    assert log == ["sft publishes 1", "sft closes", "sft stops", "erpo-1 publishes 2", "erpo-1 publishes 3"]
