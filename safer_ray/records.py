"""The frozen records that cross processes, with what must hold of each.

Letters: P prompt tokens, Q prefix tokens, T completion tokens. Token spans are half-open.
Ids are strings, versions are ints, scores lie in [0, 1] and a missing score is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

Label = Literal["unsafe", "safe", "unknown"]
StepKind = Literal["assessment", "verification", "calibration", "response"]
Axis = Literal["safety", "helpfulness", "efficiency"]
Finish = Literal["stop", "length", "abort"]
SampleMode = Literal["step", "trace", "answer"]
Refusal = Literal["full", "partial", "none", "unparsable"]

STEP_KINDS: tuple[StepKind, ...] = get_args(StepKind)
AXES: tuple[Axis, ...] = get_args(Axis)
LABELS: tuple[Label, ...] = get_args(Label)
NO_RULE = "R00"
"""The rule id cited when no rule applies."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked, and what is known about it.

    ``category`` is the rule the prompt is *about* (R00: none). An unsafe prompt violates it; a safe
    prompt with a category other than R00 is a near miss of it.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    label: Label = "unknown"
    category: str = NO_RULE
    form: str = "unknown"
    source: str = "unknown"
    split: str = "train"

    def __post_init__(self) -> None:
        _require(bool(self.prompt_id), "prompt: prompt_id is empty")
        _require(bool(self.messages), f"prompt {self.prompt_id}: no messages")
        _require(self.label in LABELS, f"prompt {self.prompt_id}: label {self.label!r} is not one of {LABELS}")
        _require(bool(self.text.strip()), f"prompt {self.prompt_id}: the last message is empty")

    @property
    def text(self) -> str:
        """The last user message: the request to be judged."""
        return self.messages[-1].content

    @property
    def gold_rule(self) -> str:
        """The rule id a correct verification cites: the category if violated, else R00."""
        return self.category if self.label == "unsafe" else NO_RULE


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Ask a sampler for ``n`` siblings that continue one frozen prefix.

    ``mode`` says where a sibling ends: ``step`` after step ``first_step``, ``trace`` at the end of the
    response, ``answer`` likewise but without any trace grammar (the untrained model answers plainly).
    """

    request_id: str
    prompt_id: str
    messages: tuple[Message, ...]
    prefix_ids: tuple[int, ...] = ()
    first_step: int = 0
    n: int = 1
    mode: SampleMode = "trace"
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.n >= 1, f"request {self.request_id}: n must be >= 1, got {self.n}")
        last = len(STEP_KINDS) - 1
        _require(0 <= self.first_step <= last, f"request {self.request_id}: first_step must be 0..{last}")
        _require(
            (self.first_step == 0) == (not self.prefix_ids),
            f"request {self.request_id}: a prefix is needed from step 1 on, and only there",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One reasoning stage: tokens ``[start, stop)`` of a completion and the text they decode to."""

    kind: StepKind
    start: int
    stop: int
    text: str

    def __post_init__(self) -> None:
        _require(
            0 <= self.start < self.stop, f"step {self.kind}: need 0 <= start < stop, got {self.start}..{self.stop}"
        )

    @property
    def tokens(self) -> int:
        """How many tokens the step has."""
        return self.stop - self.start


def _check_tiling(owner: str, steps: tuple[Step, ...], tokens: int) -> None:
    _require(bool(steps), f"{owner}: no steps")
    _require(steps[0].start == 0 and steps[-1].stop == tokens, f"{owner}: steps do not cover its {tokens} tokens")
    _require(all(a.stop == b.start for a, b in pairwise(steps)), f"{owner}: steps leave a gap or overlap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled continuation of prompt + prefix, token ids kept as generated.

    Shapes: ``prompt_ids[P]``, ``prefix_ids[Q]``, ``completion_ids[T]``, ``logprobs[T]`` in nats under the
    policy that sampled it (empty if the engine was not asked for them). Steps tile the completion.
    """

    rollout_id: str
    prompt_id: str
    sample_index: int
    first_step: int
    policy_version: int
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    steps: tuple[Step, ...]
    finish: Finish

    def __post_init__(self) -> None:
        who = f"rollout {self.rollout_id}"
        _check_tiling(who, self.steps, len(self.completion_ids))
        _require(
            len(self.logprobs) in (0, len(self.completion_ids)),
            f"{who}: {len(self.logprobs)} log-probs for {len(self.completion_ids)} tokens",
        )
        _require(self.policy_version >= 0, f"{who}: policy_version must be >= 0")

    @property
    def text(self) -> str:
        """The decoded completion."""
        return "".join(step.text for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one judge says of one step on one axis; ``score`` is None where it could not say."""

    rollout_id: str
    step_index: int
    axis: Axis
    judge: str
    score: float | None
    rules_hit: tuple[str, ...] = ()
    reason: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        # Three are made per step: the sentences are written only where they are needed.
        if self.score is None:
            fault = "" if self.error else "unscored without an error that says why"
        else:
            fault = "" if 0.0 <= self.score <= 1.0 else f"score {self.score} is outside [0, 1]"
        if fault:
            raise ValueError(f"verdict on {self.rollout_id} step {self.step_index} {self.axis}: {fault}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a pair comes from: enough to make it again, or to throw it away."""

    judge: str
    rule_pack_hash: str
    sampler: str
    temperature: float
    top_p: float
    reference: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPair:
    """Two siblings at one prefix, one preferred on one axis.

    Shapes: ``prompt_ids[P]``, ``prefix_ids[Q]``, ``chosen_ids`` and ``rejected_ids`` hold the tokens of this
    step only. ``policy_version`` is the older of the two siblings'.
    """

    pair_id: str
    prompt_id: str
    step_index: int
    step_kind: StepKind
    axis: Axis
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_text: str
    rejected_text: str
    margin: float
    policy_version: int
    lineage: Lineage
    prefix_text: str = ""

    def __post_init__(self) -> None:
        who = f"pair {self.pair_id}"
        _require(self.margin > 0, f"{who}: margin must be > 0, got {self.margin}")
        _require(bool(self.chosen_ids) and bool(self.rejected_ids), f"{who}: an empty sibling")
        _require(self.chosen_ids != self.rejected_ids, f"{who}: chosen and rejected are the same tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceExample:
    """A synthetic trace to imitate. Shapes: ``prompt_ids[P]``, ``completion_ids[T]`` tiled by ``steps``.

    ``decision_at`` are the completion tokens that state topic, aim, rule or path; see ``core.decisions``.
    """

    example_id: str
    prompt_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    teacher: str
    decision_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_tiling(f"trace {self.example_id}", self.steps, len(self.completion_ids))
        _require(
            all(0 <= token < len(self.completion_ids) for token in self.decision_at),
            f"trace {self.example_id}: decision_at must lie in 0..{len(self.completion_ids) - 1}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one test prompt under one checkpoint, the trace judged apart from the answer.

    ``complied`` means: the answer, trace stripped, does what was asked at least in part.
    ``cited_rule`` is "" where no trace could be parsed; ``consistent`` is None there, too.
    """

    prompt_id: str
    checkpoint: str
    policy_version: int
    judge: str
    refusal: Refusal
    complied: bool
    well_formed: bool
    truncated: bool
    cited_rule: str
    consistent: bool | None
    reasoning_tokens: int
    text: str
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRef:
    """A published set of weights: where it lies and what it must hash to."""

    version: int
    uri: str
    checksum: str
    nbytes: int = 0
