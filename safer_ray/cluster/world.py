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
from collections import Counter
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray.exceptions import RayError

from safer_ray.backends.base import SamplerSpec, sampler_facts
from safer_ray.backends.grader import GraderSpec
from safer_ray.backends.world import Scene, judged_event, sampled_event, step_facts
from safer_ray.cluster.learner_group import LearnerGroup
from safer_ray.cluster.replica import Patience, ReplicaLost
from safer_ray.cluster.serving import Crew, Serving
from safer_ray.cluster.tending import tend
from safer_ray.cluster.training import LearnerPlan, Training
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
from safer_ray.core.plan import Phase
from safer_ray.core.replicas import PoolStatus, ReplicaStatus
from safer_ray.errors import (
    ClusterError,
    DataError,
    JudgeError,
    SaferRayError,
    SamplerError,
    TeacherError,
    boundary,
)
from safer_ray.records import WeightsRef
from safer_ray.tables import to_table

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
ITEM_FAULTS = (SamplerError, JudgeError, TeacherError, DataError, TimeoutError, RayError)
"""What costs one item another try, and nothing else."""
_DEATHS_IN_COMPANY = 2
_GOODBYE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The workers of a run: what they are built from, how many there are, how long they are waited for.

    ``learner`` is None in runs that only sample and judge.
    """

    sampler: SamplerSpec
    sampler_crew: Crew
    grader: GraderSpec
    grader_crew: Crew
    learner: LearnerPlan | None
    patience: Patience


@dataclass(slots=True)
class Kept:
    """What an open item has gathered so far: references to tables, and counts."""

    rollouts: Any = None
    tables: list[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class RayWorld:
    """Workers on a Ray cluster. Start it inside a ray session; close it before the session ends."""

    def __init__(
        self, scene: Scene, fleet: Fleet, *, restore_version: int = 0, restore_from: Phase | None = None
    ) -> None:
        """Start the workers, the samplers with ``restore_version``.

        ``restore_from`` is the phase that trained that version, where the learner was further when the run stopped.
        """
        self._scene = scene
        self._patience = fleet.patience
        self._events: queue.Queue[Event | SaferRayError] = queue.Queue()
        self._items: dict[tuple[str, int], Kept] = {}
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._published_after: Phase | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray-world", daemon=True)
        self._thread.start()
        self._training = Training(fleet.learner, fleet.patience, self._publish_again)
        self._serving = Serving((fleet.sampler, fleet.sampler_crew), (fleet.grader, fleet.grader_crew), fleet.patience)
        self._serving.publisher_node = lambda: self._training.node
        self._serving.payload = self._training.payload
        try:
            self._run(self._start(restore_version, restore_from))
        except BaseException:
            self.close()
            raise
        self._tending = asyncio.run_coroutine_threadsafe(self._tend(), self._loop)

    async def _start(self, restore_version: int, restore_from: Phase | None) -> None:
        """Bring everything up. A resumed run publishes its last version first: samplers start refitted."""

        async def publish(learner: LearnerGroup) -> WeightsRef:
            return await learner.publish(restore_version)

        if restore_version and restore_from is not None:
            self._serving.weights = await self._training.run_behind(restore_from, publish)
            self._published_after = restore_from
        elif restore_version:
            self._serving.weights = await self._training.run(publish)
        await self._serving.start()

    async def _tend(self) -> None:
        """Look after the pools; what goes wrong there beyond repair ends the run."""
        try:
            with boundary(ClusterError, "looking after the workers"):
                await tend(self._serving, self._scene.run_dir)
        except SaferRayError as exc:
            self._events.put(exc)

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
        except ReplicaLost as exc:
            if not isinstance(action, Sample | Judge):
                raise
            self._lost(action, str(exc), killed_worker=True, alone=exc.alone, blameless=exc.blameless)
        except ITEM_FAULTS as exc:
            if not isinstance(action, Sample | Judge):
                raise
            self._lost(action, str(exc) or type(exc).__name__)

    def _lost(
        self,
        action: Sample | Judge,
        reason: str,
        *,
        killed_worker: bool = False,
        alone: bool = False,
        blameless: bool = False,
    ) -> None:
        key = (action.phase, action.item)
        self._deaths[key] += killed_worker and not blameless
        if killed_worker and alone and not blameless:
            prompt = self._scene.book.prompt(action)
            logger.warning("worker died of prompt=%s phase=%s deaths=%d", prompt.prompt_id, key[0], self._deaths[key])
        self._events.put(
            Lost(
                phase=action.phase,
                item=action.item,
                attempt=action.attempt,
                reason=reason,
                killed_worker=killed_worker,
                alone=alone,
                blameless=blameless,
            )
        )

    def _alone(self, action: Sample | Judge) -> bool:
        """Whether an item was there when two workers died: then a third must have nothing else to die of."""
        return self._deaths[(action.phase, action.item)] >= _DEATHS_IN_COMPANY

    async def _execute(self, action: Action) -> None:
        match action:
            case Sample():
                self._events.put(await self._sample(action))
            case Judge():
                self._events.put(await self._judge(action))
            case Drop():
                self._items.pop((action.phase, action.item), None)
                self._deaths.pop((action.phase, action.item), None)
                self._scene.book.forget(action.phase, action.item)
                self._events.put(Dropped(phase=action.phase, item=action.item, reason=action.reason))
            case Seal():
                self._events.put(await self._seal(action))
            case Train():
                self._events.put(await self._train(action))
            case Publish():
                self._events.put(await self._publish(action))

    async def _sample(self, action: Sample) -> Sampled:
        if action.level == 0:
            self._items[(action.phase, action.item)] = Kept()
        kept = self._items[(action.phase, action.item)]
        request = self._scene.request(action)
        if request is None:
            kept.rollouts = None
            return sampled_event(action, self._serving.weights.version if self._serving.weights else 0)
        table = to_table([request], type(request))
        async with self._serving.samplers.use(alone=self._alone(action)) as replica:
            kept.rollouts = replica.actor.sample.remote(table, self._scene.book.ahead(action))
            # Waiting tells that the rollouts exist; only the version is looked at here.
            version, _ = await replica.wait(kept.rollouts, self._patience.call_s)
        return sampled_event(action, version)

    async def _judge(self, action: Judge) -> Judged:
        kept, phase = self._items[(action.phase, action.item)], self._scene.book.phase(action.phase)
        prompt = self._scene.book.prompt(action)
        async with self._serving.graders.use(alone=self._alone(action)) as replica:
            actor, patience_s = replica.actor, self._patience.call_s
            if phase.kind == "explore":
                task = self._scene.level_task(action)
                reply_ref, tables = actor.level.options(num_returns=2).remote(task, kept.rollouts)
                event = self._scene.judged(action, await replica.wait(reply_ref, patience_s))
            else:
                if phase.kind == "evaluate":
                    refs = actor.outcome.options(num_returns=2).remote(prompt, kept.rollouts, phase.checkpoint)
                else:
                    refs = actor.teach.options(num_returns=2).remote(prompt, kept.rollouts)
                tables = refs[1]
                event = judged_event(action, final=True, counts=await replica.wait(refs[0], patience_s))
            kept.tables.append(tables)
            for name, count in event.counts.items():
                kept.counts[name] = kept.counts.get(name, 0) + count
            if not event.final:
                return event
            path = str(self._scene.run_dir.shard(action.phase, action.item))
            shard = str(await replica.wait(actor.keep.remote(path, *kept.tables), patience_s))
        del self._items[(action.phase, action.item)]
        return judged_event(action, final=True, counts=kept.counts, shard=shard)

    async def _seal(self, action: Seal) -> Sealed:
        begun = time.perf_counter()
        facts = await asyncio.to_thread(self._scene.seal, action.phase)
        return Sealed(phase=action.phase, facts=facts, wall_s=time.perf_counter() - begun)

    async def _train(self, action: Train) -> Trained:
        begun, phase = time.perf_counter(), self._scene.book.phase(action.phase)
        task = self._scene.stage(action.phase)

        async def stage(learner: LearnerGroup) -> int:
            steps = await learner.begin(task) if task else 0
            for _ in range(steps):
                report = await learner.step()
                self._events.put(Stepped(phase=action.phase, facts=step_facts(report)))
            await learner.save(str(self._scene.run_dir.checkpoint(phase.checkpoint)))
            return steps

        steps = await self._training.run(stage)
        self._training.trained = phase
        facts = self._scene.trained_facts(phase, steps)
        return Trained(phase=action.phase, facts=facts, wall_s=time.perf_counter() - begun)

    # ---- weights ----

    async def _publish(self, action: Publish) -> Published:
        begun = time.perf_counter()
        ref = await self._training.run(lambda learner: learner.publish(action.version))
        gathered, self._published_after = time.perf_counter(), self._training.trained
        await self._serving.publish(ref)
        loaded = time.perf_counter()
        logger.info(
            "published version=%d bytes=%d gather_s=%.2f load_s=%.2f samplers=%d",
            ref.version, ref.nbytes, gathered - begun, loaded - gathered, len(self._serving.samplers.serving()),
        )  # fmt: skip
        return Published(
            phase=action.phase,
            version=ref.version,
            checksum=ref.checksum,
            nbytes=ref.nbytes,
            wall_s=loaded - begun,
        )

    async def _publish_again(self, learner: LearnerGroup) -> None:
        """Have a new learner group lay out the weights that serve: the old group's went with it."""
        serving = self._serving.weights
        if serving is not None and self._published_after is self._training.trained:
            await self._serving.again(await learner.publish(serving.version))

    # ---- figures and the end ----

    def facts(self) -> dict[str, Any]:
        """Return the samplers' counters, summed."""
        samplers = self._serving.samplers
        rows = self._run(
            samplers.each(lambda replica: replica.wait(replica.actor.facts.remote(), self._patience.probe_s))
        )
        return {
            "sampler": sampler_facts(rows),
            "sampler_restarts": samplers.restarts,
            "judge_restarts": self._serving.graders.restarts,
            "learner_restarts": self._training.restarts,
        }

    def replicas(self) -> list[ReplicaStatus]:
        """Return where every sampler and judge is in its life; from any thread, without asking them."""
        return [*self._serving.samplers.statuses(), *self._serving.graders.statuses()]

    def pools(self) -> list[PoolStatus]:
        """Return queue depths and rates, by role; from any thread, without asking anybody."""
        return [self._serving.samplers.status(), self._serving.graders.status()]

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
        samplers = self._serving.samplers
        samplers.closing = self._serving.graders.closing = True
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._training.close(_GOODBYE_S)
        await _quietly(samplers.each(lambda replica: replica.wait(replica.actor.close.remote(), _GOODBYE_S)))
        self._serving.stop()


async def _quietly(work: Awaitable[Any]) -> None:
    """Give goodbyes a moment: a worker that is gone or stuck is killed right after."""
    try:
        await asyncio.wait_for(work, _GOODBYE_S)
    except (TimeoutError, SaferRayError, RayError) as exc:
        logger.info("a worker did not say goodbye: %s", type(exc).__name__)
