"""Actors: the same objects the tests build bare, each in its own process. No logic here.

Every method is one call inside ``boundary``, so that whatever fails arrives as one of our errors: plain
exceptions with one string, which is what survives the trip between Ray processes.
"""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from safer_ray.backends.base import LearnerSpec, SamplerSpec, StepReport, TrainTask
from safer_ray.backends.grader import GraderSpec, LevelReply, LevelTask
from safer_ray.backends.lookahead import sample_ahead
from safer_ray.backends.world import oldest_version
from safer_ray.errors import JudgeError, LearnerError, SaferRayError, SamplerError, TeacherError, WeightsError, boundary
from safer_ray.records import Prompt, Rollout, SampleRequest, WeightsRef
from safer_ray.tables import from_table, leave_pandas_out, to_table


def node_id() -> str:
    """Return the id of the node this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


async def answer(ref: Any) -> Any:
    """Wait for an actor's answer; an error of ours arrives as itself, without the remote traceback."""
    try:
        return await ref
    except RayTaskError as exc:
        if isinstance(exc.cause, SaferRayError):
            raise exc.cause from None
        raise


@ray.remote
class SamplerActor:
    """A sampler in its own process; many ``sample`` calls run at once and share its batch."""

    def __init__(self, spec: SamplerSpec) -> None:
        self._spec = spec

    def ready(self) -> str:
        """Start the engine; return the node it runs on. Not in ``__init__``: what fails there loses its type."""
        with boundary(SamplerError, "sampler start"):
            leave_pandas_out()
            self._sampler = self._spec.build()
            return node_id()

    def sample(self, requests: pa.Table, ahead: int = 0) -> tuple[int, pa.Table]:
        """Return the oldest policy version and ``rollouts/1`` rows: siblings, ``ahead`` continuations of each."""
        with boundary(SamplerError, self._sampler.name):
            rollouts = sample_ahead(self._sampler, from_table(requests, SampleRequest), ahead)
            return oldest_version(rollouts, self._sampler.policy_version), to_table(rollouts, Rollout)

    def load_weights(self, ref: WeightsRef, payload: Any = None) -> WeightsRef:
        """Load published weights; ``payload`` is their bytes where the publisher's memory is out of reach."""
        with boundary(WeightsError, self._sampler.name):
            if payload is None:
                return self._sampler.load_weights(ref)
            from safer_ray.backends.weights import free_weights, land_payload

            landed = land_payload(ref, payload)
            try:
                return self._sampler.load_weights(landed)
            finally:
                free_weights(landed)

    def alive(self) -> None:
        """Generate one token, in the batch that runs."""
        with boundary(SamplerError, self._sampler.name):
            self._sampler.alive()

    def facts(self) -> dict[str, Any]:
        """Return the sampler's counters."""
        return asdict(self._sampler.stats())

    def close(self) -> None:
        """Free the engine."""
        self._sampler.close()


@ray.remote
class GraderActor:
    """A judge (and teacher) in its own process."""

    def __init__(self, spec: GraderSpec) -> None:
        self._spec = spec

    def ready(self) -> str:
        """Build judge and teacher; return the node they run on."""
        with boundary(JudgeError, "judge start"):
            leave_pandas_out()
            self._grader = self._spec.build()
            return node_id()

    def alive(self) -> None:
        """Answer, once a call slot is free: a judge that hangs does not."""

    def close(self) -> None:
        """A judge holds nothing."""

    def level(self, task: LevelTask, rollouts: tuple[int, pa.Table]) -> tuple[LevelReply, list[pa.Table]]:
        """Judge one level."""
        with boundary(JudgeError, f"judge of {task.prompt.prompt_id} step {task.level}"):
            return self._grader.level(task, rollouts[1])

    def outcome(
        self, prompt: Prompt, rollouts: tuple[int, pa.Table], checkpoint: str
    ) -> tuple[dict[str, int], list[pa.Table]]:
        """Judge one whole completion."""
        with boundary(JudgeError, f"judge of {prompt.prompt_id}"):
            return self._grader.outcome(prompt, rollouts[1], checkpoint)

    def teach(self, prompt: Prompt, answers: tuple[int, pa.Table] | None) -> tuple[dict[str, int], list[pa.Table]]:
        """Write the traces of one prompt."""
        with boundary(TeacherError, f"teacher of {prompt.prompt_id}"):
            return self._grader.teach(prompt, answers[1] if answers is not None else None)

    def keep(self, path: str, *parts: list[pa.Table]) -> str:
        """Write the tables of one item as its shard; return its content digest."""
        return self._grader.keep(path, [table for part in parts for table in part])


@ray.remote
class LearnerActor:
    """One learner rank in its own process."""

    def __init__(self) -> None:
        self._learner: Any = None

    def address(self) -> str:
        """Return a free ``host:port`` on this node for the ranks to meet at."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def start(self, spec: LearnerSpec, rank: int, world_size: int, master: str) -> str:
        """Build the rank; return the node it runs on."""
        with boundary(LearnerError, f"learner rank {rank} start"):
            self._learner = spec.build(rank=rank, world_size=world_size, master=master)
            return node_id()

    def begin(self, task: TrainTask) -> int:
        """Plan a stage; return its optimiser steps."""
        with boundary(LearnerError, f"learner {task.stage}"):
            return int(self._learner.begin(task))

    def step(self) -> StepReport:
        """Run one optimiser step."""
        with boundary(LearnerError, "learner step"):
            report: StepReport = self._learner.step()
            return report

    def publish(self, version: int) -> WeightsRef | None:
        """Gather and write the weights."""
        with boundary(WeightsError, f"publish of version {version}"):
            ref: WeightsRef | None = self._learner.publish(version)
            return ref

    def payload(self, ref: WeightsRef) -> Any:
        """Return the bytes of published weights, for samplers on other nodes."""
        from safer_ray.backends.weights import read_payload

        with boundary(WeightsError, f"payload of version {ref.version}"):
            return read_payload(ref)

    def save(self, path: str) -> None:
        """Write a checkpoint."""
        with boundary(LearnerError, f"checkpoint {path}"):
            self._learner.save(path)

    def close(self) -> None:
        """Leave the process group."""
        if self._learner is not None:
            self._learner.close()
            self._learner = None
