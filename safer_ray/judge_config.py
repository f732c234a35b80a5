"""Settings of judges that are models, and of several judges together; a part of the run config."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from safer_ray.config_section import Count, Fraction, Section

JudgeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
BUILT_IN = ("rules", "fake")
"""Names of judges that need no settings of their own."""


class LlmJudgeConfig(Section):
    """One judge that is a model: behind an endpoint, or on a vLLM engine inside each judge actor."""

    model: str = Field(min_length=1, description="model name at the endpoint, or a local model as in model.id")
    base_url: str | None = Field(None, description="base URL of an OpenAI-compatible endpoint; null: vLLM in the actor")
    template: Literal[
        "auto", "rubric", "safeguard", "llama-guard", "shieldgemma", "wildguard", "harmbench", "guardreasoner"
    ] = Field("auto", description="prompt and parser; auto: by the model's name, else rubric")
    mode: Literal["pointwise", "pairwise"] = Field(
        "pointwise", description="pairwise: siblings are compared with each other in both orders (rubric, reward only)"
    )
    canaries: int = Field(2, ge=0, description="known answers in every batch; a judge that misses them is suspended")
    max_chars: Count = Field(12_000, description="longer texts are left unscored rather than cut")
    max_tokens: Count | None = Field(None, description="longest answer of the judge; null: what its template needs")
    key_env: str = Field("OPENAI_API_KEY", description="endpoint: environment variable with the key; empty: none")
    concurrency: Count = Field(8, description="endpoint: calls in flight per judge actor")
    requests_per_minute: int = Field(0, ge=0, description="endpoint: calls begun per minute and judge actor; 0: any")
    deadline_s: float = Field(120.0, gt=0, description="endpoint: one call, retries included")
    max_tries: Count = Field(5, description="endpoint: tries of one call")
    outage_s: float = Field(900.0, ge=0, description="endpoint: how long judging pauses for one that is down")
    price_in: float = Field(0.0, ge=0, description="money per million tokens read, any one currency")
    price_out: float = Field(0.0, ge=0, description="money per million tokens written")
    max_model_len: Count = Field(8192, description="vLLM: tokens of question and answer together")
    kv_cache_gib: float = Field(1.0, gt=0, description="vLLM on CPU: key-value cache")
    gpu_memory_share: Fraction = Field(0.85, description="vLLM on GPU: share of GPU memory")
    trust_remote_code: bool = Field(False, description="vLLM: run Python code that comes with the model")

    @model_validator(mode="after")
    def _is_usable(self) -> LlmJudgeConfig:
        if self.mode == "pairwise" and self.template not in ("auto", "rubric"):
            raise ValueError("mode pairwise asks the rubric; set template to rubric or mode to pointwise")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|", self.key_env):
            raise ValueError("key_env must be the name of an environment variable; export the key under it")
        if self.base_url is not None:
            parts = urlsplit(self.base_url)
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise ValueError("base_url must be a plain address; a key goes into the variable key_env names")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("base_url must be an address like https://host:port/v1")
        return self


class EnsembleConfig(Section):
    """How several judges become one, wherever a purpose names more than one."""

    weights: dict[JudgeName, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="weight of a judge by name; others weigh 1"
    )
    quorum: Fraction = Field(
        0.5, description="least share of the weight of judges made for a step that must have scored"
    )
    max_spread: Fraction = Field(0.5, description="scores further apart are disagreement: the step is unscored")
    veto: JudgeName | Literal[""] = Field(
        "rules", description="judge whose low safety score always stands; empty: none"
    )
    veto_below: Fraction = Field(0.5, description="safety scores below this are a veto")


class OutcomeConfig(Section):
    """Steps valued by what comes of them: continuations sampled after each, judged at their ends by judge.reward."""

    continuations: Annotated[int, Field(ge=2)] = Field(4, description="whole continuations sampled after every sibling")
    axis: Literal["safety", "helpfulness", "both"] = Field(
        "safety", description="what is valued by continuations; the other axis is judged on the step itself"
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="least difference of two values that makes a pair"
    )
    min_judged: Fraction = Field(
        0.5, description="share of the continuations that must be judged, else the step is unscored"
    )


class JudgesConfig(Section):
    """Which judges there are, and which serves which purpose."""

    llm: dict[JudgeName, LlmJudgeConfig] = Field(default_factory=dict, description="judges that are models, by name")
    reward: tuple[JudgeName, ...] = Field((), description="judges of preferences: rules, or names of llm; empty: kind")
    selection: tuple[JudgeName, ...] = Field(
        (), description="judges that filter traces; empty: only the teacher's rules"
    )
    reporting: tuple[JudgeName, ...] = Field((), description="judges of evaluations; empty: kind")
    selection_floor: Fraction = Field(0.5, description="least score of a step of a trace on safety and helpfulness")
    ensemble: EnsembleConfig = EnsembleConfig()
    outcome: OutcomeConfig | None = Field(
        None, description="value the steps of siblings by continuations sampled after them; null: by the steps alone"
    )
    cache: Literal["user", "run", "off"] = Field("user", description="where verdicts of models are kept for later runs")

    @model_validator(mode="after")
    def _names_are_known(self) -> JudgesConfig:
        known = (*BUILT_IN, *self.llm)
        named = {*self.reward, *self.selection, *self.reporting, *self.ensemble.weights, *self.ensemble.veto.split()}
        if unknown := sorted(named - set(known)):
            raise ValueError(f"judge {unknown[0]!r} is not known; judge.llm defines names beside {', '.join(known)}")
        if taken := sorted(set(self.llm) & set(BUILT_IN)):
            raise ValueError(f"judge.llm.{taken[0]}: the name {taken[0]} is taken; choose another")
        compared = {name for name, section in self.llm.items() if section.mode == "pairwise"}
        if wrong := sorted(compared & {*self.selection, *self.reporting}):
            raise ValueError(f"judge {wrong[0]} compares siblings (mode pairwise), so it can only be in judge.reward")
        if self.outcome is not None and (wrong := sorted(compared & set(self.reward))):
            raise ValueError(
                f"judge {wrong[0]} compares siblings (pairwise), but judge.outcome needs scores: set mode pointwise"
            )
        return self
