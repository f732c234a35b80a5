"""The life of one replica, sampler or judge: the states it may be in, and which may follow which.

    JOINING -> REFITTING -> SERVING -> DRAINING -> GONE
                   ^ (new weights) |
                   +---------------+    SUSPECT: silent for too long;  DEAD: lost, its resources not yet given back

Only a SERVING replica is given requests. REFITTING comes before the first of them and again with every new version,
so what serves has confirmed version and checksum.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    JOINING = "JOINING"
    """Asked of Ray; placed and started, or about to be."""
    REFITTING = "REFITTING"
    """Loading the current weights; not confirmed yet."""
    SERVING = "SERVING"
    """Confirmed the current weights; given requests."""
    SUSPECT = "SUSPECT"
    """Missed a deadline; given nothing until it answers."""
    DRAINING = "DRAINING"
    """Not wanted any more; finishes what it has."""
    DEAD = "DEAD"
    """Lost: its process is gone, or was silent for too long and is being killed."""
    GONE = "GONE"
    """Ended; its resources are free."""


MOVES: dict[ReplicaState, frozenset[ReplicaState]] = {
    ReplicaState.JOINING: frozenset({ReplicaState.REFITTING, ReplicaState.DRAINING, ReplicaState.DEAD}),
    ReplicaState.REFITTING: frozenset({ReplicaState.SERVING, ReplicaState.DRAINING, ReplicaState.DEAD}),
    ReplicaState.SERVING: frozenset(
        {ReplicaState.REFITTING, ReplicaState.SUSPECT, ReplicaState.DRAINING, ReplicaState.DEAD}
    ),
    # One that answers late may have missed new weights meanwhile, so its way back leads through REFITTING.
    ReplicaState.SUSPECT: frozenset({ReplicaState.REFITTING, ReplicaState.DRAINING, ReplicaState.DEAD}),
    ReplicaState.DRAINING: frozenset({ReplicaState.GONE, ReplicaState.DEAD}),
    ReplicaState.DEAD: frozenset({ReplicaState.GONE}),
    ReplicaState.GONE: frozenset(),
}
COUNTED = frozenset(
    {ReplicaState.JOINING, ReplicaState.REFITTING, ReplicaState.SERVING, ReplicaState.SUSPECT},
)
"""States that count towards the number of replicas wanted."""


def moved(state: ReplicaState, to: ReplicaState) -> ReplicaState:
    """Return ``to``, if a replica may go there from ``state``.

    Raises:
        ValueError: if it may not.
    """
    if to not in MOVES[state]:
        raise ValueError(f"a replica cannot go from {state} to {to}; from there: {', '.join(sorted(MOVES[state]))}")
    return to


def surplus(states: dict[str, tuple[ReplicaState, int]], wanted: int) -> list[str]:
    """Return the names of the replicas to drain so that ``wanted`` are left.

    ``states[name]`` is state and calls in flight, oldest replica first. Those go first that cost least: not yet
    serving, then with the fewest calls in flight, then the youngest.
    """
    counted = [name for name, (state, _) in states.items() if state in COUNTED]
    excess = max(0, len(counted) - wanted)

    def cost(place: int) -> tuple[bool, int, int]:
        state, in_flight = states[counted[place]]
        return state is ReplicaState.SERVING, in_flight, -place

    return [counted[place] for place in sorted(range(len(counted)), key=cost)[:excess]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One replica as a status page shows it.

    ``policy_version`` is None for a judge, and for a sampler that has confirmed none yet. ``node`` is Ray's id of the
    node, "" until placed.
    """

    name: str
    role: str
    state: ReplicaState
    policy_version: int | None
    in_flight: int
    answered: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """All replicas of one role: how many are wanted, calls that wait for a replica or run on one, answers per second.

    ``answers_per_s`` is measured over the last minute, 0 if there were none. ``restarts`` counts replacements.
    """

    role: str
    wanted: int
    waiting: int
    in_flight: int
    answers_per_s: float
    restarts: int
