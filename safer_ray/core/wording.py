"""Measures on words: which ones carry content, how much of one text stands in another, how much is repeated.

English only. Words are compared by crude stems ("slipping", "slips" and "slip" are one word).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_ENDINGS = ("ingly", "edly", "ings", "ing", "ers", "ed", "er", "es", "ly", "s", "e")
_STOP = frozenset(
    re.findall(
        r"\S+",
        "a about act after again all also am an and any are as ask asks asked asking at be because been before "
        "being but by can cannot can't could describe did do does doing don't draft each explain few for from get "
        "gets give gives go had has have having he help her here hers him his how i i'd i'll i'm i've if imagine "
        "in into is isn't it it's its just let let's like list made make makes many may me might more most much "
        "must my need new no nor not now of off on once one only or other our out over own person please pretend "
        "request request's same say she should show so some such suggest tell than that that's the their them "
        "then there these they thing things this those through to too under until up us use used user user's very "
        "want wants was way we were what when where which while who whose why will with without would write you "
        "your yours someone something",
    )
)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the crude stem of a lower-case word."""
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls" else word


@lru_cache(maxsize=65536)
def _content_stem(word: str) -> str:
    return "" if word in _STOP else stem(word)


@lru_cache(maxsize=256)
def words_of(text: str) -> tuple[str, ...]:
    """Return the lower-case words of ``text`` in order, numbers included; one step is asked for several times."""
    return tuple(_WORD.findall(text.lower().replace("\u2019", "'")))


@lru_cache(maxsize=2048)
def content_words(text: str) -> frozenset[str]:
    """Return the stems of the words that say what ``text`` is about."""
    return frozenset(map(_content_stem, words_of(text))) - {""}


def covered(wanted: frozenset[str], present: frozenset[str], enough: int = 8) -> float:
    """Return which share of ``wanted`` is ``present``, in [0, 1]; of a long text ``enough`` words are all."""
    return min(1.0, len(wanted & present) / max(1, min(len(wanted), enough)))


def runs(text: str, length: int) -> frozenset[tuple[str, ...]]:
    """Return all runs of ``length`` consecutive words."""
    words = words_of(text)
    return frozenset(zip(*(words[offset:] for offset in range(length)), strict=False))


def all_runs(texts: Iterable[str], length: int) -> frozenset[tuple[str, ...]]:
    """Return the runs of every text, none across two texts."""
    return frozenset(run for text in texts for run in runs(text, length))


def copied_share(text: str, source_runs: frozenset[tuple[str, ...]], length: int) -> float:
    """Return which share of the runs of ``text`` stands in the source, in [0, 1]."""
    words = words_of(text)
    if source_runs.isdisjoint(zip(*(words[offset:] for offset in range(length)), strict=False)):
        return 0.0
    found = runs(text, length)
    return len(found & source_runs) / len(found)


@lru_cache(maxsize=256)
def repeated_share(text: str) -> float:
    """Return which share of the word triples of ``text`` was there before, in [0, 1]; of pairs if it is short."""
    words = words_of(text)
    grams = list(zip(words, words[1:], words[2:], strict=False)) if len(words) > 8 else list(pairwise(words))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
