"""Prompt sources: every kind is read, a malformed row is named and counted, a bad source is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.config import PromptSource
from safer_ray.errors import DataError
from safer_ray.prompts import BadRow, load_prompts, read_prompts, shipped_pack
from safer_ray.records import Prompt

_ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "What is tea?", "label": "safe", "category": "R00", "form": "question", "split": "train"},
    {"id": "b", "prompt": "Pick a lock.", "label": "unsafe", "category": "R03", "form": "imperative", "split": "test"},
]


def _write(folder: Path, name: str, content: bytes | str) -> PromptSource:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return PromptSource(path=str(path))


def _jsonl(folder: Path, *rows: object, name: str = "p.jsonl") -> PromptSource:
    return _write(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


def _bad(source: PromptSource) -> list[BadRow]:
    return [item for item in read_prompts(source) if isinstance(item, BadRow)]


def _good(source: PromptSource) -> list[Prompt]:
    return [item for item in read_prompts(source) if isinstance(item, Prompt)]


def test_all_file_kinds_hold_the_same_prompts(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, *_ROWS)
    header = ",".join(_ROWS[0])
    csv = _write(tmp_path, "p.csv", "\n".join([header, *(",".join(row.values()) for row in _ROWS)]))
    pyarrow.parquet.write_table(pa.Table.from_pylist(_ROWS), tmp_path / "p.parquet")
    parquet = PromptSource(path=str(tmp_path / "p.parquet"))
    kinds = [
        [(p.prompt_id, p.text, p.label, p.category, p.form, p.split) for p in _good(s)] for s in (jsonl, csv, parquet)
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    assert kinds[0] == [
        tuple(row[key] for key in ("id", "prompt", "label", "category", "form", "split")) for row in _ROWS
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "not JSON"),
        (b'"a string"', "not a JSON object"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "not UTF-8"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": "  "}', "empty"),
        (b'{"other": "text"}', "missing"),
        (b'{"prompt": 7}', "not text"),
        (b'{"prompt": "x", "label": "dubious"}', "label 'dubious'"),
        (b'{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}', "user message"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line_and_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    source = _write(tmp_path, "p.jsonl", b'{"prompt": "one"}\n\n' + line + b'\n{"prompt": "two"}\n')
    assert [prompt.text for prompt in _good(source)] == ["one", "two"]
    (bad,) = _bad(source)
    assert bad.where == f"{source.path}:3"
    assert reason in bad.reason


def test_csv_rows_of_another_width_or_encoding_are_bad_and_multiline_cells_are_not(tmp_path: Path) -> None:
    text = b'prompt,label\n"two\nlines",safe\nx,safe,extra\ncaf\xe9,safe\nlast,unsafe\n'
    source = _write(tmp_path, "p.csv", text)
    assert [prompt.text for prompt in _good(source)] == ["two\nlines", "last"]
    assert [row.where.rpartition(":")[2] for row in _bad(source)] == ["4", "5"]


def test_a_run_stops_above_the_allowed_share_of_bad_rows_and_not_at_it(tmp_path: Path) -> None:
    source = _write(tmp_path, "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\nbroken\n')
    assert len(load_prompts([source], max_bad_share=0.25).bad_rows) == 1
    with pytest.raises(DataError, match=r"1 of 4 rows .*p\.jsonl:4"):
        load_prompts([source], max_bad_share=0.24)


def test_an_id_that_stands_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    first = _jsonl(tmp_path, {"id": "a", "prompt": "x"}, name="one.jsonl")
    second = _jsonl(tmp_path, {"id": "a", "prompt": "y"}, name="two.jsonl")
    with pytest.raises(DataError, match=r"two\.jsonl:1.*'a'.*one\.jsonl:1"):
        load_prompts([first, second], max_bad_share=0)


def test_rows_without_an_id_get_different_ones(tmp_path: Path) -> None:
    prompts = _good(_jsonl(tmp_path, {"prompt": "x"}, {"prompt": "x"}))
    assert len({prompt.prompt_id for prompt in prompts}) == 2


def test_columns_labels_and_splits_are_mapped_as_the_source_says(tmp_path: Path) -> None:
    rows = [
        {"goal": "do it", "topic": "R09", "verdict": "harmful", "split": "dev"},
        {"goal": "why", "verdict": "benign", "split": "dev"},
        {"goal": "other", "verdict": "safe", "split": "train"},
    ]
    source = _jsonl(tmp_path, *rows).model_copy(
        update={
            "columns": {"text": "goal", "label": "verdict", "category": "topic"},
            "split": "dev",
            "as_split": "test",
            "category": "R00",
        }
    )
    assert [(p.text, p.label, p.category, p.split) for p in _good(source)] == [
        ("do it", "unsafe", "R09", "test"),
        ("why", "safe", "R00", "test"),
    ]


def test_the_source_label_is_for_rows_without_one(tmp_path: Path) -> None:
    source = _jsonl(tmp_path, {"prompt": "x"}, {"prompt": "y", "label": "safe"})
    labelled = source.model_copy(update={"label": "unsafe"})
    assert [prompt.label for prompt in _good(labelled)] == ["unsafe", "safe"]
    assert _good(source)[0].label == "unknown"


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    (prompt,) = _good(_jsonl(tmp_path, {"messages": turns}))
    assert [(m.role, m.content) for m in prompt.messages] == [("system", "be brief"), ("user", "hi")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing.jsonl", "no such file"),
        ("notes.txt", "not a prompt source"),
        ("shipped:nothing", "shipped are: .*default"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(path: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_prompts([PromptSource(path=path)], max_bad_share=1)


def test_a_damaged_parquet_file_and_a_wrong_column_are_told_apart(tmp_path: Path) -> None:
    damaged = _write(tmp_path, "d.parquet", b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"d\.parquet"):
        load_prompts([damaged], max_bad_share=1)
    pyarrow.parquet.write_table(pa.Table.from_pylist([{"body": "x"}]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"it has body.*columns\.text"):
        load_prompts([PromptSource(path=str(tmp_path / "c.parquet"))], max_bad_share=1)


def test_an_unknown_field_in_columns_is_refused(tmp_path: Path) -> None:
    source = _jsonl(tmp_path, _ROWS[0]).model_copy(update={"columns": {"txt": "prompt"}})
    with pytest.raises(DataError, match="'txt'"):
        load_prompts([source], max_bad_share=1)


def test_sources_without_any_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt"):
        load_prompts([_write(tmp_path, "empty.jsonl", "")], max_bad_share=1)


def test_shipped_names_cannot_leave_the_shipped_folder() -> None:
    assert (shipped_pack("default") / "pack.yaml").is_file()
    with pytest.raises(DataError):
        shipped_pack("../rule_packs/default")


@settings(max_examples=40)
@given(st.lists(st.one_of(st.text(max_size=20), st.dictionaries(st.text(max_size=8), st.integers()))))
def test_every_json_line_is_a_prompt_or_a_bad_row(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    items = list(read_prompts(_jsonl(folder, *rows, {"prompt": "x"})))
    assert len(items) == len(rows) + 1


def test_reading_prompts_loads_neither_torch_nor_ray_nor_datasets() -> None:
    code = (
        "import sys; from safer_ray.config import PromptSource; from safer_ray.prompts import load_prompts;"
        "load_prompts([PromptSource(path='shipped:default')], 0);"
        "sys.exit(bool({'torch', 'ray', 'datasets', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
