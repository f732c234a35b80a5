"""A teacher of whose traces some end where they have judged.

What a prompt asks, which rule it is near and whether it means harm is judged in the assessment; what follows is told
from it. A model with few tokens to learn from learns more from many judgements than from few whole traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safer_ray.backends.base import Teacher, TeacherSpec, TeachResult, TeachTask
from safer_ray.core.decisions import decision_spans
from safer_ray.core.items import taught_whole
from safer_ray.records import TraceExample


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialTeacherSpec:
    """Builds a :class:`PartialTeacher` around the teacher of ``inner``."""

    inner: TeacherSpec
    whole_share: float
    seed: int

    def build(self) -> PartialTeacher:
        """Build the inner teacher here."""
        return PartialTeacher(self.inner.build(), whole_share=self.whole_share, seed=self.seed)


class PartialTeacher:
    """Teaches the traces of ``whole_share`` of the prompts to their end, those of the others up to the judgement."""

    def __init__(self, inner: Teacher, *, whole_share: float, seed: int) -> None:
        self._inner = inner
        self._share = whole_share
        self._seed = seed

    @property
    def name(self) -> str:
        """The inner teacher's."""
        return self._inner.name

    def teach(self, tasks: Sequence[TeachTask]) -> TeachResult:
        """Return what the inner teacher wrote, cut where a trace is not taught to its end."""
        whole = {t.prompt.prompt_id for t in tasks if taught_whole(t.prompt.prompt_id, self._share, self._seed)}
        result = self._inner.teach([replace(task, whole=task.prompt.prompt_id in whole) for task in tasks])
        examples = tuple(each if each.prompt_id in whole else judgement_of(each) for each in result.examples)
        return replace(result, examples=examples)


def judgement_of(example: TraceExample) -> TraceExample:
    """Return the part of a trace up to the last decision of its assessment: whether the aim is harmful."""
    first = example.steps[0]
    decided = tuple(token for token in example.decision_at if token < first.stop)
    if not decided:
        return replace(example, completion_ids=example.completion_ids[: first.stop], steps=(first,))
    stop = decided[-1] + 1
    end = max((last for _, last in decision_spans(first, ())), default=len(first.text))
    return replace(
        example,
        completion_ids=example.completion_ids[:stop],
        steps=(replace(first, stop=stop, text=first.text[:end]),),
        decision_at=decided,
    )
