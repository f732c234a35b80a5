"""Where a trace decides: the few words that name topic, aim, rule and path.

All other words of a trace follow from the prompt or from these. In a trace of a hundred tokens they are about ten, so
a loss that counts all tokens alike teaches a small policy the wording long before the judgement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
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
    # The longest title first: one may begin like another.
    topics = "|".join(re.escape(title) for title in sorted(titles, key=len, reverse=True))
    if topics:
        yield from (match.span() for match in re.finditer(topics, text, re.IGNORECASE))


def _aim_spans(text: str) -> Iterator[tuple[int, int]]:
    stated = [match.span(1) for match in _AIM_STATED.finditer(text)]
    yield from stated or (match.span(1) for match in _AIM_ANYWHERE.finditer(text))


def decision_tokens(pieces: Sequence[str], steps: Sequence[Step], titles: Iterable[str]) -> tuple[int, ...]:
    """Return the completion tokens that touch a decisive part, in order.

    ``pieces[T]`` are the decoded texts of the completion's tokens, ``steps`` tile them.
    """
    titles = tuple(titles)
    found: list[int] = []
    for step in steps:
        own = pieces[step.start : step.stop]
        stops = list(accumulate(map(len, own)))
        starts = [stop - len(piece) for stop, piece in zip(stops, own, strict=True)]
        spans = list(decision_spans(step, titles))
        for token, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            if any(start < last and first < stop for first, last in spans):
                found.append(step.start + token)
    return tuple(found)
