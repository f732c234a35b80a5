"""Curves of a run: every step, every evaluation, and no run that ends because of them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from local_run import LocalRun, prepared

from safer_ray.core.events import Sealed, Stepped
from safer_ray.core.loop import LoopState, apply
from safer_ray.driver import Observer
from safer_ray.errors import ConfigError
from safer_ray.tracking import Tracker, tracked


class Kept:
    """A writer that remembers."""

    def __init__(self, folder: str = "", *, broken: bool = False) -> None:
        self.rows: list[tuple[str, float, int]] = []
        self.broken = broken
        self.tried = 0

    def add_scalar(self, tag: str, data: float, step: int, *, wall_time: float | None = None) -> None:
        self.tried += 1
        if self.broken:
            raise OSError(28, "No space left on device")
        assert wall_time is not None
        self.rows.append((tag, data, step))

    def flush(self) -> None: ...

    def close(self) -> None: ...


def replayed(run: LocalRun, observe: Observer) -> None:
    state = LoopState.of(run.prep.phases)
    for entry in run.entries:
        apply(state, entry.event)
        observe(state, entry.event, entry.at)


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The package, with a writer that fails."""
    kept, module = Kept(broken=True), types.ModuleType("tensorboard.summary")
    module.Writer = lambda folder: kept  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", module)
    return kept


def test_every_step_and_every_evaluation_is_a_point_on_its_curve(finished_run: LocalRun) -> None:
    kept = Kept()
    replayed(finished_run, Tracker(kept).observe)
    steps = [entry.event for entry in finished_run.entries if isinstance(entry.event, Stepped)]
    curve = [(tag, value, at) for tag, value, at in kept.rows if tag.endswith("/loss")]
    assert curve == [(f"{event.phase}/loss", event.facts["loss"], event.facts["step"]) for event in steps]
    tests = [e.event for e in finished_run.entries if isinstance(e.event, Sealed) and e.event.phase.startswith("eval")]
    asr = [(value, version) for tag, value, version in kept.rows if tag == "evaluate/asr"]
    assert asr == [(event.facts["asr"], version) for version, event in enumerate(tests)]
    assert len(asr) == 4


def test_curves_that_cannot_be_written_are_said_once_and_end_nothing(
    finished_run: LocalRun, tensorboard: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked(tmp_path, "tensorboard") as observe:
        replayed(finished_run, observe)
    assert tensorboard.tried == 1
    assert [record.getMessage() for record in caplog.records if "without curves" in record.getMessage()] == [
        f"{tmp_path}: the run goes on without curves: OSError: [Errno 28] No space left on device"
    ]


def test_a_folder_that_cannot_be_made_is_said_once_and_ends_nothing(
    finished_run: LocalRun, tensorboard: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(folder: str) -> Kept:
        raise PermissionError(13, "Permission denied")

    sys.modules["tensorboard.summary"].Writer = refused  # type: ignore[attr-defined]
    with tracked(tmp_path, "tensorboard") as observe:
        replayed(finished_run, observe)
    assert tensorboard.tried == 0
    assert [record.getMessage() for record in caplog.records if "without curves" in record.getMessage()] == [
        f"{tmp_path}: the run goes on without curves: PermissionError: [Errno 13] Permission denied"
    ]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed; pip install tensorboard, or"):
        prepared(tmp_path, "track=tensorboard")
