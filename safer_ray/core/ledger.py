"""The ledger: what became of every prompt in every phase, as a fold of the journal and of nothing else.

One byte per prompt and phase, so that a million prompts take a megabyte per phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from safer_ray.core.events import Dropped, Event, Judged, Lost, Published, Reopened, Sealed, Stepped, Trained
from safer_ray.core.plan import Phase

PromptState = Literal["waiting", "asked again", "judged", "unscored", "rejected", "paired", "trained", "dropped"]
_ENDED, _DROPPED, _PAIRED, _UNSCORED, _RETRIED = 1, 2, 4, 8, 16
_UNITS = {"explore": "steps", "evaluate": "outcomes", "teach": "accepted"}
_PAIRS = "pairs_"


@dataclass(slots=True)
class PhaseLedger:
    """One phase: a byte of flags per item, counts, and when it was first and last heard of (seconds, 0: never)."""

    phase: Phase
    flags: bytearray
    reasons: dict[int, str] = field(default_factory=dict)
    """Why an item was dropped, or last lost."""
    counts: Counter[str] = field(default_factory=Counter)
    """Summed over finished items: rollouts, steps, unscored, pairs_AXIS, accepted, ``rejected: REASON`` ..."""
    lost: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    """Items that ended more than once. Must be 0."""
    ended: bool = False
    step: int = 0
    steps: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def judged(self) -> int:
        """Items that ended with a verdict."""
        return sum(1 for flag in self.flags if flag & _ENDED and not flag & _DROPPED)

    @property
    def dropped(self) -> Counter[str]:
        """Items given up, by reason."""
        return Counter(self.reasons.get(item, "") for item, flag in enumerate(self.flags) if flag & _DROPPED)

    @property
    def paired(self) -> int:
        """Prompts with at least one preference."""
        return sum(1 for flag in self.flags if flag & _PAIRED)

    @property
    def lost_items(self) -> int:
        """Items of an ended phase that never ended. Must be 0."""
        return sum(1 for flag in self.flags if not flag & _ENDED) if self.ended else 0


class Ledger:
    """The ledger of a run with ``plan``; feed it every event of the journal in order."""

    def __init__(self, plan: Sequence[Phase]) -> None:
        self.phases = {phase.name: PhaseLedger(phase=phase, flags=bytearray(phase.items)) for phase in plan}
        self.policy_version = 0
        self.events = 0
        self.unknown = 0
        """Events that fit no phase or item of the plan."""

    def note(self, event: Event, at: float) -> None:
        """Take one event in."""
        self.events += 1
        entry = self.phases.get(event.phase)
        item = getattr(event, "item", 0)
        if entry is None or (hasattr(event, "item") and not 0 <= item < len(entry.flags)):
            self.unknown += 1
            return
        entry.first_at = entry.first_at or at
        entry.last_at = at
        match event:
            case Judged() if event.final:
                _judge(entry, event)
            case Lost():
                entry.flags[item] |= _RETRIED
                entry.reasons[item] = event.reason
                entry.lost[event.reason] += 1
            case Dropped():
                entry.duplicates += bool(entry.flags[item] & _ENDED)
                entry.flags[item] |= _ENDED | _DROPPED
                entry.reasons[item] = event.reason
            case Reopened():
                entry.flags[item] = _RETRIED
                entry.reasons[item] = event.reason
                entry.counts.subtract(event.counts)
            case Stepped():
                entry.step, entry.steps = int(event.facts["step"]), int(event.facts.get("steps", 0))
            case Sealed() | Trained():
                entry.ended, entry.facts = True, event.facts
            case Published():
                entry.ended = True
                self.policy_version = event.version
            case _:
                pass

    def trained(self, entry: PhaseLedger) -> bool:
        """Whether the preferences of an explore phase were trained on."""
        training = self.phases.get(f"erpo-{entry.phase.round}")
        return entry.phase.kind == "explore" and training is not None and training.ended

    def state_of(self, phase: str, item: int) -> tuple[PromptState, str]:
        """Return where a prompt stands in a phase, and the reason where there is one."""
        entry = self.phases[phase]
        flag, reason = entry.flags[item], entry.reasons.get(item, "")
        if flag & _DROPPED:
            return "dropped", reason
        if not flag & _ENDED:
            return ("asked again", reason) if flag & _RETRIED else ("waiting", "")
        if flag & _PAIRED:
            return ("trained" if self.trained(entry) else "paired"), ""
        if flag & _UNSCORED:
            return ("rejected" if entry.phase.kind == "teach" else "unscored"), ""
        return "judged", ""


def _judge(entry: PhaseLedger, event: Judged) -> None:
    flag = entry.flags[event.item]
    entry.duplicates += bool(flag & _ENDED)
    flag |= _ENDED
    if any(name.startswith(_PAIRS) and count for name, count in event.counts.items()):
        flag |= _PAIRED
    scored = event.counts.get(_UNITS.get(entry.phase.kind, ""), 0) - event.counts.get("unscored", 0)
    if scored <= 0:
        flag |= _UNSCORED
    entry.flags[event.item] = flag
    entry.reasons.pop(event.item, None)
    entry.counts.update(event.counts)


def ledger_of(plan: Sequence[Phase], entries: Iterable[tuple[Event, float]]) -> Ledger:
    """Return the ledger of (event, time) pairs, from nothing."""
    ledger = Ledger(plan)
    for event, at in entries:
        ledger.note(event, at)
    return ledger
