"""A checkpoint none of whose answers could be judged: nothing is known of it, and the run and its report go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from local_run import LocalRun, carry_out, local_world

from safer_ray.backends.base import JudgeTask
from safer_ray.backends.fake import FakeJudgeSpec
from safer_ray.backends.fake_judging import FakeJudge
from safer_ray.core.events import Sealed
from safer_ray.core.metrics import evaluate_outcomes
from safer_ray.errors import JudgeError
from safer_ray.progress import ProgressView
from safer_ray.records import Outcome
from safer_ray.report import write_report
from safer_ray.rundir import RunDir
from safer_ray.terminal import out


class Suspended(FakeJudge):
    """Gives no outcome of some checkpoints."""

    def __init__(self, spec: FakeJudgeSpec, without: Sequence[str]) -> None:
        super().__init__(spec)
        self.without = without

    def outcomes(self, tasks: Sequence[JudgeTask], checkpoint: str) -> list[Outcome]:
        if checkpoint in self.without:
            raise JudgeError("judge fake: it missed its canaries; mend it")
        return super().outcomes(tasks, checkpoint)


class SuspendedSpec(FakeJudgeSpec):
    """Builds it."""

    without: tuple[str, ...] = ()

    def build(self) -> FakeJudge:
        return Suspended(self, self.without)


class AtTheEnd(SuspendedSpec):
    without = ("erpo-2",)


class Always(SuspendedSpec):
    without = ("base", "sft", "erpo-1", "erpo-2")


def judged_by(judge: FakeJudgeSpec, like: LocalRun, folder: Path) -> LocalRun:
    return carry_out(like.prep, folder, local_world(like.prep, RunDir(folder), judge=judge))


def test_of_a_named_checkpoint_without_outcomes_every_share_is_unknown() -> None:
    found = evaluate_outcomes([], {}, checkpoint="sft")
    shares = (found.asr, found.over_refusal, found.partial_refusal, found.well_formed, found.rule_accuracy)
    assert (*shares, found.consistency, found.asr_ci) == (None,) * 7
    assert (found.checkpoint, found.judge, found.n_unsafe, found.n_safe) == ("sft", "none", 0, 0)


def test_the_run_ends_and_its_report_speaks_of_the_last_checkpoint_that_was_measured(
    finished_run: LocalRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = judged_by(AtTheEnd(), finished_run, tmp_path / "run")
    rows = run.summary["evaluations"]
    assert [row["checkpoint"] for row in rows] == ["base", "sft", "erpo-1", "erpo-2"]
    assert [row["asr"] is None for row in rows] == [False, False, False, True]
    asked = run.prep.by_phase["evaluate-erpo-2"]
    assert {row["reason"] for row in run.summary["dropped"]} == {"judge fake: it missed its canaries; mend it"}
    assert len(run.summary["dropped"]) == len(asked)
    assert run.summary["lost_prompts"] == 0
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "After erpo-1, the model complies with" in page
    assert ">erpo-2</th>" in page
    last = next(e for e in reversed(run.entries) if isinstance(e.event, Sealed) and e.event.phase == "evaluate-erpo-2")
    caplog.set_level("INFO", logger="safer_ray")
    with ProgressView(out) as view:
        view.observe(run.state, last.event, last.at)
    assert "evaluate-erpo-2: no answer could be judged, so nothing is known of this checkpoint" in caplog.text


def test_a_run_of_which_nothing_was_measured_has_a_report_that_says_so(finished_run: LocalRun, tmp_path: Path) -> None:
    judged_by(Always(), finished_run, tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "No checkpoint of this run has been evaluated" in page
    assert "Judged by" not in page
