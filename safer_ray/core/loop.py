"""The loop as a state machine: a state folded from events, and policies that say what to do next.

    driver: state = fold(events);  actions = policy(state);  the world executes them and answers with events

*Gather* phases (teach, explore, evaluate) work on many prompts, *items*, each on its own: sample, then judge,
level after level, until its last level is judged. The other phases are one action each. Only events that
change what a resumed run has to do are durable; folding those alone gives a state that asks again for
whatever was in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

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

_DEATHS_TO_QUARANTINE = 2


@dataclass(slots=True)
class Item:
    """A prompt being worked on: its level, its attempt, and what it waits for ("" while ready)."""

    level: int = 0
    attempt: int = 0
    next: Literal["sample", "judge"] = "sample"
    waiting: bool = False


@dataclass(slots=True)
class Progress:
    """How far one phase is. ``done[item]`` is 1 once finished, 2 once dropped."""

    phase: Phase
    done: bytearray
    open: dict[int, Item] = field(default_factory=dict)
    ready: deque[int] = field(default_factory=deque)
    tries: dict[int, int] = field(default_factory=dict)
    last_reason: dict[int, str] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    """Workers that died while they worked on the item."""
    quarantined: set[int] = field(default_factory=set)
    """Items that took a second worker with them, with no other work on it that could have done it."""
    cursor: int = 0
    finished_items: int = 0
    dropped_items: int = 0
    asked: bool = False
    ended: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether every item is finished or dropped."""
        return self.finished_items + self.dropped_items == self.phase.items


@dataclass(slots=True)
class LoopState:
    """Everything the policies look at; changed only by ``apply`` and ``submitted``."""

    phases: tuple[Progress, ...]
    by_name: dict[str, Progress]
    policy_version: int = 0
    ignored: int = 0

    @classmethod
    def of(cls, plan: Sequence[Phase]) -> LoopState:
        """Return the state before anything happened."""
        phases = tuple(Progress(phase=phase, done=bytearray(phase.items)) for phase in plan)
        by_name = {progress.phase.name: progress for progress in phases}
        assert len(by_name) == len(phases), "phase names must be unique"
        return cls(phases=phases, by_name=by_name)

    @property
    def current(self) -> Progress | None:
        """The first phase that has not ended; None when the run is over."""
        return next((progress for progress in self.phases if not progress.ended), None)

    @property
    def lost_items(self) -> int:
        """Items of ended phases that were neither finished nor dropped. Must be 0."""
        return sum(p.phase.items - p.finished_items - p.dropped_items for p in self.phases if p.ended)


def submitted(state: LoopState, action: Action) -> None:
    """Note that ``action`` was given to the world, so that no policy gives it again."""
    progress = state.by_name[action.phase]
    match action:
        case Sample() | Judge():
            progress.open[action.item].waiting = True
        case Drop():
            pass
        case _:
            progress.asked = True


def apply(state: LoopState, event: Event) -> bool:
    """Fold one event into ``state``, in place; return whether it changed anything.

    An event about work no longer waited for - late, or delivered twice - changes nothing but a counter, and
    must not be journalled.
    """
    progress = state.by_name.get(event.phase)
    accepted = progress is not None and not progress.ended and _take(state, progress, event)
    state.ignored += not accepted
    return accepted


def _take(state: LoopState, progress: Progress, event: Event) -> bool:
    match event:
        case Sampled():
            return _advance(progress, event, "sample")
        case Judged():
            return _settle(progress, event.item, event) if event.final else _advance(progress, event, "judge")
        case Lost():
            return _on_lost(progress, event)
        case Dropped():
            return _settle(progress, event.item, None)
        case Stepped():
            return True
        case Sealed() | Trained():
            progress.ended = True
            return True
        case Published():
            progress.ended = True
            state.policy_version = event.version
            return True


def _advance(progress: Progress, event: Sampled | Judged, step: str) -> bool:
    item = progress.open.get(event.item)
    if item is None or not _awaits(item, event, step):
        return False
    if step == "judge":
        item.level += 1
    item.next, item.waiting = ("judge" if step == "sample" else "sample"), False
    progress.ready.append(event.item)
    return True


