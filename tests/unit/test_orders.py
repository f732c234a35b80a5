"""Orders to a running run: read whole or not at all, answered, and refused where nobody could carry them out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safer_ray.cli import app
from safer_ray.cluster.orders import ScaleAnswer, ScaleOrder, give_answer, order_scale, take_order
from safer_ray.errors import ClusterError, ConfigError, JournalError
from safer_ray.journal import Journal
from safer_ray.rundir import RunDir


def obeying(run_dir: RunDir, asked: list[tuple[int | None, int | None]], *, accepted: bool = True) -> threading.Thread:
    """Stand for a driver that takes one order and answers it."""

    def wait_and_answer() -> None:
        order = None
        while order is None:
            order = take_order(run_dir)
        asked.append((order.samplers, order.judges))
        text = "samplers 2 -> 6" if accepted else "refused: samplers must be 1 to 4, as the job's elastic section says"
        give_answer(run_dir, ScaleAnswer(order_id=order.order_id, accepted=accepted, text=text))

    driver = threading.Thread(target=wait_and_answer, daemon=True)
    driver.start()
    return driver


def test_an_order_is_taken_once_and_its_own_answer_comes_back(tmp_path: Path) -> None:
    run_dir, asked = RunDir(tmp_path), list[tuple[int | None, int | None]]()
    give_answer(run_dir, ScaleAnswer(order_id="an older one", accepted=False, text="not this"))
    driver = obeying(run_dir, asked)
    answer = order_scale(run_dir, samplers=6, judges=None, patience_s=20)
    driver.join()
    assert (answer.accepted, answer.text) == (True, "samplers 2 -> 6")
    assert asked == [(6, None)]
    assert take_order(run_dir) is None


def test_an_order_nobody_takes_is_withdrawn(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"its driver did not answer in 0 s, and the order was withdrawn"):
        order_scale(RunDir(tmp_path), samplers=6, judges=None, patience_s=0.2)
    assert take_order(RunDir(tmp_path)) is None


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[]",
        '{"order_id": "x", "samplers": -1}',
        '{"order_id": "x", "samplers": "6"}',
        '{"order_id": "x", "gpus": 1}',
    ],
)
def test_an_order_that_makes_no_sense_changes_nothing(tmp_path: Path, row: str) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.scale_order.write_text(row)
    assert take_order(run_dir) is None
    if run_dir.scale_answer.exists():
        assert not json.loads(run_dir.scale_answer.read_text())["accepted"]


@pytest.fixture
def going_on(tmp_path: Path) -> Iterator[Path]:
    journal = Journal.create(tmp_path, {"name": "run"})
    yield tmp_path
    journal.close()


def test_an_order_that_nobody_answered_is_withdrawn_and_a_newer_one_stays(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with pytest.raises(ClusterError, match="withdrawn"):
        order_scale(run_dir, samplers=3, judges=None, patience_s=0.0)
    assert not run_dir.scale_order.exists()
    newer = threading.Timer(0.1, run_dir.scale_order.write_text, ['{"order_id": "newer", "samplers": 4}'])
    newer.start()
    with pytest.raises(ClusterError, match="withdrawn"):
        order_scale(run_dir, samplers=3, judges=None, patience_s=0.5)
    newer.join()
    assert take_order(run_dir) == ScaleOrder(order_id="newer", samplers=4)


def test_the_command_prints_what_the_driver_answered(going_on: Path) -> None:
    asked = list[tuple[int | None, int | None]]()
    obeying(RunDir(going_on), asked)
    done = CliRunner().invoke(app, ["scale", str(going_on), "--samplers", "6", "--judges", "2"])
    assert "samplers 2 -> 6" in done.output
    assert asked == [(6, 2)]


def test_the_command_fails_with_the_reason_of_a_refusal(going_on: Path) -> None:
    obeying(RunDir(going_on), [], accepted=False)
    done = CliRunner().invoke(app, ["scale", str(going_on), "--samplers", "6"])
    assert isinstance(done.exception, ClusterError)
    assert "refused: samplers must be 1 to 4" in str(done.exception)


def test_the_command_refuses_a_run_that_nobody_carries_out(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(app, ["scale", str(tmp_path), "--judges", "1"]).exception, JournalError)
    assert isinstance(CliRunner().invoke(app, ["scale", str(tmp_path)]).exception, ConfigError)
    Journal.create(tmp_path, {"name": "run"}).close()
    refused = CliRunner().invoke(app, ["scale", str(tmp_path), "--judges", "1"]).exception
    assert isinstance(refused, ClusterError)
    assert "no driver is at work there" in str(refused)
    assert not RunDir(tmp_path).scale_order.exists()
