"""Filters between writing traces and training on them: what they keep, in which order, and how it is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from local_run import carry_out, prepared

from safer_ray.core.curation import Balance, Curation, balance_traces, curate
from safer_ray.records import Message, Prompt, Step, TraceExample
from safer_ray.tables import from_table, read_table


def prompt(number: int, label: str, category: str = "R01", form: str = "question") -> Prompt:
    return Prompt(
        prompt_id=f"p{number:03d}",
        messages=(Message(role="user", content=f"Thing {number}?"),),
        label=label,  # type: ignore[arg-type]
        category=category,
        form=form,
    )


def example(prompt_id: str) -> TraceExample:
    return TraceExample(
        example_id=f"{prompt_id}/t",
        prompt_id=prompt_id,
        prompt_ids=(1,),
        completion_ids=(2,),
        steps=(Step(kind="response", start=0, stop=1, text="x"),),
        teacher="t@1",
    )


worlds = st.lists(
    st.tuples(
        st.sampled_from(["unsafe", "safe", "unknown"]),
        st.sampled_from(["R00", "R01", "R02"]),
        st.sampled_from(["question", "imperative"]),
    ),
    max_size=30,
).map(lambda rows: [prompt(number, *row) for number, row in enumerate(rows)])


@settings(max_examples=60)
@given(worlds, st.sampled_from(["none", "labels", "labels_by_form"]), st.integers(0, 5))
def test_balance_keeps_order_equal_classes_and_as_many_as_it_can(prompts: list[Prompt], by: Balance, seed: int) -> None:
    by_id = {each.prompt_id: each for each in prompts}
    examples = [example(each.prompt_id) for each in prompts]
    kept = balance_traces(examples, by_id, by=by, seed=seed)
    assert kept == balance_traces(examples, by_id, by=by, seed=seed)
    assert kept == [each for each in examples if each in kept]
    if by == "none":
        assert kept == examples
        return

    def sizes(rows: list[TraceExample]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for row in rows:
            form = by_id[row.prompt_id].form if by == "labels_by_form" else ""
            unsafe = by_id[row.prompt_id].label == "unsafe"
            before = found.get(form, (0, 0))
            found[form] = (before[0] + unsafe, before[1] + (not unsafe))
        return found

    expected = {form: (min(pair), min(pair)) for form, pair in sizes(examples).items() if min(pair)}
    assert sizes(kept) == expected


def test_what_is_cut_is_spread_over_categories() -> None:
    prompts = [prompt(number, "unsafe", f"R{1 + number % 3:02d}") for number in range(30)]
    prompts += [prompt(100 + number, "safe", "R00") for number in range(9)]
    by_id = {each.prompt_id: each for each in prompts}
    kept = balance_traces([example(each.prompt_id) for each in prompts], by_id, by="labels", seed=0)
    unsafe = Counter(by_id[each.prompt_id].category for each in kept if by_id[each.prompt_id].label == "unsafe")
    assert unsafe == {"R01": 3, "R02": 3, "R03": 3}


def test_each_filter_in_use_is_counted() -> None:
    prompts = [prompt(1, "unsafe"), prompt(2, "unsafe"), prompt(3, "safe")]
    by_id = {each.prompt_id: each for each in prompts}
    kept, (count,) = curate([example(each.prompt_id) for each in prompts], by_id, Curation(balance="labels"))
    assert (count.given, count.kept, count.kept_unsafe, count.kept_safe) == (3, 2, 1, 1)
    assert len(kept) == 2
    assert curate([], {}, Curation()) == ([], [])


def test_a_run_trains_on_the_balanced_traces_and_keeps_all_that_were_written(tmp_path: Path) -> None:
    prep = prepared(tmp_path / "job", "sft.balance=labels", "sft.max_prompts=0")
    run = carry_out(prep, tmp_path / "run")
    by_id = {each.prompt_id: each for each in prep.prompts.prompts}
    trained = from_table(read_table(run.run_dir.traces), TraceExample)
    written = from_table(read_table(run.run_dir.written_traces), TraceExample)
    labels = Counter(by_id[each.prompt_id].label for each in trained)
    assert labels["unsafe"] == labels["safe"] > 0
    assert len(written) > len(trained) == run.summary["traces"]["filters"][-1]["kept"]
