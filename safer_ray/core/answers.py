"""Which sampled answers are good enough to imitate, and where to cut them."""

from __future__ import annotations

import re
from collections import Counter

_SENTENCE_END = re.compile(r"(?<![\s\d])[.!?][\"')*]*(?=\s|$)|[^\s:,]\n")
_FENCE = "```"
_RUN_WORDS = 4
_MAX_RUN_REPEATS = 2


class UnfitAnswerError(ValueError):
    """An answer not worth imitating; the text is the reason, short enough to be counted by."""


def fit_answer(text: str, *, min_words: int = 6, max_words: int = 60) -> str:
    """Return ``text`` cut at the last sentence or line that ends within ``max_words`` words.

    A code block that is cut is closed again.

    Raises:
        UnfitAnswerError: if nothing usable is left, or the answer repeats itself.
    """
    stripped = text.strip()
    if not stripped:
        raise UnfitAnswerError("the answer is empty")
    kept = stripped if len(stripped.split()) <= max_words and _ends_well(stripped) else _cut(stripped, max_words)
    if len(kept.split()) < min_words:
        raise UnfitAnswerError("the answer is too short")
    if repeats(kept):
        raise UnfitAnswerError("the answer repeats itself")
    return f"{kept}\n{_FENCE}" if kept.count(_FENCE) % 2 else kept


def repeats(text: str) -> bool:
    """Return whether a run of four words stands three times in ``text``, or a line or sentence of four twice."""
    words = re.findall(r"\w+", text.lower())
    runs = Counter(tuple(words[i : i + _RUN_WORDS]) for i in range(len(words) - _RUN_WORDS + 1))
    parts = Counter(part.strip().lower() for part in re.split(r"[.!?\n]+", text) if len(part.split()) >= _RUN_WORDS)
    return max(runs.values(), default=0) > _MAX_RUN_REPEATS or max(parts.values(), default=0) > 1


def _ends_well(text: str) -> bool:
    return bool(re.search(r"[.!?\"')*`}\])]$", text))


def _cut(text: str, max_words: int) -> str:
    words = list(re.finditer(r"\S+", text))
    head = text[: words[max_words].start() if len(words) > max_words else len(text)]
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    if not ends:
        raise UnfitAnswerError("no sentence of the answer ends in time")
    return head[: ends[-1]].rstrip()
