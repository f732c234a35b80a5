"""One run, as data: frozen, built once, dumped beside the run, never read below a ``Spec``.

Every field has a unit in its name or its description; a description is the help an editor shows.
``load_config`` reads YAML and names file, line, key and the nearest known key when it refuses.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from safer_ray.judge_config import JudgesConfig
from safer_ray.records import StepKind

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
StageName = Literal["evaluate", "synth", "sft", "erpo"]
STAGE_ORDER: tuple[StageName, ...] = ("evaluate", "synth", "sft", "erpo")


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resources(Section):
    """What one replica or rank asks Ray for."""

    cpus: float = Field(1.0, ge=0, description="CPU cores asked of Ray")
    gpus: float = Field(0.0, ge=0, description="GPUs asked of Ray, per tensor-parallel worker for samplers")
    custom: dict[str, float] = Field(
        default_factory=dict, description="custom resources, e.g. {sampler: 1}: Ray adds nodes of that type"
    )


class ModelConfig(Section):
    """The policy to train."""

    id: str = Field(min_length=1, description="embedded:smollm2-135m, a local directory, or a Hugging Face id")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    system_prompt: str | None = Field(
        "You are a helpful assistant.", description="system message of every prompt; null: the model's own default"
    )
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="weights of samplers and forward passes")


class RulesConfig(Section):
    """The policy in words."""

    pack: str = Field("default", description="name of a shipped rule pack or path of a pack.yaml")
    in_prompt: bool = Field(
        False, description="keep the rules in the student's prompt (ablation of context distillation)"
    )


class PromptSource(Section):
    """Where prompts come from. Columns are found by their usual names unless named here."""

    path: str = Field(description="shipped:NAME, hf:OWNER/NAME, or a .jsonl, .csv or .parquet file")
    split: str | None = Field(None, description="keep only rows of this split (for hf: the split to load)")
    subset: str | None = Field(None, description="hf only: the configuration name")
    label: Literal["unsafe", "safe", "unknown"] | None = Field(None, description="label of every row without one")
    category: str | None = Field(None, description="rule id of every row without one")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our field -> their column, for text, id, label, category, form, split"
    )
    as_split: Literal["train", "test"] | None = Field(None, description="split given to the rows kept")


class PromptsConfig(Section):
    """Prompts of the run."""

    sources: tuple[PromptSource, ...] = Field(
        (PromptSource(path="shipped:default"),), min_length=1, description="read one after the other"
    )
    max_bad_share: Fraction = Field(0.02, description="stop when more than this share of rows is malformed")
    decontaminate: tuple[str, ...] = Field(
        (), description="files of evaluation prompts: train prompts that share 13 words in a row with one are left out"
    )
    decontaminate_above: float | None = Field(
        None, gt=0, le=1, description="and those whose sentence vector has this cosine with one or more; null: none"
    )
    never_sample: tuple[str, ...] = Field(("R04",), description="categories no model is ever sampled on")

    @model_validator(mode="after")
    def _compares_with_something(self) -> PromptsConfig:
        if self.decontaminate_above is not None and not self.decontaminate:
            raise ValueError("prompts.decontaminate_above compares with nothing; name files in prompts.decontaminate")
        return self


class ElasticConfig(Section):
    """Replicas that come and go with the work, instead of a fixed number."""

    target_queue_s: Seconds = Field(
        30.0, description="more replicas are asked for when those at hand need longer for what waits and runs"
    )
    min: int = Field(1, ge=0, description="replicas kept when there is nothing to do")
    max: Count = Field(description="replicas never exceeded")
    cool_down_s: Seconds = Field(60.0, description="least time between two changes; an idle pool drains after it")

    @model_validator(mode="after")
    def _bounds_agree(self) -> ElasticConfig:
        if self.min > self.max:
            raise ValueError(f"elastic.min {self.min} is above elastic.max {self.max}; swap or equal them")
        return self


def _starts_within(replicas: int, elastic: ElasticConfig | None, role: str) -> None:
    if elastic is not None and not elastic.min <= replicas <= elastic.max:
        raise ValueError(
            f"{role}.replicas {replicas}, the number to begin with, is outside {role}.elastic "
            f"{elastic.min} to {elastic.max}"
        )


class SamplerConfig(Section):
    """Rollout engines (vLLM), each in its own placement group."""

    kind: Literal["vllm", "fake"] = Field("vllm", description="fake: a toy policy, for trying the machinery")
    replicas: Count = Field(1, description="engines; with elastic: to begin with")
    elastic: ElasticConfig | None = Field(None, description="let the number of engines follow the work")
    tensor_parallel: Count = Field(1, description="GPUs one engine spans")
    resources: Resources = Resources()
    threads: int = Field(0, ge=0, description="CPU threads of one engine; 0: all cores of the node")
    kv_cache_gib: float = Field(1.0, gt=0, description="CPU only: key-value cache of one engine")
    gpu_memory_share: Fraction = Field(0.85, description="GPU only: share of GPU memory for one engine")
    max_model_len: Count = Field(1024, description="tokens of prompt, prefix and completion together")
    max_num_seqs: Count = Field(64, description="sequences one engine runs at once")
    temperature: float = Field(1.0, gt=0, description="of rollouts that become preferences")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability that tokens are drawn from")
    max_step_tokens: Count = Field(96, description="longest single step; beyond it a step is truncated")
    max_trace_tokens: Count = Field(256, description="longest whole completion when evaluating")
    max_answer_tokens: Count = Field(80, description="longest plain answer used to write traces")

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> SamplerConfig:
        _starts_within(self.replicas, self.elastic, "sampler")
        return self


class JudgeConfig(JudgesConfig):
    """Judges, scaled on their own."""

    kind: Literal["rules", "fake"] = Field("rules", description="rules: the checks of the rule pack")
    replicas: Count = Field(1, description="judge actors; they write the traces, too; with elastic: to begin with")
    elastic: ElasticConfig | None = Field(None, description="let the number of judges follow the work")
    resources: Resources = Resources(cpus=0)

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> JudgeConfig:
        _starts_within(self.replicas, self.elastic, "judge")
        return self


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


class LearnerConfig(Section):
    """DeepSpeed ranks."""

    kind: Literal["deepspeed", "fake"] = Field("deepspeed", description="fake: trains nothing, in no time")
    ranks: Count = Field(1, description="training processes, one GPU each if there are GPUs")
    resources: Resources = Resources()
    threads: int = Field(0, ge=0, description="CPU threads of one rank; 0: all cores of the node")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO: what is sharded over the ranks; 1 optimiser state, 2 and gradients, 3 and weights"
    )
    lora_rank: int = Field(0, ge=0, description="0 trains all weights; above 0 trains adapters, merged when published")
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")


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
        {"safety": 1.0, "helpfulness": 1.0, "efficiency": 1.0}, description="weight of a preference, by its axis"
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


class LoopConfig(Section):
    """How the driver keeps workers busy, and how long it waits for anything."""

    policy: Literal["synchronous", "one_round_ahead", "fully_async"] = Field(
        "synchronous", description="what is worked on when; one_round_ahead and fully_async explore while training"
    )
    max_in_flight: Count = Field(48, description="prompts being worked on at once, over all phases together")
    max_tries: Count = Field(3, description="a prompt that failed this often is dropped, with the reason")
    max_lag: int = Field(
        0,
        ge=0,
        description="policy versions a pair may be behind the learner; unless given: synchronous 0, one_round_ahead 1, "
        "fully_async 2",
    )
    start_deadline_s: Seconds = Field(600.0, description="placement and start of engines and ranks")
    call_deadline_s: Seconds = Field(1800.0, description="one sample, judge, publish or optimiser step")

    @model_validator(mode="before")
    @classmethod
    def _lag_of_the_policy(cls, given: Any) -> Any:
        if isinstance(given, dict) and "max_lag" not in given:
            return {**given, "max_lag": {"one_round_ahead": 1, "fully_async": 2}.get(str(given.get("policy")), 0)}
        return given


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(
        None,
        pattern=r"^(auto|local|(ray://)?[\w.\[\]:-]+:\d+)$",
        description="null: start one here unless RAY_ADDRESS is set; auto or host:port",
    )
    object_store_mib: Count = Field(512, description="shared memory for a cluster started here")
    probe_every_s: Seconds = Field(30.0, description="a replica silent for so long is asked for one token")
    probe_deadline_s: Seconds = Field(
        120.0, description="time for that token; a replica that misses it twice in a row is killed and replaced"
    )
    learner_restarts: int = Field(
        2, ge=0, description="times in a run that a learner group that lost a rank starts again and replays its phase"
    )


class RunConfig(Section):
    """A whole run; what ``jobs/*.yaml`` hold."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the run directory")
    seed: int = Field(0, ge=0, description="of every choice: prompts, samples, order, weights of adapters")
    stages: tuple[StageName, ...] = Field(STAGE_ORDER, min_length=1, description="what is done, in this order")
    model: ModelConfig
    rules: RulesConfig = RulesConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: SamplerConfig = SamplerConfig()
    judge: JudgeConfig = JudgeConfig()
    teacher: TeacherConfig = TeacherConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    erpo: ErpoConfig = ErpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    loop: LoopConfig = LoopConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> RunConfig:
        wanted = tuple(stage for stage in STAGE_ORDER if stage in self.stages)
        if self.stages != wanted:
            raise ValueError(f"stages must be in the order {', '.join(wanted)}, each at most once")
        if "sft" in self.stages and "synth" not in self.stages and self.sft.traces is None:
            raise ValueError("stages has sft but not synth: add synth, or name existing traces in sft.traces")
        kinds = {self.sampler.kind, self.learner.kind}
        if "fake" in kinds and len(kinds) > 1:
            raise ValueError("sampler.kind and learner.kind must both be fake or both be real: they exchange weights")
        if self.loop.max_lag and self.loop.policy == "synchronous":
            raise ValueError(
                "loop.max_lag must be 0 with loop.policy synchronous: its samplers always have the newest weights"
            )
        if self.loop.policy == "one_round_ahead" and self.loop.max_lag != 1:
            raise ValueError("loop.max_lag must be 1 with loop.policy one_round_ahead; fully_async takes any")
        if self.loop.policy == "fully_async" and not self.loop.max_lag:
            raise ValueError("loop.max_lag 0 lets nothing run ahead: raise it, or set loop.policy to synchronous")
        steps = self.sampler.max_step_tokens
        longest = max(self.sampler.max_trace_tokens, self.sampler.max_answer_tokens, 4 * steps)
        if self.judge.outcome is not None and "erpo" in self.stages:  # a whole trace may follow the third step
            longest = max(longest, 3 * steps + self.sampler.max_trace_tokens)
        if longest >= self.sampler.max_model_len:
            raise ValueError(
                f"sampler.max_model_len {self.sampler.max_model_len} leaves no room for a prompt: "
                f"a completion may take {longest} tokens"
            )
        return self
