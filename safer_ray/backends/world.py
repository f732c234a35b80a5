"""The world a driver acts on: executes actions, answers with events.

``LocalWorld`` is the in-process twin of the Ray world: one sampler, one grader, one learner, no cluster.
It runs every action to its end before the next event is read, so it is deterministic.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from safer_ray.backends.base import Learner, Sampler, StepReport, TrainTask
from safer_ray.backends.checkpoint import checkpoint_facts
from safer_ray.backends.grader import Grader, LevelReply, LevelTask, RoundFacts
from safer_ray.backends.lookahead import sample_ahead
from safer_ray.backends.sealing import Gathered, seal
from safer_ray.core.curation import Curation
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
from safer_ray.core.items import ItemBook, Position
from safer_ray.core.plan import Phase
from safer_ray.errors import DataError, JudgeError, SamplerError, TeacherError, WeightsError
from safer_ray.records import Rollout, SampleRequest
from safer_ray.rundir import RunDir
from safer_ray.tables import read_table, to_table, write_table

logger = logging.getLogger(__name__)


class World(Protocol):
    """Where actions happen."""

    def submit(self, action: Action) -> None:
        """Start an action; its event comes later. Never blocks on the action itself."""
        ...

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next event, or None after ``timeout_s`` without one.

        Raises:
            SaferRayError: if something failed that the run cannot go on without (a learner, the cluster).
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return figures about the workers: tokens sampled, cache hits, versions."""
        ...

    def close(self) -> None:
        """Stop every worker and free what they hold. Safe to call twice."""
        ...


class Scene:
    """What both worlds know of a run: prompts, paths, how a phase's tasks are made. No workers.

    ``named_shards`` returns, for a phase, the digest of each finished item's shard; whoever has the journal sets it to
    what the journal names.
    """

    def __init__(
        self,
        book: ItemBook,
        run_dir: RunDir,
        round_facts: Callable[[int], RoundFacts],
        train_task: Callable[[str], TrainTask],
        never_sample: frozenset[str],
        curation: Curation | None = None,
    ) -> None:
        self.book = book
        self.run_dir = run_dir
        self.round_facts = round_facts
        self.train_task = train_task
        self.never_sample = never_sample
        self.curation = curation or Curation()
        self.named_shards: Callable[[str], Mapping[int, str]] = run_dir.listed_shards

    def request(self, action: Sample) -> SampleRequest | None:
        """Return the request of an action, or None where nothing must or may be sampled."""
        prompt = self.book.prompt(action)
        may_sample = prompt.category not in self.never_sample
        assert may_sample or self.book.phase(action.phase).kind == "teach", "guarded when the phases were filled"
        return self.book.request(action, needs_answers=may_sample and prompt.label != "unsafe")

    def level_task(self, action: Judge) -> LevelTask:
        """Return the task of judging an explore item's current level."""
        phase = self.book.phase(action.phase)
        return LevelTask(
            prompt=self.book.prompt(action),
            level=action.level,
            history=self.book.position(action).history,
            facts=self.round_facts(phase.round),
            seed=self.book.seed(action),
        )

    def judged(self, action: Judge, reply: LevelReply) -> Judged:
        """Note an explore level's reply and return its event."""
        if reply.final:
            self.book.forget(action.phase, action.item)
        else:
            self.book.move(action, Position(prefix_ids=reply.prefix_ids, history=reply.history))
        return judged_event(action, final=reply.final, counts=reply.counts)

    def seal(self, name: str) -> dict[str, Any]:
        """Merge a gather phase's shards, those that the journal names, and return its facts."""
        phase, prompts = self.book.phase(name), self.book.prompts(name)
        gathered = Gathered(phase=phase, prompts=prompts, shards=self.named_shards(name))
        return seal(gathered, self.run_dir, self.curation)

    def trained_facts(self, phase: Phase, steps: int) -> dict[str, Any]:
        """Return what the journal notes of a training stage that ended: its steps, and what its checkpoint says."""
        return {"steps": steps, "checkpoint": checkpoint_facts(self.run_dir.checkpoint(phase.checkpoint))}

    def stage(self, name: str) -> TrainTask | None:
        """Return a training stage without stale preferences, or None for an ERPO round that has none at all.

        Such a round leaves the weights as they are; SFT without traces is the learner's error.
        """
        task = self.train_task(name)
        if task.kind != "erpo":
            return task
        pairs, oldest = read_table(Path(task.data_path)), self.book.phase(name).oldest
        fresh = pairs.filter(pc.greater_equal(pairs["policy_version"], oldest))
        if stale := pairs.num_rows - fresh.num_rows:
            # Only a run that was resumed with a smaller max_lag gets here: see core.loop.admitted.
            logger.warning("stale preferences dropped stage=%s count=%d oldest_version=%d", name, stale, oldest)
            path = Path(task.data_path).with_name("pairs.fresh.arrow")
            write_table(fresh, path)
            task = replace(task, data_path=str(path))
        if not fresh.num_rows:
            logger.warning("no preferences to train on stage=%s; weights stay as they are", name)
            return None
        return task


def judged_event(action: Judge, *, final: bool, counts: dict[str, int], shard: str = "") -> Judged:
    """Return the event that answers ``action``; ``shard`` is the digest of what was kept."""
    return Judged(
        phase=action.phase,
        item=action.item,
        level=action.level,
        attempt=action.attempt,
        final=final,
        counts=counts,
        shard=shard,
    )


