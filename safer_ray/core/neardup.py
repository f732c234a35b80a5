"""How alike two short texts are: shared character shingles, and shared runs of words.

Used to prove that a test split has not been trained on. Shingles catch light rewording, runs catch a
shared template whose slots differ.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """Texts ``left`` and ``right`` (positions in the two lists) that are too alike, and why.

    ``run`` is a shared run of words, "" where only the shingles are alike.
    """

    left: int
    right: int
    jaccard: float
    run: str


def shingles(text: str, n: int = 5) -> frozenset[str]:
    """Return the character ``n``-grams of the lower-cased words of ``text``; a shorter text is its own shingle."""
    joined = " ".join(_WORD.findall(text.lower()))
    return frozenset(joined[i : i + n] for i in range(max(1, len(joined) - n + 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union, 1.0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


def word_runs(text: str, n: int = 6) -> frozenset[str]:
    """Return every run of ``n`` consecutive words of ``text``, lower-cased."""
    words = _WORD.findall(text.lower())
    return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def near_duplicates(
    left: Sequence[str], right: Sequence[str], *, max_jaccard: float = 0.5, run_words: int = 6
) -> list[NearDuplicate]:
    """Return every pair whose shingles overlap by at least ``max_jaccard`` or that shares a run of ``run_words`` words.

    Cost grows with the shingles the two lists share, not with the product of their lengths.
    """
    right_shingles = [shingles(text) for text in right]
    right_runs = [word_runs(text, run_words) for text in right]
    by_shingle: dict[str, list[int]] = defaultdict(list)
    for position, grams in enumerate(right_shingles):
        for gram in grams:
            by_shingle[gram].append(position)
    found = []
    for position, text in enumerate(left):
        grams, runs = shingles(text), word_runs(text, run_words)
        shared = Counter(other for gram in grams for other in by_shingle.get(gram, ()))
        for other, count in sorted(shared.items()):
            alike = count / (len(grams) + len(right_shingles[other]) - count)
            run = min(runs & right_runs[other], default="")
            if alike >= max_jaccard or run:
                found.append(NearDuplicate(left=position, right=other, jaccard=alike, run=run))
    return found
