"""The learner of a run: started when it is first needed, started again from the last checkpoint when a rank is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import RayError

from safer_ray.backends.base import LearnerSpec
from safer_ray.cluster.learner_group import LearnerGroup, RankLost
from safer_ray.cluster.placement import Ask
from safer_ray.cluster.replica import Patience
from safer_ray.core.plan import Phase
from safer_ray.errors import ClusterError, LearnerError, SaferRayError
from safer_ray.records import WeightsRef

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_GOODBYE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """``after(phase)`` builds a rank from what ``phase`` trained, None: from what the run began with.

    ``restarts`` is how many times in one run a group that lost a rank is started again.
    """

    after: Callable[[Phase | None], LearnerSpec]
    ask: Ask
    threads: int
    restarts: int


class Training:
    """A learner group that outlives its ranks. ``trained`` is the phase whose checkpoint is the last on disk."""

    def __init__(
        self,
        plan: LearnerPlan | None,
        patience: Patience,
        restored: Callable[[LearnerGroup], Awaitable[None]],
    ) -> None:
        self._plan = plan
        self._patience = patience
        self._restored = restored
        self._group: LearnerGroup | None = None
        self._busy = asyncio.Lock()
        self.trained: Phase | None = None
        self.restarts = 0
        self._behind = False
        """Whether the group holds older weights than the learner had; it is replaced before anything else is asked."""

    async def run(self, work: Callable[[LearnerGroup], Awaitable[Result]]) -> Result:
        """Run ``work`` on the group; if a rank is lost meanwhile, once more from its beginning on a new group.

        Raises:
            LearnerError: if ranks were lost more often than the plan allows.
            SaferRayError: what the ranks fail of by themselves; that would only happen again.
        """
        async with self._busy:
            if self._behind:
                await self.close(_GOODBYE_S)
            while True:
                try:
                    return await work(await self._ready())
                except RankLost as exc:
                    self._count(exc)

    async def run_behind(self, phase: Phase, work: Callable[[LearnerGroup], Awaitable[Result]]) -> Result:
        """Run ``work`` on a group that is as ``phase`` left it, though the learner is further; it goes with the next.

        A run that explores ahead may have stopped while older weights than the newest trained ones still served.
        """
        ahead, self.trained = self.trained, phase
        try:
            return await self.run(work)
        finally:
            self.trained, self._behind = ahead, True

    def _count(self, exc: RankLost) -> None:
        allowed = self._plan.restarts if self._plan else 0
        self.stop()
        if self.restarts >= allowed:
            raise LearnerError(
                f"{exc}; the group was started again {self.restarts} times already; see the ranks' logs, "
                "then resume the run"
            ) from exc
        self.restarts += 1
        since = self.trained.checkpoint if self.trained else "the beginning"
        logger.warning("learner restart=%d of=%d from=%s reason=%s", self.restarts, allowed, since, exc)

    async def _ready(self) -> LearnerGroup:
        """Start the group when it is first needed: until then its cores serve the samplers."""
        if self._group is None:
            if self._plan is None:
                raise ClusterError("world: this run has no learner, but a training phase asks for one")
            self._group = await LearnerGroup.start(
                self._plan.after(self.trained),
                self._plan.ask,
                threads=self._plan.threads,
                start_deadline_s=self._patience.start_s,
                call_deadline_s=self._patience.call_s,
            )
            if self.restarts:
                await self._restored(self._group)
        return self._group

    @property
    def node(self) -> str:
        """The node of rank 0, "" while there is no group."""
        return self._group.node if self._group else ""

    def payload(self, ref: WeightsRef) -> Any:
        """Return an object reference to the bytes of published weights, None while there is no group."""
        return self._group.payload(ref) if self._group else None

    async def close(self, deadline_s: float) -> None:
        """Give the ranks a moment to leave their process group, then end them."""
        if self._group is not None:
            try:
                await asyncio.wait_for(self._group.close(), deadline_s)
            except (TimeoutError, RankLost, SaferRayError, RayError) as exc:
                logger.info("the learner did not say goodbye: %s", type(exc).__name__)
        self.stop()

    def stop(self) -> None:
        """Kill what is left of the group and give its resources back."""
        if self._group is not None:
            self._group.stop()
            self._group = None
        self._behind = False
