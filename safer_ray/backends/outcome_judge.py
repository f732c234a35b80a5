"""A judge that values a step by what comes of it: continuations are judged at their ends by any judge of responses.

A response is its own end and is judged as the inner judge does. What earns nothing whatever comes of it - a step
that is cut off, malformed or hollow - is worth 0 here, too, else an empty trace would be as good as its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safer_ray.backends.base import Judge, JudgeSpec, JudgeTask
from safer_ray.backends.ensemble_judge import build_judge
from safer_ray.backends.judge_cases import content_of, ruling_without_asking
from safer_ray.backends.judge_usage import Costed, Ledger
from safer_ray.backends.rule_packs import read_pack
from safer_ray.core.criteria import question
from safer_ray.core.outcome import OutcomeRules, at_its_end, step_value
from safer_ray.core.rules import RulePack
from safer_ray.core.scoring import efficiency
from safer_ray.core.verdicts import Ruling, abstained, scored
from safer_ray.records import AXES, STEP_KINDS, Axis, Outcome, Step, Verdict

_RESPONSE = len(STEP_KINDS) - 1
_SCORE_DIGITS = 4
Place = tuple[str, int, Axis]
"""Rollout, step, axis: what a verdict is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeJudgeSpec:
    """Builds an :class:`OutcomeJudge` around ``inner``, which has to judge responses and no other step."""

    inner: JudgeSpec
    rules: OutcomeRules
    pack: str = "default"

    def build(self) -> OutcomeJudge:
        """Build the inner judge here."""
        return self.build_with({})

    def build_with(self, built: dict[JudgeSpec, Judge]) -> OutcomeJudge:
        """Build the inner judge unless it is in ``built``, and add it there: an engine is started once."""
        return OutcomeJudge(build_judge(self.inner, built), self.rules, read_pack(self.pack))


class OutcomeJudge:
    """Implements the ``Judge`` protocol; a step whose task has no continuations is unscored, unless it is a response.

    On axes that are not valued by continuations, and on responses, the inner judge says what it says.
    """

    def __init__(self, inner: Judge, rules: OutcomeRules, pack: RulePack) -> None:
        self._inner = inner
        self._rules = rules
        self._pack = pack
        self._ledger = Ledger(self.name)

    @property
    def name(self) -> str:
        """The inner judge with its version, and how many continuations it judges."""
        return f"outcome({self._inner.name} x{self._rules.continuations})@1"

    @property
    def rule_pack_hash(self) -> str:
        """Content hash of the rules judged by."""
        return self._inner.rule_pack_hash

    def take_costs(self) -> dict[str, int]:
        """Return what was judged here, and what the inner judge spent, since the last call."""
        return self._ledger.take() | (self._inner.take_costs() if isinstance(self._inner, Costed) else {})

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        """Return what became of each prompt, as the inner judge sees it.

        Raises:
            JudgeError: if the inner judge does.
        """
        return self._inner.outcomes(tasks, checkpoint)

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Verdict]:
        """Return one verdict per task, step and axis.

        Raises:
            JudgeError: if the inner judge does.
        """
        sure = {id(task): self._sure(task) for task in tasks}
        ends: dict[str, JudgeTask] = {}
        for task in tasks:
            if sure[id(task)] is None:
                ends |= {end.rollout.rollout_id: end for end in _ends(task)}
        asked = [task for task in tasks if self._concerns_inner(task)]
        said = {_place(verdict): verdict for verdict in self._inner.judge([*asked, *ends.values()])}
        scores = [place for place, verdict in said.items() if verdict.score is not None]
        verdicts = [each for task in tasks for each in self._verdicts(task, sure[id(task)], said)]
        values = [v for v in verdicts if v.step_index != _RESPONSE and v.axis in self._rules.axes]
        self._ledger.add(
            continuations=len({each.rollout_id for task in tasks for each in task.continuations}),
            judged=len({rollout for rollout, _, axis in scores if rollout in ends and axis in self._rules.axes}),
            values=len(values),
            unscored=sum(verdict.score is None for verdict in values),
        )
        return verdicts

    def _concerns_inner(self, task: JudgeTask) -> bool:
        """Whether the inner judge has to see the steps themselves: responses, and axes that are not valued here."""
        responds = any(step.kind == "response" for step in task.rollout.steps)
        return responds or not {"safety", "helpfulness"} <= set(self._rules.axes)

    def _sure(self, task: JudgeTask) -> Ruling | None:
        """Return the ruling of a last step that is worth nothing, or nothing to judge, whatever comes of it."""
        step, asked = task.rollout.steps[-1], question(task.prompt.text, task.prompt.label, task.prompt.category)
        return ruling_without_asking(self._pack, step, content_of(step), task.rollout.finish, asked.words)

    def _verdicts(self, task: JudgeTask, sure: Ruling | None, said: dict[Place, Verdict]) -> Iterator[Verdict]:
        for step in task.rollout.steps:
            for axis in AXES:
                place: Place = (task.rollout.rollout_id, STEP_KINDS.index(step.kind), axis)
                if step.kind != "response" and axis in self._rules.axes:
                    yield self._verdict(place, self._value(task, step, axis, sure, said))
                elif place in said:
                    yield replace(said[place], judge=self.name)
                else:
                    yield self._verdict(place, _length(step, sure))

    def _value(
        self, task: JudgeTask, step: Step, axis: Axis, sure: Ruling | None, said: dict[Place, Verdict]
    ) -> Ruling:
        if step is not task.rollout.steps[-1]:
            return abstained("only the last step of a rollout is continued")
        if sure is not None:
            return sure
        if not task.continuations:
            return abstained("nothing was sampled after this step")
        places: list[Place] = [(end.rollout_id, _RESPONSE, axis) for end in task.continuations]
        return step_value([said[place].score if place in said else None for place in places], self._rules)

    def _verdict(self, place: Place, ruling: Ruling) -> Verdict:
        return Verdict(
            rollout_id=place[0],
            step_index=place[1],
            axis=place[2],
            judge=self.name,
            score=None if ruling.score is None else round(ruling.score, _SCORE_DIGITS),
            rules_hit=ruling.rules,
            reason=ruling.reason if ruling.score is not None else "",
            error=ruling.error,
        )


def _place(verdict: Verdict) -> Place:
    return verdict.rollout_id, verdict.step_index, verdict.axis


def _length(step: Step, sure: Ruling | None) -> Ruling:
    if sure is not None and sure.kind == "failed":
        return sure
    return scored(efficiency(step.tokens), f"{step.tokens} tokens")


def _ends(task: JudgeTask) -> Iterator[JudgeTask]:
    """Yield the response of every continuation that has one, as a task of its own."""
    for continuation in task.continuations:
        if (end := at_its_end(continuation)) is not None:
            history = (*task.history, *task.rollout.steps, *end[1])
            yield JudgeTask(prompt=task.prompt, rollout=end[0], history=history)
