"""Samplers, judges and the weights the samplers serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from safer_ray.backends.base import SamplerSpec
from safer_ray.backends.grader import GraderSpec
from safer_ray.cluster.actors import GraderActor, SamplerActor
from safer_ray.cluster.placement import Ask, actor_options, place
from safer_ray.cluster.pool import Pool
from safer_ray.cluster.replica import Patience, Replica
from safer_ray.core.replicas import ReplicaState
from safer_ray.core.scaling import ElasticRule
from safer_ray.errors import SaferRayError, WeightsError
from safer_ray.records import WeightsRef

logger = logging.getLogger(__name__)
_OWN_CALLS = 4
"""What is asked of a sampler beside requests: weights, whether it is alive, its counters, to close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The replicas of one role: what each asks for, how many at first, and how many when (None: always so many).

    Each computes in ``threads`` and takes ``calls`` at once. A call waits in a thread of its own, and Ray starts them
    all with the actor: 48 samplers of 1,024 calls each used up the process ids of a machine.
    """

    ask: Ask
    count: int
    threads: int
    calls: int
    elastic: ElasticRule | None = None


class Serving:
    """Both pools, and the weights that every sampler confirms before it serves."""

    def __init__(self, sampler: tuple[SamplerSpec, Crew], grader: tuple[GraderSpec, Crew], patience: Patience) -> None:
        self._sampler, self.sampler_crew = sampler
        self._grader, self.grader_crew = grader
        self._patience = patience
        self._loading = asyncio.Lock()
        self.weights: WeightsRef | None = None
        self.publisher_node: Callable[[], str] = str
        self.payload: Callable[[WeightsRef], Any] = lambda ref: None
        self.samplers = Pool("sampler", self._place_sampler, self._refit, patience)
        # A judge answers when a call slot is free, so it may take as long as a call before it counts as hung.
        self.graders = Pool("judge", self._place_grader, _as_it_is, replace(patience, probe_s=patience.call_s))

    async def start(self) -> None:
        """Bring up the first of each; the others join when they can."""
        await asyncio.gather(
            self.samplers.start(self.sampler_crew.count),
            self.graders.start(self.grader_crew.count),
        )

    async def _place_sampler(self, replica: Replica) -> None:
        ask = self.sampler_crew.ask
        replica.group = await place(replica.name, ask, strategy="STRICT_PACK", deadline_s=self._patience.start_s)
        options = actor_options(replica.group, ask, threads=self.sampler_crew.threads)
        actor: Any = SamplerActor
        replica.actor = actor.options(**options, max_concurrency=self.sampler_crew.calls + _OWN_CALLS).remote(
            self._sampler
        )

    async def _place_grader(self, replica: Replica) -> None:
        ask = self.grader_crew.ask
        replica.group = await place(replica.name, ask, strategy="PACK", deadline_s=self._patience.start_s)
        options = actor_options(replica.group, ask, threads=self.grader_crew.threads)
        actor: Any = GraderActor
        replica.actor = actor.options(**options, max_concurrency=self.grader_crew.calls).remote(self._grader)

    # ---- weights ----

    async def publish(self, ref: WeightsRef) -> None:
        """Have every serving sampler load ``ref``; one that cannot is replaced, and its successor starts with ``ref``.

        Nobody is given a request between the moment its weights are replaced and their confirmation.

        If all of them died of it, or meanwhile, the first successor is waited for.

        Raises:
            WeightsError: if no sampler could load them.
            ClusterError: if none is left and none can be started.
        """
        async with self._loading:
            self.weights = ref
            targets = self.samplers.serving()
            for replica in targets:
                replica.go(ReplicaState.REFITTING)
            payload = self._payload_for(targets)

            async def one(replica: Replica) -> SaferRayError | None:
                try:
                    await self.samplers.refit(replica, lambda each: self._load(each, payload))
                except SaferRayError as exc:
                    return exc
                return None

            failures = await asyncio.gather(*map(one, targets))
        if first := next((failure for failure in failures if failure and all(failures)), None):
            raise first
        if targets:
            await self.samplers.until_one_serves()

    async def again(self, ref: WeightsRef) -> None:
        """Note where the weights that serve already lie from now on; for samplers that join."""
        async with self._loading:
            self.weights = ref

    async def _refit(self, replica: Replica) -> None:
        """Bring a new sampler to the published weights before its first request."""
        async with self._loading:
            if self.weights is not None:
                await self._load(replica, self._payload_for([replica]))
            else:
                replica.policy_version = 0
            # Inside the lock: a publication must not miss a sampler that was just made fit.
            self.samplers.serve(replica)

    def _is_near(self, replica: Replica) -> bool:
        return self.publisher_node() in ("", replica.node)

    def _payload_for(self, replicas: list[Replica]) -> Any:
        """Return a reference to the bytes of the weights if any replica is on another node than the publisher."""
        assert self.weights is not None
        if all(map(self._is_near, replicas)) or not self.weights.uri.startswith("shm://"):
            return None
        return self.payload(self.weights)

    async def _load(self, replica: Replica, payload: Any) -> None:
        ref = self.weights
        assert ref is not None
        call = replica.actor.load_weights.remote(ref, None if self._is_near(replica) else payload)
        got: WeightsRef = await replica.wait(call, self._patience.call_s)
        if (got.version, got.checksum) != (ref.version, ref.checksum):
            raise WeightsError(
                f"{replica.name}: confirmed version {got.version} checksum {got.checksum[:12]}, but version "
                f"{ref.version} checksum {ref.checksum[:12]} was published; it does not serve"
            )
        replica.policy_version = got.version

    def stop(self) -> None:
        """Kill every replica and give its resources back."""
        self.samplers.stop()
        self.graders.stop()


async def _as_it_is(replica: Replica) -> None:
    """A judge needs no preparation."""
