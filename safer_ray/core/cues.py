"""Which phrase of a list a prompt is about, found by words that point to it.

A cue of four letters or more matches as the beginning of a word, a shorter one only as the whole word.
"""

from __future__ import annotations

import re
from collections import Counter
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


class CueCounter:
    """Counts how many words of a text point to the likeliest intent, and to the likeliest near phrase, of each rule."""

    def __init__(self, rules: Sequence[tuple[Sequence[str], Sequence[str]]], cues: Cues) -> None:
        """``rules`` are the (intents, near phrases) of each rule, in the order of the counts."""
        phrases = [
            (side, rule, phrase) for rule, sides in enumerate(rules) for side in (0, 1) for phrase in sides[side]
        ]
        self._places = [(side, rule) for side, rule, _ in phrases]
        self._cues = [cues.get(phrase, ()) for _, _, phrase in phrases]
        self._phrases = [phrase for _, _, phrase in phrases]
        self._rules = len(rules)
        self._pointed: dict[str, tuple[int, ...]] = {}

    def count(self, text: str) -> list[list[int]]:
        """Return the counts for intents and for near phrases, one per rule each."""
        totals = Counter(place for word in dict.fromkeys(words_of(text)) for place in self._points_to(word))
        best = [[0] * self._rules, [0] * self._rules]
        for place, total in totals.items():
            side, rule = self._places[place]
            best[side][rule] = max(best[side][rule], total)
        return best

    def _points_to(self, word: str) -> tuple[int, ...]:
        if word not in self._pointed:
            each = zip(self._phrases, self._cues, strict=True)
            self._pointed[word] = tuple(at for at, (phrase, cues) in enumerate(each) if _hits((word,), phrase, cues))
        return self._pointed[word]


def pointing_words(text: str, phrase: str, cues: Sequence[str]) -> list[tuple[int, int]]:
    """Return the spans of the words of ``text`` that point to ``phrase``."""
    return [
        (match.start(), match.end())
        for match in re.finditer(r"[\w'\u2019]+", text)
        if any(_hits((word,), phrase, cues) for word in words_of(match[0]))
    ]
