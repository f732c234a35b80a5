"""One run, as data: frozen, built once, dumped beside the run, never read below a ``Spec``.

Every field has a unit in its name or its description; a description is the help an editor shows.
``load_config`` reads YAML and names file, line, key and the nearest known key when it refuses.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from safer_ray.config_section import Count, Fraction, Seconds, Section
from safer_ray.judge_config import JudgesConfig
from safer_ray.stage_config import ErpoConfig, EvaluateConfig, SftConfig, TeacherConfig

StageName = Literal["evaluate", "synth", "sft", "erpo"]
STAGE_ORDER: tuple[StageName, ...] = ("evaluate", "synth", "sft", "erpo")


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
    never_sample: tuple[str, ...] = Field(("R04",), description="categories never sampled on, beside the pack's own")

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
    threads: int = Field(0, ge=0, description="CPU threads of one engine; 0: as many as the driver may use")
    fp32_where_faster: bool = Field(
        True, description="CPU only: compute in fp32, with twice the memory, where that is faster than bf16 (no AMX)"
    )
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


class LearnerConfig(Section):
    """DeepSpeed ranks."""

    kind: Literal["deepspeed", "fake"] = Field("deepspeed", description="fake: trains nothing, in no time")
    ranks: Count = Field(1, description="training processes, one GPU each if there are GPUs")
    resources: Resources = Resources()
    threads: int = Field(0, ge=0, description="CPU threads of one rank; 0: as many as the driver may use")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO: what is sharded over the ranks; 1 optimiser state, 2 and gradients, 3 and weights"
    )
    lora_rank: int = Field(0, ge=0, description="0 trains all weights; above 0 trains adapters, merged when published")
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")


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
    track: Literal["none", "tensorboard"] = Field(
        "none", description="curves in RUN/tensorboard; needs the extra track"
    )
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
