"""A thousand samplers that take no time: a world in which only the driver works.

Each sampler takes one request at a time and is done after a random service time; the clock is the world's own, so
the next event is always there as soon as the driver asks. Every thousandth request is lost, every thousandth answer
comes twice: as much disorder as keeps the driver's slow paths in the measurement.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import Any

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
    Train,
    Trained,
)

_JUDGE_S, _TRAIN_S = 0.02, 60.0
_FAULTS = 0.001


class SimulatedSamplers:
    """A :class:`~safer_ray.backends.world.World` of ``samplers`` samplers, ``levels`` levels per prompt."""

    def __init__(self, samplers: int, *, levels: int, siblings: int, seed: int = 0) -> None:
        self._idle = samplers
        self._levels = levels
        self._counts = {"rollouts": siblings, "steps": siblings, "unscored": 0, "pairs_safety": 1}
        self._random = random.Random(seed)
        self._queue: deque[Sample] = deque()
        self._due: list[tuple[float, int, Event, bool]] = []
        self._asked = 0
        self._version = 0
        self.now_s = 0.0

    def submit(self, action: Action) -> None:
        """Start an action now, or when a sampler is free."""
        match action:
            case Sample() if self._idle:
                self._start(action)
            case Sample():
                self._queue.append(action)
            case Judge():
                self._answer(_JUDGE_S, self._judged(action))
            case Drop():
                self._answer(0.0, Dropped(phase=action.phase, item=action.item, reason=action.reason))
            case Seal():
                self._answer(1.0, Sealed(phase=action.phase, facts={"pairs_by_axis": {}}, wall_s=1.0))
            case Train():
                self._answer(_TRAIN_S, Trained(phase=action.phase, facts={"steps": 0}, wall_s=_TRAIN_S))
            case Publish():
                self._version = action.version
                event = Published(phase=action.phase, version=action.version, checksum="c", nbytes=1, wall_s=1.0)
                self._answer(1.0, event)

    def _start(self, action: Sample) -> None:
        self._idle -= 1
        event: Event = Sampled(
            phase=action.phase,
            item=action.item,
            level=action.level,
            attempt=action.attempt,
            policy_version=self._version,
        )
        if self._random.random() < _FAULTS:
            event = Lost(phase=action.phase, item=action.item, attempt=action.attempt, reason="sampler died")
        self._answer(self._random.expovariate(1.0), event, sampler=True)

    def _judged(self, action: Judge) -> Judged:
        final = action.level + 1 == self._levels
        return Judged(
            phase=action.phase,
            item=action.item,
            level=action.level,
            attempt=action.attempt,
            final=final,
            counts=dict(self._counts),
        )

    def _answer(self, after_s: float, event: Event, *, sampler: bool = False) -> None:
        self._asked += 1
        heapq.heappush(self._due, (self.now_s + after_s, self._asked, event, sampler))
        if self._random.random() < _FAULTS:
            self._asked += 1
            heapq.heappush(self._due, (self.now_s + after_s + 0.5, self._asked, event, False))

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next event and set the clock to it; never waits."""
        if not self._due:
            return None
        self.now_s, _, event, sampler = heapq.heappop(self._due)
        if sampler:
            self._idle += 1
            if self._queue:
                self._start(self._queue.popleft())
        return event

    def facts(self) -> dict[str, Any]:
        """Return the simulated time."""
        return {"simulated_s": self.now_s}

    def close(self) -> None:
        """Hold nothing."""
