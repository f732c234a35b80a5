"""Records refuse nonsense; tables give back what went in, and refuse what they do not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import STRATEGIES

from safer_ray.backends.toy_policy import toy_prompts
from safer_ray.errors import DataError, JournalError
from safer_ray.records import (
    LABELS,
    NO_RULE,
    Lineage,
    Message,
    Outcome,
    Prompt,
    Rollout,
    SampleRequest,
    Step,
    StepPair,
    TraceExample,
    Verdict,
)
from safer_ray.tables import (
    KINDS,
    SCHEMAS,
    concat,
    from_table,
    read_bundle,
    read_table,
    to_table,
    write_bundle,
    write_table,
)

LAW = settings(max_examples=15, deadline=None)
USER = (Message(role="user", content="Hello?"),)
STEP = Step(kind="assessment", start=0, stop=2, text="a")
PROMPT = Prompt(prompt_id="p", messages=USER)
REQUEST = SampleRequest(request_id="q", prompt_id="p", messages=USER)
ROLLOUT = Rollout(
    rollout_id="r",
    prompt_id="p",
    sample_index=0,
    first_step=0,
    policy_version=0,
    prompt_ids=(1,),
    prefix_ids=(),
    completion_ids=(2, 3),
    logprobs=(-0.5, -0.1),
    steps=(STEP,),
    finish="stop",
)
VERDICT = Verdict(rollout_id="r", step_index=0, axis="safety", judge="j@1", score=0.5)
LINEAGE = Lineage(judge="j@1", rule_pack_hash="h", sampler="s", temperature=1.0, top_p=1.0, reference="fixed", round=1)
PAIR = StepPair(
    pair_id="x",
    prompt_id="p",
    step_index=0,
    step_kind="assessment",
    axis="safety",
    prompt_ids=(1,),
    prefix_ids=(),
    chosen_ids=(2,),
    rejected_ids=(3,),
    chosen_text="a",
    rejected_text="b",
    margin=0.5,
    policy_version=0,
    lineage=LINEAGE,
)
EXAMPLE = TraceExample(
    example_id="e", prompt_id="p", prompt_ids=(1,), completion_ids=(2, 3), steps=(STEP,), teacher="t@1"
)
RECORDS: tuple[Any, ...] = (PROMPT, REQUEST, ROLLOUT, VERDICT, PAIR, EXAMPLE)


@pytest.mark.parametrize(
    ("record", "change", "what"),
    [
        (PROMPT, {"prompt_id": ""}, "prompt_id is empty"),
        (PROMPT, {"messages": ()}, "no messages"),
        (PROMPT, {"messages": (Message(role="user", content=" \n"),)}, "the last message is empty"),
        (PROMPT, {"label": "harmful"}, "label 'harmful' is not one of"),
        (REQUEST, {"n": 0}, "n must be >= 1, got 0"),
        (REQUEST, {"first_step": 4, "prefix_ids": (1,)}, "first_step must be 0..3"),
        (REQUEST, {"first_step": 1}, "a prefix is needed from step 1 on"),
        (REQUEST, {"prefix_ids": (1,)}, "and only there"),
        (STEP, {"stop": 0}, "need 0 <= start < stop, got 0..0"),
        (STEP, {"start": -1}, "got -1..2"),
        (ROLLOUT, {"steps": ()}, "no steps"),
        (ROLLOUT, {"completion_ids": (2, 3, 4), "logprobs": ()}, "do not cover its 3 tokens"),
        (ROLLOUT, {"steps": (replace(STEP, start=1),)}, "do not cover its 2 tokens"),
        (ROLLOUT, {"steps": (replace(STEP, stop=1), replace(STEP, start=0, stop=2))}, "leave a gap or overlap"),
        (ROLLOUT, {"logprobs": (-0.5,)}, "1 log-probs for 2 tokens"),
        (ROLLOUT, {"policy_version": -1}, "policy_version must be >= 0"),
        (VERDICT, {"score": 1.5}, "score 1.5 is outside"),
        (VERDICT, {"score": -0.1}, "score -0.1 is outside"),
        (VERDICT, {"score": None}, "unscored without an error"),
        (PAIR, {"margin": 0.0}, "margin must be > 0"),
        (PAIR, {"chosen_ids": ()}, "an empty sibling"),
        (PAIR, {"rejected_ids": ()}, "an empty sibling"),
        (PAIR, {"rejected_ids": (2,)}, "the same tokens"),
        (EXAMPLE, {"completion_ids": (2,)}, "do not cover its 1 tokens"),
        (EXAMPLE, {"decision_at": (2,)}, "decision_at must lie in 0..1"),
    ],
)  # fmt: skip
def test_a_record_refuses_nonsense(record: Any, change: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+") as caught:
        replace(record, **change)
    assert what in str(caught.value)


@pytest.mark.parametrize("record", [*RECORDS, STEP, LINEAGE], ids=lambda record: type(record).__name__)
def test_a_record_cannot_be_changed(record: Any) -> None:
    field = type(record).__dataclass_fields__.keys().__iter__().__next__()
    with pytest.raises(AttributeError):
        setattr(record, field, "other")


def test_the_gold_rule_is_the_category_only_where_it_is_violated() -> None:
    assert [replace(PROMPT, category="R09", label=label).gold_rule for label in LABELS] == ["R09", NO_RULE, NO_RULE]


# tables


def test_every_kind_of_table_has_a_strategy_here() -> None:
    assert set(STRATEGIES) == set(KINDS)


@LAW
@given(st.data(), st.sampled_from(list(KINDS)))
def test_a_table_gives_back_the_records_it_was_made_of(data: st.DataObject, kind: type) -> None:
    records = data.draw(st.lists(STRATEGIES[kind], max_size=4))
    assert from_table(to_table(records, kind), kind) == records


@LAW
@given(st.data())
def test_a_file_gives_back_the_records_of_every_kind(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    for kind, strategy in STRATEGIES.items():
        records = data.draw(st.lists(strategy, max_size=2))
        write_table(to_table(records, kind), folder / "t.arrow")
        assert from_table(read_table(folder / "t.arrow"), kind) == records


@LAW
@given(st.data())
def test_concatenated_tables_hold_all_records_in_order(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.lists(STRATEGIES[Verdict], max_size=3), max_size=3))
    whole = concat([to_table(part, Verdict) for part in parts], Verdict)
    assert from_table(whole, Verdict) == [verdict for part in parts for verdict in part]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_another_version_or_kind_or_no_mark_at_all_is_refused(kind: type) -> None:
    name, _, version = KINDS[kind].partition("/")
    for metadata in ({"safer_ray": f"{name}/{int(version) + 1}"}, {"safer_ray": "cakes/1"}, {}, None):
        table = to_table([], kind).replace_schema_metadata(metadata)
        with pytest.raises(DataError, match=f"{KINDS[kind]} was expected"):
            from_table(table, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_other_columns_are_refused(kind: type) -> None:
    table, first = to_table([], kind), SCHEMAS[KINDS[kind]].names[0]
    changed = [
        table.drop_columns([first]),
        table.append_column("extra", pa.array([], pa.int64())),
        table.rename_columns([f"{name}_x" for name in table.column_names]),
        table.set_column(0, pa.field(first, pa.float64(), nullable=False), pa.array([], pa.float64())),
    ]
    for other in changed:
        with pytest.raises(DataError, match="columns are"):
            from_table(other.replace_schema_metadata(table.schema.metadata), kind)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.column_names.index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


STEP_ROW = {"kind": "assessment", "start": 0, "stop": 2, "text": "a"}


@pytest.mark.parametrize(
    ("record", "column", "value"),
    [
        (PROMPT, "prompt_id", None),
        (PROMPT, "messages", None),
        (PROMPT, "messages", [{"role": "user", "content": None}]),
        (ROLLOUT, "completion_ids", [2, None]),
        (ROLLOUT, "logprobs", [-0.5, None]),
        (ROLLOUT, "steps", [{**STEP_ROW, "text": None}]),
        (PAIR, "margin", None),
        (PAIR, "lineage", None),
        (VERDICT, "rules_hit", [None]),
    ],
)
def test_a_null_where_none_may_be_is_refused(record: Any, column: str, value: Any) -> None:
    table = to_table([record, record], type(record))
    good = table[column].to_pylist()[0]
    assert from_table(with_column(table, column, [good, good]), type(record)) == [record, record]
    with pytest.raises(DataError, match=f"column {column} has 1 nulls"):
        from_table(with_column(table, column, [good, value]), type(record))


def test_a_null_in_the_lineage_of_a_pair_is_refused() -> None:
    table = to_table([PAIR], StepPair)
    row = table["lineage"].to_pylist()[0]
    with pytest.raises(DataError, match="column lineage has 2 nulls"):
        from_table(with_column(table, "lineage", [{**row, "judge": None, "round": None}]), StepPair)


def test_a_null_is_read_as_a_missing_score_where_it_may_be() -> None:
    unscored = replace(VERDICT, score=None, error="the judge could not say")
    (read,) = from_table(to_table([unscored], Verdict), Verdict)
    assert read.score is None


def test_a_row_that_breaks_its_record_is_refused() -> None:
    table = with_column(to_table([VERDICT], Verdict), "score", [1.5])
    with pytest.raises(DataError, match=r"verdicts/1: a row breaks what must hold of it: .*outside \[0, 1\]"):
        from_table(table, Verdict)


# files


def test_a_file_torn_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_table(to_table([ROLLOUT], Rollout), path)
    whole = path.read_bytes()
    for size in {0, 1, 7, *range(8, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole Arrow file"):
            read_table(path)
    path.write_bytes(whole)
    assert from_table(read_table(path), Rollout) == [ROLLOUT]


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.arrow")
    (tmp_path / "notes.arrow").write_text("these are notes, not a table\n" * 20)
    with pytest.raises(DataError, match="not a whole Arrow file"):
        read_table(tmp_path / "notes.arrow")


class BreaksHalfWay:
    """Looks like a table, until it is written."""

    schema = SCHEMAS[KINDS[Prompt]]


def test_a_half_written_file_never_carries_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.arrow"
    with pytest.raises(TypeError):
        write_table(BreaksHalfWay(), path)
    assert list(tmp_path.glob("*.arrow")) == []
    write_table(to_table([PROMPT], Prompt), path)
    with pytest.raises(TypeError):
        write_table(BreaksHalfWay(), path)
    assert from_table(read_table(path), Prompt) == [PROMPT]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    path, prompts = tmp_path / "prompts.arrow", toy_prompts(3)
    write_table(to_table(prompts, Prompt), path)
    (tmp_path / f".prompts.arrow.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(JournalError, match=r"shard .*prompts.arrow: cannot be written \(No space left on device\)"):
        write_table(to_table(toy_prompts(5), Prompt), path)
    assert from_table(read_table(path), Prompt) == prompts
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.arrow"]


# bundles


@LAW
@given(st.data())
def test_a_bundle_gives_back_its_tables_by_kind(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "bundle.arrow"
    levels = data.draw(st.lists(st.tuples(*(st.lists(STRATEGIES[kind], max_size=2) for kind in (Rollout, StepPair)))))
    tables = [to_table(rows, kind) for level in levels for rows, kind in zip(level, (Rollout, StepPair), strict=True)]
    write_bundle(tables, path)
    found = read_bundle(path)
    assert set(found) == ({"rollouts/1", "pairs/1"} if levels else set())
    if levels:
        assert from_table(found["rollouts/1"], Rollout) == [record for rollouts, _ in levels for record in rollouts]
        assert from_table(found["pairs/1"], StepPair) == [record for _, pairs in levels for record in pairs]


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    write_table(to_table([PROMPT], Prompt), tmp_path / "p.arrow")
    with pytest.raises(DataError, match="not a bundle of tables"):
        read_bundle(tmp_path / "p.arrow")


def test_an_outcome_without_a_trace_is_neither_consistent_nor_not(tmp_path: Path) -> None:
    outcome = Outcome(
        prompt_id="p",
        checkpoint="base",
        policy_version=0,
        judge="j@1",
        refusal="none",
        complied=True,
        well_formed=False,
        truncated=False,
        cited_rule="",
        consistent=None,
        reasoning_tokens=0,
        text="Sure.",
        response="Sure.",
    )
    write_bundle([to_table([outcome], Outcome)], tmp_path / "o.arrow")
    assert from_table(read_bundle(tmp_path / "o.arrow")["outcomes/1"], Outcome) == [outcome]


def test_a_worker_converts_records_without_importing_pandas_and_may_import_it_afterwards() -> None:
    code = """
import json, sys
from safer_ray.records import Message, Prompt
from safer_ray.tables import from_table, leave_pandas_out, to_table
leave_pandas_out()
prompts = [Prompt(prompt_id="a", messages=(Message(role="user", content="Hello?"),), label="safe")]
same = from_table(to_table(prompts, Prompt), Prompt) == prompts
imported = "pandas" in sys.modules
import pandas
print(json.dumps({"same": same, "imported": imported, "sum": int(pandas.Series([1]).sum())}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == {"same": True, "imported": False, "sum": 1}
