"""Prefix trees in one row: every token of a prompt's samples is computed once, whoever shares it.

A tree holds the texts of one prompt. Its tokens lie in one row in depth-first order, so the tokens that continue a
prefix - the subtree - follow it without a gap. One integer per token then says all of attention: key ``k`` is
visible to query ``q`` exactly if ``k <= q < subtree_stop_T[k]``. Positions count tokens on the way from the root.
A pack is several trees side by side; no tree sees another.

Tokens are shared where texts begin alike, but what enters a loss is what the record annotates: a step runs from its
own first token, even where siblings begin alike.

Letters: T tokens of a row, L tokens whose log-prob is needed, N nodes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from safer_ray.records import Axis, StepKind, StepPair, TraceExample

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Tokens ``[start, stop)`` of a row without a branch in between; ``parent`` is an index of nodes, -1 a root's."""

    start: int
    stop: int
    parent: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedPair:
    """Two siblings of a row; ``chosen_L`` and ``rejected_L`` index the row's L log-probs, in reading order.

    ``prompt_pairs`` is how many pairs the prompt has in the whole stage, for weighting.
    """

    pair_id: str
    axis: Axis
    step_kind: StepKind
    chosen_L: IntArray
    rejected_L: IntArray
    prompt_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pack:
    """One row of whole trees; a single tree is the smallest pack.

    ``source_L`` is the row position whose hidden state predicts ``target_L``. ``weight_L`` counts the examples
    that contain the token in their completion (SFT; 0 in a row of pairs). ``nodes`` are in depth-first order.
    """

    input_ids_T: IntArray
    position_ids_T: IntArray
    subtree_stop_T: IntArray
    source_L: IntArray
    target_L: IntArray
    weight_L: FloatArray
    nodes: tuple[Node, ...]
    pairs: tuple[PackedPair, ...]
    example_ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """T, the length of the row."""
        return len(self.input_ids_T)


