"""Audits as a whole: judges by name or job file, read, compared with labels, and taken together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safer_ray.backends.labelled_answers import readings_of
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.config_file import find_job, load_config
from safer_ray.core.judge_audit import JudgeAudit, LabelledAnswer, Reading, audit_judge, vote
from safer_ray.core.refusal_lists import LISTS
from safer_ray.errors import ConfigError

Answers = Sequence[LabelledAnswer]


def audit_judges(answers: Answers, judges: Sequence[str], overrides: Sequence[str] = ()) -> list[JudgeAudit]:
    """Return an audit per judge, in the order given, then of all of them by vote if there are two or more.

    A judge is ``rules`` (the default pack's rule judge), ``lists`` (every phrase list, as baselines outside the
    vote) or the name of a job file, whose judge is built and asked here.

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
        title, read = _reader(name, overrides)
        voters[title] = read(answers)
        audits.append(audit_judge(title, answers, voters[title]))
    if len(voters) > 1:
        audits.append(audit_judge(f"vote of {len(voters)}", answers, vote(voters)))
    return audits


def _reader(name: str, overrides: Sequence[str]) -> tuple[str, Callable[[Answers], list[Reading]]]:
    if name == "rules":
        judge = RuleJudgeSpec().build()
        return judge.name, lambda answers: readings_of(judge, answers)
    from safer_ray.specs import judge_spec

    built = judge_spec(load_config(find_job(name), overrides)).build()
    return f"{built.name} ({name})", lambda answers: readings_of(built, answers)
