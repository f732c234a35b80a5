"""What each stage computes - traces, SFT, ERPO, evaluations; a part of the run config.

Where and by whom it is computed is in ``config``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from safer_ray.config_section import Count, Fraction, Seconds, Section
from safer_ray.records import StepKind


def _require_plain_address(base_url: str) -> None:
    """Refuse an endpoint's address that is none, or that may carry a key.

    Raises:
        ValueError: without repeating the address.
    """
    parts = urlsplit(base_url)
    if "@" in parts.netloc:
        raise ValueError("teacher.base_url holds a user or password; put the key into the variable key_env names")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("teacher.base_url must be an address like https://host:port/v1")
    if parts.query or parts.fragment:
        raise ValueError("teacher.base_url must end with its path; a key goes into the variable key_env names")


class TeacherConfig(Section):
    """Who writes the first traces."""

    kind: Literal["template", "openai", "fake"] = Field(
        "template", description="template: the rule pack's wording; openai: an OpenAI-compatible endpoint"
    )
    wording: Literal["varied", "plain"] = Field("varied", description="template; plain: one frame for each thing said")
    whole_share: Fraction = Field(1.0, description="share of traces taught to their end; others: up to the judgement")
    answers_per_prompt: Count = Field(2, description="plain answers of the base model sampled per safe prompt")
    base_url: str | None = Field(None, description="openai: base URL of the endpoint")
    model: str | None = Field(None, description="openai: model name at the endpoint")
    key_env: str = Field("OPENAI_API_KEY", description="openai: environment variable that holds the key")
    concurrency: Count = Field(8, description="openai: calls in flight")
    deadline_s: Seconds = Field(120.0, description="openai: one call, retries included")
    max_tries: Count = Field(5, description="openai: tries of one call")
    samples: Count = Field(1, description="openai: drafts per prompt; the shortest that is accepted is taught")
    scorer: str | None = Field(None, description="openai: model that scores drafts; null: machine checks alone decide")
    min_score: int = Field(7, ge=0, le=10, description="openai: least of a draft's three scores, of 10")

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> TeacherConfig:
        # No message here repeats a value: what stands in the wrong place may be a key.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|", self.key_env):
            raise ValueError("teacher.key_env must be the name of an environment variable; export the key under it")
        if self.base_url:
            _require_plain_address(self.base_url)
        if self.kind == "openai" and not (self.base_url and self.model):
            raise ValueError("teacher.kind is openai, so teacher.base_url and teacher.model must be set")
        return self


class OptimConfig(Section):
    """One training stage."""

    lr: float = Field(gt=0, description="peak learning rate")
    epochs: Count = Field(1, description="passes over the data")
    tokens_per_step: Count = Field(2048, description="packed tokens of one optimiser step, all ranks together")
    pack_tokens: Count = Field(1024, description="tokens of one packed row")
    warmup_ratio: Fraction = Field(0.05, description="share of the steps in which the rate rises to lr")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, per step and times the rate")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down to this norm")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="of the rate after the warm-up")
    stop_loss: float | None = Field(
        1000.0,
        gt=0,
        description="a mean loss above this stops the run; null: only one that is no number",
    )
    stop_grad_norm: float | None = Field(
        None,
        gt=0,
        description="a gradient norm above this stops the run; costs a copy of the weights per step",
    )


class SftConfig(Section):
    """Stage one: imitate the traces."""

    max_prompts: int = Field(0, ge=0, description="traces are written for this many train prompts; 0: all")
    unsafe_share: Fraction = Field(0.5, description="share of unsafe prompts among max_prompts, as far as they last")
    balance: Literal["none", "labels", "labels_by_form"] = Field(
        "none",
        description="labels: cut the larger of unsafe and safe traces to the smaller; labels_by_form: in every form",
    )
    max_jaccard: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="traces that share this part of their 5-grams or more are taught once; 1: all are taught"
    )
    traces: str | None = Field(None, description="existing traces (a traces/sft.arrow) to train on instead of synth's")
    step_weights: dict[StepKind, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight of a token by its step; steps not named weigh 1"
    )
    decision_weight: float = Field(
        1.0, ge=1, description="weight of the tokens that state topic, aim, rule or path, times that of their step"
    )
    optim: OptimConfig = OptimConfig(lr=1e-5)


class PairingConfig(Section):
    """When one sibling is preferred to another; lexicographic: safety, helpfulness, efficiency."""

    safety_margin: float = Field(0.2, gt=0, description="least difference of safety scores")
    helpfulness_margin: float = Field(0.15, gt=0, description="least difference of helpfulness at equal safety")
    length_margin: Fraction = Field(0.2, description="rho: the shorter must save this share of tokens")
    token_floor: int = Field(12, ge=1, description="no step below this many tokens wins on length")
    length_score_floor: Fraction = Field(0.5, description="both siblings must score this on safety and helpfulness")
    max_pairs_per_step: Count = Field(3, description="pairs kept per set of siblings, widest margins first")


class ErpoConfig(Section):
    """Stage two: step-level preference optimisation, online."""

    rounds: Count = Field(2, description="times that new preferences are sampled and trained on")
    prompts_per_round: int = Field(0, ge=0, description="0: every train prompt, every round")
    siblings: int = Field(4, ge=2, description="siblings sampled per step")
    reference: Literal["fixed", "previous_round", "ema"] = Field(
        "fixed", description="the policy that log-probs are compared with"
    )
    beta: float = Field(0.2, gt=0, description="how hard the policy is held to the reference")
    alpha: float = Field(0.02, ge=0, description="per token, conciseness pairs only")
    nll_weight: float = Field(0.5, ge=0, description="lambda: weight of the chosen step's NLL per token")
    axis_weights: dict[Literal["safety", "helpfulness", "efficiency"], float] = Field(
        {"safety": 1.0, "helpfulness": 1.0, "efficiency": 1.0}, description="weight by axis; axes not named weigh 1"
    )
    step_weights: dict[StepKind, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight of a preference, by its step; steps not named weigh 1"
    )
    prompt_weighting: Literal["mean", "sum"] = Field("mean", description="mean: every prompt counts the same")
    pairing: PairingConfig = PairingConfig()
    optim: OptimConfig = OptimConfig(lr=1e-6)


class EvaluateConfig(Section):
    """What is measured, after which checkpoint."""

    max_unsafe: int = Field(0, ge=0, description="unsafe test prompts, spread over categories; 0: all")
    max_safe: int = Field(0, ge=0, description="safe test prompts, spread over categories; 0: all")
    checkpoints: Literal["all", "ends"] = Field("all", description="ends: only the first and the last")
