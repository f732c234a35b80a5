"""A batch that training stopped at is kept with the weights it met, named in one sentence, and run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from local_run import LocalRun
from typer.testing import CliRunner

from safer_ray.backends.base import OptimSettings, TrainTask
from safer_ray.backends.failed_batch import FailedBatch, FailedPack, described, read_batch
from safer_ray.backends.fake import FakeLearnerSpec
from safer_ray.cli import app
from safer_ray.errors import LearnerError
from safer_ray.records import StepPair
from safer_ray.replay import find_batch, replay_batch
from safer_ray.rundir import RunDir
from safer_ray.status import failed_batches
from safer_ray.tables import from_table, read_table

runner = CliRunner()
SPEC = FakeLearnerSpec(batch_size=4, nan_at_step=2)


@pytest.fixture
def failed(finished_run: LocalRun, tmp_path: Path) -> tuple[RunDir, str]:
    """A run directory in which the second step of a round failed, and the error."""
    run_dir, whole = RunDir(tmp_path / "run"), finished_run.run_dir
    run_dir.root.mkdir()
    run_dir.config.write_bytes(whole.config.read_bytes())
    task = TrainTask(
        stage="erpo-1", kind="erpo", data_path=str(whole.round(1) / "pairs.arrow"), optim=OptimSettings(lr=1e-5),
        failed_dir=str(run_dir.failed),
    )  # fmt: skip
    learner = SPEC.build(rank=0, world_size=1, master="")
    assert learner.begin(task) > 2
    learner.step()
    with pytest.raises(LearnerError) as stopped:
        learner.step()
    return run_dir, str(stopped.value)


def test_the_batch_is_named_and_kept_with_its_rows_and_weights(
    finished_run: LocalRun, failed: tuple[RunDir, str]
) -> None:
    run_dir, error = failed
    pairs = from_table(read_table(finished_run.run_dir.round(1) / "pairs.arrow"), StepPair)[4:8]
    assert error.startswith("learner fake: loss is nan at step 2 of stage erpo-1: 1 packs, worst is pack 0 with the ")
    assert f"{pairs[0].pair_id} of {pairs[0].prompt_id}" in error
    batch, rows = read_batch(find_batch(run_dir))
    assert rows == pairs
    assert (batch.stage, batch.step, batch.loss) == ("erpo-1", 2, None)
    assert batch.train_task().optim == OptimSettings(lr=1e-5)
    assert (run_dir.failed / "erpo-1-step-00002" / "checkpoint" / "config.json").is_file()
    assert failed_batches(run_dir) == [
        {"stage": "erpo-1", "step": 2, "reason": "the loss is nan", "folder": "erpo-1-step-00002"}
    ]


def test_a_loss_above_the_bound_stops_as_one_that_is_no_number(finished_run: LocalRun, tmp_path: Path) -> None:
    data = str(finished_run.run_dir.round(1) / "pairs.arrow")
    bound = OptimSettings(lr=1e-5, stop_loss=0.1)
    task = TrainTask(stage="erpo-1", kind="erpo", data_path=data, optim=bound, failed_dir=str(tmp_path / "failed"))
    learner = replace(SPEC, nan_at_step=None).build(rank=0, world_size=1, master="")
    learner.begin(task)
    with pytest.raises(LearnerError, match=r"loss is 0\.\d+ at step 1"):
        learner.step()
    batch, _ = read_batch(tmp_path / "failed" / "erpo-1-step-00001")
    assert batch.loss is not None
    assert batch.loss > 0.1


def test_a_kept_batch_is_run_again(failed: tuple[RunDir, str]) -> None:
    run_dir, _ = failed
    again = replay_batch(run_dir, find_batch(run_dir, stage="erpo-1", step=2))
    assert [row.row_id for row in again.report.rows] == list(again.batch.packs[0].row_ids)
    result = runner.invoke(app, ["replay", str(run_dir.root)])
    assert result.exit_code == 0
    assert "erpo-1-step-00002: step 2 of" in result.stdout
    assert result.stdout.count("\n") == 3 + 1 + 4
    told = json.loads(runner.invoke(app, ["replay", str(run_dir.root), "--json"]).stdout)
    assert [row["row_id"] for row in told["replay"]["rows"]] == list(again.batch.packs[0].row_ids)


def test_a_batch_that_is_not_there_is_refused_with_those_there_are(failed: tuple[RunDir, str], tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match="it kept no such batch; there are: erpo-1-step-00002"):
        find_batch(failed[0], step=3)
    with pytest.raises(LearnerError, match="there are: none"):
        find_batch(RunDir(tmp_path / "elsewhere"))
    with pytest.raises(LearnerError, match="cannot be read"):
        read_batch(tmp_path)


def test_the_pack_that_is_no_number_is_the_worst_and_few_rows_are_named() -> None:
    rows = tuple(f"r{number}" for number in range(9))
    packs = (FailedPack(index=4, loss=99.0, row_ids=("x",)), FailedPack(index=7, loss=None, row_ids=rows))
    batch = FailedBatch(
        stage="sft", kind="sft", step=1, steps=2, reason="", loss=None, grad_norm=None, lr=0.1, weight=1.0, ranks=1,
        task={}, packs=packs,
    )  # fmt: skip
    text = described(batch, {"r0": "p0"})
    assert text == (
        "2 packs, worst is pack 7 with the traces r0 of p0, r1 of ?, r2 of ?, r3 of ?, r4 of ?, r5 of ? and 3 more"
    )
