"""From config to specs: the last place that reads a ``RunConfig``. Below, only specs and settings travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from safer_ray.backends.base import (
    LearnerSpec,
    LossSettings,
    OptimSettings,
    SamplerSpec,
    SamplingSettings,
    TeacherSpec,
    TrainTask,
)
from safer_ray.backends.checkpoint import has_state
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec
from safer_ray.backends.endpoint import EndpointSpec
from safer_ray.backends.fake import FakeLearnerSpec, FakeSamplerSpec, FakeTeacherSpec
from safer_ray.backends.grader import GraderSpec, RoundFacts
from safer_ray.backends.llm_teacher import Drafting, LlmTeacherSpec
from safer_ray.backends.partial_teacher import PartialTeacherSpec
from safer_ray.backends.rule_packs import read_pack
from safer_ray.backends.template_teacher import TemplateTeacherSpec
from safer_ray.backends.vllm_sampler import VllmSamplerSpec
from safer_ray.cluster.placement import Ask
from safer_ray.cluster.replica import Patience
from safer_ray.cluster.serving import Crew
from safer_ray.cluster.training import LearnerPlan
from safer_ray.cluster.world import Fleet
from safer_ray.config import ElasticConfig, LearnerConfig, Resources, RunConfig, SamplerConfig
from safer_ray.config_file import default_threads
from safer_ray.core.curation import Curation
from safer_ray.core.decontamination import banned_runs
from safer_ray.core.pairing import PairingRules
from safer_ray.core.plan import Phase
from safer_ray.core.rule_text import student_system_prompt
from safer_ray.core.scaling import ElasticRule
from safer_ray.judge_specs import judge_calls, judge_for, pairing_ahead, reward_judge, selection_spec
from safer_ray.rundir import RunDir
from safer_ray.stage_config import OptimConfig

_VLLM_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def fleet_of(config: RunConfig, run_dir: RunDir, *, model: str, resume_from: Path | None) -> Fleet:
    """Return the workers of a run.

    ``model`` is a local directory or a hub id every node can load; ``resume_from`` is the checkpoint a resumed run's
    learner goes on from.
    """
    trains = {"sft", "erpo"} & set(config.stages)
    teaches = "synth" in config.stages
    asks_teacher = teaches and config.teacher.kind == "openai"
    grader = GraderSpec(
        judge=reward_judge(config, run_dir),
        reporter=judge_for(config, config.judge.reporting, run_dir),
        selection=selection_spec(config, run_dir) if teaches else None,
        pairing=pairing_rules(config),
        pairing_ahead=pairing_ahead(config, pairing_rules(config)),
        teacher=teacher_spec(config, run_dir, model) if teaches else None,
    )
    return Fleet(
        sampler=sampler_spec(config, model),
        sampler_crew=Crew(
            ask=_ask(config.sampler.resources, workers=config.sampler.tensor_parallel),
            count=config.sampler.replicas,
            threads=_threads(config.sampler),
            calls=config.loop.max_in_flight,
            elastic=_rule(config.sampler.elastic),
        ),
        grader=grader,
        grader_crew=Crew(
            ask=_ask(config.judge.resources),
            count=config.judge.replicas,
            threads=1,
            calls=max(judge_calls(config), config.teacher.concurrency if asks_teacher else 1),
            elastic=_rule(config.judge.elastic),
        ),
        learner=learner_plan(config, run_dir, model, resume_from) if trains else None,
        patience=Patience(
            start_s=config.loop.start_deadline_s,
            call_s=config.loop.call_deadline_s,
            probe_every_s=config.cluster.probe_every_s,
            probe_s=config.cluster.probe_deadline_s,
        ),
    )


def learner_plan(config: RunConfig, run_dir: RunDir, model: str, resume_from: Path | None) -> LearnerPlan:
    """Return how the learner is started, and how it is started again once ``resume_from`` is no longer the newest."""

    def after(phase: Phase | None) -> LearnerSpec:
        checkpoint = run_dir.checkpoint(phase.checkpoint) if phase else resume_from
        return learner_spec(config, run_dir, model, checkpoint)

    return LearnerPlan(
        after=after,
        ask=_ask(config.learner.resources, workers=config.learner.ranks),
        threads=_threads(config.learner),
        restarts=config.cluster.learner_restarts,
    )


def _threads(section: SamplerConfig | LearnerConfig) -> int:
    """Return the CPU threads of one worker: those that are set, else all; fakes compute nothing."""
    return section.threads or (1 if section.kind == "fake" else default_threads())


def _rule(section: ElasticConfig | None) -> ElasticRule | None:
    if section is None:
        return None
    return ElasticRule(
        target_queue_s=section.target_queue_s, least=section.min, most=section.max, cool_down_s=section.cool_down_s
    )


def _ask(resources: Resources, workers: int = 1) -> Ask:
    return Ask(cpus=resources.cpus, gpus=resources.gpus, custom=dict(resources.custom), workers=workers)


def sampler_spec(config: RunConfig, model: str) -> SamplerSpec:
    """Return how to build one sampler."""
    section = config.sampler
    match section.kind:
        case "fake":
            return FakeSamplerSpec(seed=config.seed)
        case "vllm":
            return VllmSamplerSpec(
                model=model,
                settings=SamplingSettings(
                    temperature=section.temperature,
                    top_p=section.top_p,
                    max_step_tokens=section.max_step_tokens,
                    max_trace_tokens=section.max_trace_tokens,
                    max_answer_tokens=section.max_answer_tokens,
                ),
                tensor_parallel=section.tensor_parallel,
                gpu_memory_utilization=section.gpu_memory_share,
                kv_cache_gib=section.kv_cache_gib,
                max_model_len=section.max_model_len,
                max_num_seqs=section.max_num_seqs,
                threads=section.threads or default_threads(),
                dtype=_VLLM_DTYPES[config.model.dtype],
                fp32_where_faster=section.fp32_where_faster,
                system_prompt=student_prompt(config),
                trust_remote_code=config.model.trust_remote_code,
                seed=config.seed,
            )
        case _:
            assert_never(section.kind)


def student_prompt(config: RunConfig) -> str | None:
    """Return the system message the policy sees: with the rules in it only if the config keeps them there."""
    pack = read_pack(config.rules.pack)
    return student_system_prompt(pack, config.model.system_prompt, rules_in_prompt=config.rules.in_prompt)


def teacher_spec(config: RunConfig, run_dir: RunDir, model: str) -> TeacherSpec:
    """Return how to build the teacher."""
    inner, share = _whole_teacher_spec(config, run_dir, model), config.teacher.whole_share
    return inner if share == 1.0 else PartialTeacherSpec(inner=inner, whole_share=share, seed=config.seed)


def _whole_teacher_spec(config: RunConfig, run_dir: RunDir, model: str) -> TeacherSpec:
    section = config.teacher
    student = {
        "pack": config.rules.pack,
        "model": model,
        "system_prompt": config.model.system_prompt,
        "rules_in_prompt": config.rules.in_prompt,
        "trust_remote_code": config.model.trust_remote_code,
    }
    match section.kind:
        case "fake":
            return FakeTeacherSpec(seed=config.seed)
        case "template":
            return TemplateTeacherSpec(seed=config.seed, wording=section.wording, **student)  # type: ignore[arg-type]
        case "openai":
            assert section.base_url, "checked by the config"
            assert section.model, "checked by the config"
            endpoint = EndpointSpec(
                base_url=section.base_url,
                model=section.model,
                key_env=section.key_env,
                concurrency=section.concurrency,
                deadline_s=section.deadline_s,
                max_tries=section.max_tries,
                cache_path=str(run_dir.teacher_cache),
            )
            scorer = None
            if section.scorer:
                kept = str(run_dir.scorer_cache)
                scorer = replace(endpoint, model=section.scorer, temperature=0.0, cache_path=kept)
            return LlmTeacherSpec(
                endpoint=endpoint,
                drafting=Drafting(seed=config.seed, samples=section.samples),
                scorer=scorer,
                min_score=section.min_score,
                **student,  # type: ignore[arg-type]
            )
        case _:
            assert_never(section.kind)


def curation_of(config: RunConfig, evaluation_texts: Sequence[str] = ()) -> Curation:
    """Return how written traces are filtered before SFT."""
    return Curation(
        balance=config.sft.balance,
        max_jaccard=config.sft.max_jaccard,
        banned_runs=banned_runs(evaluation_texts),
        seed=config.seed,
    )


def learner_spec(config: RunConfig, run_dir: RunDir, model: str, resume_from: Path | None) -> LearnerSpec:
    """Return how to build one learner rank: from ``model``, or as it was when it saved ``resume_from``.

    A checkpoint of an older version holds no more than a model, and then is the model.
    """
    section = config.learner
    going_on = str(resume_from) if resume_from is not None and has_state(resume_from) else ""
    if resume_from is not None and not going_on:
        model = str(resume_from)
    match section.kind:
        case "fake":
            return FakeLearnerSpec(seed=config.seed, resume_from=going_on)
        case "deepspeed":
            return DeepSpeedLearnerSpec(
                model=model,
                zero_stage=section.zero_stage,
                dtype=config.model.dtype,
                threads=section.threads or default_threads(),
                gradient_checkpointing=section.gradient_checkpointing,
                lora_rank=section.lora_rank,
                trust_remote_code=config.model.trust_remote_code,
                seed=config.seed,
                reference_cache=str(run_dir.reference_cache),
                resume_from=going_on,
            )
        case _:
            assert_never(section.kind)


def pairing_rules(config: RunConfig) -> PairingRules:
    """Return the margins of pairing."""
    section = config.erpo.pairing
    return PairingRules(
        safety_margin=section.safety_margin,
        helpfulness_margin=section.helpfulness_margin,
        length_margin=section.length_margin,
        token_floor=section.token_floor,
        length_score_floor=section.length_score_floor,
        max_pairs_per_axis=section.max_pairs_per_step,
    )


def round_facts(config: RunConfig, number: int) -> RoundFacts:
    """Return what the lineage of a round's pairs records of sampler and reference."""
    section = config.sampler
    return RoundFacts(
        round=number,
        sampler=section.kind,
        temperature=section.temperature,
        top_p=section.top_p,
        reference=config.erpo.reference,
    )


