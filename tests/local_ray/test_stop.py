"""Ctrl-C or SIGTERM in the middle of a run: a clean end, nothing left behind, and a run that can go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from tiny_runs import SMALL, assert_every_prompt_once, events_of, pair_bytes, tiny_job

from safer_ray.core.events import Event, Judged
from safer_ray.journal import JOURNAL
from safer_ray.rundir import RunDir

REPOSITORY = Path(__file__).parents[2]
START_DEADLINE_S = 120.0
STOP_DEADLINE_S = 60.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Stopped:
    """A run that was interrupted: how it ended, and which processes it had."""

    run_dir: RunDir
    code: int
    output: str
    session_dir: str
    processes: dict[psutil.Process, str]
    """What ran before the interrupt, with names."""
    events: list[Event]
    summary: str


def _command(run_dir: Path, *more: str) -> list[str]:
    sizes = [f"--set={each}" for each in SMALL]
    return [sys.executable, "-m", "safer_ray", "run", "tiny_fake", f"--run-dir={run_dir}", *sizes, *more]


def _environment(scratch: str) -> dict[str, str]:
    """Return an environment in which everything Ray makes lies under ``scratch``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {"TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0"}


def _wait_until_exploring(run: subprocess.Popen[str], run_dir: Path) -> None:
    """Return when preferences are being gathered: traces, training and one publication lie behind."""
    deadline = time.monotonic() + START_DEADLINE_S
    journal = run_dir / JOURNAL
    while time.monotonic() < deadline and run.poll() is None:
        if journal.exists() and '"phase":"explore-1"' in journal.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    run.kill()
    pytest.fail(f"the run never got to its first round:\n{run.communicate()[0]}")


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    made = tempfile.mkdtemp(prefix="r")  # short, because it holds unix sockets
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _stop(root: Path, scratch: str, number: signal.Signals, *, background: bool) -> Stopped:
    """Start a run and send it ``number`` once it is in the middle: to all of it, or to the driver alone."""
    run = subprocess.Popen(
        _command(root),
        cwd=REPOSITORY,
        env=_environment(scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that starts us in the background lets its children ignore interrupts; a terminal does not.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN if background else signal.SIG_DFL),
    )
    _wait_until_exploring(run, root)
    processes = {process: process.name() for process in psutil.Process(run.pid).children(recursive=True)}
    (os.kill if background else os.killpg)(run.pid, number)
    output, _ = run.communicate(timeout=STOP_DEADLINE_S)
    run_dir = RunDir(root)
    return Stopped(
        run_dir=run_dir,
        code=run.returncode,
        output=output,
        session_dir=scratch,
        processes=processes,
        events=events_of(run_dir),
        summary=run_dir.summary.read_text() if run_dir.summary.exists() else "",
    )


@pytest.fixture(scope="module")
def stopped(scratch: str, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Interrupt the process as a terminal does, once it is in the middle."""
    return _stop(tmp_path_factory.mktemp("stopped"), scratch, signal.SIGINT, background=False)


def test_the_exit_code_is_that_of_an_interrupt_and_the_last_line_says_how_to_go_on(stopped: Stopped) -> None:
    assert stopped.code == 130, stopped.output
    assert "go on with --resume" in stopped.output.splitlines()[-1]
    assert "Traceback" not in stopped.output


def test_no_process_and_no_file_of_the_session_is_left(stopped: Stopped) -> None:
    assert "raylet" in stopped.processes.values(), "the run was not on Ray"
    _, alive = psutil.wait_procs(list(stopped.processes), timeout=STOP_DEADLINE_S)
    assert alive == []
    names = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert [words for words in names if any(stopped.session_dir in word for word in words or ())] == []
    assert list(Path(stopped.session_dir).glob("safer_ray-*")) == []
    pids = {process.pid for process in stopped.processes}
    assert [path for path in SHARED_MEMORY.glob("safer_ray-*") if int(path.name.split("-")[1]) in pids] == []


def test_summary_and_report_tell_of_what_was_done(stopped: Stopped) -> None:
    summary = json.loads(stopped.summary)
    assert not summary["finished"]
    assert [each["checkpoint"] for each in summary["evaluations"]] == ["base", "sft"]
    assert {row["stage"] for row in summary["training"]} == {"sft"}
    assert "</html>" in (stopped.run_dir.root / "report.html").read_text()


def test_the_resumed_run_does_the_rest_and_nothing_twice(stopped: Stopped, scratch: str) -> None:
    done = {(event.phase, event.item) for event in stopped.events if isinstance(event, Judged)}
    assert any(phase == "explore-1" for phase, _ in done)
    subprocess.run(
        _command(stopped.run_dir.root, "--resume"),
        cwd=REPOSITORY,
        env=_environment(scratch),
        check=True,
        timeout=START_DEADLINE_S,
        capture_output=True,
    )
    summary = json.loads(stopped.run_dir.summary.read_text())
    assert summary["finished"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0
    assert events_of(stopped.run_dir)[: len(stopped.events)] == stopped.events
    assert_every_prompt_once(tiny_job(), stopped.run_dir)
    assert len(pair_bytes(stopped.run_dir)) == 2


def test_a_driver_that_is_terminated_in_the_background_ends_like_an_interrupted_one(tmp_path: Path) -> None:
    """A job manager sends SIGTERM to the driver alone."""
    scratch = tempfile.mkdtemp(prefix="r")
    try:
        ended = _stop(tmp_path, scratch, signal.SIGTERM, background=True)
        assert ended.code == 130, ended.output
        assert "go on with --resume" in ended.output.splitlines()[-1]
        assert "Traceback" not in ended.output
        assert "SIGTERM received" not in ended.output
        assert not json.loads(ended.summary)["finished"]
        _, alive = psutil.wait_procs(list(ended.processes), timeout=STOP_DEADLINE_S)
        assert alive == []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
