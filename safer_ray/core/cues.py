"""Which phrase of a list a prompt is about, found by words that point to it.

A cue of four letters or more matches as the beginning of a word, a shorter one only as the whole word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safer_ray.core.wording import content_words, stem, words_of

Cues = Mapping[str, tuple[str, ...]]
"""Phrase -> its cues."""

_PREFIX_CHARS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CueBook:
    """The cues of a rule pack: per phrase of a rule, and readings of harmless prompts that fit no rule."""

    phrases: Cues = field(default_factory=dict)
    everyday: Cues = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CueMatch:
    """A phrase and the words of the text that point to it, in order."""

    phrase: str
    words: tuple[str, ...]


def best_phrase(text: str, phrases: Sequence[str], cues: Cues) -> CueMatch | None:
    """Return the phrase most words of ``text`` point to, the first of equals, or None if no word points anywhere.

    A phrase without cues is pointed to by its own content words.
    """
    words = tuple(dict.fromkeys(words_of(text)))
    best: CueMatch | None = None
    for phrase in phrases:
        hits = _hits(words, phrase, cues.get(phrase, ()))
        if hits and (best is None or len(hits) > len(best.words)):
            best = CueMatch(phrase=phrase, words=hits)
    return best


def _hits(words: Sequence[str], phrase: str, pointers: Sequence[str]) -> tuple[str, ...]:
    if not pointers:
        own = content_words(phrase)
        return tuple(word for word in words if stem(word) in own)
    beginnings = tuple(cue for cue in pointers if len(cue) >= _PREFIX_CHARS)
    return tuple(word for word in words if word.startswith(beginnings) or word in pointers)
