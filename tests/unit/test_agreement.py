"""Agreement, kappa, calibration and position bias: laws first, then textbook numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.agreement import Duel, calibrate, cohen_kappa, confusion, position_bias, roc_auc

classes = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)
scored = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=50)
@given(classes)
def test_kappa_is_symmetric_at_most_one_and_one_only_for_perfect_agreement(pairs: list[tuple[str, str]]) -> None:
    gold, read = [a for a, _ in pairs], [b for _, b in pairs]
    kappa = cohen_kappa(gold, read)
    assert kappa is not None
    assert kappa <= 1.0 + 1e-12
    assert math.isclose(kappa, cohen_kappa(read, gold) or 0.0, abs_tol=1e-12)
    assert math.isclose(kappa, 1.0) == (gold == read)
    assert confusion(gold, read).total() == len(pairs)


def test_kappa_of_the_textbook_example() -> None:
    # 50 grants: both yes 20, yes/no 5, no/yes 10, both no 15; kappa 0.4
    gold = ["y"] * 25 + ["n"] * 25
    read = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert math.isclose(cohen_kappa(gold, read) or 0.0, 0.4)
    assert cohen_kappa([], []) is None


@settings(max_examples=50)
@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    trues, falses = [s for s, t in rows if t], [s for s, t in rows if not t]
    auc = roc_auc([s for s, _ in rows], [t for _, t in rows])
    if not trues or not falses:
        assert auc is None
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in trues for b in falses)
    assert auc is not None
    assert math.isclose(auc, wins / (len(trues) * len(falses)), abs_tol=1e-9)


@settings(max_examples=50)
@given(scored, st.integers(1, 12))
def test_every_score_stands_in_one_bin_and_errors_are_shares(rows: list[tuple[float, bool]], bins: int) -> None:
    found = calibrate([s for s, _ in rows], [t for _, t in rows], bins)
    assert found is not None
    assert sum(row.n for row in found.bins) == found.n == len(rows)
    assert all(row.low - 1e-9 <= row.mean_score <= row.high + 1e-9 for row in found.bins)
    assert 0 <= found.error <= 1
    assert 0 <= found.brier <= 1


def test_a_judge_that_is_sure_and_wrong_has_the_worst_calibration() -> None:
    wrong = calibrate([1.0, 1.0, 0.0], [False, False, True])
    right = calibrate([1.0, 1.0, 0.0], [True, True, False])
    assert wrong is not None
    assert right is not None
    assert (wrong.error, wrong.brier, wrong.auc) == (1.0, 1.0, 0.0)
    assert (right.error, right.brier, right.auc) == (0.0, 0.0, 1.0)
    assert calibrate([], []) is None
    with pytest.raises(ValueError, match=r"scores in \[0, 1\]"):
        calibrate([1.2], [True])


def test_a_judge_that_always_takes_the_first_is_all_bias() -> None:
    duels = [Duel(better=place, forward="first", swapped="first") for place in ("first", "second")]  # type: ignore[arg-type]
    found = position_bias(duels)
    assert found.first_share == 1.0
    assert found.consistent.share == 0.0
    assert found.right.share == 0.0


def test_a_judge_that_knows_the_better_one_has_no_bias() -> None:
    duels = [
        Duel(better="first", forward="first", swapped="second"),
        Duel(better="second", forward="second", swapped="first"),
        Duel(better="second", forward=None, swapped="first"),
    ]
    found = position_bias(duels)
    assert (found.first_share, found.consistent.share, found.right.share) == (0.5, 1.0, 1.0)
    assert (found.n, found.unanswered, found.consistent.n) == (3, 1, 2)
