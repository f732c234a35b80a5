"""The loop as a state machine: a state folded from events; ``core.policies`` say what to do next.

    driver: state = fold(events);  actions = policy(state);  the world executes them and answers with events

*Gather* phases (teach, explore, evaluate) work on many prompts, *items*, each on its own: sample, then judge,
level after level, until its last level is judged. The other phases are one action each. Several phases may be
at work at once: which of those that may begin (``LoopState.startable``) do begin is the policies' business.

- samples of a version a phase does not take (``Phase.takes``) are never advanced, so never judged or trained on;
- every item of a phase ends exactly once, finished or dropped;
- only events that change what a resumed run has to do are durable, and folding those alone gives a state that
  asks again for whatever was in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from safer_ray.core.events import (
    Action,
    Drop,
    Dropped,
    Event,
    Judge,
    Judged,
    Lost,
    Published,
    Reopened,
    Sample,
    Sampled,
    Sealed,
    Stepped,
    Trained,
)
from safer_ray.core.plan import Phase


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
    """Workers that died while they worked on the item and on nothing else that could have done it."""
    cursor: int = 0
    finished_items: int = 0
    dropped_items: int = 0
    stale_samples: int = 0
    """Samples thrown away because their policy version was not one the phase takes."""
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
    unended: list[Progress]
    """Phases that have not ended, in the order of the plan."""
    startable: list[Progress]
    """Phases that may be worked on now, in the order of the plan; see ``_startable``."""
    policy_version: int = 0
    ignored: int = 0

    @classmethod
    def of(cls, plan: Sequence[Phase]) -> LoopState:
        """Return the state before anything happened."""
        phases = tuple(Progress(phase=phase, done=bytearray(phase.items)) for phase in plan)
        by_name = {progress.phase.name: progress for progress in phases}
        assert len(by_name) == len(phases), "phase names must be unique"
        return cls(phases=phases, by_name=by_name, unended=list(phases), startable=_startable(phases, 0))

    @property
    def current(self) -> Progress | None:
        """The first phase that has not ended; None when the run is over."""
        return self.unended[0] if self.unended else None

    @property
    def in_flight(self) -> int:
        """Items open over all phases together."""
        return sum(len(progress.open) for progress in self.startable)

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


def admitted(state: LoopState, event: Event) -> Event:
    """Return ``event``, or, if it brings samples its phase does not take, that they are lost.

    Such samples come from a sampler that missed a publication. They are thrown away and counted, and their
    prompt is asked again, of whatever the samplers have then.
    """
    if not isinstance(event, Sampled) or (progress := state.by_name.get(event.phase)) is None:
        return event
    phase, item = progress.phase, progress.open.get(event.item)
    if item is None or not _awaits(item, event, "sample") or phase.takes(event.policy_version):
        return event
    wanted = f"version {phase.version}" if phase.oldest == phase.version else f"versions {phase.oldest}-{phase.version}"
    reason = f"stale: sampled from policy version {event.policy_version}, but {phase.name} takes {wanted}"
    return Lost(phase=event.phase, item=event.item, attempt=event.attempt, reason=reason, stale=True)


def summed(state: LoopState, event: Event) -> Event:
    """Return ``event``, with what its phase's items came to where it seals them."""
    if not isinstance(event, Sealed) or (progress := state.by_name.get(event.phase)) is None:
        return event
    return replace(event, finished=progress.finished_items, counts=dict(progress.counts))


def apply(state: LoopState, event: Event) -> bool:
    """Fold one event into ``state``, in place; return whether it changed anything.

    An event about work no longer waited for - late, or delivered twice - changes nothing but a counter, and
    must not be journalled.
    """
    progress = state.by_name.get(event.phase)
    accepted = (
        progress is not None and _in_plan(progress, event) and not progress.ended and _take(state, progress, event)
    )
    state.ignored += not accepted
    return accepted


def _in_plan(progress: Progress, event: Event) -> bool:
    """Whether the event is about an item that the phase has, or about none."""
    return 0 <= getattr(event, "item", 0) < max(1, progress.phase.items)


