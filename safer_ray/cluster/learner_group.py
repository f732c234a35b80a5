"""The learner ranks as one: placed together, given the same calls in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from safer_ray.backends.base import LearnerSpec, StepReport, TrainTask
from safer_ray.cluster.actors import LearnerActor, answer
from safer_ray.cluster.placement import Ask, actor_options, place, release
from safer_ray.errors import LearnerError, SaferRayError
from safer_ray.records import WeightsRef


class LearnerGroup:
    """``ranks`` learner actors in one placement group. A lost rank is an error: training cannot go on."""

    def __init__(self, actors: Sequence[Any], group: PlacementGroup | None, call_deadline_s: float) -> None:
        self._actors = actors
        self._group = group
        self._call_deadline_s = call_deadline_s
        self.node = ""

    @classmethod
    async def start(
        cls, spec: LearnerSpec, ask: Ask, *, threads: int, start_deadline_s: float, call_deadline_s: float
    ) -> LearnerGroup:
        """Place and build ``ask.workers`` ranks."""
        placed = await asyncio.to_thread(place, "learner", ask, strategy="PACK", deadline_s=start_deadline_s)
        actors = [
            LearnerActor.options(**actor_options(placed, ask, rank, threads=threads)).remote()  # type: ignore[attr-defined]
            for rank in range(ask.workers)
        ]
        group = cls(actors, placed, start_deadline_s)
        try:
            master = await actors[0].address.remote()
            starts = [actor.start.remote(spec, rank, ask.workers, master) for rank, actor in enumerate(actors)]
            group.node = (await group._all(starts, "start"))[0]
        except BaseException:
            group.stop()
            raise
        group._call_deadline_s = call_deadline_s
        return group

    async def _all(self, refs: list[Any], what: str) -> list[Any]:
        try:
            return list(await asyncio.wait_for(asyncio.gather(*map(answer, refs)), self._call_deadline_s))
        except TimeoutError as exc:
            raise LearnerError(
                f"learner {what}: not every rank answered in {self._call_deadline_s:.0f} s; see the ranks' logs"
            ) from exc
        except SaferRayError:
            raise
        except ray.exceptions.RayError as exc:
            raise LearnerError(f"learner {what}: a rank was lost ({type(exc).__name__}); resume the run") from exc

    async def begin(self, task: TrainTask) -> int:
        """Plan a stage on every rank; return its optimiser steps."""
        return int((await self._all([actor.begin.remote(task) for actor in self._actors], task.stage))[0])

    async def step(self) -> StepReport:
        """Run one optimiser step on every rank; return rank 0's report."""
        report: StepReport = (await self._all([actor.step.remote() for actor in self._actors], "step"))[0]
        return report

    async def publish(self, version: int) -> WeightsRef:
        """Gather the weights once, for any number of samplers."""
        refs = await self._all([actor.publish.remote(version) for actor in self._actors], f"publish {version}")
        if refs[0] is None:
            raise LearnerError(f"learner publish {version}: rank 0 returned no weights")
        ref: WeightsRef = refs[0]
        return ref

    def payload(self, ref: WeightsRef) -> Any:
        """Return an object reference to the bytes of published weights."""
        return self._actors[0].payload.remote(ref)

    async def save(self, path: str) -> None:
        """Write a checkpoint."""
        await self._all([actor.save.remote(path) for actor in self._actors], "save")

    async def close(self) -> None:
        """Let the ranks leave their process group."""
        await self._all([actor.close.remote() for actor in self._actors], "close")

    def stop(self) -> None:
        """Kill the ranks and give their resources back."""
        for actor in self._actors:
            ray.kill(actor)
        release(self._group)
