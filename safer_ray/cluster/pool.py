"""A pool of equal actors: as many as are wanted, the least loaded first, the lost replaced, refit before service."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.exceptions import RayError

from safer_ray.cluster.actors import answer
from safer_ray.cluster.replica import DEAD, OUT_OF_REACH, Patience, Replica, ReplicaLost
from safer_ray.core.replicas import COUNTED, PoolStatus, ReplicaState, ReplicaStatus, surplus
from safer_ray.core.scaling import RateMeter
from safer_ray.errors import ClusterError, SaferRayError, SamplerError

logger = logging.getLogger(__name__)
_RETRY_S = 30.0
"""A replica that could not join is asked for again after this long."""
_LOSSES_IN_A_ROW = 3
"""Besides one per replica wanted: so many may be lost without an answer in between before no more are started."""
_REMEMBERED = 16


@dataclass(slots=True, eq=False)
class Pool:
    """Equal replicas. ``create`` places one and makes its actor, ``fit`` prepares it before its first call."""

    role: str
    create: Callable[[Replica], Awaitable[None]]
    fit: Callable[[Replica], Awaitable[None]]
    patience: Patience
    replicas: list[Replica] = field(default_factory=list)
    past: deque[Replica] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    wanted: int = 0
    waiting: int = 0
    """Calls for which no replica is free."""
    answered: int = 0
    restarts: int = 0
    closing: bool = False
    """Set before the end: from then on nobody is replaced."""
    changed_at: float = 0.0
    """When ``wanted`` was last changed, and when the last call ended (the loop's time)."""
    idle_since: float = 0.0
    meter: RateMeter = field(default_factory=RateMeter)
    _made: int = 0
    _losses: int = 0
    _why_fewer: SaferRayError | None = None
    _retry_at: float = 0.0
    _free: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # ---- as many as are wanted ----

    async def start(self, count: int) -> None:
        """Ask for ``count`` replicas and wait until the first serves; the others join when they can."""
        self.scale(count)
        if count:
            await self.until_one_serves()
        self.idle_since = _now()

    async def until_one_serves(self) -> None:
        """Wait until a replica takes requests.

        Raises:
            SaferRayError: if none does and none is about to; what the last one failed of.
        """
        async with self._free:
            await self._free.wait_for(lambda: self.serving() or self._hopeless())
        if not self.serving():
            raise self._why_fewer or ClusterError(f"{self.role}: none could be started; see their logs")

    def scale(self, count: int) -> None:
        """Want ``count`` replicas from now on: start what is missing, drain what is too many."""
        if count != self.wanted:
            logger.info("scaling role=%s from=%d to=%d", self.role, self.wanted, count)
            self.changed_at = _now()
        self.wanted = count
        self.reconcile()

    def reconcile(self) -> None:
        """Start what is missing and drain what is too many. Called every second, and after every change."""
        if self.closing:
            return
        by_name = {replica.name: replica for replica in self.replicas}
        states = {name: (replica.state, replica.in_flight) for name, replica in by_name.items()}
        for name in surplus(states, self.wanted):
            self._drain(by_name[name])
        missing = self.wanted - sum(state in COUNTED for state, _ in states.values())
        if missing > 0 and _now() >= self._retry_at:
            for _ in range(missing):
                self._join()

    def _join(self) -> None:
        self._made += 1
        gone = asyncio.get_running_loop().create_future()
        replica = Replica(name=f"{self.role}-{self._made}", role=self.role, gone=gone)
        self.replicas.append(replica)
        replica.joining = self._spawn(self._bring_up(replica))

    async def _bring_up(self, replica: Replica) -> None:
        try:
            await self._start_one(replica)
        except (RayError, ReplicaLost) as exc:
            # Its process or its node died: no reason why the next one should not start.
            self.lose(replica, f"died while it started ({type(exc).__name__})", exc)
        except (SaferRayError, TimeoutError) as exc:
            why = exc if isinstance(exc, SaferRayError) else ClusterError(f"{exc}; see its log")
            logger.warning("not joined replica=%s reason=%s", replica.name, why)
            self._why_fewer, self._retry_at = why, _now() + _RETRY_S
            self._bury(replica, str(why))
        except asyncio.CancelledError:
            self._bury(replica, "not wanted any more")
            raise
        finally:
            await self._tell()

    async def _start_one(self, replica: Replica) -> None:
        await self.create(replica)
        try:
            replica.node = await replica.wait(replica.actor.ready.remote(), self.patience.start_s)
        except TimeoutError as exc:
            raise ClusterError(
                f"{replica.name}: not up after {self.patience.start_s:.0f} s; see its log or raise start_deadline_s"
            ) from exc
        replica.go(ReplicaState.REFITTING)
        await self.fit(replica)
        # Before anything else can run: whoever works on each replica must not miss one that was just made fit.
        self.serve(replica)

    def serve(self, replica: Replica) -> None:
        """Let a refitted replica take requests, unless it is leaving or lost by now."""
        if replica.state is ReplicaState.REFITTING:
            replica.go(ReplicaState.SERVING)
            replica.heard_at = _now()
            self._why_fewer = None
            self._spawn(self._tell())

    def _drain(self, replica: Replica) -> None:
        replica.go(ReplicaState.DRAINING)
        if replica.joining is not None and not replica.joining.done():
            replica.joining.cancel()
        else:
            self._spawn(self._see_off(replica))

    async def _see_off(self, replica: Replica) -> None:
        """Let the calls in flight end, then end the replica."""
        try:
            async with asyncio.timeout(self.patience.call_s), self._free:
                await self._free.wait_for(lambda: not replica.in_flight)
            await asyncio.wait_for(answer(replica.actor.close.remote()), self.patience.probe_s)
        except (TimeoutError, SaferRayError, RayError) as exc:
            logger.warning("drained without a goodbye replica=%s reason=%s", replica.name, _reason(exc))
        self._bury(replica, "drained")

    def _bury(self, replica: Replica, reason: str, cause: BaseException | None = None) -> None:
        if replica.state is ReplicaState.GONE:
            return
        if replica.state is not ReplicaState.DRAINING:
            replica.go(ReplicaState.DEAD)
        replica.end(reason, cause)
        self.replicas.remove(replica)
        self.past.append(replica)

    def lose(self, replica: Replica, reason: str, cause: BaseException | None = None) -> None:
        """Give a replica up: kill what is left of it, end the calls it has, and start another in its place."""
        if replica.state in (ReplicaState.DEAD, ReplicaState.GONE):
            return
        replaced = replica.state in COUNTED
        self._bury(replica, reason, cause)
        logger.warning("lost replica=%s node=%s reason=%s", replica.name, replica.node[:8], reason)
        self._losses += 1
        if replaced and not self.closing:
            self.restarts += 1
            self._retry_at = 0.0  # a start that failed is no reason to do without one that ran
            if self._losses > _LOSSES_IN_A_ROW + self.wanted:
                self._why_fewer = ClusterError(
                    f"{self.role}: {self._losses} were lost in a row without an answer, the last, {replica.name}, "
                    f"because {reason}; see their logs, then resume the run"
                )
                self._retry_at = _now() + _RETRY_S
            self.reconcile()
        self._spawn(self._tell())

    # ---- calls ----

    @asynccontextmanager
    async def use(self, *, alone: bool = False) -> AsyncIterator[Replica]:
        """Lend the least loaded serving replica for one request; ``alone``: to this request only.

        Raises:
            ReplicaLost: if it was lost meanwhile; it is replaced.
        """
        replica = await self._lend(alone)
        try:
            yield replica
        except DEAD as exc:
            self.lose(replica, "its process died", exc)
            raise replica.loss() from exc
        except OUT_OF_REACH as exc:
            self.suspect(replica, "out of reach")
            raise ReplicaLost(replica.name, "out of reach", alone=False, blameless=True) from exc
        except TimeoutError as exc:
            self.suspect(replica, str(exc))
            raise
        except SamplerError:
            # Either the request's fault or the engine's: an engine that is broken would fail everything at once.
            await self.check(replica)
            if replica.gone.done():
                raise replica.loss() from None
            raise
        else:
            replica.answered += 1
            self.answered += 1
            self._losses = 0
            replica.heard_at = _now()
        finally:
            replica.in_flight -= 1
            replica.reserved = replica.reserved and not alone
            self.idle_since = _now()
            await self._tell()

    async def _lend(self, alone: bool) -> Replica:
        self.waiting += 1
        try:
            async with self._free:
                while True:
                    await self._free.wait_for(lambda: self._open() or self._hopeless())
                    if not self._open():
                        raise ClusterError(
                            f"{self.role}: none is left, and no other could be started: {self._why_fewer}"
                        )
                    replica = min(self._open(), key=lambda replica: replica.in_flight)
                    if not alone:
                        break
                    replica.reserved = True
                    await self._free.wait_for(partial(self._settled, replica))
                    if self._takes(replica):
                        break
                    replica.reserved = False
                replica.in_flight += 1
                return replica
        finally:
            self.waiting -= 1

    def _takes(self, replica: Replica) -> bool:
        return replica.state is ReplicaState.SERVING

    def _settled(self, replica: Replica) -> bool:
        return not replica.in_flight or not self._takes(replica)

    def serving(self) -> list[Replica]:
        """Return the replicas that take requests."""
        return [replica for replica in self.replicas if self._takes(replica)]

    def _open(self) -> list[Replica]:
        return [replica for replica in self.serving() if not replica.reserved]

    def _hopeless(self) -> bool:
        """Whether nobody serves, nobody is about to, and it is known why."""
        here = any(replica.state in COUNTED for replica in self.replicas)
        return self.wanted > 0 and not here and self._why_fewer is not None

    # ---- liveness ----

    def look(self) -> None:
        """Ask whoever has been silent for too long for a sign of life, and note the rate. Called every second."""
        now = _now()
        self.meter.note(now, self.answered, sum(replica.in_flight > 0 for replica in self.serving()))
        for replica in self.serving():
            if now - replica.heard_at >= self.patience.probe_every_s and not replica.probing:
                self._spawn(self.check(replica))

    def suspect(self, replica: Replica, reason: str) -> None:
        """Give a replica no more requests until it has shown that it lives."""
        if replica.state is ReplicaState.SERVING:
            replica.go(ReplicaState.SUSPECT)
            logger.warning("suspect replica=%s node=%s reason=%s", replica.name, replica.node[:8], reason)
        if not replica.probing:
            self._spawn(self.check(replica))

    async def check(self, replica: Replica) -> None:
        """Have a replica generate one token: it serves on, or becomes suspect, or - suspect already - is lost."""
        replica.probing = True
        try:
            while replica.state in (ReplicaState.SERVING, ReplicaState.SUSPECT):
                asked_at = _now()
                try:
                    await replica.wait(replica.actor.alive.remote(), self.patience.probe_s)
                    replica.heard_at = _now()
                except (TimeoutError, *OUT_OF_REACH) as exc:
                    if replica.heard_at < asked_at:  # else it was busy with what it had been asked before
                        if replica.state is ReplicaState.SUSPECT:
                            self.lose(replica, f"it brought no token within twice {self.patience.probe_s:.0f} s", exc)
                        self.suspect(replica, _reason(exc))
                except (SaferRayError, RayError) as exc:
                    self.lose(replica, f"asked for one token: {_reason(exc)}", exc)
                except ReplicaLost:
                    return
                if replica.heard_at >= asked_at:
                    await self._trust(replica)
                    return
        finally:
            replica.probing = False

    async def _trust(self, replica: Replica) -> None:
        """Let a replica that has answered go on; one that was suspect may have missed new weights."""
        if replica.state is ReplicaState.SUSPECT:
            replica.go(ReplicaState.REFITTING)
            with suppress(SaferRayError):  # it is lost then, with the reason in the log
                await self.refit(replica, self.fit)

    async def refit(self, replica: Replica, fit: Callable[[Replica], Awaitable[None]]) -> None:
        """Run ``fit`` on a refitting replica and let it serve; one that fails is lost.

        Raises:
            SaferRayError: what it failed of, once it is lost.
        """
        try:
            await fit(replica)
        except (RayError, ReplicaLost, TimeoutError) as exc:
            self.lose(replica, f"while it loaded weights: {_reason(exc)}", exc)
        except SaferRayError as exc:
            self.lose(replica, f"while it loaded weights: {exc}")
            raise
        self.serve(replica)

    async def each(self, call: Callable[[Replica], Awaitable[Any]]) -> list[Any]:
        """Run ``call`` on every serving replica at once; the lost answer nothing."""

        async def one(replica: Replica) -> list[Any]:
            try:
                return [await call(replica)]
            except (*DEAD, ReplicaLost) as exc:
                self.lose(replica, "its process died", exc)
            except (*OUT_OF_REACH, TimeoutError) as exc:
                self.suspect(replica, _reason(exc))
            return []

        return [found for part in await asyncio.gather(*map(one, self.serving())) for found in part]

    # ---- figures and the end ----

    def statuses(self) -> list[ReplicaStatus]:
        """Return every replica, and the last of those that are gone, as a status page shows them."""
        return [replica.status() for replica in [*self.past, *self.replicas]]

    def status(self) -> PoolStatus:
        """Return the pool as a status page shows it."""
        return PoolStatus(
            role=self.role,
            wanted=self.wanted,
            waiting=self.waiting,
            in_flight=self.in_flight,
            answers_per_s=self.meter.answers_per_s,
            restarts=self.restarts,
        )

    @property
    def in_flight(self) -> int:
        """Calls that run on a replica."""
        return sum(replica.in_flight for replica in list(self.replicas))

    def stop(self) -> None:
        """Kill every replica and give its resources back."""
        self.closing = True
        for replica in list(self.replicas):
            self._bury(replica, "the run ended")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell(self) -> None:
        async with self._free:
            self._free.notify_all()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    """Run what nobody waits for: what it fails of is in the state of its replica by then, and in the log."""
    try:
        await work
    except SaferRayError as exc:
        logger.warning("in the background: %s", exc)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _reason(exc: BaseException) -> str:
    return str(exc).splitlines()[0] if str(exc) and not isinstance(exc, RayError) else type(exc).__name__