class _Trie:
    """Token sequences merged where they begin alike; token 0 .. n-1 in order of insertion."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.children: list[list[int]] = []
        self._next: dict[tuple[int, int], int] = {}

    def insert(self, tokens: Sequence[int], below: int) -> list[int]:
        """Add ``tokens`` under token ``below`` (-1: as a root) and return the trie token of each."""
        path = []
        for token in tokens:
            found = self._next.get((below, token))
            if found is None:
                found = self._next[below, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(below)
                self.children.append([])
                if below >= 0:
                    self.children[below].append(found)
            below = found
            path.append(found)
        return path

    def shared(self, tokens: Sequence[int]) -> int:
        """Return how many of ``tokens`` are in the trie already, as a path from the root."""
        below = -1
        for count, token in enumerate(tokens):
            found = self._next.get((below, token))
            if found is None:
                return count
            below = found
        return len(tokens)

    def depth_first(self) -> list[int]:
        """Return all tokens, each before its subtree and each subtree in one piece."""
        order: list[int] = []
        waiting = [0]
        while waiting:
            token = waiting.pop()
            order.append(token)
            waiting.extend(reversed(self.children[token]))
        return order


@dataclass(frozen=True, slots=True, kw_only=True)
class _TriePair:
    pair: StepPair
    chosen: list[int]
    rejected: list[int]
    prompt_pairs: int


def build_trees(pairs: Sequence[StepPair], *, token_budget: int | None = None) -> list[Pack]:
    """Return one tree per prompt with all its pairs; a tree longer than ``token_budget`` is split between pairs.

    Raises:
        ValueError: if a pair has no prompt tokens (its first token would have nothing to be predicted from).
    """
    per_prompt = Counter(pair.prompt_id for pair in pairs)
    groups: dict[tuple[str, tuple[int, ...]], list[StepPair]] = {}
    for pair in pairs:
        groups.setdefault((pair.prompt_id, tuple(pair.prompt_ids)), []).append(pair)
    trees: list[Pack] = []
    for (prompt_id, _), group in groups.items():
        group.sort(key=lambda pair: (tuple(pair.prefix_ids), pair.pair_id))  # neighbours share the most
        trees.extend(_trees_within(group, per_prompt[prompt_id], token_budget))
    return trees


def _trees_within(group: Sequence[StepPair], prompt_pairs: int, token_budget: int | None) -> Iterator[Pack]:
    tree = _tree_of_pairs(group, prompt_pairs)
    if token_budget is None or tree.tokens <= token_budget or len(group) == 1:
        yield tree
        return
    middle = len(group) // 2
    yield from _trees_within(group[:middle], prompt_pairs, token_budget)
    yield from _trees_within(group[middle:], prompt_pairs, token_budget)


def _tree_of_pairs(group: Sequence[StepPair], prompt_pairs: int) -> Pack:
    trie = _Trie()
    contexts: dict[tuple[int, ...], int] = {}
    spans = []
    for pair in group:
        if not pair.prompt_ids:
            raise ValueError(f"pair {pair.pair_id}: the prompt has no tokens, so nothing predicts the first one")
        prefix = tuple(pair.prefix_ids)
        if prefix not in contexts:
            contexts[prefix] = trie.insert((*pair.prompt_ids, *prefix), -1)[-1]
        spans.append(
            _TriePair(
                pair=pair,
                chosen=trie.insert(pair.chosen_ids, contexts[prefix]),
                rejected=trie.insert(pair.rejected_ids, contexts[prefix]),
                prompt_pairs=prompt_pairs,
            )
        )
    needed = Counter(token for span in spans for token in {*span.chosen, *span.rejected})
    return _lay_out(trie, dict.fromkeys(needed, 0.0), spans)


def trees_of_examples(
    examples: Sequence[TraceExample],
    step_weights: Mapping[StepKind, float] = MappingProxyType({}),
    decision_weight: float = 1.0,
    *,
    token_budget: int = 0,
) -> list[Pack]:
    """Return trees whose completions are learnt, each of examples that follow each other and begin alike.

    A tree takes one more example as long as it has at most ``token_budget`` tokens, so that what all prompts begin
    with, a system message, is computed once per tree; with 0 every example is a tree. A token weighs what
    ``step_weights`` says of its step, else 1; one that states a decision ``decision_weight`` times as much.

    Raises:
        ValueError: if an example has no prompt tokens.
    """
    trees: list[Pack] = []
    trie, weights, ids = _Trie(), dict[int, float](), list[str]()

    def close() -> None:
        nonlocal trie, weights, ids
        if ids:
            trees.append(replace(_lay_out(trie, weights, ()), example_ids=tuple(ids)))
        trie, weights, ids = _Trie(), {}, []

    for example in examples:
        if not example.prompt_ids:
            raise ValueError(f"trace {example.example_id}: the prompt has no tokens, so nothing predicts the first one")
        tokens = (*example.prompt_ids, *example.completion_ids)
        shared = trie.shared(tokens)
        if not shared or len(trie.ids) + len(tokens) - shared > token_budget:
            close()
        context = trie.insert(example.prompt_ids, -1)[-1]
        path = trie.insert(example.completion_ids, context)
        for token, weight in zip(path, _token_weights(example, step_weights, decision_weight), strict=True):
            weights[token] = weights.get(token, 0.0) + weight
        ids.append(example.example_id)
    close()
    return trees


def _token_weights(example: TraceExample, step_weights: Mapping[StepKind, float], decision: float) -> list[float]:
    weights_T = [step_weights.get(step.kind, 1.0) for step in example.steps for _ in range(step.tokens)]
    for token in example.decision_at:
        weights_T[token] *= decision
    return weights_T


def _lay_out(trie: _Trie, weights: dict[int, float], spans: Sequence[_TriePair]) -> Pack:
    """Write the trie as a row; ``weights`` names the trie tokens whose log-prob is needed."""
    order = trie.depth_first()
    row = {token: position for position, token in enumerate(order)}
    depth_T = np.zeros(len(order), dtype=np.int64)
    size_T = np.ones(len(order), dtype=np.int64)
    for position, token in enumerate(order):
        if trie.parents[token] >= 0:
            depth_T[position] = depth_T[row[trie.parents[token]]] + 1
    for position in range(len(order) - 1, 0, -1):
        size_T[row[trie.parents[order[position]]]] += size_T[position]
    loss = sorted(row[token] for token in weights)
    index_of = {order[position]: index for index, position in enumerate(loss)}
    return Pack(
        input_ids_T=np.array([trie.ids[token] for token in order], dtype=np.int64),
        position_ids_T=depth_T,
        subtree_stop_T=np.arange(len(order), dtype=np.int64) + size_T,
        source_L=np.array([row[trie.parents[order[position]]] for position in loss], dtype=np.int64),
        target_L=np.array([trie.ids[order[position]] for position in loss], dtype=np.int64),
        weight_L=np.array([weights[order[position]] for position in loss], dtype=np.float64),
        nodes=_nodes(trie, order, row),
        pairs=tuple(
            PackedPair(
                pair_id=span.pair.pair_id,
                axis=span.pair.axis,
                step_kind=span.pair.step_kind,
                chosen_L=np.array([index_of[token] for token in span.chosen], dtype=np.int64),
                rejected_L=np.array([index_of[token] for token in span.rejected], dtype=np.int64),
                prompt_pairs=span.prompt_pairs,
            )
            for span in spans
        ),
    )


def _nodes(trie: _Trie, order: Sequence[int], row: dict[int, int]) -> tuple[Node, ...]:
    node_of: list[int] = []  # per row position
    starts, parents = list[int](), list[int]()
    for position, token in enumerate(order):
        parent = trie.parents[token]
        if parent < 0 or len(trie.children[parent]) > 1:
            starts.append(position)
            parents.append(node_of[row[parent]] if parent >= 0 else -1)
        node_of.append(len(starts) - 1)
    stops = [*starts[1:], len(order)]
    return tuple(
        Node(start=start, stop=stop, parent=parent) for start, stop, parent in zip(starts, stops, parents, strict=True)
    )


def pack(trees: Sequence[Pack], token_budget: int) -> list[Pack]:
    """Join trees into rows of at most ``token_budget`` tokens, best fit, longest first; a longer tree stands alone.

    Deterministic: equal trees in equal order give equal packs.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be >= 1, got {token_budget}")
    rows: list[list[Pack]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for tree in sorted(trees, key=lambda tree: -tree.tokens):
        fit = bisect_left(room, (tree.tokens, -1))
        if fit < len(room):
            free, index = room.pop(fit)
        else:
            free, index = token_budget, len(rows)
            rows.append([])
        rows[index].append(tree)
        insort(room, (max(0, free - tree.tokens), index))
    return [join(row) for row in rows]


def join(trees: Sequence[Pack]) -> Pack:
    """Concatenate trees to one row, shifting what counts positions, nodes and log-probs."""
    starts_T = np.cumsum([0, *(tree.tokens for tree in trees)])
    starts_L = np.cumsum([0, *(len(tree.source_L) for tree in trees)])
    nodes: list[Node] = []
    pairs: list[PackedPair] = []
    for tree, start_T, start_L in zip(trees, starts_T[:-1].tolist(), starts_L[:-1].tolist(), strict=True):
        first = len(nodes)
        nodes += (
            Node(start=n.start + start_T, stop=n.stop + start_T, parent=n.parent + first if n.parent >= 0 else -1)
            for n in tree.nodes
        )
        pairs += (
            replace(pair, chosen_L=pair.chosen_L + start_L, rejected_L=pair.rejected_L + start_L) for pair in tree.pairs
        )
    return Pack(
        input_ids_T=np.concatenate([tree.input_ids_T for tree in trees]),
        position_ids_T=np.concatenate([tree.position_ids_T for tree in trees]),
        subtree_stop_T=np.concatenate([t.subtree_stop_T + s for t, s in zip(trees, starts_T[:-1], strict=True)]),
        source_L=np.concatenate([t.source_L + s for t, s in zip(trees, starts_T[:-1], strict=True)]),
        target_L=np.concatenate([tree.target_L for tree in trees]),
        weight_L=np.concatenate([tree.weight_L for tree in trees]),
        nodes=tuple(nodes),
        pairs=tuple(pairs),
        example_ids=tuple(example_id for tree in trees for example_id in tree.example_ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionBlock:
    """Queries ``[start, stop)`` of a row with all keys any of them sees: some ancestors, then themselves."""

    start: int
    stop: int
    key_T: IntArray


BLOCK_COST = 8192
"""What one more block costs, counted in query-key products: a dozen small operations against one big one."""


def attention_blocks(row: Pack, *, block_cost: int = BLOCK_COST) -> list[AttentionBlock]:
    """Tile a row into blocks of queries so that little is computed that no query sees.

    A subtree is one block where that is cheaper than one block per node: two short siblings are.
    """
    children: dict[int, list[int]] = {}
    for index, node in enumerate(row.nodes):
        children.setdefault(node.parent, []).append(index)
    blocks: list[AttentionBlock] = []

    def subtree_stop(index: int) -> int:
        return int(row.subtree_stop_T[row.nodes[index].start])

    def best(group: Sequence[int], above: IntArray) -> tuple[int, list[AttentionBlock]]:
        start, stop = row.nodes[group[0]].start, subtree_stop(group[-1])
        merged_cost = (stop - start) * (len(above) + stop - start) + block_cost
        split_cost, split = 0, []
        for index in group:
            node = row.nodes[index]
            key_T = np.concatenate([above, np.arange(node.start, node.stop)])
            split.append(AttentionBlock(start=node.start, stop=node.stop, key_T=key_T))
            split_cost += (node.stop - node.start) * len(key_T) + block_cost
            if index in children:
                below_cost, below = best(children[index], key_T)
                split_cost += below_cost
                split += below
        if split_cost < merged_cost:
            return split_cost, split
        key_T = np.concatenate([above, np.arange(start, stop)])
        return merged_cost, [AttentionBlock(start=start, stop=stop, key_T=key_T)]

    for root in children[-1]:
        blocks += best([root], np.zeros(0, dtype=np.int64))[1]
    return blocks
