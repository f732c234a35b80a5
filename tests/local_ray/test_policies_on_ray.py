"""Exploring ahead on the Ray side: a run that stopped while older weights than the newest trained still served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from safer_ray.cluster.learner_group import LearnerGroup
from safer_ray.cluster.training import LearnerPlan, Training
from safer_ray.core.plan import Phase
from safer_ray.records import WeightsRef


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
