"""Prefix-tree packs: nothing lost, nothing shared that should not be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.core.packing import Pack, attention_blocks, build_trees, pack, trees_of_examples
from safer_ray.records import AXES, Lineage, Step, StepPair, TraceExample

LINEAGE = Lineage(judge="j@1", rule_pack_hash="h", sampler="s", temperature=1.0, top_p=1.0, reference="fixed", round=0)
IDS = st.integers(0, 3)  # few tokens, so that siblings often begin alike


def make_pair(
    pair_id: str, prompt: tuple[int, ...], prefix: tuple[int, ...], steps: tuple[tuple[int, ...], ...]
) -> StepPair:
    return StepPair(
        pair_id=pair_id,
        prompt_id=f"p{prompt}",
        step_index=min(3, len(prefix)),
        step_kind="response",
        axis=AXES[len(prompt) % 3],
        prompt_ids=prompt,
        prefix_ids=prefix,
        chosen_ids=steps[0],
        rejected_ids=steps[1],
        chosen_text="w",
        rejected_text="l",
        margin=0.5,
        policy_version=0,
        lineage=LINEAGE,
    )


@st.composite
def pair_sets(draw: st.DrawFn) -> list[StepPair]:
    """Pairs of a few prompts; later steps often continue an earlier chosen sibling."""
    pairs: list[StepPair] = []
    for prompt in draw(st.lists(st.lists(IDS, min_size=1, max_size=4).map(tuple), min_size=1, max_size=3, unique=True)):
        prefix: tuple[int, ...] = ()
        for _ in range(draw(st.integers(1, 3))):
            siblings = draw(
                st.lists(st.lists(IDS, min_size=1, max_size=5).map(tuple), min_size=2, max_size=4, unique=True)
            )
            for rejected in siblings[1:]:
                pairs.append(make_pair(f"{len(pairs)}", prompt, prefix, (siblings[0], rejected)))
            prefix += siblings[0]
    return pairs


def path_to(row: Pack, position: int) -> list[int]:
    """The tokens a row position sees, itself included, by the rule alone."""
    seen = position < row.subtree_stop_T[: position + 1]
    return [int(token) for token in row.input_ids_T[: position + 1][seen]]


def check_spans(row: Pack, pair: StepPair) -> None:
    packed = next(p for p in row.pairs if p.pair_id == pair.pair_id)
    for indices, step in ((packed.chosen_L, pair.chosen_ids), (packed.rejected_L, pair.rejected_ids)):
        assert tuple(row.target_L[indices].tolist()) == step
        for done, source in enumerate(row.source_L[indices].tolist()):
            assert path_to(row, source) == [*pair.prompt_ids, *pair.prefix_ids, *step[:done]]


@given(pair_sets(), st.integers(1, 60))
def test_every_step_token_is_predicted_from_exactly_its_own_context(pairs: list[StepPair], budget: int) -> None:
    rows = pack(build_trees(pairs, token_budget=budget), budget)
    row_of = {p.pair_id: row for row in rows for p in row.pairs}
    assert sorted(p.pair_id for row in rows for p in row.pairs) == sorted(pair.pair_id for pair in pairs)
    for pair in pairs:
        check_spans(row_of[pair.pair_id], pair)


@given(pair_sets())
def test_positions_count_the_tokens_on_the_way_from_the_root(pairs: list[StepPair]) -> None:
    for tree in build_trees(pairs):
        assert all(len(path_to(tree, t)) == tree.position_ids_T[t] + 1 for t in range(tree.tokens))


@given(pair_sets())
def test_a_text_two_pairs_share_stands_in_the_row_once(pairs: list[StepPair]) -> None:
    for tree in build_trees(pairs):
        paths = [tuple(path_to(tree, t)) for t in range(tree.tokens)]
        assert len(set(paths)) == len(paths)


def test_a_later_step_nests_under_the_chosen_sibling_of_the_step_before() -> None:
    first = make_pair("a", (1, 2), (), ((3, 4), (5, 6)))
    second = make_pair("b", (1, 2), (3, 4), ((7,), (8, 9)))
    (tree,) = build_trees([first, second])
    assert tree.input_ids_T.tolist() == [1, 2, 3, 4, 7, 8, 9, 5, 6]
    assert tree.position_ids_T.tolist() == [0, 1, 2, 3, 4, 4, 5, 2, 3]


def test_a_step_runs_from_its_annotated_start_even_where_siblings_begin_alike() -> None:
    (tree,) = build_trees([make_pair("a", (1,), (), ((2, 2, 3), (2, 2, 0, 1)))])
    assert tree.tokens == 6  # the common tokens 2, 2 are computed once
    assert len(tree.pairs[0].chosen_L) == 3
    assert len(tree.pairs[0].rejected_L) == 4


def test_the_number_of_pairs_of_a_prompt_survives_splitting_its_tree() -> None:
    pairs = [make_pair(str(i), (1,), (), ((2,), (3, *[0] * i))) for i in range(4)]
    trees = build_trees(pairs, token_budget=5)
    assert len(trees) > 1
    assert {p.prompt_pairs for tree in trees for p in tree.pairs} == {4}


@given(pair_sets(), st.integers(0, 40))
def test_blocks_tile_the_row_and_hold_every_visible_key(pairs: list[StepPair], block_cost: int) -> None:
    (row,) = pack(build_trees(pairs), 10_000)
    blocks = attention_blocks(row, block_cost=block_cost)
    assert [t for b in blocks for t in range(b.start, b.stop)] == list(range(row.tokens))
    for block in blocks:
        keys = set(block.key_T.tolist())
        for query in range(block.start, block.stop):
            assert {k for k in range(query + 1) if query < row.subtree_stop_T[k]} <= keys


def test_blocks_compute_less_than_the_whole_square_when_siblings_are_long() -> None:
    step = tuple(range(100))
    pairs = [make_pair(str(i), (1,) * 50, (), ((200, *step), (201 + i, *step))) for i in range(3)]
    (row,) = build_trees(pairs)
    products = sum((b.stop - b.start) * len(b.key_T) for b in attention_blocks(row, block_cost=1000))
    assert products < 0.5 * row.tokens**2


def make_example(example_id: str, prompt: int, completion: int) -> TraceExample:
    return TraceExample(
        example_id=example_id,
        prompt_id=example_id,
        prompt_ids=tuple(range(prompt)),
        completion_ids=tuple(range(completion)),
        steps=(Step(kind="response", start=0, stop=completion, text="x"),),
        teacher="t@1",
    )


def test_an_example_is_learnt_on_its_completion_only() -> None:
    (tree,) = trees_of_examples([make_example("e", 3, 2)])
    assert tree.source_L.tolist() == [2, 3]
    assert tree.target_L.tolist() == [0, 1]
    assert tree.weight_L.tolist() == [1.0, 1.0]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=12), st.data())
def test_examples_share_what_their_prompts_begin_with_and_lose_nothing(
    sizes: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    # The prompts begin alike; then a token of their own, some twice the same, as two traces of one prompt are.
    examples = [
        replace(make_example(str(at), head, body), prompt_ids=(*range(head), 100 + own))
        for at, (head, own, body) in enumerate(sizes)
    ]
    budget = data.draw(st.integers(0, 40))
    trees = trees_of_examples(examples, token_budget=budget)
    assert [each for tree in trees for each in tree.example_ids] == [example.example_id for example in examples]
    alone = sum(tree.tokens for tree in trees_of_examples(examples))
    assert sum(tree.tokens for tree in trees) <= alone
    assert sum(tree.weight_L.sum() for tree in trees) == sum(len(example.completion_ids) for example in examples)
    for tree in trees:
        assert tree.tokens <= budget or len(tree.example_ids) == 1
        learnt = Counter[tuple[int, ...]]()
        for source, target, weight in zip(tree.source_L, tree.target_L, tree.weight_L, strict=True):
            seen = [*np.flatnonzero((np.arange(tree.tokens) <= source) & (source < tree.subtree_stop_T))]
            learnt[(*tree.input_ids_T[seen].tolist(), int(target))] += int(weight)
        wanted = Counter[tuple[int, ...]]()
        for example in (each for each in examples if each.example_id in tree.example_ids):
            text = (*example.prompt_ids, *example.completion_ids)
            wanted.update(text[:stop] for stop in range(len(example.prompt_ids) + 1, len(text) + 1))
        assert learnt == wanted


def test_a_pair_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        build_trees([make_pair("a", (), (), ((1,), (2,)))])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_packs_hold_all_trees_and_none_overflows_unless_one_tree_does(lengths: list[int], budget: int) -> None:
    trees = trees_of_examples([make_example(str(i), 1, n) for i, n in enumerate(lengths)])
    rows = pack(trees, budget)
    assert sorted(n for row in rows for n in np.diff([*[n.start for n in row.nodes], row.tokens])) == sorted(
        n + 1 for n in lengths
    )
    assert all(row.tokens <= budget or len(row.nodes) == 1 for row in rows)
