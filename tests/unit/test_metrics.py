"""Laws and known values of the evaluation metrics."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.metrics import (
    CategoryCounts,
    best_of_n_asr,
    evaluate_outcomes,
    mcnemar_exact_p,
    paired_change,
    percentile,
    share_of,
    wilson_interval,
    worst_of_n_asr,
)
from safer_ray.errors import DataError
from safer_ray.records import NO_RULE, Label, Message, Outcome, Prompt

law = settings(deadline=None, max_examples=50)
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def prompt(prompt_id: str, label: Label = "unsafe", category: str = "R12") -> Prompt:
    return Prompt(
        prompt_id=prompt_id, messages=(Message(role="user", content="?"),), label=label, category=category, split="test"
    )


def outcome(prompt_id: str, **changes: object) -> Outcome:
    plain = Outcome(
        prompt_id=prompt_id,
        checkpoint="sft",
        policy_version=1,
        judge="rules@1",
        refusal="none",
        complied=False,
        well_formed=True,
        truncated=False,
        cited_rule="R12",
        consistent=True,
        reasoning_tokens=40,
        text="",
        response="",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@st.composite
def evaluated(draw: st.DrawFn) -> tuple[list[Outcome], dict[str, Prompt]]:
    size = draw(st.integers(1, 12))
    prompts, outcomes = {}, []
    for index in range(size):
        key = f"p{index}"
        label = draw(st.sampled_from(["unsafe", "safe", "unknown"]))
        prompts[key] = prompt(key, label, draw(st.sampled_from(["R00", "R01", "R12"])))
        parsed = draw(st.booleans())
        outcomes.append(
            outcome(
                key,
                refusal=draw(st.sampled_from(["full", "partial", "none", "unparsable"])),
                complied=draw(st.booleans()),
                well_formed=parsed,
                cited_rule=draw(st.sampled_from(["R00", "R01", "R12"])) if parsed else "",
                consistent=draw(st.booleans()) if parsed else None,
                reasoning_tokens=draw(st.integers(0, 300)),
            )
        )
    return outcomes, prompts


@law
@given(counts)
def test_a_wilson_interval_lies_in_the_unit_interval_and_holds_the_share(count: tuple[int, int]) -> None:
    hits, n = count
    interval = wilson_interval(hits, n)
    assert interval is not None
    assert 0.0 <= interval[0] <= hits / n <= interval[1] <= 1.0
    assert interval[0] < interval[1]


@law
@given(counts)
def test_a_wilson_interval_mirrors_when_successes_and_failures_swap(count: tuple[int, int]) -> None:
    hits, n = count
    low, high = wilson_interval(hits, n) or (math.nan, math.nan)
    mirrored = wilson_interval(n - hits, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@law
@given(counts)
def test_more_evidence_for_the_same_share_narrows_the_interval(count: tuple[int, int]) -> None:
    hits, n = count
    few, many = wilson_interval(hits, n), wilson_interval(4 * hits, 4 * n)
    assert few is not None
    assert many is not None
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score without correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_equal_the_published_ones(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_nothing_measured_is_none_not_zero() -> None:
    assert wilson_interval(0, 0) is None
    assert share_of([]) == (None, None)
    assert percentile([], 50) is None
    assert worst_of_n_asr([], 4, 2) is None
    assert best_of_n_asr([], 4, 2) is None


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3), (1, 0)])
def test_an_impossible_count_has_no_interval(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes of"):
        wilson_interval(hits, n)


@law
@given(st.lists(st.integers(-1000, 1000), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_within_the_values_and_ignores_their_order(values: list[int], q: float) -> None:
    found = percentile(values, q)
    assert found is not None
    assert min(values) <= found <= max(values)
    assert percentile(values[::-1], q) == found


def test_percentiles_interpolate_between_neighbours() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([10, 20, 30, 40, 50], 95) == pytest.approx(48.0)
    assert percentile([7], 95) == 7.0
    with pytest.raises(ValueError, match="must be in"):
        percentile([1], 101)


@law
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=1))))
def test_more_draws_raise_the_worst_and_lower_the_best_of_n(case: tuple[int, list[int]]) -> None:
    samples, unsafe = case
    mean = sum(unsafe) / samples / len(unsafe)
    worst = [worst_of_n_asr(unsafe, samples, draws) or 0.0 for draws in range(1, samples + 1)]
    best = [best_of_n_asr(unsafe, samples, draws) or 0.0 for draws in range(1, samples + 1)]
    assert worst[0] == pytest.approx(mean)
    assert best[0] == pytest.approx(mean)
    assert all(a <= b + 1e-12 for a, b in pairwise(worst))
    assert all(a >= b - 1e-12 for a, b in pairwise(best))


def test_worst_and_best_of_n_at_known_values() -> None:
    assert worst_of_n_asr([2], 4, 2) == pytest.approx(5 / 6)
    assert best_of_n_asr([2], 4, 2) == pytest.approx(1 / 6)
    assert worst_of_n_asr([0, 4], 4, 3) == 0.5
    with pytest.raises(ValueError, match="draws"):
        worst_of_n_asr([1], 4, 5)
    with pytest.raises(ValueError, match="unsafe count"):
        best_of_n_asr([5], 4, 2)


@law
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_mcnemar_p_value_is_a_probability_and_knows_no_direction(mended: int, broken: int) -> None:
    p_value = mcnemar_exact_p(mended, broken)
    assert 0.0 <= p_value <= 1.0
    assert mcnemar_exact_p(broken, mended) == p_value


def test_mcnemar_at_known_values() -> None:
    assert mcnemar_exact_p(0, 0) == 1.0
    assert mcnemar_exact_p(5, 5) == 1.0
    assert mcnemar_exact_p(6, 0) == pytest.approx(2 / 64)
    assert mcnemar_exact_p(9, 1) == pytest.approx(2 * 11 / 1024)
    with pytest.raises(ValueError, match="must be >= 0"):
        mcnemar_exact_p(-1, 2)


@law
@given(evaluated(), st.randoms(use_true_random=False))
def test_the_order_of_outcomes_does_not_matter(case: tuple[list[Outcome], dict[str, Prompt]], rng: object) -> None:
    outcomes, prompts = case
    shuffled = list(outcomes)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert evaluate_outcomes(shuffled, prompts) == evaluate_outcomes(outcomes, prompts)


@law
@given(evaluated())
def test_every_share_has_an_interval_around_it_or_was_not_measured(
    case: tuple[list[Outcome], dict[str, Prompt]],
) -> None:
    outcomes, prompts = case
    found = asdict(evaluate_outcomes(outcomes, prompts))
    for name in ("asr", "over_refusal", "well_formed", "rule_accuracy", "consistency"):
        share, interval = found[name], found[f"{name}_ci"]
        assert (share is None) == (interval is None)
        if share is not None:
            assert 0.0 <= interval[0] <= share <= interval[1] <= 1.0
    assert (found["asr"] is None) == (found["n_unsafe"] == 0)
    assert (found["over_refusal"] is None) == (found["n_safe"] == 0)


@law
@given(evaluated())
def test_the_categories_add_up_to_the_whole(case: tuple[list[Outcome], dict[str, Prompt]]) -> None:
    found = evaluate_outcomes(*case)
    assert sum(row.n_unsafe for row in found.per_category) == found.n_unsafe
    assert sum(row.n_safe for row in found.per_category) == found.n_safe
    if found.asr is not None:
        assert sum(row.complied for row in found.per_category) / found.n_unsafe == found.asr
    if found.over_refusal is not None:
        assert sum(row.refused for row in found.per_category) / found.n_safe == found.over_refusal


def test_an_evaluation_counts_what_its_words_say() -> None:
    prompts = {
        "u1": prompt("u1"),
        "u2": prompt("u2", category="R03"),
        "s1": prompt("s1", "safe"),
        "s2": prompt("s2", "safe", NO_RULE),
        "x": prompt("x", "unknown"),
    }
    outcomes = [
        outcome("u1", complied=True, refusal="none", cited_rule="R12", consistent=False),
        outcome("u2", refusal="full", cited_rule="R12"),
        outcome("s1", refusal="partial", cited_rule=NO_RULE, reasoning_tokens=60),
        outcome("s2", refusal="full", cited_rule=NO_RULE, truncated=True),
        outcome("x", refusal="unparsable", well_formed=False, cited_rule="", consistent=None, reasoning_tokens=0),
    ]
    found = evaluate_outcomes(outcomes, prompts)
    assert (found.checkpoint, found.judge, found.n_unsafe, found.n_safe) == ("sft", "rules@1", 2, 2)
    assert (found.asr, found.over_refusal, found.partial_refusal) == (0.5, 0.5, 0.5)
    assert found.well_formed == 0.8
    assert found.rule_accuracy == 0.75
    assert found.consistency == 0.75
    assert (found.truncated, found.unparsable) == (1, 1)
    assert (found.reasoning_tokens_p50, found.reasoning_tokens_p95) == (40.0, pytest.approx(56.0))
    assert found.per_category == (
        CategoryCounts(category="R00", n_unsafe=0, complied=0, n_safe=1, refused=1),
        CategoryCounts(category="R03", n_unsafe=1, complied=0, n_safe=0, refused=0),
        CategoryCounts(category="R12", n_unsafe=1, complied=1, n_safe=1, refused=0),
    )


def test_a_trace_that_cannot_be_read_cites_the_wrong_rule() -> None:
    found = evaluate_outcomes(
        [outcome("s", cited_rule="", well_formed=False, consistent=None)], {"s": prompt("s", "safe", NO_RULE)}
    )
    assert (found.rule_accuracy, found.consistency) == (0.0, None)


def test_an_evaluation_becomes_plain_json() -> None:
    found = asdict(evaluate_outcomes([outcome("u")], {"u": prompt("u")}))
    back = json.loads(json.dumps(found, allow_nan=False))
    assert back["over_refusal"] is None
    assert back["per_category"] == [{"category": "R12", "n_unsafe": 1, "complied": 0, "n_safe": 0, "refused": 0}]


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([], "0 checkpoints"),
        ([outcome("u"), outcome("v", checkpoint="base")], "2 checkpoints"),
        ([outcome("u"), outcome("v", judge="other@1")], "2 judges"),
        ([outcome("u"), outcome("u")], "two outcomes"),
        ([outcome("w")], "not among the prompts"),
    ],
)
def test_outcomes_that_do_not_belong_together_are_refused(outcomes: list[Outcome], says: str) -> None:
    with pytest.raises(DataError, match=says):
        evaluate_outcomes(outcomes, {"u": prompt("u"), "v": prompt("v")})


def test_a_paired_change_counts_prompts_that_changed_sides() -> None:
    prompts = {key: prompt(key) for key in "abcd"} | {"s": prompt("s", "safe")}
    before = [outcome(key, complied=key in "abc") for key in "abcds"]
    after = [outcome(key, complied=key in "cd") for key in "abcds"]
    found = paired_change(before, after, prompts, "complied")
    assert found is not None
    assert (found.n, found.failed_before, found.failed_after, found.mended, found.broken) == (4, 3, 2, 2, 1)
    assert found.p_value == 1.0


def test_a_paired_change_looks_only_at_shared_prompts_of_its_label() -> None:
    prompts = {"u": prompt("u"), "s": prompt("s", "safe"), "t": prompt("t", "safe")}
    before = [outcome("u"), outcome("s", refusal="full")]
    after = [outcome("u"), outcome("t", refusal="full")]
    assert paired_change(before, after, prompts, "over_refused") is None
    with pytest.raises(ValueError, match="not one of"):
        paired_change(before, after, prompts, "slow")  # type: ignore[arg-type]
