"""The benchmark says what was measured and what could not be, and its document changes nowhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measure import Bench, Line, Result, Row
from benchmarks.run import LINES, read_kept, write_results
from benchmarks.table import BEGIN, DOCUMENT, END, write_document
from benchmarks.worker import Worker

RUNS = {"ours": [9.0, 8.0, 30.0], "reference": [2.0, 4.0, 3.0]}
TWO = (Line("a", "s", "ours <= 9"), Line("b", "s", "ratio >= 3"))


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        ("ratio >= 3", True),
        ("ratio >= 3.1", False),
        ("ratio <= 0.6", False),
        ("ours <= 9", True),
        ("ours >= 10", False),
    ],
)
def test_medians_decide_whether_a_goal_is_met(goal: str, met: bool) -> None:
    row = Line("a", "pairs/s", goal).result(RUNS, {})
    assert (row.ours, row.reference, row.ratio, row.met) == (9.0, 3.0, 3.0, met)


def test_a_row_without_a_reference_has_no_ratio() -> None:
    assert Line("a", "steps/s", "ours >= 1").result({"ours": [2.0]}, {}).ratio is None


def test_what_a_row_measured_before_it_failed_stays_and_the_rest_says_why() -> None:
    def measure(_bench: Bench) -> Iterator[Result]:
        yield TWO[0].result(RUNS, {})
        raise MemoryError("no room for the second")

    row = Row(name="both", lines=TWO, measure=measure, deadline_s=9)
    first, second = row.results(Bench(runs=1, threads=1, quick=True))
    assert (first.name, first.met) == ("a", True)
    assert (second.name, second.met, second.ours) == ("b", False, None)
    assert "no room for the second" in second.settings["failed"]


def test_a_subject_that_hangs_is_ended_at_the_deadline_of_its_row(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="subprocess:run: no answer"):
        Worker("subprocess:run", {"args": ["sleep", "300"]}, tmp_path / "log", begin + 0.3)
    assert time.monotonic() - begin < 60


def test_a_subject_that_dies_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_thing"):
        Worker("os:no_such_thing", {}, tmp_path / "log")


def test_rows_measured_one_by_one_are_merged_in_the_order_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    for name in (LINES[3], LINES[0], LINES[3]):
        row = Line(name, "s", "ours <= 9").result(RUNS, {}).as_dict()
        write_results({**read_kept(path), name: row}, path)
    assert [row["name"] for row in json.loads(path.read_text())] == [LINES[0], LINES[3]]


def test_only_the_table_of_the_document_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    facts = {"cpu": "x", "commit": "abc", "began_at": "noon", "row": "trees", "took_s": "90"}
    good = Line("trees", "pairs/s", "ratio >= 3").result(RUNS, {"machine": facts}).as_dict()
    bad = Line("packs", "pairs/s", "ratio >= 3").failed("a | in\nthe message").as_dict()
    for _ in range(2):
        write_document([good, bad], document)
    text = document.read_text()
    assert text.startswith(f"above\n{BEGIN}\n")
    assert text.endswith(f"{END}\nbelow\n")
    runs = "ours 8 to 30 (n=3); reference 2 to 4 (n=3)"
    assert f"| trees | 9 | 3 | pairs/s | 3 | ratio >= 3 | yes | {runs} | abc, noon |" in text
    assert "| packs | - | - | pairs/s | - | ratio >= 3 | failed | a / in the message |  |" in text
    assert "trees with: cpu x." in text
    assert "took 2 minutes" in text
    assert "old" not in text


def test_the_document_has_a_place_for_the_table() -> None:
    assert DOCUMENT.read_text().count(BEGIN) == DOCUMENT.read_text().count(END) == 1
