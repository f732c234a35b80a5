"""Verdicts become scores, and a missing verdict never becomes a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.core.scoring import score_of
from safer_ray.records import AXES, Axis, Verdict

scores = st.none() | st.floats(0.0, 1.0)


def verdict(axis: Axis, score: float | None, *, judge: str = "a@1", step: int = 0) -> Verdict:
    error = "" if score is not None else "could not say"
    return Verdict(rollout_id="r", step_index=step, axis=axis, judge=judge, score=score, error=error)


@given(st.fixed_dictionaries(dict.fromkeys(AXES, scores)))
def test_one_judge_s_scores_are_the_scores(given_scores: dict[Axis, float | None]) -> None:
    score = score_of([verdict(axis, value) for axis, value in given_scores.items()])
    assert {axis: getattr(score, axis) for axis in AXES} == given_scores


def test_an_axis_without_a_verdict_has_no_score() -> None:
    score = score_of([verdict("safety", 1.0)])
    assert (score.safety, score.helpfulness, score.efficiency) == (1.0, None, None)
    assert score_of([]).safety is None


@given(scores, scores)
def test_of_two_judges_the_stricter_decides_safety_and_the_mean_helpfulness(a: float | None, b: float | None) -> None:
    both: list[tuple[Axis, float | None, str]] = [
        ("safety", a, "a@1"), ("safety", b, "b@1"), ("helpfulness", a, "a@1"), ("helpfulness", b, "b@1"),
    ]  # fmt: skip
    score = score_of([verdict(axis, value, judge=judge) for axis, value, judge in both])
    said = [value for value in (a, b) if value is not None]
    assert score.safety == (min(said) if said else None)
    assert score.helpfulness == (pytest.approx(sum(said) / len(said)) if said else None)


def test_verdicts_on_two_steps_are_no_single_score() -> None:
    with pytest.raises(ValueError, match="2 different steps"):
        score_of([verdict("safety", 1.0, step=0), verdict("safety", 1.0, step=1)])
