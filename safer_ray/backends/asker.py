"""Who answers a judge's questions: an endpoint, an engine in this process, or a script (the fake twin)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from safer_ray.backends.endpoint import Question, Reply


class Asker(Protocol):
    """Answers many questions at once, at temperature 0 if its spec says so."""

    @property
    def name(self) -> str:
        """The model."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return one reply per question, in order."""
        ...

    def close(self) -> None:
        """Free what it holds. Safe to call twice."""
        ...


class AskerSpec(Protocol):
    """Builds an asker where it will run."""

    def build(self) -> Asker: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAskerSpec:
    """Builds a :class:`ScriptedAsker`. ``script`` is a function of a module, so that the spec can be pickled.

    It returns the text of an answer, a whole reply, or None for an endpoint that cannot be reached.
    """

    script: Callable[[Question], str | Reply | None]
    model: str = "scripted"

    def build(self) -> ScriptedAsker:
        """Return the asker."""
        return ScriptedAsker(self)


class ScriptedAsker:
    """Answers by a function; remembers what it was asked."""

    def __init__(self, spec: ScriptedAskerSpec) -> None:
        self._spec = spec
        self.asked: list[Question] = []

    @property
    def name(self) -> str:
        """The model the spec names."""
        return self._spec.model

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return the script's replies; a text is counted as a token a word."""
        self.asked.extend(questions)
        return [self._reply(question) for question in questions]

    def _reply(self, question: Question) -> Reply:
        said = self._spec.script(question)
        if isinstance(said, Reply):
            return said
        if said is None:
            return Reply(question_id=question.question_id, text=None, error="no connection", tries=3, unreachable=True)
        asked = question.raw or " ".join(turn.content for turn in question.messages)
        return Reply(
            question_id=question.question_id,
            text=said,
            tries=1,
            tokens_in=len(asked.split()),
            tokens_out=len(said.split()),
        )

    def close(self) -> None:
        """Nothing is held."""
