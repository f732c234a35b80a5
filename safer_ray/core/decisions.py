"""Where a trace decides: the few words that name topic, aim, rule and path.

All other words of a trace follow from the prompt or from these. In a trace of a hundred tokens they are about ten, so
a loss that counts all tokens alike teaches a small policy the wording long before the judgement.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from safer_ray.records import Step, StepKind

_AIM = r"\b(?:harmful|legitimate|malicious|benign|dangerous|harmless|unsafe|safe)\b"
_AIM_STATED = re.compile(
    rf"\b(?:aim|intent|intention|use|purpose|goal)\s+(?:is|seems)\s+(?:\w+\s+)?({_AIM})", re.IGNORECASE
)
"""An aim that is named as one. Where there is one, another such word belongs to what was asked."""
_AIM_ANYWHERE = re.compile(f"({_AIM})", re.IGNORECASE)
_DECISIVE: dict[StepKind, re.Pattern[str]] = {
    "verification": re.compile(r"\bR\d{2}\b|\bNo rule\b|\b(?:violated|violates|applies)\b", re.IGNORECASE),
    "calibration": re.compile(r"(?<=<calibration>)\s*\w+"),
    "response": re.compile(r"\A\s*\S+(?:\s+\S+){0,2}"),
}


def decision_spans(step: Step, titles: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield the decisive parts of a step as character spans of its text; ``titles`` are those of the pack's rules."""
    pattern = _DECISIVE.get(step.kind)
    if pattern is None:
        yield from sorted([*_topic_spans(step.text, titles), *_aim_spans(step.text)])
        return
    for match in pattern.finditer(step.text):
        yield match.span()


def _topic_spans(text: str, titles: Iterable[str]) -> Iterator[tuple[int, int]]:
    if topics := _any_of(tuple(titles)):
        yield from (match.span() for match in topics.finditer(text))


@lru_cache(maxsize=64)
def _any_of(titles: tuple[str, ...]) -> re.Pattern[str] | None:
    # The longest title first: one may begin like another.
    topics = "|".join(re.escape(title) for title in sorted(titles, key=len, reverse=True))
    return re.compile(topics, re.IGNORECASE) if topics else None


def _aim_spans(text: str) -> Iterator[tuple[int, int]]:
    stated = [match.span(1) for match in _AIM_STATED.finditer(text)]
    yield from stated or (match.span(1) for match in _AIM_ANYWHERE.finditer(text))


def decision_tokens(pieces: Sequence[str], steps: Sequence[Step], titles: Iterable[str]) -> tuple[int, ...]:
    """Return the completion tokens that touch a decisive part, in order.

    ``pieces[T]`` are the decoded texts of the completion's tokens, ``steps`` tile them.
    """
    titles = tuple(titles)
    found: set[int] = set()
    for step in steps:
        stops = list(accumulate(map(len, pieces[step.start : step.stop])))
        starts = [0, *stops[:-1]]
        for first, last in decision_spans(step, titles):
            touched = range(bisect_right(stops, first), bisect_left(starts, last))
            found.update(step.start + token for token in touched)
    return tuple(sorted(found))
