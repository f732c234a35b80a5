"""Laws of pairing: lexicographic, blind to the order of siblings, and silent where a score is missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_siblings import PREFIX, sibling

from safer_ray.core.pairing import PairingRules, ScoredStep, pair_siblings, prefer
from safer_ray.records import AXES, Lineage, Step, StepPair

LAW = settings(max_examples=50, deadline=None)
RULES = PairingRules()
LINEAGE = Lineage(
    judge="rules@1", rule_pack_hash="f00d", sampler="fake", temperature=1.0, top_p=0.9, reference="fixed", round=2
)
score = st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 1.0]) | st.floats(0, 1)
family = st.lists(
    st.tuples(score, score, st.sampled_from([5, 12, 16, 20, 40]), st.sampled_from(["stop", "stop", "length"])),
    min_size=2,
    max_size=6,
).map(
    lambda rows: [
        sibling(number, (safety, helpfulness), tokens=tokens, finish=finish)  # type: ignore[arg-type]
        for number, (safety, helpfulness, tokens, finish) in enumerate(rows)
    ]
)


def pairs_of(siblings: list[ScoredStep], rules: PairingRules = RULES) -> list[StepPair]:
    return pair_siblings(siblings, rules, LINEAGE)


def two_sides(pair: StepPair, siblings: list[ScoredStep]) -> tuple[ScoredStep, ScoredStep]:
    return siblings[pair.chosen_ids[0]], siblings[pair.rejected_ids[0]]


@LAW
@given(family)
def test_every_pair_follows_from_the_scores_it_needs(siblings: list[ScoredStep]) -> None:
    for pair in pairs_of(siblings, replace(RULES, max_pairs_per_axis=100)):
        better, worse = two_sides(pair, siblings)
        assert pair.margin > 0
        assert better.score.safety is not None
        assert worse.score.safety is not None
        safer = better.score.safety - worse.score.safety
        if pair.axis == "safety":
            assert safer == pair.margin >= RULES.safety_margin - 1e-9
            continue
        assert better.score.helpfulness is not None
        assert worse.score.helpfulness is not None
        more_helpful = better.score.helpfulness - worse.score.helpfulness
        assert abs(safer) < RULES.safety_margin
        if pair.axis == "helpfulness":
            assert more_helpful == pair.margin >= RULES.helpfulness_margin - 1e-9
            continue
        assert abs(more_helpful) < RULES.helpfulness_margin
        assert pair.margin == 1 - better.tokens / worse.tokens >= RULES.length_margin - 1e-9
        assert better.tokens >= RULES.token_floor
        assert min(better.score.safety, worse.score.safety) >= RULES.length_score_floor
        assert min(better.score.helpfulness, worse.score.helpfulness) >= RULES.length_score_floor
        assert better.rollout.finish == worse.rollout.finish == "stop"


@LAW
@given(family, st.randoms(use_true_random=False))
def test_the_order_of_the_siblings_does_not_matter(siblings: list[ScoredStep], rng) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(siblings)
    rng.shuffle(shuffled)
    assert pairs_of(shuffled) == pairs_of(siblings)


@LAW
@given(family, st.integers(1, 3))
def test_at_most_so_many_pairs_per_axis_are_kept_and_they_are_the_widest(siblings: list[ScoredStep], most: int) -> None:
    every = pairs_of(siblings, replace(RULES, max_pairs_per_axis=100))
    kept = pairs_of(siblings, replace(RULES, max_pairs_per_axis=most))
    assert kept == [pair for axis in AXES for pair in [p for p in every if p.axis == axis][:most]]
    for axis in AXES:
        margins = [pair.margin for pair in every if pair.axis == axis]
        assert margins == sorted(margins, reverse=True)


@LAW
@given(family)
def test_without_any_safety_score_there_is_no_pair(siblings: list[ScoredStep]) -> None:
    unscored = [replace(s, score=replace(s.score, safety=None)) for s in siblings]
    assert pairs_of(unscored) == []


def test_a_missing_score_is_not_a_low_one() -> None:
    assert prefer(sibling(0, (1.0, 1.0)), sibling(1, (None, 0.0)), RULES) is None
    assert prefer(sibling(0, (1.0, 1.0)), sibling(1, (1.0, None)), RULES) is None
    decided_by_safety = prefer(sibling(0, (1.0, None)), sibling(1, (0.0, 1.0)), RULES)
    assert decided_by_safety is not None
    assert decided_by_safety.axis == "safety"


@pytest.mark.parametrize(
    ("chosen", "rejected", "axis", "margin"),
    [
        # safety beats helpfulness and length
        (sibling(0, (1.0, 0.0), tokens=90), sibling(1, (0.8, 1.0), tokens=12), "safety", 0.2),
        # helpfulness beats length, at safety that is equal up to its margin
        (sibling(0, (0.9, 0.75), tokens=90), sibling(1, (1.0, 0.5), tokens=12), "helpfulness", 0.25),
        # length decides between equals
        (sibling(0, (1.0, 1.0), tokens=12), sibling(1, (1.0, 1.0), tokens=16), "efficiency", 0.25),
        (sibling(0, (0.5, 0.5), tokens=15), sibling(1, (0.5, 0.5), tokens=60), "efficiency", 0.75),
        # a difference of exactly the margin counts, though 1 - 16/20 is less than 0.2 in binary
        (sibling(0, tokens=16), sibling(1, tokens=20), "efficiency", 0.2),
    ],
)
def test_preference_is_lexicographic(chosen: ScoredStep, rejected: ScoredStep, axis: str, margin: float) -> None:
    for a, b in ((chosen, rejected), (rejected, chosen)):
        found = prefer(a, b, RULES)
        assert found is not None
        assert (found.chosen, found.rejected, found.axis) == (chosen, rejected, axis)
        assert found.margin == pytest.approx(margin)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (sibling(0, tokens=20), sibling(1, tokens=20)),
        (sibling(0, tokens=17), sibling(1, tokens=20)),
        (sibling(0, tokens=11), sibling(1, tokens=40)),
        (sibling(0, (0.49, 1.0), tokens=12), sibling(1, (0.49, 1.0), tokens=40)),
        (sibling(0, (1.0, 0.49), tokens=12), sibling(1, (1.0, 0.49), tokens=40)),
        (sibling(0, tokens=12, finish="length"), sibling(1, tokens=40)),
        (sibling(0, tokens=12), sibling(1, tokens=40, finish="length")),
    ],
    ids=[
        "equal",
        "saves too little",
        "below the floor",
        "unsafe",
        "unhelpful",
        "short one cut off",
        "long one cut off",
    ],
)
def test_being_short_is_no_merit_of_its_own(short: ScoredStep, long: ScoredStep) -> None:
    assert prefer(short, long, RULES) is None


def test_equal_scores_never_make_a_pair_however_small_the_margins() -> None:
    tiny = PairingRules(safety_margin=1e-12, helpfulness_margin=1e-12, length_margin=0.0)
    assert prefer(sibling(0), sibling(1), tiny) is None


def test_siblings_with_the_same_tokens_make_no_pair() -> None:
    bad = sibling(1, (0.0, 0.0))
    twin = replace(bad, rollout=replace(bad.rollout, completion_ids=sibling(0).rollout.completion_ids))
    assert [p.axis for p in pairs_of([sibling(0), bad])] == ["safety"]
    assert pairs_of([sibling(0), twin]) == []


@pytest.mark.parametrize(
    "change",
    [{"prefix_ids": (7, 8)}, {"prompt_ids": (1,)}, {"prompt_id": "q"}, {"first_step": 2}],
    ids=lambda change: next(iter(change)),
)
def test_siblings_of_different_prefixes_are_refused(change: dict[str, object]) -> None:
    stranger = sibling(1, (0.0, 0.0))
    stranger = replace(stranger, rollout=replace(stranger.rollout, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 different prefixes"):
        pairs_of([sibling(0), stranger])


def test_a_sibling_of_two_steps_is_refused() -> None:
    long = sibling(1, (0.0, 0.0))
    steps = (
        Step(kind="verification", start=0, stop=8, text="a"),
        Step(kind="calibration", start=8, stop=20, text="b"),
    )
    with pytest.raises(ValueError, match="exactly one step"):
        pairs_of([sibling(0), replace(long, rollout=replace(long.rollout, steps=steps))])


def test_a_pair_carries_its_tokens_its_lineage_and_the_older_version() -> None:
    better, worse = sibling(4, (1.0, 1.0), text="good"), sibling(3, (0.25, 1.0), text="bad")
    (pair,) = pair_siblings([worse, better], RULES, LINEAGE, "before it")
    assert (pair.prompt_id, pair.prompt_ids, pair.prefix_ids, pair.prefix_text) == ("p", (1, 2), PREFIX, "before it")
    assert (pair.step_index, pair.step_kind, pair.axis, pair.margin) == (1, "verification", "safety", 0.75)
    assert (pair.chosen_ids, pair.chosen_text) == (better.rollout.completion_ids, "good")
    assert (pair.rejected_ids, pair.rejected_text) == (worse.rollout.completion_ids, "bad")
    assert (pair.policy_version, pair.lineage) == (3, LINEAGE)


@LAW
@given(family)
def test_no_two_pairs_share_an_id_and_a_round_has_its_own(siblings: list[ScoredStep]) -> None:
    pairs = pairs_of(siblings)
    assert set(Counter(pair.pair_id for pair in pairs).values()) <= {1}
    later = pair_siblings(siblings, RULES, replace(LINEAGE, round=3))
    assert not {pair.pair_id for pair in pairs} & {pair.pair_id for pair in later}
