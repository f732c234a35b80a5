"""Sealing a phase removes its shards, so by then the journal must tell of its items on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from local_run import LocalRun, carry_out, local_world
from test_driver import Passes

from safer_ray.core.events import Action, Seal
from safer_ray.journal import JOURNAL
from safer_ray.rundir import RunDir


def test_every_line_of_the_journal_is_on_disk_before_a_phase_is_sealed(
    finished_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, on_disk = RunDir(tmp_path / "run"), dict[int, int]()
    sealed, fsync = dict[str, bool](), os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        brought = os.fstat(descriptor)
        on_disk[brought.st_ino] = brought.st_size

    class Watched(Passes):
        def submit(self, action: Action) -> None:
            if isinstance(action, Seal):
                written = (place.root / JOURNAL).stat()
                sealed[action.phase] = on_disk.get(written.st_ino) == written.st_size
            super().submit(action)

    monkeypatch.setattr(os, "fsync", noting)
    carry_out(finished_run.prep, place.root, Watched(local_world(finished_run.prep, place)))
    assert sealed == {phase.name: True for phase in finished_run.prep.phases if phase.gathers}
