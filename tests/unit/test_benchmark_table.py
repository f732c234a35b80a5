"""The benchmark table says what was measured, and its document changes nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import result
from benchmarks.table import BEGIN, DOCUMENT, END, write_document

RUNS = {"ours": [9.0, 8.0, 30.0], "reference": [2.0, 4.0, 3.0]}


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
    row = result("a", "pairs/s", goal, RUNS, {})
    assert (row.ours, row.reference, row.ratio, row.met) == (9.0, 3.0, 3.0, met)


def test_a_row_without_a_reference_has_no_ratio() -> None:
    assert result("a", "steps/s", "ours >= 1", {"ours": [2.0]}, {}).ratio is None


def test_only_the_table_of_the_document_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    row = result("trees", "pairs/s", "ratio >= 3", RUNS, {}).as_dict()
    for _ in range(2):
        write_document([row], {"cpu": "x"}, document)
    text = document.read_text()
    assert text.startswith(f"above\n{BEGIN}\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "| trees | 9 | 3 | pairs/s | 3 | ratio >= 3 | yes | ours 8 to 30 (n=3); reference 2 to 4 (n=3) |" in text
    assert "old" not in text


def test_the_document_has_a_place_for_the_table() -> None:
    assert DOCUMENT.read_text().count(BEGIN) == DOCUMENT.read_text().count(END) == 1
