"""A classifier fitted on exemplars: which rules a text violates, from how close it lies to texts that do or do not.

Kernel ridge regression, two targets: is any rule violated (all exemplars), and which one (violating exemplars).
Both are calibrated on scores of exemplars that the fit did not see. Pure arrays: who turns texts into features, and
where a fitted head is kept, is the business of others.

Letters: N exemplars, M texts, R rules, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RIDGE_UNSAFE, _RIDGE_RULE = 0.1, 1.0
_FOLDS = 5
_CALIBRATION_STEPS = 100
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0)
_MIN_THRESHOLD, _MAX_THRESHOLD, _DEFAULT_THRESHOLD = 0.1, 0.9, 0.5
_MIN_CASES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is known of N exemplars.

    ``rule_N``: index of the rule each belongs to, -1 for none. ``unsafe_N``: 1.0 where it is violated. ``group_N``:
    exemplars of one group (twins) are never on both sides of a split.
    """

    rule_N: NDArray[np.int64]
    unsafe_N: Array
    group_N: NDArray[np.int64]

    @property
    def violating_N(self) -> NDArray[np.bool_]:
        """Where an exemplar violates a known rule."""
        return (self.unsafe_N > 0) & (self.rule_N >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Weights of the exemplars for both targets, and the calibration of what comes out.

    ``slope`` and ``offset`` turn an unsafe score into a probability; ``temperature`` the rule scores into a
    distribution; ``threshold_R`` is the least score at which a rule counts as violated.
    """

    unsafe_N: Array
    rule_NR: Array
    base_rate: float
    slope: float
    offset: float
    temperature: float
    threshold_R: Array

    def scores(self, unsafe_MN: Array, rule_MN: Array) -> tuple[Array, Array]:
        """Return (probability that any rule is violated [M], score of each rule [M, R]) from kernels to the exemplars.

        The scores of a text sum to its probability.
        """
        unsafe_M = _sigmoid(self.slope * (unsafe_MN @ self.unsafe_N + self.base_rate) + self.offset)
        share_MR = _softmax(self.temperature * (rule_MN @ self.rule_NR))
        return unsafe_M, unsafe_M[:, None] * share_MR


def fit_head(unsafe_NN: Array, rule_NN: Array, labels: Labels, rules: int) -> Head:
    """Fit a head for ``rules`` rules on the kernels between exemplars; needs both safe and violating ones.

    Raises:
        ValueError: if all exemplars are safe, or all violate a rule.
    """
    sides = set(labels.unsafe_N.tolist())
    if sides != {0.0, 1.0}:
        raise ValueError("a classifier needs exemplars that violate a rule and exemplars that do not")
    held_unsafe_N, held_rule_NR = _held_out(unsafe_NN, rule_NN, labels, rules)
    slope, offset = _platt(held_unsafe_N, labels.unsafe_N)
    temperature = _temperature(held_rule_NR, labels)
    probability_N = _sigmoid(slope * held_unsafe_N + offset)
    score_NR = probability_N[:, None] * _softmax(temperature * held_rule_NR)
    everything = np.ones(len(labels.unsafe_N), dtype=bool)
    weights_N, weights_NR = _fit(unsafe_NN, rule_NN, labels, everything, rules)
    return Head(
        unsafe_N=weights_N,
        rule_NR=weights_NR,
        base_rate=_base_rate(labels, everything),
        slope=slope,
        offset=offset,
        temperature=temperature,
        threshold_R=np.array([_threshold(score_NR, labels, rule) for rule in range(rules)]),
    )


def _base_rate(labels: Labels, seen_N: NDArray[np.bool_]) -> float:
    return float(np.mean(2 * labels.unsafe_N[seen_N] - 1))


def _fit(
    unsafe_NN: Array, rule_NN: Array, labels: Labels, seen_N: NDArray[np.bool_], rules: int
) -> tuple[Array, Array]:
    """Return the weights of all N exemplars, 0 for those not seen."""
    unsafe_N = np.zeros(len(seen_N))
    targets = 2 * labels.unsafe_N[seen_N] - 1 - _base_rate(labels, seen_N)
    unsafe_N[seen_N] = np.linalg.solve(
        unsafe_NN[np.ix_(seen_N, seen_N)] + _RIDGE_UNSAFE * np.eye(seen_N.sum()), targets
    )
    rule_NR = np.zeros((len(seen_N), rules))
    used_N = seen_N & labels.violating_N
    if used_N.any():
        kernel = rule_NN[np.ix_(used_N, used_N)] + _RIDGE_RULE * np.eye(used_N.sum())
        rule_NR[used_N] = np.linalg.solve(kernel, np.eye(rules)[labels.rule_N[used_N]])
    return unsafe_N, rule_NR


def _held_out(unsafe_NN: Array, rule_NN: Array, labels: Labels, rules: int) -> tuple[Array, Array]:
    """Return the scores of each exemplar from a fit that saw no exemplar of its group."""
    order = {group: place for place, group in enumerate(np.unique(labels.group_N).tolist())}
    # a stride that has no factor in common with the folds, so that neighbours in a file are spread
    fold_N = np.array([(order[group] * 7) % _FOLDS for group in labels.group_N.tolist()])
    held_unsafe_N, held_rule_NR = np.zeros(len(fold_N)), np.zeros((len(fold_N), rules))
    for fold in range(_FOLDS):
        held_N = fold_N == fold
        if held_N.all() or not held_N.any():
            continue
        weights_N, weights_NR = _fit(unsafe_NN, rule_NN, labels, ~held_N, rules)
        held_unsafe_N[held_N] = unsafe_NN[held_N] @ weights_N + _base_rate(labels, ~held_N)
        held_rule_NR[held_N] = rule_NN[held_N] @ weights_NR
    return held_unsafe_N, held_rule_NR


def _platt(score_N: Array, unsafe_N: Array) -> tuple[float, float]:
    """Return (slope, offset) of the logistic curve from scores to labels, by Newton's method (Platt 1999)."""
    design = np.stack([score_N, np.ones_like(score_N)], axis=1)
    weights = np.zeros(2)
    for _ in range(_CALIBRATION_STEPS):
        probability_N = _sigmoid(design @ weights)
        gradient = design.T @ (probability_N - unsafe_N) + 1e-3 * weights
        curvature = (design * (probability_N * (1 - probability_N))[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def _temperature(held_rule_NR: Array, labels: Labels) -> float:
    """Return the temperature under which the right rules are likeliest."""
    used_N = labels.violating_N
    rules_N = labels.rule_N[used_N]

    def surprise(temperature: float) -> float:
        share_NR = _softmax(temperature * held_rule_NR[used_N])
        return float(-np.log(share_NR[np.arange(len(rules_N)), rules_N] + 1e-12).sum())

    return min(_TEMPERATURES, key=surprise) if len(rules_N) else 1.0


def _threshold(score_NR: Array, labels: Labels, rule: int) -> float:
    """Return the threshold with the best F1 for one rule on held-out exemplars, the middle of equals."""
    wanted_N = labels.violating_N & (labels.rule_N == rule)
    if wanted_N.sum() < _MIN_CASES:
        return _DEFAULT_THRESHOLD
    candidates = np.unique(np.clip(score_NR[:, rule], _MIN_THRESHOLD, _MAX_THRESHOLD))
    found_CN = score_NR[None, :, rule] >= candidates[:, None]
    hits_C = (found_CN & wanted_N).sum(axis=1)
    f1_C = 2 * hits_C / (found_CN.sum(axis=1) + wanted_N.sum())
    best = candidates[f1_C >= f1_C.max() - 1e-9]
    return float(best[len(best) // 2])


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -30, 30))))


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def cosine_kernel(left: Array, right: Array) -> Array:
    """Return the cosine between rows, 0 where one of them is all zeros."""
    return np.asarray(unit_rows(left) @ unit_rows(right).T)


def radial_kernel(left: Array, right: Array, gamma: float) -> Array:
    """Return exp(-gamma · squared distance) between rows, which have length 1."""
    return np.asarray(np.exp(-gamma * np.maximum(0.0, 2 - 2 * left @ right.T)))


def unit_rows(rows: Array) -> Array:
    """Return the rows scaled to length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def area_under_curve(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the share of (positive, negative) pairs whose positive scores higher, ties half; NaN without pairs."""
    score_N, positive_N = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    above = score_N[positive_N][:, None] - score_N[~positive_N][None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean()) if above.size else float("nan")
