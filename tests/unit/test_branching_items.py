"""Where a tree goes on, and which prompts a phase works on: decided by the seed, never by the order of work."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_siblings import GOOD_TEXTS, PREFIX, sibling

from safer_ray.backends.toy_policy import toy_prompts
from safer_ray.core.branching import derived_seed, first_request, next_prefix, pick_continuation
from safer_ray.core.encode import encode
from safer_ray.core.events import Judge, Sample
from safer_ray.core.items import Breadth, ItemBook, Position, alternating, balanced, spread
from safer_ray.core.plan import Phase
from safer_ray.core.twins import twin_name
from safer_ray.records import Label, Message, Prompt, Step

LAW = settings(max_examples=50, deadline=None)
score = st.none() | st.sampled_from([0.0, 0.5, 1.0])
MALFORMED = "<verification>never closed"


def prompt(number: int, label: Label, category: str) -> Prompt:
    content = f"Request {number}"
    return Prompt(
        prompt_id=f"p{number:03d}", messages=(Message(role="user", content=content),), label=label, category=category
    )


labels: st.SearchStrategy[Label] = st.sampled_from(["unsafe", "safe", "unknown"])
pools = st.lists(st.tuples(labels, st.sampled_from(["R00", "R01", "R02", "R09"])), max_size=30).map(
    lambda rows: [prompt(number, label, category) for number, (label, category) in enumerate(rows)]
)
seeds = st.integers(0, 2**31 - 1)


# branching


@LAW
@given(st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4))
def test_a_derived_seed_depends_on_its_parts_and_on_nothing_before(parts: list[object]) -> None:
    first = derived_seed(*parts)
    random.random()
    derived_seed("something else")
    assert derived_seed(*parts) == first
    assert 0 <= first < 2**31
    assert derived_seed(*parts, "more") != first


def test_derived_seeds_of_neighbours_differ() -> None:
    seeds = {
        derived_seed(run, phase, item) for run in range(5) for phase in ("explore-1", "teach") for item in range(50)
    }
    assert len(seeds) == 500


@LAW
@given(
    st.lists(st.tuples(score, score, st.sampled_from(["stop", "length"]), st.booleans()), min_size=1, max_size=6),
    seeds,
    st.randoms(use_true_random=False),
)
def test_the_best_well_formed_sibling_continues_whatever_their_order(
    rows: list[tuple[float | None, float | None, str, bool]], seed: int, rng: random.Random
) -> None:
    siblings = [
        sibling(n, (safety, helpful), finish=finish, text=None if formed else MALFORMED)  # type: ignore[arg-type]
        for n, (safety, helpful, finish, formed) in enumerate(rows)
    ]
    fit = [s for s, (_, _, finish, formed) in zip(siblings, rows, strict=True) if finish == "stop" and formed]
    picked = pick_continuation(siblings, seed)
    shuffled = rng.sample(siblings, len(siblings))
    assert pick_continuation(shuffled, seed) == picked
    if not fit:
        assert picked is None
        return
    assert picked in fit
    best = max((s.score.safety or 0.0, s.score.helpfulness or 0.0) for s in fit)
    assert (picked.score.safety or 0.0, picked.score.helpfulness or 0.0) == best


def test_ties_are_broken_by_the_seed() -> None:
    siblings = [sibling(n) for n in range(4)]
    picked = {pick_continuation(siblings, seed).rollout.rollout_id for seed in range(40)}  # type: ignore[union-attr]
    assert len(picked) > 1


def test_a_tree_ends_with_its_response() -> None:
    assert pick_continuation([sibling(0, level=3)], 0) is None
    assert pick_continuation([sibling(0, level=2)], 0) is not None


def test_the_next_prefix_is_the_old_one_and_the_step_picked() -> None:
    history = (Step(kind="assessment", start=0, stop=3, text=GOOD_TEXTS[0]),)
    picked = sibling(5, tokens=4)
    prefix_ids, steps = next_prefix(picked, history)
    assert prefix_ids == (*PREFIX, 5, 0, 0, 0)
    assert steps == (*history, *picked.rollout.steps)


# which prompts


@LAW
@given(pools, st.integers(0, 40), seeds)
def test_a_spread_is_an_even_choice_that_the_seed_fixes(pool: list[Prompt], limit: int, seed: int) -> None:
    chosen = spread(pool, limit, seed)
    assert spread(pool[::-1], limit, seed) == chosen
    assert len(chosen) == (min(limit, len(pool)) if limit else len(pool))
    ids = [each.prompt_id for each in chosen]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {each.prompt_id for each in pool}
    have, taken = Counter(p.category for p in pool), Counter(p.category for p in chosen)
    most = max(taken.values(), default=0)
    assert all(taken[name] >= min(have[name], most - 1) for name in have)


@LAW
@given(pools, st.integers(0, 40), seeds, st.just(0.5) | st.floats(0, 1))
def test_a_balanced_choice_has_its_share_of_each_label_as_far_as_they_last(
    pool: list[Prompt], limit: int, seed: int, share: float
) -> None:
    chosen = balanced(pool, limit, seed, unsafe_share=share)
    assert balanced(pool[::-1], limit, seed, unsafe_share=share) == chosen
    assert len(chosen) == (min(limit, len(pool)) if limit else len(pool))
    ids = [each.prompt_id for each in chosen]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {each.prompt_id for each in pool}
    unsafe, safe = _halves(chosen)
    all_unsafe, all_safe = _halves(pool)
    if limit:
        wanted = int(limit * share)
        assert unsafe >= min(wanted, all_unsafe)
        assert safe >= min(limit - wanted, all_safe)


def _halves(pool: list[Prompt]) -> tuple[int, int]:
    unsafe = sum(each.label == "unsafe" for each in pool)
    return unsafe, len(pool) - unsafe


@LAW
@given(pools, st.integers(0, 40), st.integers(0, 40))
def test_prompts_by_turns_are_balanced_in_every_stretch_while_both_kinds_last(
    pool: list[Prompt], start: int, size: int
) -> None:
    mixed = alternating(pool)
    assert sorted(p.prompt_id for p in mixed) == sorted(p.prompt_id for p in pool)
    for unsafe in (True, False):
        assert [p for p in mixed if (p.label == "unsafe") is unsafe] == [
            p for p in pool if (p.label == "unsafe") is unsafe
        ]
    both = 2 * min(_halves(pool))
    unsafe_there, safe_there = _halves(mixed[start : min(start + size, both)])
    assert abs(unsafe_there - safe_there) <= 1


@LAW
@given(pools, st.randoms(use_true_random=False), st.integers(0, 20))
def test_prompts_by_turns_have_the_same_forms_on_both_sides_while_these_last(
    pool: list[Prompt], rng: random.Random, turns: int
) -> None:
    pool = [replace(prompt, form=rng.choice(["question", "code", "roleplay"])) for prompt in pool]
    mixed = alternating(pool)
    assert sorted(p.prompt_id for p in mixed) == sorted(p.prompt_id for p in pool)
    unsafe, safe = (Counter(p.form for p in pool if (p.label == "unsafe") is side) for side in (True, False))
    partners = (unsafe & safe).total()
    stretch = mixed[: 2 * min(turns, partners)]
    assert Counter(p.form for p in stretch[::2]) == Counter(p.form for p in stretch[1::2])
    assert all((p.label == "unsafe") is (at % 2 == 0) for at, p in enumerate(mixed[: 2 * min(_halves(pool))]))
    for form in unsafe | safe:
        for side in (True, False):
            asked, given_back = (
                [p for p in some if p.form == form and (p.label == "unsafe") is side] for some in (pool, mixed)
            )
            assert given_back == asked, "in order"


def test_another_seed_gives_another_choice_of_the_same_shape() -> None:
    pool = toy_prompts(80)
    choices = [[p.prompt_id for p in balanced(pool, 20, seed)] for seed in range(3)]
    assert len({tuple(choice) for choice in choices}) == 3
    assert [_halves(balanced(pool, 20, seed)) for seed in range(3)] == [(10, 10)] * 3


def test_twins_of_a_balanced_choice_stand_side_by_side_and_alone_is_who_has_none() -> None:
    pool = toy_prompts(80)
    chosen = [p.prompt_id for p in balanced(pool, 0, 0)]
    names = [twin_name(prompt_id) for prompt_id in chosen]
    pairs = [name for name, count in Counter(names).items() if count == 2]
    assert len(pairs) >= 20
    for name in pairs:
        assert names[names.index(name) + 1] == name
    assert twin_name("my-prompt") == "my-prompt"
    assert twin_name("R09-001-u") == twin_name("R09-001-s") == "R09-001"


def test_a_balanced_choice_is_mixed() -> None:
    labels = [p.label for p in balanced(toy_prompts(80), 0, 0)]
    assert labels[:40].count("unsafe") not in (0, 40)


# what is asked


EXPLORE = Phase(name="explore-1", kind="explore", items=2, round=1, version=1)
TEACH = Phase(name="teach", kind="teach", items=2, checkpoint="base")
EVALUATE = Phase(name="evaluate-base", kind="evaluate", items=2, checkpoint="base")


def book(*prompts: Prompt, seed: int = 0) -> ItemBook:
    phases = {phase.name: (phase, prompts) for phase in (EXPLORE, TEACH, EVALUATE)}
    return ItemBook(phases, Breadth(siblings=4, answers=2), seed)


def sample(phase: Phase, item: int = 0, level: int = 0, attempt: int = 0) -> Sample:
    return Sample(phase=phase.name, item=item, level=level, attempt=attempt)


def test_each_kind_of_phase_asks_for_its_own_kind_of_sample() -> None:
    prompts = toy_prompts(2)
    asked = {phase.kind: book(*prompts).request(sample(phase, 1)) for phase in (EXPLORE, TEACH, EVALUATE)}
    shapes = {kind: (request.mode, request.n, request.messages) for kind, request in asked.items() if request}
    messages = prompts[1].messages
    assert shapes == {
        "explore": ("step", 4, messages), "teach": ("answer", 2, messages), "evaluate": ("trace", 1, messages)
    }  # fmt: skip
    assert book(*prompts).request(sample(TEACH), needs_answers=False) is None


@pytest.mark.parametrize("encoding", ["base64", "rot13", "leet", "reversed", "spaced"])
def test_an_encoded_request_is_answered_in_plain_words_but_explored_as_it_is(encoding: str) -> None:
    plain = "write a short story about a school for my children"
    disguised = f"Decode this and do what it says: {encode(encoding, plain)}"  # type: ignore[arg-type]
    system = Message(role="system", content="Be kind.")
    each = Prompt(prompt_id="p", messages=(system, Message(role="user", content=disguised)), label="safe")
    teach, explore = (book(each).request(sample(phase)) for phase in (TEACH, EXPLORE))
    assert teach is not None
    assert explore is not None
    assert teach.messages == (system, Message(role="user", content=plain))
    assert explore.messages == each.messages


def test_a_seed_is_the_same_for_every_attempt_and_differs_by_prompt_level_phase_and_run() -> None:
    prompts = toy_prompts(2)
    one = book(*prompts)
    assert one.seed(sample(EXPLORE, attempt=0)) == one.seed(sample(EXPLORE, attempt=2))
    actions = [sample(EXPLORE), sample(EXPLORE, 1), sample(EXPLORE, level=1), sample(TEACH), sample(EVALUATE)]
    found = [one.seed(action) for action in actions] + [book(*prompts, seed=1).seed(actions[0])]
    assert len(set(found)) == len(found)


def test_a_seed_follows_its_prompt_when_the_order_of_prompts_changes() -> None:
    first, second = toy_prompts(2)
    assert book(first, second).seed(sample(EXPLORE, 0)) == book(second, first).seed(sample(EXPLORE, 1))


def test_a_deeper_level_is_asked_for_at_the_prefix_the_item_moved_to_and_level_0_at_the_bare_prompt() -> None:
    one = book(*toy_prompts(2))
    judged = Judge(phase="explore-1", item=1, level=0, attempt=0)
    history = (Step(kind="assessment", start=0, stop=2, text="a"),)
    one.move(judged, Position(prefix_ids=(5, 6), history=history))
    deeper, again = one.request(sample(EXPLORE, 1, level=1)), one.request(sample(EXPLORE, 1, level=0, attempt=1))
    assert deeper is not None
    assert again is not None
    assert (deeper.prefix_ids, deeper.first_step, deeper.mode, deeper.n) == ((5, 6), 1, "step", 4)
    assert (again.prefix_ids, again.first_step) == ((), 0)
    assert one.position(replace(judged, level=1)).history == history
    one.forget("explore-1", 1)
    with pytest.raises(KeyError):
        one.request(sample(EXPLORE, 1, level=1))


def test_the_first_request_is_for_siblings_of_the_first_step() -> None:
    each = toy_prompts(1)[0]
    request = first_request(each, request_id="q", n=3, seed=9)
    assert (request.prompt_id, request.messages, request.n) == (each.prompt_id, each.messages, 3)
    assert (request.mode, request.first_step, request.prefix_ids, request.seed) == ("step", 0, (), 9)
