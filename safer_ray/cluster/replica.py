"""One actor of a pool as the driver sees it: where it is in its life, and what it is asked."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util.placement_group import PlacementGroup

from safer_ray.cluster.actors import answer
from safer_ray.cluster.placement import release
from safer_ray.core.replicas import ReplicaState, ReplicaStatus, moved

logger = logging.getLogger(__name__)


class ReplicaLost(Exception):
    """The replica is gone or out of reach, and whatever it was asked with it; ``alone`` if that was a single call.

    ``blameless``: what it was asked is not why, because it fell with its whole node, or only cannot be reached.
    """

    def __init__(self, name: str, why: str, *, alone: bool, blameless: bool) -> None:
        super().__init__(f"{name}: {why}")
        self.alone = alone
        self.blameless = blameless


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a replica is waited for, in seconds.

    ``start_s``: placement, and again the start of its engine. ``call_s``: any call. One that has answered nothing for
    ``probe_every_s`` is asked for one token and has ``probe_s`` to bring it; after a second miss it is replaced.
    """

    start_s: float
    call_s: float
    probe_every_s: float
    probe_s: float


@dataclass(slots=True, eq=False)
class Replica:
    """One actor, its placement group, and the calls it is running. ``heard_at`` is when it last answered."""

    name: str
    role: str
    gone: asyncio.Future[str]
    """Resolved with the reason once the replica is lost; calls in flight then end at once."""
    actor: Any = None
    group: PlacementGroup | None = None
    node: str = ""
    state: ReplicaState = ReplicaState.JOINING
    policy_version: int | None = None
    in_flight: int = 0
    answered: int = 0
    heard_at: float = 0.0
    reserved: bool = False
    """One call has it, or waits to have it, for itself."""
    probing: bool = False
    ended_alone: bool = False
    ended_blameless: bool = False
    joining: asyncio.Task[None] | None = field(default=None, repr=False)

    def go(self, state: ReplicaState) -> None:
        """Move on in its life."""
        self.state = moved(self.state, state)
        logger.info("replica name=%s state=%s node=%s", self.name, state, self.node[:8])

    async def wait(self, ref: Any, deadline_s: float) -> Any:
        """Return the answer to a call; errors of ours arrive as themselves.

        Raises:
            ReplicaLost: if the replica was lost first.
            ActorDiedError, ActorUnavailableError: if the call found that out.
            TimeoutError: if there is no answer by the deadline; naming who did not answer.
        """
        call = asyncio.ensure_future(answer(ref))
        try:
            await asyncio.wait({call, self.gone}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            if self.gone.done():
                raise self.loss()
            raise TimeoutError(
                f"the driver waited {deadline_s:.0f} s for {self.name} on node {self.node[:8]}, which did not answer"
            )
        finally:
            call.cancel()

    def loss(self) -> ReplicaLost:
        """Return what the calls get of a replica that has ended."""
        return ReplicaLost(self.name, self.gone.result(), alone=self.ended_alone, blameless=self.ended_blameless)

    def end(self, reason: str, cause: BaseException | None = None) -> None:
        """Kill the process, give its resources back, and let calls in flight know; ``cause`` is what showed it."""
        if not self.gone.done():
            self.ended_alone = self.in_flight <= 1
            self.ended_blameless = isinstance(cause, OUT_OF_REACH) or _NODE_DIED in str(cause)
            self.gone.set_result(reason)
        if self.actor is not None:
            ray.kill(self.actor)
        release(self.group)
        self.group = None
        self.go(ReplicaState.GONE)

    def status(self) -> ReplicaStatus:
        """Return the replica as a status page shows it."""
        return ReplicaStatus(
            name=self.name,
            role=self.role,
            state=self.state,
            policy_version=self.policy_version,
            in_flight=self.in_flight,
            answered=self.answered,
            node=self.node,
        )


_NODE_DIED = "its node has died"
"""Ray's words; the error has no field for it."""
DEAD = (ActorDiedError,)
OUT_OF_REACH = (ActorUnavailableError,)
