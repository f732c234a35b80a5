"""Whether traces say something: how alike they are, whether they tell what a prompt is about, whether answers use them.

Pure functions of texts and of answer classes; ``backends/trace_probe`` samples what they are applied to.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from safer_ray.core.agreement import Agreement, agreement
from safer_ray.core.wording import stem, words_of

_FOLDS = 5
_SMOOTHING = 0.1
_BLEU_ORDER = 4


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return distinct n-grams of words over all n-grams of all texts: 1 nothing repeats; None without any.

    Source: Li et al. 2016. It falls with the amount of text, so compare only equal numbers of texts.
    """
    grams = Counter(gram for text in texts for gram in _ngrams(words_of(text), n))
    total = grams.total()
    return len(grams) / total if total else None


def self_bleu(texts: Sequence[str], *, most: int = 100, seed: int = 0) -> float | None:
    """Return the mean BLEU-4 of each text against all others: 1 all alike, 0 nothing shared; None below two texts.

    At most ``most`` texts drawn by ``seed`` are compared. Source: Zhu et al. 2018; precisions add one (smoothing).
    """
    drawn = list(texts) if len(texts) <= most else random.Random(seed).sample(list(texts), most)
    if len(drawn) < 2:
        return None
    words = [words_of(text) for text in drawn]
    counts = [[Counter(_ngrams(row, n)) for n in range(1, _BLEU_ORDER + 1)] for row in words]
    return math.fsum(_bleu(at, words, counts) for at in range(len(drawn))) / len(drawn)


def _bleu(at: int, words: Sequence[Sequence[str]], counts: Sequence[Sequence[Counter[tuple[str, ...]]]]) -> float:
    logs = 0.0
    for order in range(_BLEU_ORDER):
        mine = counts[at][order]
        highest: Counter[tuple[str, ...]] = Counter()
        for other, grams in enumerate(counts):
            if other != at:
                for gram in mine.keys() & grams[order].keys():
                    highest[gram] = max(highest[gram], grams[order][gram])
        hits = sum(min(count, highest[gram]) for gram, count in mine.items())
        logs += math.log((hits + 1) / (mine.total() + 1)) if order else math.log((hits or 1e-9) / max(1, mine.total()))
    length = len(words[at])
    nearest = min((abs(len(row) - length), len(row)) for other, row in enumerate(words) if other != at)[1]
    brevity = 1.0 if length >= nearest else math.exp(1 - nearest / max(1, length))
    return brevity * math.exp(logs / _BLEU_ORDER)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How well the category of a prompt can be told from a text about it, by a light classifier in five folds.

    ``chance`` is the share of the largest category. ``information`` is the mutual information of category and
    reading in bits, of ``entropy`` bits there are to know, both corrected for the size of the sample.
    """

    right: Agreement
    chance: float
    information: float
    entropy: float


def recover_categories(texts: Sequence[str], categories: Sequence[str], *, seed: int = 0) -> Recovery | None:
    """Return how well categories are told from texts that were not learnt from; None with fewer texts than folds."""
    if len(texts) < _FOLDS:
        return None
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda at: categories[at])  # stable: every category is dealt over all folds
    features = [_features(text) for text in texts]
    read = [""] * len(texts)
    for fold in range(_FOLDS):
        held = set(order[fold::_FOLDS])
        learnt = [at for at in order if at not in held]
        model = _NaiveBayes([features[at] for at in learnt], [categories[at] for at in learnt])
        for at in held:
            read[at] = model.read(features[at])
    largest = Counter(categories).most_common(1)[0][1]
    return Recovery(
        right=agreement(sum(a == b for a, b in zip(categories, read, strict=True)), len(texts)),
        chance=largest / len(texts),
        information=max(0.0, mutual_information(categories, read) + _correction(categories, read)),
        entropy=mutual_information(categories, categories) + _correction(categories, categories),
    )


def mutual_information(left: Sequence[str], right: Sequence[str]) -> float:
    """Return the mutual information of two labellings in bits, as counted; of a labelling with itself, its entropy."""
    n = len(left)
    both, a, b = Counter(zip(left, right, strict=True)), Counter(left), Counter(right)
    return math.fsum(count / n * math.log2(count * n / (a[x] * b[y])) for (x, y), count in both.items())


def _correction(left: Sequence[str], right: Sequence[str]) -> float:
    """Return what small samples add to mutual information as counted, negated, in bits (Miller 1955)."""
    cells = len(set(zip(left, right, strict=True)))
    return (len(set(left)) + len(set(right)) - cells - 1) / (2 * len(left) * math.log(2))


def _features(text: str) -> Counter[str]:
    words = [stem(word) for word in words_of(text)]
    return Counter({*words, *(" ".join(pair) for pair in pairwise(words))})


class _NaiveBayes:
    """Multinomial naive Bayes over words and pairs of words; every category is as likely as any other beforehand."""

    def __init__(self, rows: Sequence[Counter[str]], labels: Sequence[str]) -> None:
        self._counts: dict[str, Counter[str]] = {}
        for row, label in zip(rows, labels, strict=True):
            self._counts.setdefault(label, Counter()).update(row)
        known = {feature for counts in self._counts.values() for feature in counts}
        self._floor = {
            label: math.log(counts.total() + _SMOOTHING * max(1, len(known))) for label, counts in self._counts.items()
        }

    def read(self, row: Counter[str]) -> str:
        def weight(label: str) -> float:
            counts, floor = self._counts[label], self._floor[label]
            return math.fsum(n * (math.log(counts[feature] + _SMOOTHING) - floor) for feature, n in row.items())

        return max(sorted(self._counts), key=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How much a set of traces says, over its assessments unless said otherwise."""

    n: int
    distinct_2: float | None
    distinct_3: float | None
    self_bleu: float | None
    trace_self_bleu: float | None
    recovery: Recovery | None


