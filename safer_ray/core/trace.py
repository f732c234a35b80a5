"""The Ex-Ante trace: its grammar, how it is written, how token spans are found in it.

    <think>
    <assessment>what is asked, with which intent</assessment>
    <verification>which rules apply and whether each is violated</verification>
    <calibration>answer, answer with care, or refuse, and why</calibration>
    </think>
    the response

A completion is the concatenation of four *segments*, one per step. Each segment is tokenised on its
own, in training as in step-wise sampling, so that no token ever straddles two steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from safer_ray.errors import TraceError
from safer_ray.records import STEP_KINDS, Step

_TAGS = ("think", "assessment", "verification", "calibration")
_TAG = re.compile(rf"<\s*/?\s*(?:{'|'.join(_TAGS)})\s*/?\s*>", re.IGNORECASE)
_OPENER = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(_TAGS)})\b|\|)", re.IGNORECASE)
_GRAMMAR = re.compile(
    r"\s*<think>\s*<assessment>(?P<assessment>[^<]*(?:<(?!/assessment>)[^<]*)*)</assessment>"
    r"\s*<verification>(?P<verification>[^<]*(?:<(?!/verification>)[^<]*)*)</verification>"
    r"\s*<calibration>(?P<calibration>[^<]*(?:<(?!/calibration>)[^<]*)*)</calibration>"
    r"\s*</think>(?P<response>.*)",
    re.DOTALL,
)
_SEGMENTS = tuple(
    re.compile(rf"{head}<{kind}>(.*)</{kind}>{tail}", re.DOTALL)
    for kind, head, tail in (
        ("assessment", r"\s*<think>\s*", r"\s*"),
        ("verification", r"\s*", r"\s*"),
        ("calibration", r"\s*", r"\s*</think>\s*"),
    )
)
STEP_STOPS: tuple[str, ...] = ("</assessment>", "</verification>", "</think>", "")
"""The text that ends each step; the response ends with the end-of-turn token instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The four steps as stripped, non-empty text without any trace tag.

    Raises:
        TraceError: if a step is empty, has surrounding white space, or contains a tag.
    """

    assessment: str
    verification: str
    calibration: str
    response: str

    def __post_init__(self) -> None:
        for kind, text in zip(STEP_KINDS, self.steps, strict=True):
            if not text or text != text.strip():
                raise TraceError(f"trace: the {kind} is empty or not stripped")
            if _TAG.search(text):
                raise TraceError(f"trace: the {kind} contains a trace tag; escape it first")

    @property
    def steps(self) -> tuple[str, str, str, str]:
        """The four texts in order."""
        return self.assessment, self.verification, self.calibration, self.response


def segments(trace: Trace) -> tuple[str, str, str, str]:
    """Return the text of each step as the model writes it, tags included; joined, they are the completion."""
    return (
        f"<think>\n<assessment>{trace.assessment}</assessment>",
        f"\n<verification>{trace.verification}</verification>",
        f"\n<calibration>{trace.calibration}</calibration>\n</think>",
        f"\n{trace.response}",
    )


def render(trace: Trace) -> str:
    """Return the completion text of ``trace``; ``parse`` undoes it."""
    return "".join(segments(trace))


def parse(text: str) -> Trace:
    """Read a completion.

    Raises:
        TraceError: naming the first thing that breaks the grammar.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise TraceError(f"trace: {_first_fault(text)}")
    return Trace(**{kind: match[kind].strip() for kind in STEP_KINDS})


def _first_fault(text: str) -> str:
    lowered = text.lower()
    for tag in ("<think>", *(f"<{'/' * closing}{kind}>" for kind in STEP_KINDS[:3] for closing in (0, 1)), "</think>"):
        count = lowered.count(tag)
        if count != 1:
            return f"{tag} stands {count} times instead of once"
    return "the tags are out of order, or text stands between them"


def response_of(text: str) -> str:
    """Return what a user sees: the text after ``</think>``, or all of it if nothing was thought."""
    head, closed, tail = text.partition("</think>")
    if closed:
        return tail.strip()
    return "" if head.lstrip().startswith("<think>") else head.strip()


def step_text(kind_index: int, segment: str) -> str | None:
    """Return the content of one segment without its tags, or None if the segment is malformed."""
    if kind_index == 3:
        inner = segment
    else:
        match = _SEGMENTS[kind_index].fullmatch(segment)
        if match is None:
            return None
        inner = match[1]
    bare = inner.strip()
    return bare if bare and not ("<" in inner and _TAG.search(inner)) else None


def escape_tags(text: str) -> str:
    """Make user text unable to open a trace tag or a chat-control token; other text is unchanged."""
    return _OPENER.sub("&lt;", text)


def split_steps(pieces: Sequence[str], first_step: int = 0) -> tuple[Step, ...]:
    """Tile a completion into steps.

    ``pieces[T]`` are the decoded texts of its tokens, joined equal to the completion. A step ends with the token
    that completes its stop text, so every token belongs to exactly one step. Text that never closes
    stays in the step it began in.

    Raises:
        ValueError: if there are no pieces.
    """
    if not pieces:
        raise ValueError("a completion without tokens has no steps")
    steps: list[Step] = []
    start, buffer, kind = 0, "", first_step
    for position, piece in enumerate(pieces):
        buffer += piece
        stop_text = STEP_STOPS[kind]
        if stop_text and stop_text in buffer and position + 1 < len(pieces):
            steps.append(Step(kind=STEP_KINDS[kind], start=start, stop=position + 1, text=buffer))
            start, buffer, kind = position + 1, "", kind + 1
    steps.append(Step(kind=STEP_KINDS[kind], start=start, stop=len(pieces), text=buffer))
    return tuple(steps)