def sampled_event(action: Sample, policy_version: int) -> Sampled:
    """Return the event that answers ``action``."""
    return Sampled(
        phase=action.phase,
        item=action.item,
        level=action.level,
        attempt=action.attempt,
        policy_version=policy_version,
    )


def oldest_version(rollouts: Sequence[Rollout] | None, serving: int) -> int:
    """Return the version samples count as: they may have begun before the weights that serve by now."""
    return min((rollout.policy_version for rollout in rollouts or ()), default=serving)


def step_facts(report: StepReport) -> dict[str, Any]:
    """Return a report as JSON values; a figure that does not apply is None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(report).items()
    }


class LocalWorld:
    """Everything in this process, one thing at a time."""

    def __init__(self, scene: Scene, sampler: Sampler, grader: Grader, learner: Learner) -> None:
        self._scene = scene
        self._sampler = sampler
        self._grader = grader
        self._learner = learner
        self._events: deque[Event] = deque()
        self._rollouts: dict[tuple[str, int], pa.Table | None] = {}
        self._kept: dict[tuple[str, int], list[pa.Table]] = {}
        self._counts: dict[tuple[str, int], dict[str, int]] = {}

    def submit(self, action: Action) -> None:
        """Run ``action`` now; its events wait to be read."""
        match action:
            case Sample() | Judge():
                self._events.append(self._item(action))
            case Drop():
                self._events.append(Dropped(phase=action.phase, item=action.item, reason=action.reason))
            case Seal():
                begun = time.perf_counter()
                facts = self._scene.seal(action.phase)
                self._events.append(Sealed(phase=action.phase, facts=facts, wall_s=time.perf_counter() - begun))
            case Train():
                self._train(action)
            case Publish():
                self._publish(action)

    def _item(self, action: Sample | Judge) -> Event:
        try:
            return self._sample(action) if isinstance(action, Sample) else self._judge(action)
        except (SamplerError, JudgeError, TeacherError, DataError) as exc:
            return Lost(phase=action.phase, item=action.item, attempt=action.attempt, reason=str(exc))

    def _sample(self, action: Sample) -> Sampled:
        key = (action.phase, action.item)
        if action.level == 0:
            self._kept[key], self._counts[key] = [], {}
        request = self._scene.request(action)
        rollouts = sample_ahead(self._sampler, [request], self._scene.book.ahead(action)) if request else None
        self._rollouts[key] = to_table(rollouts, Rollout) if rollouts is not None else None
        return sampled_event(action, oldest_version(rollouts, self._sampler.policy_version))

    def _judge(self, action: Judge) -> Judged:
        key, phase = (action.phase, action.item), self._scene.book.phase(action.phase)
        rollouts, prompt = self._rollouts.pop(key), self._scene.book.prompt(action)
        if phase.kind == "explore":
            assert rollouts is not None
            reply, tables = self._grader.level(self._scene.level_task(action), rollouts)
            event = self._scene.judged(action, reply)
        elif phase.kind == "evaluate":
            assert rollouts is not None
            counts, tables = self._grader.outcome(prompt, rollouts, phase.checkpoint)
            event = judged_event(action, final=True, counts=counts)
        else:
            counts, tables = self._grader.teach(prompt, rollouts)
            event = judged_event(action, final=True, counts=counts)
        return self._keep(action, event, tables)

    def _keep(self, action: Judge, event: Judged, tables: list[pa.Table]) -> Judged:
        key = (action.phase, action.item)
        self._kept[key].extend(tables)
        for name, count in event.counts.items():
            self._counts[key][name] = self._counts[key].get(name, 0) + count
        if not event.final:
            return event
        shard = Grader.keep(str(self._scene.run_dir.shard(action.phase, action.item)), self._kept.pop(key))
        return judged_event(action, final=True, counts=self._counts.pop(key), shard=shard)

    def _train(self, action: Train) -> None:
        begun = time.perf_counter()
        task = self._scene.stage(action.phase)
        steps = self._learner.begin(task) if task else 0
        for _ in range(steps):
            self._events.append(Stepped(phase=action.phase, facts=step_facts(self._learner.step())))
        phase = self._scene.book.phase(action.phase)
        self._learner.save(str(self._scene.run_dir.checkpoint(phase.checkpoint)))
        facts = self._scene.trained_facts(phase, steps)
        self._events.append(Trained(phase=action.phase, facts=facts, wall_s=time.perf_counter() - begun))

    def _publish(self, action: Publish) -> None:
        begun = time.perf_counter()
        ref = self._learner.publish(action.version)
        if ref is None:
            raise WeightsError(
                f"publish {action.version}: the only rank returned no weights; this is a learner's fault"
            )
        loaded = self._sampler.load_weights(ref)
        self._events.append(
            Published(
                phase=action.phase,
                version=action.version,
                checksum=loaded.checksum,
                nbytes=ref.nbytes,
                wall_s=time.perf_counter() - begun,
            )
        )

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the oldest unread event."""
        return self._events.popleft() if self._events else None

    def facts(self) -> dict[str, Any]:
        """Return the sampler's figures."""
        return {"sampler": asdict(self._sampler.stats())}

    def close(self) -> None:
        """Close sampler and learner."""
        self._sampler.close()
        self._learner.close()
