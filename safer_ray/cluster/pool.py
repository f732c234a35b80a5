"""A pool of equal actors: least-loaded dispatch, replacement of the dead, refit before service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.placement_group import PlacementGroup

from safer_ray.cluster.actors import answer
from safer_ray.cluster.placement import release
from safer_ray.core.replicas import PoolStatus, ReplicaState, ReplicaStatus
from safer_ray.errors import ClusterError, SaferRayError

logger = logging.getLogger(__name__)
GONE = (ActorDiedError, ActorUnavailableError)


@dataclass(slots=True, eq=False)
class Replica:
    """One actor of a pool, its placement group, and how many calls it is running."""

    name: str
    actor: Any
    group: PlacementGroup | None
    node: str = ""
    in_flight: int = 0
    serving: bool = False


@dataclass(slots=True)
class Pool:
    """Equal replicas; ``create(name)`` makes one, ``fit(replica)`` prepares it before its first call."""

    role: str
    create: Callable[[str], Replica]
    fit: Callable[[Replica], Awaitable[None]]
    start_deadline_s: float
    max_restarts: int = 3
    replicas: list[Replica] = field(default_factory=list)
    restarts: int = 0
    closing: bool = False
    """Set before the end: from then on nobody is replaced."""
    _made: int = 0
    _not_replaced: str = ""
    _free: asyncio.Condition = field(default_factory=asyncio.Condition)
    _mending: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, count: int) -> None:
        """Bring up ``count`` replicas side by side.

        Raises:
            ClusterError: if one is not up by the deadline.
        """
        await asyncio.gather(*(self._add() for _ in range(count)))

    async def _add(self) -> None:
        self._made += 1
        # Placement waits block, so they run beside the loop.
        replica = await asyncio.to_thread(self.create, f"{self.role}-{self._made}")
        self.replicas.append(replica)
        try:
            replica.node = await asyncio.wait_for(answer(replica.actor.ready.remote()), self.start_deadline_s)
        except TimeoutError as exc:
            raise ClusterError(
                f"{replica.name}: not up after {self.start_deadline_s:.0f} s; see its log or raise start_deadline_s"
            ) from exc
        except RayError as exc:
            raise ClusterError(f"{replica.name}: died while it started ({type(exc).__name__}); see its log") from exc
        await self.fit(replica)
        # Before anything else can run: whoever works on each replica must not miss one that was just made fit.
        replica.serving = True
        logger.info("serving role=%s replica=%s node=%s", self.role, replica.name, replica.node[:8])
        async with self._free:
            self._free.notify_all()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Replica]:
        """Lend the least loaded serving replica for one call; a replica that dies meanwhile is replaced."""
        async with self._free:
            await self._free.wait_for(lambda: self._serving() or self._not_replaced)
            if not self._serving():
                raise ClusterError(f"{self.role}: none is left, and a lost one was not replaced: {self._not_replaced}")
            replica = min(self._serving(), key=lambda replica: replica.in_flight)
            replica.in_flight += 1
        try:
            yield replica
        except GONE:
            self._replace(replica)
            raise
        finally:
            replica.in_flight -= 1

    def _serving(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.serving]

    def _replace(self, dead: Replica) -> None:
        if dead not in self.replicas or self.closing:
            return
        self.replicas.remove(dead)
        release(dead.group)
        self.restarts += 1
        logger.warning("lost role=%s replica=%s restarts=%d", self.role, dead.name, self.restarts)
        if self.restarts <= self.max_restarts:
            task = asyncio.create_task(self._mend())
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
        elif not self.replicas:
            raise ClusterError(f"{self.role}: every replica died, {self.restarts} in all; see their logs for why")

    async def _mend(self) -> None:
        """Add a replica for a lost one. If that fails the others go on; without others, ``use`` says why."""
        try:
            await self._add()
        except (SaferRayError, RayError) as exc:
            logger.warning("not replaced role=%s reason=%s", self.role, exc)
            async with self._free:
                self._not_replaced = str(exc)
                self._free.notify_all()

    async def each(self, call: Callable[[Replica], Awaitable[Any]]) -> list[Any]:
        """Run ``call`` on every serving replica at once; the dead answer nothing, and are replaced."""

        async def one(replica: Replica) -> list[Any]:
            try:
                return [await call(replica)]
            except GONE:
                self._replace(replica)
                return []

        return [found for part in await asyncio.gather(*map(one, self._serving())) for found in part]

    def statuses(self) -> list[ReplicaStatus]:
        """Return every replica as a status page shows it."""
        return [
            ReplicaStatus(
                name=replica.name,
                role=self.role,
                state=ReplicaState.SERVING if replica.serving else ReplicaState.JOINING,
                policy_version=None,
                in_flight=replica.in_flight,
                answered=0,
                node=replica.node,
            )
            for replica in list(self.replicas)
        ]

    def status(self) -> PoolStatus:
        """Return the pool as a status page shows it."""
        in_flight = sum(replica.in_flight for replica in list(self.replicas))
        return PoolStatus(
            role=self.role,
            wanted=len(self.replicas),
            waiting=0,
            in_flight=in_flight,
            answers_per_s=0.0,
            restarts=self.restarts,
        )

    def stop(self) -> None:
        """Kill every replica and give its resources back."""
        for replica in self.replicas:
            ray.kill(replica.actor)
            release(replica.group)
        self.replicas.clear()
