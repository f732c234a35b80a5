"""A prompt in plain letters: every disguise taken off, and each one reported.

Looks through look-alike, styled, marked and invisible letters, HTML, URL and backslash escapes, base64, hex and
binary, ROT13, leetspeak, reversed and spaced letters, and mixtures. What is not disguised comes out as it went in:
hashes, code, mathematics, emoji, other languages and scripts.

Not seen through: ciphers with a key, letters spaced without a mark between words, drawn letters, other languages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from safer_ray.core import ciphers, letters
from safer_ray.core.letters import Edit

MAX_DEPTH = 4
MAX_CHARS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """One disguise taken off: ``seen`` stood at ``[start, stop)`` and reads ``plain``.

    ``kinds`` are the disguises, outermost first. The span counts characters of the text as it stood when the
    disguise was found: of the prompt itself at ``depth`` 0, of the plain text of the layer above it at 1 and deeper.
    """

    kinds: tuple[str, ...]
    start: int
    stop: int
    seen: str
    plain: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """A text in plain letters.

    ``asked`` is the longest stretch that came out of a cipher, or all of ``text`` if there was none.
    ``exhausted``: there is more to take off than ``MAX_DEPTH`` layers or ``MAX_CHARS`` characters.
    """

    text: str
    asked: str
    decodings: tuple[Decoding, ...]
    exhausted: bool


def normalise(text: str, vocabulary: frozenset[str] = frozenset(), *, max_depth: int = MAX_DEPTH) -> Normalised:
    """Return ``text`` in plain letters, never longer than it was.

    ``vocabulary``: lower-case words that a single word in leetspeak may stand for; whole sentences need none.
    Characters after ``MAX_CHARS`` are kept as they are.
    """
    head, tail = text[:MAX_CHARS], text[MAX_CHARS:]
    finders = _finders(vocabulary)
    decodings: list[Decoding] = []
    asked = (0, 0)
    for depth in range(max_depth):
        before, had = head, len(decodings)
        for finder, whole in finders:
            edits = _apart(finder(head))
            decodings += [_decoding(edit, head, depth) for edit in edits]
            asked = _moved(asked, edits, whole=whole)
            head = _applied(edits, head)
        if head == before:  # every finder has just read this text: most prompts are read once, not twice
            more = len(decodings) > had
            break
    else:
        more = any(finder(head) for finder, _ in finders)
    payload = head[slice(*asked)].strip()
    return Normalised(
        text=head + tail, asked=payload or head + tail, decodings=tuple(decodings), exhausted=bool(tail) or more
    )


def _finders(vocabulary: frozenset[str]) -> list[tuple[Callable[[str], list[Edit]], bool]]:
    """Return what looks for disguises, in order, and whether it reads whole stretches or mends letters in place."""
    in_place = (
        letters.invisible,
        letters.marked,
        letters.styled,
        letters.lookalikes,
        letters.entities,
        letters.backslashes,
        letters.percents,
    )
    return [
        *((finder, False) for finder in in_place),
        (ciphers.tokens, True),
        (partial(ciphers.stretches, vocabulary=vocabulary), True),
        (partial(ciphers.leet_words, vocabulary=vocabulary), False),
    ]


def _decoding(edit: Edit, text: str, depth: int) -> Decoding:
    seen = text[edit.start : edit.stop]
    return Decoding(kinds=edit.kinds, start=edit.start, stop=edit.stop, seen=seen, plain=edit.plain, depth=depth)


def _apart(edits: list[Edit]) -> list[Edit]:
    """Return the edits in order, without those that begin inside an earlier one."""
    kept: list[Edit] = []
    for edit in sorted(edits, key=lambda each: (each.start, -each.stop)):
        if not kept or edit.start >= kept[-1].stop:
            kept.append(edit)
    return kept


def _applied(edits: list[Edit], text: str) -> str:
    parts: list[str] = []
    start = 0
    for edit in edits:
        parts += [text[start : edit.start], edit.plain]
        start = edit.stop
    return "".join([*parts, text[start:]])


def _moved(span: tuple[int, int], edits: list[Edit], *, whole: bool) -> tuple[int, int]:
    """Return where ``span`` lies after the edits, or the longest of them if they are ``whole`` and longer."""
    start, stop = span
    grown = 0
    best = (0, 0)
    for edit in edits:
        at = edit.start + grown
        grown += len(edit.plain) - (edit.stop - edit.start)
        if whole and len(edit.plain) > best[1] - best[0]:
            best = (at, at + len(edit.plain))
        if edit.stop <= span[0]:
            start = span[0] + grown
        if edit.start < span[1]:
            stop = max(start, span[1] + grown)
    return max((start, stop), best, key=lambda each: each[1] - each[0])
