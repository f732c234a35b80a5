"""How far two readers agree: confusion, Cohen's kappa, calibration, position bias. Pure arithmetic.

Letters: N items, C classes, K bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from safer_ray.core.metrics import Interval, wilson_interval

Class = TypeVar("Class", bound=Hashable)
Order = Literal["first", "second", "tie"]
"""Which of two texts is better, by the place it stood in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of ``n`` items, how many two readers put into the same class. ``share`` is None without items."""

    right: int
    n: int
    share: float | None
    interval: Interval | None


def agreement(right: int, n: int) -> Agreement:
    """Return the share with its 95 % Wilson interval."""
    return Agreement(right=right, n=n, share=right / n if n else None, interval=wilson_interval(right, n))


def confusion(gold: Sequence[Class], read: Sequence[Class]) -> Counter[tuple[Class, Class]]:
    """Return counts by (gold, read)."""
    return Counter(zip(gold, read, strict=True))


def cohen_kappa(gold: Sequence[Class], read: Sequence[Class]) -> float | None:
    """Return agreement beyond chance: 1 always agree, 0 no better than chance; None without items.

    Two readers that both use one class only, the same one, agree perfectly: 1.0.
    Source: Cohen 1960.
    """
    n = len(gold)
    if not n:
        return None
    seen = sum(a == b for a, b in zip(gold, read, strict=True)) / n
    left, right = Counter(gold), Counter(read)
    chance = sum(count * right[name] for name, count in left.items()) / (n * n)
    return 1.0 if chance == 1.0 else (seen - chance) / (1.0 - chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """The scores in ``[low, high)`` (the last bin takes 1.0, too): their mean and the share that came true."""

    low: float
    high: float
    n: int
    mean_score: float
    share_true: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether a score of p comes true in a share p of cases.

    ``error`` is the expected calibration error: mean distance of the two over the bins, weighted by size.
    ``brier`` is the mean squared distance of score and truth. ``auc`` is None where only one truth occurs.
    """

    bins: tuple[CalibrationBin, ...]
    n: int
    error: float
    brier: float
    auc: float | None


def calibrate(scores: Sequence[float], truths: Sequence[bool], bins: int = 10) -> Calibration | None:
    """Return the calibration curve of N scores in [0, 1] over K equal bins; empty bins are left out.

    Raises:
        ValueError: if a score is outside [0, 1] or there is no bin.
    """
    if bins < 1 or any(not 0.0 <= score <= 1.0 for score in scores):
        raise ValueError("calibration: need at least one bin and scores in [0, 1]")
    if not scores:
        return None
    placed: dict[int, list[tuple[float, bool]]] = {}
    for score, truth in zip(scores, truths, strict=True):
        placed.setdefault(min(bins - 1, int(score * bins)), []).append((score, truth))
    curve = tuple(
        CalibrationBin(
            low=at / bins,
            high=(at + 1) / bins,
            n=len(rows),
            mean_score=math.fsum(score for score, _ in rows) / len(rows),
            share_true=sum(truth for _, truth in rows) / len(rows),
        )
        for at, rows in sorted(placed.items())
    )
    n = len(scores)
    return Calibration(
        bins=curve,
        n=n,
        error=math.fsum(row.n * abs(row.mean_score - row.share_true) for row in curve) / n,
        brier=math.fsum((score - truth) ** 2 for score, truth in zip(scores, truths, strict=True)) / n,
        auc=roc_auc(scores, truths),
    )


def roc_auc(scores: Sequence[float], truths: Sequence[bool]) -> float | None:
    """Return the chance that a true item scores above a false one, ties half; None if one of them is missing."""
    order = sorted(range(len(scores)), key=lambda at: scores[at])
    ranks, at = [0.0] * len(scores), 0
    while at < len(order):
        stop = at
        while stop < len(order) and scores[order[stop]] == scores[order[at]]:
            stop += 1
        for place in range(at, stop):
            ranks[order[place]] = (at + stop + 1) / 2  # ranks begin at 1; ties share their mean
        at = stop
    positives = sum(truths)
    negatives = len(scores) - positives
    if not positives or not negatives:
        return None
    above = math.fsum(rank for rank, truth in zip(ranks, truths, strict=True) if truth)
    return (above - positives * (positives + 1) / 2) / (positives * negatives)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Two texts shown in both orders; None where the judge did not answer. ``better`` is the gold place.

    ``forward`` names places as first shown, ``swapped`` places after the exchange.
    """

    better: Literal["first", "second"]
    forward: Order | None
    swapped: Order | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """What the order of two texts does to a pairwise judge.

    ``consistent``: the same text wins in both orders, or both are ties. ``first_share``: of all decided single
    comparisons, those won by the place shown first; 0.5 is no bias. ``right``: consistent and the gold one wins.
    """

    n: int
    unanswered: int
    consistent: Agreement
    first_share: float | None
    right: Agreement


def position_bias(duels: Sequence[Duel]) -> PositionBias:
    """Return the bias over all duels that were answered in both orders."""
    back: dict[Order, Order] = {"first": "second", "second": "first", "tie": "tie"}
    answered = [(duel, duel.forward, duel.swapped) for duel in duels if duel.forward and duel.swapped]
    same = [(duel, forward) for duel, forward, swapped in answered if back[swapped] == forward]
    decided = [order for _, *orders in answered for order in orders if order != "tie"]
    return PositionBias(
        n=len(duels),
        unanswered=len(duels) - len(answered),
        consistent=agreement(len(same), len(answered)),
        first_share=decided.count("first") / len(decided) if decided else None,
        right=agreement(sum(forward == duel.better for duel, forward in same), len(answered)),
    )
