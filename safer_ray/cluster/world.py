"""The Ray world: actions become calls on sampler, judge and learner actors; answers become events.

Rollouts and judged tables stay in the object store and travel between actors as references; the driver sees
ids, counts and prefixes. An asyncio loop in its own thread waits for everything at once, so thousands of
calls in flight cost no thread each.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray.exceptions import RayError

from safer_ray.backends.base import LearnerSpec, SamplerSpec
from safer_ray.backends.grader import GraderSpec
from safer_ray.backends.world import Scene, judged_event, sampled_event, step_facts
from safer_ray.cluster.actors import GraderActor, SamplerActor, answer
from safer_ray.cluster.learner_group import LearnerGroup
from safer_ray.cluster.placement import Ask, actor_options, place
from safer_ray.cluster.pool import Pool, Replica
from safer_ray.core.events import (
    Action,
    Drop,
    Dropped,
    Event,
    Judge,
    Judged,
    Lost,
    Publish,
    Published,
    Sample,
    Sampled,
    Seal,
    Sealed,
    Stepped,
    Train,
    Trained,
)
from safer_ray.core.replicas import PoolStatus, ReplicaStatus
from safer_ray.errors import (
    ClusterError,
    DataError,
    JudgeError,
    SaferRayError,
    SamplerError,
    TeacherError,
    WeightsError,
    boundary,
)
from safer_ray.records import WeightsRef
from safer_ray.tables import to_table

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
ITEM_FAULTS = (SamplerError, JudgeError, TeacherError, DataError, TimeoutError, RayError)
"""What costs one item another try, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The workers of a run: what they are built from, what each asks for, how many there are.

    ``learner`` is None in runs that only sample and judge.
    """

    sampler: SamplerSpec
    sampler_ask: Ask
    samplers: int
    sampler_threads: int
    grader: GraderSpec
    grader_ask: Ask
    graders: int
    grader_threads: int
    learner: LearnerSpec | None
    learner_ask: Ask
    learner_threads: int
    start_deadline_s: float
    call_deadline_s: float


@dataclass(slots=True)
class Kept:
    """What an open item has gathered so far: references to tables, and counts."""

    rollouts: Any = None
    tables: list[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class RayWorld:
    """Workers on a Ray cluster. Start it inside a ray session; close it before the session ends."""

    def __init__(self, scene: Scene, fleet: Fleet, *, restore_version: int = 0) -> None:
        self._scene = scene
        self._fleet = fleet
        self._events: queue.Queue[Event | SaferRayError] = queue.Queue()
        self._items: dict[tuple[str, int], Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._weights: WeightsRef | None = None
        self._learner: LearnerGroup | None = None
        self._learner_busy = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray-world", daemon=True)
        self._thread.start()
        self._samplers = Pool("sampler", self._new_sampler, self._refit, fleet.start_deadline_s)
        self._graders = Pool("judge", self._new_grader, _as_it_is, fleet.start_deadline_s)
        try:
            self._run(self._start(restore_version))
        except BaseException:
            self.close()
            raise

    # ---- workers ----

    async def _start(self, restore_version: int) -> None:
        """Bring everything up. A resumed run publishes its last version first: samplers start refitted."""
        fleet = self._fleet
        if restore_version:
            self._weights = await (await self._learners()).publish(restore_version)
        await asyncio.gather(self._samplers.start(fleet.samplers), self._graders.start(fleet.graders))

    def _new_sampler(self, name: str) -> Replica:
        fleet = self._fleet
        group = place(name, fleet.sampler_ask, strategy="STRICT_PACK", deadline_s=fleet.start_deadline_s)
        options = actor_options(group, fleet.sampler_ask, threads=fleet.sampler_threads)
        actor = SamplerActor.options(**options, max_concurrency=1024).remote(fleet.sampler)  # type: ignore[attr-defined]
        return Replica(name=name, actor=actor, group=group)

    def _new_grader(self, name: str) -> Replica:
        fleet = self._fleet
        group = place(name, fleet.grader_ask, strategy="PACK", deadline_s=fleet.start_deadline_s)
        options = actor_options(group, fleet.grader_ask, threads=1)
        actor = GraderActor.options(**options, max_concurrency=fleet.grader_threads).remote(fleet.grader)  # type: ignore[attr-defined]
        return Replica(name=name, actor=actor, group=group)

    async def _refit(self, replica: Replica) -> None:
        """Bring a new sampler to the published weights before its first request."""
        async with self._loading:
            if self._weights is not None:
                await self._load(replica, self._weights, await self._payload_for([replica], self._weights))

    async def _learners(self) -> LearnerGroup:
        """Start the learner when it is first needed: until then its cores serve the samplers."""
        async with self._learner_busy:
            fleet = self._fleet
            if self._learner is None:
                if fleet.learner is None:
                    raise ClusterError("world: this run has no learner, but a training phase asks for one")
                self._learner = await LearnerGroup.start(
                    fleet.learner,
                    fleet.learner_ask,
                    threads=fleet.learner_threads,
                    start_deadline_s=fleet.start_deadline_s,
                    call_deadline_s=fleet.call_deadline_s,
                )
            return self._learner

    # ---- actions and events ----

    def submit(self, action: Action) -> None:
        """Start an action; its event comes later."""
        asyncio.run_coroutine_threadsafe(self._guarded(action), self._loop)

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next event, or None after ``timeout_s``; raise what the run cannot go on without."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, SaferRayError):
            raise event
        return event

    async def _guarded(self, action: Action) -> None:
        """Execute ``action``; what fails becomes an event, or the error that ends the run."""
        try:
            with boundary(ClusterError, f"{type(action).__name__} of {action.phase}"):
                await self._attempt(action)
        except SaferRayError as exc:
            self._events.put(exc)

    async def _attempt(self, action: Action) -> None:
        try:
            await self._execute(action)
        except ITEM_FAULTS as exc:
            if not isinstance(action, Sample | Judge):
                raise
            reason = str(exc) or type(exc).__name__
            self._events.put(Lost(phase=action.phase, item=action.item, attempt=action.attempt, reason=reason))

    async def _execute(self, action: Action) -> None:
        match action:
            case Sample():
                self._events.put(await self._sample(action))
            case Judge():
                self._events.put(await self._judge(action))
            case Drop():
                self._items.pop((action.phase, action.item), None)
                self._scene.book.forget(action.phase, action.item)
                self._events.put(Dropped(phase=action.phase, item=action.item, reason=action.reason))
            case Seal():
                self._events.put(await self._seal(action))
            case Train():
                self._events.put(await self._train(action))
            case Publish():
                self._events.put(await self._publish(action))

    async def _wait(self, ref: Any) -> Any:
        return await asyncio.wait_for(answer(ref), self._fleet.call_deadline_s)

    async def _sample(self, action: Sample) -> Sampled:
        if action.level == 0:
            self._items[(action.phase, action.item)] = Kept()
        kept = self._items[(action.phase, action.item)]
        request = self._scene.request(action)
        if request is None:
            kept.rollouts = None
            return sampled_event(action, self._weights.version if self._weights else 0)
        table = to_table([request], type(request))
        async with self._samplers.use() as replica:
            kept.rollouts = replica.actor.sample.remote(table)
            # Waiting tells that the rollouts exist; only the version is looked at here.
            version, _ = await self._wait(kept.rollouts)
        return sampled_event(action, version)

    async def _judge(self, action: Judge) -> Judged:
        kept, phase = self._items[(action.phase, action.item)], self._scene.book.phase(action.phase)
        prompt = self._scene.book.prompt(action)
        async with self._graders.use() as replica:
            actor = replica.actor
            if phase.kind == "explore":
                task = self._scene.level_task(action)
                reply_ref, tables = actor.level.options(num_returns=2).remote(task, kept.rollouts)
                event = self._scene.judged(action, await self._wait(reply_ref))
            else:
                if phase.kind == "evaluate":
                    refs = actor.outcome.options(num_returns=2).remote(prompt, kept.rollouts, phase.checkpoint)
                else:
                    refs = actor.teach.options(num_returns=2).remote(prompt, kept.rollouts)
                tables = refs[1]
                event = judged_event(action, final=True, counts=await self._wait(refs[0]))
            kept.tables.append(tables)
            for name, count in event.counts.items():
                kept.counts[name] = kept.counts.get(name, 0) + count
            if not event.final:
                return event
            path = str(self._scene.run_dir.shard(action.phase, action.item))
            await self._wait(actor.keep.remote(path, *kept.tables))
        del self._items[(action.phase, action.item)]
        return judged_event(action, final=True, counts=kept.counts)

    async def _seal(self, action: Seal) -> Sealed:
        begun = time.perf_counter()
        facts = await asyncio.to_thread(self._scene.seal, action.phase)
        return Sealed(phase=action.phase, facts=facts, wall_s=time.perf_counter() - begun)

    async def _train(self, action: Train) -> Trained:
        begun, learner = time.perf_counter(), await self._learners()
        task = self._scene.stage(action.phase)
        steps = await learner.begin(task) if task else 0
        for _ in range(steps):
            report = await learner.step()
            self._events.put(Stepped(phase=action.phase, facts=step_facts(report)))
        phase = self._scene.book.phase(action.phase)
        await learner.save(str(self._scene.run_dir.checkpoint(phase.checkpoint)))
        return Trained(phase=action.phase, facts={"steps": steps}, wall_s=time.perf_counter() - begun)

    # ---- weights ----

    async def _publish(self, action: Publish) -> Published:
        begun, learner = time.perf_counter(), await self._learners()
        ref = await learner.publish(action.version)
        gathered = time.perf_counter()
        async with self._loading:
            self._weights = ref  # what replaces a sampler lost meanwhile starts with these
            payload = await self._payload_for(self._samplers.replicas, ref)
            await self._samplers.each(lambda replica: self._load(replica, ref, payload))
        loaded = time.perf_counter()
        logger.info(
            "published version=%d bytes=%d gather_s=%.2f load_s=%.2f samplers=%d",
            ref.version, ref.nbytes, gathered - begun, loaded - gathered, len(self._samplers.replicas),
        )  # fmt: skip
        return Published(
            phase=action.phase,
            version=ref.version,
            checksum=ref.checksum,
            nbytes=ref.nbytes,
            wall_s=loaded - begun,
        )

    async def _payload_for(self, replicas: list[Replica], ref: WeightsRef) -> Any:
        """Return a reference to the bytes of ``ref`` if any replica is on another node than the publisher."""
        learner = self._learner
        reachable = learner is None or all(replica.node == learner.node for replica in replicas)
        if learner is None or reachable or not ref.uri.startswith("shm://"):
            return None
        return learner.payload(ref)

    async def _load(self, replica: Replica, ref: WeightsRef, payload: Any) -> None:
        near = self._learner is None or replica.node == self._learner.node
        got: WeightsRef = await self._wait(replica.actor.load_weights.remote(ref, None if near else payload))
        if (got.version, got.checksum) != (ref.version, ref.checksum):
            replica.serving = False
            raise WeightsError(
                f"{replica.name}: confirmed version {got.version} checksum {got.checksum[:12]}, but version "
                f"{ref.version} checksum {ref.checksum[:12]} was published; it does not serve"
            )

    # ---- figures and the end ----

    def facts(self) -> dict[str, Any]:
        """Return the samplers' counters, summed."""
        rows = self._run(self._samplers.each(lambda replica: self._wait(replica.actor.facts.remote())))
        total: dict[str, float] = {}
        for row in rows:
            for name, value in row.items():
                total[name] = total.get(name, 0) + value
        return {"sampler": total, "sampler_restarts": self._samplers.restarts}

    def replicas(self) -> list[ReplicaStatus]:
        """Return where every sampler and judge is in its life; from any thread, without asking them."""
        return [*self._samplers.statuses(), *self._graders.statuses()]

    def pools(self) -> list[PoolStatus]:
        """Return queue depths and rates, by role; from any thread, without asking anybody."""
        return [self._samplers.status(), self._graders.status()]

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Stop every worker and free shared memory. Safe to call twice."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._stop_workers())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            self._loop.close()

    async def _stop_workers(self) -> None:
        self._samplers.closing = self._graders.closing = True
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._learner is not None:
            await _quietly(self._learner.close(), 10.0)
            self._learner.stop()
        await _quietly(self._samplers.each(lambda replica: answer(replica.actor.close.remote())), 10.0)
        self._samplers.stop()
        self._graders.stop()


async def _quietly(work: Awaitable[Any], deadline_s: float) -> None:
    """Give goodbyes a moment: a worker that is gone or stuck is killed right after."""
    try:
        await asyncio.wait_for(work, deadline_s)
    except (TimeoutError, SaferRayError, RayError) as exc:
        logger.info("a worker did not say goodbye: %s", type(exc).__name__)


async def _as_it_is(replica: Replica) -> None:
    """A judge needs no preparation."""
