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
from safer_ray.errors import LearnerError
from safer_ray.records import WeightsRef

_GRACE_S = 5.0
"""When a rank dies, its peers fail in their collective first; so long its own end is waited for."""


class RankLost(Exception):
    """A rank died or did not answer: what the group holds is lost with it."""


class LearnerGroup:
    """``ranks`` learner actors in one placement group. A lost rank ends the group: another one must replay."""

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
        placed = await place("learner", ask, strategy="PACK", deadline_s=start_deadline_s)
        actors = [
            LearnerActor.options(**actor_options(placed, ask, rank, threads=threads)).remote()  # type: ignore[attr-defined]
            for rank in range(ask.workers)
        ]
        group = cls(actors, placed, start_deadline_s)
        try:
            [master] = await group._all([actors[0].address.remote()], "meeting point")
            starts = [actor.start.remote(spec, rank, ask.workers, master) for rank, actor in enumerate(actors)]
            group.node = (await group._all(starts, "start"))[0]
        except BaseException:
            group.stop()
            raise
        group._call_deadline_s = call_deadline_s
        return group

    async def _all(self, refs: list[Any], what: str) -> list[Any]:
        """Return every rank's answer.

        Raises:
            SaferRayError: what a rank failed of by itself.
            RankLost: if a rank died or did not answer by the deadline, whatever its peers made of that.
        """
        calls = [asyncio.ensure_future(answer(ref)) for ref in refs]
        try:
            await asyncio.wait(calls, timeout=self._call_deadline_s, return_when=asyncio.FIRST_EXCEPTION)
            failed = [call for call in calls if call.done() and call.exception()]
            if failed:
                await asyncio.wait(calls, timeout=_GRACE_S)
            self._require_all_ranks(calls, what, timed_out=not failed)
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()

    def _require_all_ranks(self, calls: Sequence[asyncio.Future[Any]], what: str, *, timed_out: bool) -> None:
        errors = {rank: call.exception() for rank, call in enumerate(calls) if call.done() and call.exception()}
        died = [rank for rank, error in errors.items() if isinstance(error, ray.exceptions.RayError)]
        if died:
            kind = type(errors[died[0]]).__name__
            raise RankLost(f"learner {what}: lost {_ranks(died)} of {len(self._actors)} ({kind})")
        if errors:
            first = next(iter(errors.values()))
            assert first is not None
            raise first
        silent = [rank for rank, call in enumerate(calls) if not call.done()]
        if silent and timed_out:
            waiting = [rank for rank in range(len(calls)) if rank not in silent]
            who = f"the driver and {_ranks(waiting)}" if waiting else "the driver"
            raise RankLost(
                f"learner {what}: {who} waited {self._call_deadline_s:.0f} s for {_ranks(silent)}, which did not answer"
            )

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


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