def _take(state: LoopState, progress: Progress, event: Event) -> bool:
    match event:
        case Sampled():
            return progress.phase.takes(event.policy_version) and _advance(progress, event, "sample")
        case Judged():
            return _settle(progress, event.item, event) if event.final else _advance(progress, event, "judge")
        case Lost():
            return _on_lost(progress, event)
        case Dropped():
            return _settle(progress, event.item, None)
        case Reopened():
            return _reopen(progress, event)
        case Stepped():
            return True
        case Sealed():
            if event.finished >= 0:  # the items' own events may have been passed over
                _settle_all(progress, event)
            _end(state, progress)
            return True
        case Trained():
            _end(state, progress)
            return True
        case Published():
            state.policy_version = event.version
            _end(state, progress)
            return True


def _settle_all(progress: Progress, sealed: Sealed) -> None:
    """Finish what was not dropped, as its events would have."""
    progress.done = progress.done.replace(b"\0", b"\1")
    progress.finished_items, progress.counts = sealed.finished, dict(sealed.counts)
    for noted in (progress.last_reason, progress.tries, progress.deaths):
        noted.clear()


def _end(state: LoopState, progress: Progress) -> None:
    progress.ended = True
    state.unended.remove(progress)
    state.startable = _startable(state.unended, state.policy_version)


def _startable(unended: Sequence[Progress], policy_version: int) -> list[Progress]:
    """Return the phases no policy may be kept from, or let begin before:

    - a gather phase, once samplers serve a version it takes;
    - training, once what it trains on is sealed and the learner is through with everything before;
    - publishing, once its weights are trained and nothing is left that has to be sampled from older ones. So an
      evaluation of version v is sampled from version v, however far ahead anything else is.
    """
    found, learner_free = list[Progress](), True
    for progress in unended:
        phase = progress.phase
        if phase.gathers:
            if phase.oldest <= policy_version:
                found.append(progress)
        elif learner_free:
            learner_free = False
            if not any(_holds_up(other.phase, phase) for other in unended):
                found.append(progress)
    return found


def _holds_up(gather: Phase, learns: Phase) -> bool:
    """Whether a gather phase must have ended before a phase of the learner begins."""
    if not gather.gathers:
        return False
    return gather.version < learns.version if learns.kind == "publish" else gather.feeds(learns)


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
    progress.stale_samples += event.stale
    if not event.killed_worker:  # that is no fault of an item that was merely there: it costs no try
        progress.tries[event.item] = progress.tries.get(event.item, 0) + 1
    elif event.alone and not event.blameless:
        progress.deaths[event.item] = progress.deaths.get(event.item, 0) + 1
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
    if item is not None:
        del progress.open[index]
    if index in progress.last_reason:  # it was lost before
        del progress.last_reason[index]
        progress.tries.pop(index, None)
        progress.deaths.pop(index, None)
    if judged is None:
        progress.dropped_items += 1
        return True
    progress.finished_items += 1
    counts = progress.counts
    for name, count in judged.counts.items():
        counts[name] = counts.get(name, 0) + count
    return True


def _reopen(progress: Progress, event: Reopened) -> bool:
    if progress.done[event.item] != 1:
        return False
    progress.done[event.item] = 0
    progress.finished_items -= 1
    progress.cursor = min(progress.cursor, event.item)
    for name, count in event.counts.items():
        progress.counts[name] = progress.counts.get(name, 0) - count
    return True


def fold(plan: Sequence[Phase], events: Iterable[Event]) -> LoopState:
    """Return the state after ``events``, from nothing."""
    state = LoopState.of(plan)
    for event in events:
        apply(state, event)
    return state


def awaited(state: LoopState) -> str:
    """Say in words who waits for whom, one clause per phase at work."""
    clauses = []
    for progress in state.unended:
        phase = progress.phase
        if progress.open:
            kinds = [item.next for item in progress.open.values() if item.waiting]
            parts = [
                f"{kinds.count(step)} prompts for a {role}"
                for step, role in (("sample", "sampler"), ("judge", "judge"))
                if step in kinds
            ]
            clauses.append(f"{phase.name} waits with " + (" and ".join(parts) or "nothing asked for"))
        elif progress.asked:
            who = "the driver's own sealing" if phase.gathers else "the learner"
            clauses.append(f"{phase.name} waits for {who}")
    return "; ".join(clauses) or "nothing was asked for"
