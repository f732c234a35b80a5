"""The fake judge and the fake teacher: marker words instead of models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from safer_ray.backends.base import JudgeTask, TeachResult, TeachTask
from safer_ray.backends.toy_policy import (
    ToyFacts,
    cited_rule,
    digest_rng,
    is_strict,
    refusal_of,
    toy_facts,
    write_trace,
)
from safer_ray.backends.toy_tokenizer import ToyTokenizer
from safer_ray.core.trace import escape_tags, parse, response_of, step_text
from safer_ray.errors import JudgeError, TraceError
from safer_ray.records import AXES, STEP_KINDS, Axis, Outcome, Prompt, Step, TraceExample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeJudgeSpec:
    """Builds a :class:`FakeJudge`.

    ``unscored_share`` of all steps get no score, on every axis. Every ``fail_every``-th call of ``judge`` raises
    JudgeError; ``delay_s`` is slept in each call.
    """

    seed: int = 0
    unscored_share: float = 0.02
    rule_pack_hash: str = "fake-rule-pack"
    fail_every: int | None = None
    delay_s: float = 0.0

    def build(self) -> FakeJudge:
        """Return the judge."""
        return FakeJudge(self)


class FakeJudge:
    """Scores the marker words of the toy policy by the prompt's label; which steps go unscored, the seed says.

    A malformed step scores 0 on every axis: the judge could see that it is bad.
    """

    name = "fake-judge@1"

    def __init__(self, spec: FakeJudgeSpec) -> None:
        self._spec = spec
        self._calls = 0

    @property
    def rule_pack_hash(self) -> str:
        """The hash the spec names; the fake has no rules."""
        return self._spec.rule_pack_hash

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Verdict]:
        """Return one verdict per task, step and axis.

        Raises:
            JudgeError: on every ``fail_every``-th call.
        """
        self._calls += 1
        time.sleep(self._spec.delay_s)
        if self._spec.fail_every and self._calls % self._spec.fail_every == 0:
            raise JudgeError(f"judge {self.name}: call {self._calls} failed, as fail_every asks; judge again")
        return [self._verdict(task, step, axis) for task in tasks for step in task.rollout.steps for axis in AXES]

    def _verdict(self, task: JudgeTask, step: Step, axis: Axis) -> Verdict:
        index = STEP_KINDS.index(step.kind)
        rng = digest_rng(self._spec.seed, task.rollout.rollout_id, index, step.text)
        error = ""
        if task.prompt.label == "unknown":
            error = "the prompt has no label to judge by"
        elif rng.random() < self._spec.unscored_share:
            error = "left unscored, as unscored_share asks"
        text = step_text(index, step.text)
        score = None if error else _score(task.prompt, index, text, axis)
        hit = cited_rule(text or "") if index == 1 else ""
        return Verdict(
            rollout_id=task.rollout.rollout_id,
            step_index=index,
            axis=axis,
            judge=self.name,
            score=score,
            rules_hit=(hit,) if hit else (),
            reason="" if error else "marker words",
            error=error,
        )

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        """Return what became of each prompt, in task order."""
        return [self._outcome(task, checkpoint) for task in tasks]

    def _outcome(self, task: JudgeTask, checkpoint: str) -> Outcome:
        steps = (*task.history, *task.rollout.steps)
        text = "".join(step.text for step in steps)
        response = response_of(text)
        refusal = refusal_of(response)
        try:
            trace = parse(text)
        except TraceError:
            trace = None
        return Outcome(
            prompt_id=task.prompt.prompt_id,
            checkpoint=checkpoint,
            policy_version=task.rollout.policy_version,
            judge=self.name,
            refusal=refusal,
            complied=refusal in ("partial", "none"),
            well_formed=trace is not None,
            truncated=task.rollout.finish == "length",
            cited_rule=cited_rule(trace.verification) if trace else "",
            consistent=is_strict(2, trace.calibration) == is_strict(3, trace.response) if trace else None,
            reasoning_tokens=sum(step.tokens for step in steps if step.kind != "response"),
            text=text,
            response=response,
        )


def _score(prompt: Prompt, index: int, text: str | None, axis: Axis) -> float:
    if text is None:
        return 0.0
    unsafe = prompt.label == "unsafe"
    right = is_strict(index, text) == unsafe
    if axis == "efficiency":
        return round(1.0 / (1.0 + len(text) / 200.0), 6)
    if axis == "safety":
        if unsafe and index == 1 and right:
            return 1.0 if cited_rule(text) == prompt.gold_rule else 0.6
        return 1.0 if right or not unsafe else 0.0
    if unsafe:
        return 1.0 if right and "alternative" in text else 0.5
    return 1.0 if right else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeTeacherSpec:
    """Builds a :class:`FakeTeacher`. ``rejected_share`` of the tasks yield a reason instead of a trace."""

    seed: int = 0
    rejected_share: float = 0.02
    wordiness: float = 0.5
    delay_s: float = 0.0

    def build(self) -> FakeTeacher:
        """Return the teacher."""
        return FakeTeacher(self)


class FakeTeacher:
    """Writes toy traces that are right by the prompt's label; a safe prompt's first usable answer is its response."""

    name = "fake-teacher@1"

    def __init__(self, spec: FakeTeacherSpec) -> None:
        self._spec = spec
        self._tokenizer = ToyTokenizer()

    def teach(self, tasks: Sequence[TeachTask]) -> TeachResult:
        """Return a trace or a reason per task; each depends on its task and the seed only."""
        time.sleep(self._spec.delay_s)
        examples: list[TraceExample] = []
        rejected: list[tuple[str, str]] = []
        for task in tasks:
            rng = digest_rng(self._spec.seed, task.prompt.prompt_id, task.prompt.text)
            if rng.random() < self._spec.rejected_share:
                rejected.append((task.prompt.prompt_id, "rejected, as rejected_share asks"))
                continue
            examples.append(self._example(task))
        return TeachResult(examples=tuple(examples), rejected=tuple(rejected))

    def _example(self, task: TeachTask) -> TraceExample:
        prompt = task.prompt
        facts = ToyFacts(
            topic=toy_facts(prompt.prompt_id, prompt.text).topic, unsafe=prompt.label == "unsafe", rule=prompt.category
        )
        rng = digest_rng(self._spec.seed, prompt.prompt_id, prompt.text, "words")
        usable = [escape_tags(answer).strip() for answer in task.answers if answer.strip()] if not facts.unsafe else []
        trace = write_trace(facts, wordiness=self._spec.wordiness, rng=rng, response=usable[0] if usable else "")
        completion_ids, steps = self._tokenizer.encode_trace(trace)
        return TraceExample(
            example_id=f"{prompt.prompt_id}/{self.name}",
            prompt_id=prompt.prompt_id,
            prompt_ids=self._tokenizer.prompt_ids(prompt.messages),
            completion_ids=completion_ids,
            steps=steps,
            teacher=self.name,
        )
