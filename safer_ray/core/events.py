"""What a policy asks of the world (actions), and what the world answers (events)."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

# ---- actions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Sample the siblings of one item's current level."""

    phase: str
    item: int
    level: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judge what was sampled for one item's current level; in a teach phase: write its trace."""

    phase: str
    item: int
    level: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Give one item up, with the reason."""

    phase: str
    item: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Merge what a gather phase collected into its final files, in item order."""

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Run one SFT or ERPO stage on what was sealed before it."""

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Give every sampler the learner's weights as ``version``."""

    phase: str
    version: int


Action = Sample | Judge | Drop | Seal | Train | Publish

# ---- events ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The siblings of one level exist."""

    phase: str
    item: int
    level: int
    attempt: int
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One level is judged. ``final``: the item is finished and lies durably in the run directory."""

    phase: str
    item: int
    level: int
    attempt: int
    final: bool
    counts: dict[str, int] = field(default_factory=dict)
    shard: str = ""
    """Content digest that names the finished item's shard; "" where a run of an older version wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Work on one item failed or vanished; it will be asked for again.

    ``killed_worker``: its worker died under it, which alone says nothing against the item. ``alone``: the worker
    was working on nothing else. ``blameless``: the worker fell with its whole node, or only cannot be reached, which
    says nothing against the item at all. ``stale``: it was sampled from a policy version its phase does not take.
    """

    phase: str
    item: int
    attempt: int
    reason: str
    killed_worker: bool = False
    alone: bool = False
    blameless: bool = False
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """One item was given up for good."""

    phase: str
    item: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """A finished item is asked for again, because its shard is gone or damaged; ``counts`` are taken back."""

    phase: str
    item: int
    reason: str
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A gather phase's files are final; ``facts`` are its counts, or the metrics of an evaluation.

    ``finished`` items and their summed ``counts`` are the driver's, so that whoever folds a journal may pass over the
    items' own events; -1 where a run of an older version wrote it, or the driver has not added them yet.
    """

    phase: str
    facts: dict[str, Any]
    wall_s: float
    finished: int = -1
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One optimiser step of a training phase; a figure that does not apply is None."""

    phase: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training phase ended and its checkpoint is on disk."""

    phase: str
    facts: dict[str, Any]
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Every serving sampler confirmed version and checksum."""

    phase: str
    version: int
    checksum: str
    nbytes: int
    wall_s: float


Event = Sampled | Judged | Lost | Dropped | Reopened | Sealed | Stepped | Trained | Published
EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Sampled, Judged, Lost, Dropped, Reopened, Sealed, Stepped, Trained, Published)
}


def _needed(kind: type[Event]) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


# Looked up once: reading a long journal asks a million times.
_FIELDS = {name: (tuple(f.name for f in fields(kind)), _needed(kind)) for name, kind in EVENTS.items()}


def is_durable(event: Event) -> bool:
    """Whether the journal keeps the event: it changes what a resumed run has to do, or is a figure to keep."""
    match event:
        case Sampled():
            return False
        case Judged():
            return event.final
        case _:
            return True


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as plain JSON values, which it shares: write them, do not change them."""
    kind = type(event).__name__
    return {"event": kind, **{name: getattr(event, name) for name in _FIELDS[kind][0]}}


_FOLDED: dict[str, type] = {"phase": str, "item": int, "counts": dict, "version": int, "finished": int}
"""What the state is folded from, by JSON type."""


def from_json(row: dict[str, Any]) -> Event:
    """Undo ``to_json``.

    Raises:
        ValueError: if the row is no event of this version.
    """
    kind = EVENTS.get(str(row.get("event")))
    if kind is None:
        raise ValueError(f"unknown event {row.get('event')!r}; known are {', '.join(EVENTS)}")
    known, needed = _FIELDS[kind.__name__]
    given = {name: row[name] for name in known if name in row}
    if not needed <= given.keys():
        lacking = needed - given.keys()
        raise ValueError(f"event {kind.__name__} lacks {', '.join(sorted(lacking))}")
    for name, wanted in _FOLDED.items():
        if type(given.get(name, wanted())) is not wanted:
            raise ValueError(f"event {kind.__name__} has {name} {given[name]!r:.40}, which is no {wanted.__name__}")
    if not all(type(count) is int for count in given.get("counts", {}).values()):
        raise ValueError(f"event {kind.__name__} has counts that are no whole numbers")
    return kind(**given)
