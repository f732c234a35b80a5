"""The driver: fold events, ask the policy, submit. Nothing else; the world does the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from safer_ray.backends.world import World
from safer_ray.core.events import Event, Seal, is_durable
from safer_ray.core.loop import LoopState, admitted, apply, awaited, submitted, summed
from safer_ray.core.policies import Limits, Policy
from safer_ray.errors import ClusterError
from safer_ray.journal import Journal

Observer = Callable[[LoopState, Event, float], None]
"""Called after every accepted event with the state, the event and its time (seconds since the epoch)."""
_POLL_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a run is scheduled: by which policy, within which limits, and how long silence is borne."""

    policy: Policy
    limits: Limits
    silence_s: float


def drive(state: LoopState, world: World, journal: Journal, *, pace: Pace, observe: Observer) -> None:
    """Run until no phase is left.

    An event is journalled before anything is decided on it, and only if it changed the state. Samples of a policy
    version their phase does not take never get that far (``admitted``).

    Raises:
        SaferRayError: whatever the world cannot go on without; or ClusterError after ``pace.silence_s`` without
            any event while something was asked for.
    """
    heard = time.monotonic()
    while state.current is not None:
        for action in pace.policy(state, pace.limits):
            if isinstance(action, Seal):
                journal.flush()  # sealing removes the shards that would tell of items whose lines are not on disk yet
            submitted(state, action)
            world.submit(action)
        event = world.next_event(_POLL_S)
        if event is None:
            if time.monotonic() - heard > pace.silence_s:
                raise ClusterError(
                    f"phase {state.current.phase.name}: no worker answered for {pace.silence_s:.0f} s "
                    f"({awaited(state)}); see the workers' logs, then resume the run"
                )
            continue
        heard, event = time.monotonic(), summed(state, admitted(state, event))
        if not apply(state, event):
            continue
        at = journal.append(event).at if is_durable(event) else time.time()
        observe(state, event, at)
