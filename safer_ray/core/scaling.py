"""How many replicas a pool should have: decided from queue, rate and time alone.

The queue is measured in seconds, not in calls: how long the replicas at hand would need for what is asked for now.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticRule:
    """Keep the queue near ``target_queue_s`` with ``least`` to ``most`` replicas; at most one change per cool-down."""

    target_queue_s: float
    least: int
    most: int
    cool_down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """What a decision is made from.

    ``outstanding`` calls wait or run; ``answers_per_s`` is what one serving replica answers, 0 while unknown;
    ``steady_s`` since the number wanted last changed; ``idle_s`` since the last call ended, 0 while calls are open.
    """

    wanted: int
    serving: int
    outstanding: int
    answers_per_s: float
    steady_s: float
    idle_s: float


def wanted_replicas(rule: ElasticRule, load: PoolLoad) -> int:
    """Return how many replicas to want from now on, always ``least`` to ``most``.

    Up as soon as the queue is longer than its target, down only when half of the target would do - or to ``least``
    after a whole cool-down without a call. The first call of an empty pool does not wait for the cool-down, and asks
    for all that the queue needs at once where the rate is known from before: their nodes start side by side.
    """
    now = min(max(load.wanted, rule.least), rule.most)
    if load.outstanding and not now and rule.most:
        return min(_needed(load, rule.target_queue_s), rule.most) if load.answers_per_s > 0.0 else 1
    if load.steady_s < rule.cool_down_s:
        return now
    if not load.outstanding:
        return rule.least if load.idle_s >= rule.cool_down_s else now
    if load.answers_per_s <= 0.0 or load.serving < min(now, load.wanted):
        return now  # those that join change the rate: wait until they serve
    enough = _needed(load, rule.target_queue_s)
    if enough > now:
        return min(enough, rule.most)
    return max(min(now, _needed(load, rule.target_queue_s / 2.0)), rule.least)


def _needed(load: PoolLoad, queue_s: float) -> int:
    """Return the replicas that answer everything outstanding in ``queue_s``, and no more than there are calls."""
    return math.ceil(load.outstanding / max(1.0, load.answers_per_s * queue_s))


@dataclass(slots=True)
class RateMeter:
    """Answers per second over the last ``window_s``: of the whole pool, and of one replica that has work."""

    window_s: float = 60.0
    _marks: deque[tuple[float, int, float]] = field(default_factory=deque)
    _busy_s: float = 0.0

    def note(self, now_s: float, answered: int, busy: int) -> None:
        """Note the answers so far, and that ``busy`` replicas had work since the last note. Time never goes back."""
        if self._marks:
            self._busy_s += busy * (now_s - self._marks[-1][0])
        self._marks.append((now_s, answered, self._busy_s))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - self.window_s:
            self._marks.popleft()

    @property
    def answers_per_s(self) -> float:
        """Of the whole pool; 0 while unknown."""
        return self._per(0)

    @property
    def answers_per_busy_s(self) -> float:
        """Of one replica while it has work; 0 while unknown."""
        return self._per(2)

    def _per(self, measure: int) -> float:
        if len(self._marks) < 2:
            return 0.0
        elapsed = self._marks[-1][measure] - self._marks[0][measure]
        return (self._marks[-1][1] - self._marks[0][1]) / elapsed if elapsed > 0.0 else 0.0
