"""From rollouts to what a judge must say: which steps earn 0 without being asked about, and which are cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safer_ray.backends.base import JudgeTask
from safer_ray.backends.judge_rubric import JudgeCase
from safer_ray.core.criteria import question
from safer_ray.core.hollow import hollow
from safer_ray.core.rules import RulePack
from safer_ray.core.scoring import efficiency
from safer_ray.core.trace import step_text
from safer_ray.core.verdicts import Ruling, abstained, failed, scored
from safer_ray.records import AXES, STEP_KINDS, Axis, Step, StepKind, Verdict

_TURN_END = re.compile(r"(?:\s*<\|[^|>\s]{1,40}\|>|\s*</s>)+\s*$")
_SCORE_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One verdict to give. ``ruling`` is set where no model is needed, ``case`` where one is."""

    task: JudgeTask
    step: Step
    axis: Axis
    ruling: Ruling | None
    case: JudgeCase | None


def content_of(step: Step) -> str | None:
    """Return what a step says, without its tags and the end of the turn; None if it is malformed."""
    text = _TURN_END.sub("", step.text) if step.kind == "response" else step.text
    return step_text(STEP_KINDS.index(step.kind), text)


def slots_of(pack: RulePack, task: JudgeTask, unfit: Callable[[JudgeCase], str]) -> Iterator[Slot]:
    """Yield one slot per step and axis; ``unfit`` says why a judge is not made for a case."""
    asked = question(task.prompt.text, task.prompt.label, task.prompt.category).words
    earlier = [(step.kind, content_of(step) or "") for step in task.history]
    for position, step in enumerate(task.rollout.steps):
        text = content_of(step)
        last = position + 1 == len(task.rollout.steps)
        sure = ruling_without_asking(pack, step, text, task.rollout.finish if last else "stop", asked)
        for axis in AXES:
            if axis == "efficiency":
                ruling: Ruling | None = scored(efficiency(step.tokens), f"{step.tokens} tokens")
                if sure is not None and sure.kind == "failed":
                    ruling = sure
                yield Slot(task=task, step=step, axis=axis, ruling=ruling, case=None)
                continue
            case = _case(task, step.kind, text or "", axis, tuple(earlier))
            why = "" if sure else unfit(case)
            yield Slot(task=task, step=step, axis=axis, ruling=abstained(why) if why else sure, case=case)
        earlier.append((step.kind, text or ""))


def _case(
    task: JudgeTask, kind: StepKind, text: str, axis: Axis, earlier: tuple[tuple[StepKind, str], ...]
) -> JudgeCase:
    return JudgeCase(prompt=task.prompt, kind=kind, text=text, axis=axis, earlier=earlier)


def ruling_without_asking(
    pack: RulePack, step: Step, text: str | None, finish: str, asked: frozenset[str]
) -> Ruling | None:
    """Return the ruling of a step that no model needs to see: aborted, cut off, malformed, hollow."""
    if finish == "abort":
        return failed("the sampler aborted this rollout")
    if finish == "length":
        return scored(0.0, "truncated: cut off before its end")
    if text is None:
        return scored(0.0, "malformed: the step is empty or its tags are wrong")
    why = hollow(pack, step.kind, text, asked)
    return scored(0.0, f"nothing to reward: {why}") if why else None


def verdict_of(slot: Slot, ruling: Ruling, judge: str) -> Verdict:
    """Return the record: a score, or the error that says why there is none."""
    return Verdict(
        rollout_id=slot.task.rollout.rollout_id,
        step_index=STEP_KINDS.index(slot.step.kind),
        axis=slot.axis,
        judge=judge,
        score=None if ruling.score is None else round(ruling.score, _SCORE_DIGITS),
        rules_hit=ruling.rules,
        reason=ruling.reason if ruling.score is not None else "",
        error=ruling.error,
    )