def diversity(
    assessments: Sequence[str], traces: Sequence[str], categories: Sequence[str], *, seed: int = 0
) -> Diversity:
    """Return the figures of traces: ``traces`` are assessment, verification and calibration together."""
    return Diversity(
        n=len(assessments),
        distinct_2=distinct_n(assessments, 2),
        distinct_3=distinct_n(assessments, 3),
        self_bleu=self_bleu(assessments, seed=seed),
        trace_self_bleu=self_bleu(traces, seed=seed),
        recovery=recover_categories(assessments, categories, seed=seed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one change to the traces did to the answers that follow them.

    ``turned``: refusing became answering or the other way round. ``reworded``: the answer's text changed at all.
    """

    change: str
    turned: Agreement
    reworded: Agreement

    @property
    def text(self) -> str:
        """One line for a person."""
        share = "no case" if self.turned.share is None else f"{self.turned.right} of {self.turned.n} answers turned"
        return f"{self.change}: {share}, {self.reworded.right} reworded"


def effect(change: str, before: Sequence[tuple[bool, str]], after: Sequence[tuple[bool, str]]) -> Effect:
    """Return the effect of a change; each answer is (whether it refuses, its text), in the same order."""
    pairs = list(zip(before, after, strict=True))
    return Effect(
        change=change,
        turned=agreement(sum(a[0] != b[0] for a, b in pairs), len(pairs)),
        reworded=agreement(sum(a[1].split() != b[1].split() for a, b in pairs), len(pairs)),
    )


def is_used(control: Effect, swap: Effect) -> bool | None:
    """Return whether traces decide answers: a foreign trace turns clearly more of them than going on with the own one.

    Clearly: the 95 % intervals do not overlap. None where one of them has no case.
    """
    if control.turned.interval is None or swap.turned.interval is None:
        return None
    return swap.turned.interval[0] > control.turned.interval[1]
