"""The plan of a stage's steps: every pack once per epoch, and every rank equally busy."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.packing import Pack, pack, trees_of_examples
from safer_ray.core.step_plan import plan_steps
from safer_ray.records import Step, TraceExample


def rows_of(completions: Sequence[int], *, token_budget: int) -> list[Pack]:
    """Packs of examples with one prompt token and completions of these lengths."""
    examples = [
        TraceExample(
            example_id=str(index),
            prompt_id=str(index),
            prompt_ids=(0,),
            completion_ids=tuple(range(length)),
            steps=(Step(kind="response", start=0, stop=length, text="x"),),
            teacher="t@1",
        )
        for index, length in enumerate(completions)
    ]
    return pack(trees_of_examples(examples), token_budget)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(1, 4), st.integers(20, 300), st.integers(1, 3)
)
def test_every_rank_gets_equally_many_turns_and_every_pack_one_turn_per_epoch(
    lengths: list[int], ranks: int, tokens_per_step: int, epochs: int
) -> None:
    rows = rows_of(lengths, token_budget=100)
    plan = plan_steps(rows, ranks=ranks, tokens_per_step=tokens_per_step, epochs=epochs, seed=3)
    assert all(len({len(turns) for turns in step.ranks}) == 1 and step.packs for step in plan)
    assert sorted(i for step in plan for i in step.packs) == sorted(list(range(len(rows))) * epochs)
    assert plan == plan_steps(rows, ranks=ranks, tokens_per_step=tokens_per_step, epochs=epochs, seed=3)


def test_the_longest_packs_of_a_step_go_to_different_ranks() -> None:
    rows = rows_of((90, 80, 9, 8), token_budget=1)
    (step,) = plan_steps(rows, ranks=2, tokens_per_step=1000)
    loads = [sum(rows[i].tokens for i in turns if i is not None) for turns in step.ranks]
    assert abs(loads[0] - loads[1]) <= 10