def train_task(config: RunConfig, phase: Phase, run_dir: RunDir) -> TrainTask:
    """Return one training stage."""
    if phase.kind == "sft":
        traces = Path(config.sft.traces) if config.sft.traces else run_dir.traces
        return TrainTask(
            stage=phase.name,
            kind="sft",
            data_path=str(traces),
            optim=_optim(config.sft.optim),
            loss=LossSettings(
                step_weights=tuple(config.sft.step_weights.items()), decision_weight=config.sft.decision_weight
            ),
            seed=config.seed,
            failed_dir=str(run_dir.failed),
        )
    section = config.erpo
    return TrainTask(
        stage=phase.name,
        kind="erpo",
        data_path=str(run_dir.round(phase.round) / "pairs.arrow"),
        optim=_optim(section.optim),
        loss=LossSettings(
            beta=section.beta,
            alpha=section.alpha,
            nll_weight=section.nll_weight,
            axis_weights=tuple(sorted((dict(LossSettings().axis_weights) | section.axis_weights).items())),
            step_weights=tuple(section.step_weights.items()),
            prompt_weighting=section.prompt_weighting,
        ),
        reference=section.reference,
        seed=config.seed,
        failed_dir=str(run_dir.failed),
    )


def _optim(section: OptimConfig) -> OptimSettings:
    return OptimSettings(**section.model_dump())