def _awaits(item: Item, event: Sampled | Judged, step: str) -> bool:
    return item.waiting and item.next == step and (item.level, item.attempt) == (event.level, event.attempt)


def _on_lost(progress: Progress, event: Lost) -> bool:
    item = progress.open.get(event.item)
    if progress.done[event.item] or (item is not None and item.attempt != event.attempt):
        return False
    progress.last_reason[event.item] = event.reason
    if event.killed_worker:  # no fault of an item that was merely there: it costs no try
        progress.deaths[event.item] = progress.deaths.get(event.item, 0) + 1
        if event.alone and progress.deaths[event.item] >= _DEATHS_TO_QUARANTINE:
            progress.quarantined.add(event.item)
    else:
        progress.tries[event.item] = progress.tries.get(event.item, 0) + 1
    if item is not None:
        progress.open[event.item] = Item(attempt=item.attempt + 1)
        progress.ready.append(event.item)
    return True


def _settle(progress: Progress, index: int, judged: Judged | None) -> bool:
    """Finish an item (or drop it: no ``judged``). While refolding a journal no item is open; that is fine."""
    item = progress.open.get(index)
    stale = judged is not None and item is not None and not _awaits(item, judged, "judge")
    if progress.done[index] or stale:
        return False
    progress.done[index] = 1 if judged else 2
    for table in (progress.open, progress.tries, progress.last_reason, progress.deaths):
        table.pop(index, None)  # type: ignore[attr-defined]
    progress.quarantined.discard(index)
    if judged is None:
        progress.dropped_items += 1
        return True
    progress.finished_items += 1
    for name, count in judged.counts.items():
        progress.counts[name] = progress.counts.get(name, 0) + count
    return True


def fold(plan: Sequence[Phase], events: Iterable[Event]) -> LoopState:
    """Return the state after ``events``, from nothing."""
    state = LoopState.of(plan)
    for event in events:
        apply(state, event)
    return state


# ---- policies --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What no policy may exceed: items open at once, failures of one item before it is dropped."""

    max_in_flight: int
    max_tries: int


Policy = Callable[[LoopState, Limits], list[Action]]


def synchronous(state: LoopState, limits: Limits) -> list[Action]:
    """One phase after the other; inside a phase, as many items at once as the limit allows."""
    progress = state.current
    if progress is None:
        return []
    if progress.phase.gathers:
        return _gather(progress, limits)
    if progress.asked:
        return []
    phase = progress.phase
    return [Publish(phase=phase.name, version=phase.version) if phase.kind == "publish" else Train(phase=phase.name)]


def _gather(progress: Progress, limits: Limits) -> list[Action]:
    phase, actions = progress.phase, list[Action]()
    while progress.ready:
        index = progress.ready.popleft()
        item = progress.open.get(index)
        if item is None or item.waiting:
            continue
        if reason := _given_up(progress, index, limits):
            actions.append(Drop(phase=phase.name, item=index, reason=reason))
            continue
        actions.append(_next_action(phase, index, item))
    while len(progress.open) < limits.max_in_flight and progress.cursor < phase.items:
        index = progress.cursor
        progress.cursor += 1
        if not progress.done[index] and index not in progress.open:
            if reason := _given_up(progress, index, limits):  # the run stopped before the drop was journalled
                actions.append(Drop(phase=phase.name, item=index, reason=reason))
                continue
            progress.open[index] = Item()
            actions.append(_next_action(phase, index, progress.open[index]))
    if progress.settled and not progress.asked:
        actions.append(Seal(phase=phase.name))
    return actions


def _given_up(progress: Progress, index: int, limits: Limits) -> str:
    """Return why an item is not tried again, "" if it is."""
    if index in progress.quarantined:
        return f"quarantined after {progress.deaths[index]} workers died of it: {progress.last_reason[index]}"
    return progress.last_reason[index] if progress.tries.get(index, 0) >= limits.max_tries else ""


def _next_action(phase: Phase, index: int, item: Item) -> Action:
    kind = Sample if item.next == "sample" else Judge
    return kind(phase=phase.name, item=index, level=item.level, attempt=item.attempt)


POLICIES: dict[str, Policy] = {"synchronous": synchronous}
