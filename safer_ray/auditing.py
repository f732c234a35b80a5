"""Audits as a whole: judges by name or job file against labels, and the traces of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safer_ray.backends.base import Judge, JudgeSpec
from safer_ray.backends.ensemble_judge import build_judge
from safer_ray.backends.labelled_answers import Duelist, duels_by, readings_of
from safer_ray.backends.models import ChatTokenizer, resolve_model
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.backends.rule_packs import read_pack
from safer_ray.backends.toy_tokenizer import ToyTokenizer
from safer_ray.backends.trace_probe import SegmentTokenizer, TraceAudit, audit_traces
from safer_ray.config_file import find_job, load_config
from safer_ray.core.items import balanced
from safer_ray.core.judge_audit import JudgeAudit, LabelledAnswer, Reading, audit_judge, vote
from safer_ray.core.refusal_lists import LISTS
from safer_ray.errors import ConfigError
from safer_ray.prepare import never_sampling
from safer_ray.prompts import load_prompts

Answers = Sequence[LabelledAnswer]


def audit_judges(
    answers: Answers, judges: Sequence[str], overrides: Sequence[str] = (), *, duels: int = 40
) -> list[JudgeAudit]:
    """Return an audit per judge, in the order given, then of all of them by vote if there are two or more.

    A judge is ``rules`` (the default pack's rule judge), ``lists`` (every phrase list, as baselines outside the
    vote) or the name of a job file, whose judges of evaluations are built and asked here, one by one and as the
    ensemble the job makes of them. A judge that can compare answers is shown ``duels`` pairs at most, in both orders.

    Raises:
        ConfigError: if a name is given twice or a job file cannot be used.
    """
    doubled = sorted({name for name in judges if judges.count(name) > 1})
    if doubled:
        raise ConfigError(f"--judge {', '.join(doubled)}: given twice; each judge has one vote")
    audits, voters = list[JudgeAudit](), dict[str, list[Reading]]()
    for name in judges:
        if name == "lists":
            audits += [
                audit_judge(each.name, answers, [Reading(refusal=each.read(row.answer)) for row in answers])
                for each in LISTS
            ]
            continue
        alone, together = _judges(name, overrides)
        for title, judge in (alone | together).items():
            readings = readings_of(judge, answers)
            shown = duels_by(judge, answers, duels) if isinstance(judge, Duelist) and judge.duels else []
            audits.append(audit_judge(title, answers, readings, shown))
            if title in alone:
                voters[title] = readings
    if len(voters) > 1:
        audits.append(audit_judge(f"vote of {len(voters)}", answers, vote(voters)))
    return audits


def _judges(name: str, overrides: Sequence[str]) -> tuple[dict[str, Judge], dict[str, Judge]]:
    """Return judges by title: those asked alone, and the ensemble that a job file makes of them if they are several.

    The ensemble asks the very judges that are asked alone: an engine is started once.
    """
    if name == "rules":
        judge = RuleJudgeSpec().build()
        return {judge.name: judge}, {}
    from safer_ray.judge_specs import judge_for

    config = load_config(find_job(name), overrides)
    members = config.judge.reporting or (config.judge.kind,)
    built = dict[JudgeSpec, Judge]()
    alone = [build_judge(judge_for(config, (member,), None), built) for member in members]
    together = [build_judge(judge_for(config, members, None), built)] if len(members) > 1 else []
    return {f"{each.name} ({name})": each for each in alone}, {f"ensemble ({name})": each for each in together}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAudit:
    """A checkpoint's traces probed, with what they were probed on."""

    checkpoint: str
    job: str
    sampler: str
    n_unsafe: int
    n_safe: int
    traces: TraceAudit


def audit_checkpoint(checkpoint: str, job: str, *, prompts: int, overrides: Sequence[str] = ()) -> CheckpointAudit:
    """Probe the traces of a checkpoint on test prompts of a job, half of them unsafe as far as they last.

    The sampler of the job is built in this process, one engine, no Ray. Categories that must never be sampled
    are left out.

    Raises:
        ConfigError: if the job has no test prompts to probe with.
    """
    from safer_ray.specs import sampler_spec, student_prompt

    config = load_config(find_job(job), [*overrides, f"model.id={checkpoint}"])
    pack = read_pack(config.rules.pack)
    config = never_sampling(config, pack)
    loaded = load_prompts(config.prompts.sources, max_bad_share=config.prompts.max_bad_share).prompts
    banned = set(config.prompts.never_sample)
    test = [prompt for prompt in loaded if prompt.split == "test" and prompt.category not in banned]
    chosen = balanced([prompt for prompt in test if prompt.label != "unknown"], prompts, config.seed)
    if not chosen:
        raise ConfigError(f"job {job}: no labelled test prompts to probe traces with; check prompts.sources")
    tokenizer: SegmentTokenizer
    if config.sampler.kind == "fake":
        tokenizer, model = ToyTokenizer(), checkpoint
    else:
        found = resolve_model(config.model.id)
        tokenizer = ChatTokenizer.load(
            found, system_prompt=student_prompt(config), trust_remote_code=config.model.trust_remote_code
        )
        model = str(found)
    sampler = sampler_spec(config, model).build()
    try:
        found_traces = audit_traces(sampler, tokenizer, chosen, sorted(pack.rules), seed=config.seed)
    finally:
        sampler.close()
    unsafe = sum(prompt.label == "unsafe" for prompt in chosen)
    return CheckpointAudit(
        checkpoint=checkpoint,
        job=job,
        sampler=sampler.name,
        n_unsafe=unsafe,
        n_safe=len(chosen) - unsafe,
        traces=found_traces,
    )
