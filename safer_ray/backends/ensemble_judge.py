"""Several judges behind the protocol of one: quorum, weights, disagreement, veto (see ``core.ensemble``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from safer_ray.backends.base import Judge, JudgeSpec, JudgeTask
from safer_ray.backends.judge_usage import Costed
from safer_ray.core.ensemble import EnsembleRules, Vote, combine
from safer_ray.core.verdicts import Ruling, abstained, failed, scored
from safer_ray.errors import JudgeError
from safer_ray.records import Outcome, Refusal, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One judge of an ensemble, by the name the config gives it."""

    name: str
    weight: float
    spec: JudgeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleJudgeSpec:
    """Builds an :class:`EnsembleJudge`."""

    members: tuple[Member, ...]
    rules: EnsembleRules

    def build(self) -> EnsembleJudge:
        """Build every member here."""
        return self.build_with({})

    def build_with(self, built: dict[JudgeSpec, Judge]) -> EnsembleJudge:
        """Build the members that are not in ``built`` yet, and add them there: an engine is started once."""
        judges = [build_judge(member.spec, built) for member in self.members]
        return EnsembleJudge(list(zip(self.members, judges, strict=True)), self.rules)


@runtime_checkable
class CompositeSpec(Protocol):
    """Builds a judge that asks others, which may be built already."""

    def build_with(self, built: dict[JudgeSpec, Judge]) -> Judge:
        """Build what is not in ``built`` yet, and add it there."""
        ...


def build_judge(spec: JudgeSpec, built: dict[JudgeSpec, Judge]) -> Judge:
    """Return the judge of ``spec``, the same one for equal specs."""
    if spec not in built:
        built[spec] = spec.build_with(built) if isinstance(spec, CompositeSpec) else spec.build()
    return built[spec]


class EnsembleJudge:
    """Implements the ``Judge`` protocol by asking every member about everything."""

    def __init__(self, members: Sequence[tuple[Member, Judge]], rules: EnsembleRules) -> None:
        self._members = members
        self._rules = rules

    @property
    def name(self) -> str:
        """The members with their versions."""
        return f"ensemble({' + '.join(judge.name for _, judge in self._members)})@1"

    @property
    def rule_pack_hash(self) -> str:
        """Content hash of the rules judged by: all members read the same pack."""
        return self._members[0][1].rule_pack_hash

    def take_costs(self) -> dict[str, int]:
        """Return what the members spent since the last call."""
        return {k: n for _, judge in self._members if isinstance(judge, Costed) for k, n in judge.take_costs().items()}

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Verdict]:
        """Return one verdict per task, step and axis, in the order of the first member."""
        columns = [judge.judge(tasks) for _, judge in self._members]
        by_place = [{(v.rollout_id, v.step_index, v.axis): v for v in column} for column in columns]
        verdicts = []
        for first in columns[0]:
            place = (first.rollout_id, first.step_index, first.axis)
            votes = [
                Vote(judge=member.name, weight=member.weight, ruling=_ruling(column[place]))
                for (member, _), column in zip(self._members, by_place, strict=True)
            ]
            ruling = combine(first.axis, votes, self._rules)
            verdicts.append(
                replace(
                    first,
                    judge=self.name,
                    score=ruling.score,
                    rules_hit=ruling.rules,
                    reason=ruling.reason if ruling.score is not None else "",
                    error=ruling.error,
                )
            )
        return verdicts

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        """Return what became of each prompt, by the majority of the weight.

        Raises:
            JudgeError: if too few members gave an outcome, or they are split evenly; nothing is counted then.
        """
        return [self._outcome(task, checkpoint) for task in tasks]

    def _outcome(self, task: JudgeTask, checkpoint: str) -> Outcome:
        found: list[tuple[float, Outcome]] = []
        reasons: list[str] = []
        for member, judge in self._members:
            try:
                found.append((member.weight, judge.outcomes([task], checkpoint)[0]))
            except JudgeError as exc:
                reasons.append(str(exc))
        have, whole = sum(weight for weight, _ in found), sum(member.weight for member, _ in self._members)
        who = f"judge {self.name}: the answer to {task.prompt.prompt_id}"
        if not found or have < self._rules.quorum * whole:
            raise JudgeError(f"{who}: quorum missed, {have:g} of {whole:g}; {'; '.join(reasons)}")
        against = sum(weight for weight, outcome in found if outcome.complied)
        if against * 2 == have:
            raise JudgeError(f"{who}: the judges are split evenly on whether it complies; it is not counted")
        complied = against * 2 > have
        agreeing = [(weight, outcome) for weight, outcome in found if outcome.complied is complied]
        return replace(agreeing[0][1], judge=self.name, refusal=_heaviest(agreeing))


def _heaviest(outcomes: Sequence[tuple[float, Outcome]]) -> Refusal:
    weights: dict[Refusal, float] = {}
    for weight, outcome in outcomes:
        weights[outcome.refusal] = weights.get(outcome.refusal, 0.0) + weight
    return max(weights, key=lambda refusal: weights[refusal])


def _ruling(verdict: Verdict) -> Ruling:
    if verdict.score is not None:
        return scored(verdict.score, verdict.reason, rules=verdict.rules_hit)
    kind, _, reason = verdict.error.partition(": ")
    return failed(reason) if kind == "failed" and reason else abstained(verdict.error.removeprefix("abstain: "))
