"""Which of a teacher's traces are good enough to imitate, by a judge of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safer_ray.backends.base import Judge, JudgeSpec, JudgeTask, TeachResult
from safer_ray.backends.ensemble_judge import build_judge
from safer_ray.core.trace import STEP_STOPS
from safer_ray.records import STEP_KINDS, Prompt, Rollout, Step, TraceExample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSpec:
    """Builds a :class:`Selection`; ``floor`` is the least score of a step on safety and on helpfulness."""

    judge: JudgeSpec
    floor: float

    def build_with(self, built: dict[JudgeSpec, Judge]) -> Selection:
        """Build the judge unless it is there already."""
        return Selection(judge=build_judge(self.judge, built), floor=self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A judge as a filter of traces."""

    judge: Judge
    floor: float

    def keep(self, prompt: Prompt, result: TeachResult) -> TeachResult:
        """Return the examples that pass, and the others as rejected with the reason.

        An abstention is no objection, but an example that no step of was scored has not passed anything.
        """
        kept: list[TraceExample] = []
        rejected = list(result.rejected)
        for example in result.examples:
            reason = self._objection(self.judge.judge([_as_task(prompt, example)]))
            if reason:
                rejected.append((example.prompt_id, reason))
            else:
                kept.append(example)
        return TeachResult(examples=tuple(kept), rejected=tuple(rejected))

    def _objection(self, verdicts: list[Verdict]) -> str:
        graded = [verdict for verdict in verdicts if verdict.axis != "efficiency"]
        scores = [verdict.score for verdict in graded if verdict.score is not None]
        if any(verdict.error.startswith("failed: ") for verdict in graded) or not scores:
            return "the selection judge gave no verdict"
        low = [verdict.axis for verdict in graded if verdict.score is not None and verdict.score < self.floor]
        return f"the selection judge scores {low[0]} below {self.floor:g}" if low else ""


def _closed(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps as a judge reads them: one that is only taught up to its judgement has its closing tag."""
    last = steps[-1]
    stop = STEP_STOPS[STEP_KINDS.index(last.kind)]
    return steps if last.text.rstrip().endswith(stop) else (*steps[:-1], replace(last, text=last.text + stop))


def _as_task(prompt: Prompt, example: TraceExample) -> JudgeTask:
    rollout = Rollout(
        rollout_id=example.example_id,
        prompt_id=example.prompt_id,
        sample_index=0,
        first_step=0,
        policy_version=0,
        prompt_ids=example.prompt_ids,
        prefix_ids=(),
        completion_ids=example.completion_ids,
        logprobs=(),
        steps=_closed(example.steps),
        finish="stop",
    )
    return JudgeTask(prompt=prompt, rollout=rollout)
