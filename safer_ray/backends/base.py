"""The protocols every outside thing stands behind, and the small specs that build them.

A ``Spec`` is what crosses to an actor: frozen, picklable, cheap to import. ``build()`` runs where the
hardware is and does the heavy imports. Each protocol has a real backend and a fake twin in ``fake``;
one contract suite runs over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from safer_ray.records import (
    Outcome,
    Prompt,
    Rollout,
    SampleRequest,
    Step,
    StepKind,
    StepPair,
    TraceExample,
    Verdict,
    WeightsRef,
)

ReferencePolicy = Literal["fixed", "previous_round", "ema"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn. ``max_tokens`` is per step in step mode, for the whole completion otherwise."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_step_tokens: int = 96
    max_trace_tokens: int = 320
    max_answer_tokens: int = 96
    greedy_traces: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerStats:
    """Counters of one sampler since it was built."""

    requests: int
    generated_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generation_s: float


def sampler_facts(counters: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the counters of several samplers summed, with tokens per second of one engine and the hit rate."""
    total: dict[str, float] = {}
    for each in counters:
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    if total.get("generation_s"):
        total["tokens_per_s"] = total["generated_tokens"] / total["generation_s"]
    if total.get("prompt_tokens"):
        total["prefix_cache_hit_rate"] = total["cached_prompt_tokens"] / total["prompt_tokens"]
    return total


