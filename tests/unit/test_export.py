"""Pairs leave a run as Parquet that preference trainers read: prompt, chosen, rejected."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_run import LocalRun

from safer_ray.core.trace import STEP_STOPS
from safer_ray.errors import DataError
from safer_ray.export import export_pairs
from safer_ray.records import Prompt, StepPair
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table, to_table, write_table

ROLE_AND_CONTENT = {"role", "content"}


def pairs_of(run: LocalRun, *rounds: int) -> list[StepPair]:
    tables = [read_table(run.run_dir.round(number) / "pairs.arrow") for number in rounds]
    return [pair for table in tables for pair in from_table(table, StepPair)]


def test_every_pair_is_a_row_with_prompt_chosen_and_rejected(finished_run: LocalRun, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "pairs.parquet"
    pairs = pairs_of(finished_run, 1, 2)
    assert export_pairs(finished_run.run_dir, out) == len(pairs)
    rows = pq.read_table(out).to_pylist()
    prompts = {prompt.prompt_id: prompt for prompt in finished_run.prep.prompts.prompts}
    assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in pairs]
    for row, pair in zip(rows, pairs, strict=True):
        messages = prompts[pair.prompt_id].messages
        assert row["prompt"] == [{"role": m.role, "content": m.content} for m in messages]
        assert row["chosen"] == [{"role": "assistant", "content": pair.prefix_text + pair.chosen_text}]
        assert row["rejected"] == [{"role": "assistant", "content": pair.prefix_text + pair.rejected_text}]
        assert (row["chosen_ids"], row["rejected_ids"]) == (list(pair.chosen_ids), list(pair.rejected_ids))
        assert (row["prefix_ids"], row["prompt_ids"]) == (list(pair.prefix_ids), list(pair.prompt_ids))
        assert (row["step"], row["axis"], row["margin"]) == (pair.step_kind, pair.axis, pair.margin)
        assert (row["judge"], row["rule_pack_hash"], row["round"]) == (
            "fake-judge@1",
            "fake-rule-pack",
            pair.lineage.round,
        )


def test_a_turn_begins_with_the_whole_steps_both_share(finished_run: LocalRun, tmp_path: Path) -> None:
    export_pairs(finished_run.run_dir, tmp_path / "p.parquet")
    later = [row for row in pq.read_table(tmp_path / "p.parquet").to_pylist() if row["step"] == "response"]
    assert later
    for row in later:
        shared = row["chosen"][0]["content"].partition("</think>")[0]
        assert all(stop in shared + "</think>" for stop in STEP_STOPS)
        assert row["rejected"][0]["content"].startswith(shared)


def test_one_round_can_be_exported_alone(finished_run: LocalRun, tmp_path: Path) -> None:
    count = export_pairs(finished_run.run_dir, tmp_path / "p.parquet", [2])
    assert count == len(pairs_of(finished_run, 2))
    assert set(pq.read_table(tmp_path / "p.parquet")["round"].to_pylist()) == {2}


def test_a_round_that_is_not_there_is_refused_with_those_that_are(finished_run: LocalRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pairs of round \[7\]; it has rounds \[1, 2\]"):
        export_pairs(finished_run.run_dir, tmp_path / "p.parquet", [1, 7])
    with pytest.raises(DataError, match="it has no pairs yet; run its erpo stage first"):
        export_pairs(RunDir(tmp_path), tmp_path / "p.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_any_pair_is_said_so(finished_run: LocalRun, tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "run")
    write_table(to_table(finished_run.prep.prompts.prompts, Prompt), empty.prompts)
    write_table(to_table([], StepPair), empty.round(1) / "pairs.arrow")
    with pytest.raises(DataError, match=r"rounds \[1\] hold no pairs; were all siblings alike\?"):
        export_pairs(empty, tmp_path / "p.parquet")


def test_a_place_that_cannot_be_written_is_one_sentence_and_leaves_nothing(
    finished_run: LocalRun, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "folder", tmp_path / "file" / "p.parquet"):
        with pytest.raises(DataError, match=r"cannot be written .*; choose another --out"):
            export_pairs(finished_run.run_dir, out)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"