class Sampler(Protocol):
    """A rollout engine holding one version of the policy.

    ``sample`` is thread-safe: calls from several threads share one running batch.
    """

    @property
    def name(self) -> str:
        """The engine and its version, for lineage."""
        ...

    @property
    def policy_version(self) -> int:
        """The version of the weights in use, confirmed after loading."""
        ...

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """Return ``n`` siblings per request, in request order, each stamped with the policy version.

        Raises:
            SamplerError: naming the request that cannot be served (too long, no chat template ...).
        """
        ...

    def alive(self) -> None:
        """Generate one token, beside what runs, and return: proof that the engine works, not only its process.

        Raises:
            SamplerError: if it cannot.
        """
        ...

    def load_weights(self, ref: WeightsRef) -> WeightsRef:
        """Replace the weights in place and return what is now loaded, hashed after loading.

        Raises:
            WeightsError: if version or checksum do not match; the sampler then refuses to serve.
        """
        ...

    def stats(self) -> SamplerStats:
        """Return counters since the sampler was built."""
        ...

    def close(self) -> None:
        """Free the engine and everything it put in shared memory. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTask:
    """One rollout to judge, with the steps that came before it.

    ``continuations`` go on from its last token to the end, for judges that value a step by what comes of it.
    """

    prompt: Prompt
    rollout: Rollout
    history: tuple[Step, ...] = ()
    continuations: tuple[Rollout, ...] = ()


class Judge(Protocol):
    """Scores steps and classifies answers. A step it cannot score is unscored, never 0."""

    @property
    def name(self) -> str:
        """``name@version``; part of every verdict."""
        ...

    @property
    def rule_pack_hash(self) -> str:
        """Content hash of the rules judged by."""
        ...

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Verdict]:
        """Return one verdict per task, step and axis."""
        ...

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        """Return what became of each prompt; every rollout is a whole completion."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachTask:
    """A prompt to write a trace for; ``answers`` are plain answers of the base model (safe prompts only).

    Of a trace that is not ``whole`` only the judgement is taught, so no answer is needed.
    """

    prompt: Prompt
    answers: tuple[str, ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachResult:
    """The traces written and, per rejected attempt, the reason.

    ``prompt_ids`` of an example are the student's: rules are not in them unless the config keeps them.
    """

    examples: tuple[TraceExample, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    """Pairs (prompt_id, reason)."""


class Teacher(Protocol):
    """Writes Ex-Ante traces."""

    @property
    def name(self) -> str:
        """``name@version``; part of every example."""
        ...

    def teach(self, tasks: Sequence[TeachTask]) -> TeachResult:
        """Return validated traces; what the trace grammar refuses is counted with its reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """ERPO and SFT loss terms; see ``core.losses`` for the equations."""

    beta: float = 0.2
    alpha: float = 0.02
    nll_weight: float = 0.5
    axis_weights: tuple[tuple[str, float], ...] = (("safety", 1.0), ("helpfulness", 1.0), ("efficiency", 1.0))
    prompt_weighting: Literal["mean", "sum"] = "mean"
    step_weights: tuple[tuple[StepKind, float], ...] = ()
    """What a token of a step (SFT) or a preference at it (ERPO) weighs; steps not named weigh 1."""
    decision_weight: float = 1.0
    """SFT: how many times as much a token weighs that states topic, aim, rule or path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """One training stage. ``tokens_per_step`` counts packed tokens over all ranks, per optimiser step.

    A step whose mean loss or gradient norm (before clipping) is above ``stop_loss`` or ``stop_grad_norm`` is not taken.
    """

    lr: float
    epochs: int = 1
    tokens_per_step: int = 2048
    pack_tokens: int = 1024
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    stop_loss: float | None = None
    stop_grad_norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """One training stage over tables on a path every rank can read (``traces/1`` or ``pairs/1``).

    ``failed_dir`` is where a batch that training stops at is kept, "" for nowhere.
    """

    stage: str
    kind: Literal["sft", "erpo"]
    data_path: str
    optim: OptimSettings
    loss: LossSettings = field(default_factory=LossSettings)
    reference: ReferencePolicy = "fixed"
    seed: int = 0
    failed_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """One pair or trace of an examined batch: its loss as it enters the step's sum, log-probs in nats over its tokens.

    Pairs only: ``rejected_logp`` and the reference's log-probs (else None).
    """

    row_id: str
    prompt_id: str
    pack: int
    loss: float
    chosen_logp: float
    rejected_logp: float | None = None
    ref_chosen_logp: float | None = None
    ref_rejected_logp: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A kept batch run again: mean loss, gradient norm before clipping, and its rows in pack order."""

    loss: float
    grad_norm: float
    rows: tuple[RowReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimiser step, averaged over all ranks. ERPO only: chosen_logp, margin, accuracy (else nan)."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    chosen_logp: float = float("nan")
    margin: float = float("nan")
    accuracy: float = float("nan")


class Learner(Protocol):
    """One rank of the learner group. Every rank gets the same calls in the same order."""

    def begin(self, task: TrainTask) -> int:
        """Plan the stage, compute what is computed once (reference log-probs), return its optimiser steps."""
        ...

    def step(self) -> StepReport:
        """Run the next optimiser step; forward, backward and update over this rank's share.

        Raises:
            LearnerError: if loss or gradients are not finite or above the task's bounds; the weights are then as
                before the step, and the batch is kept in the task's ``failed_dir``.
        """
        ...

    def examine(self, folder: str) -> BatchReport:
        """Run a kept batch again, on the weights this learner has, and change nothing. One rank only.

        Raises:
            LearnerError: if the batch cannot be read.
        """
        ...

    def publish(self, version: int) -> WeightsRef | None:
        """Gather the weights; rank 0 writes them to shared memory and returns the reference.

        What was published before is removed: the caller publishes only after every sampler has loaded it.
        """
        ...

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint (safetensors, tokenizer); rank 0 writes, aside and renamed."""
        ...

    def close(self) -> None:
        """Leave the process group and free shared memory. Safe to call twice."""
        ...


class SamplerSpec(Protocol):
    """Builds a sampler where it will run."""

    def build(self) -> Sampler: ...


class JudgeSpec(Protocol):
    """Builds a judge where it will run."""

    def build(self) -> Judge: ...


class TeacherSpec(Protocol):
    """Builds a teacher where it will run."""

    def build(self) -> Teacher: ...


class LearnerSpec(Protocol):
    """Builds one rank of a learner where it will run; ranks find each other at ``master``."""

    def build(self, *, rank: int, world_size: int, master: str) -> Learner: ...


__all__ = [
    "BatchReport", "Judge", "JudgeSpec", "JudgeTask", "Learner", "LearnerSpec", "LossSettings", "OptimSettings",
    "ReferencePolicy", "RowReport", "Sampler", "SamplerSpec", "SamplerStats", "SamplingSettings", "StepPair",
    "StepReport", "TeachResult", "TeachTask", "Teacher", "TeacherSpec", "TrainTask", "sampler_facts",
]  # fmt: skip
