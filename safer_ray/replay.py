"""Running a batch again that training stopped at, on the weights it met, in this process and without Ray."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from safer_ray.backends.base import BatchReport, LearnerSpec
from safer_ray.backends.failed_batch import CHECKPOINT, FailedBatch, failed_folders, read_batch
from safer_ray.config import RunConfig
from safer_ray.config_file import load_config
from safer_ray.errors import LearnerError, boundary
from safer_ray.rundir import RunDir
from safer_ray.specs import learner_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A kept batch, and what it came to when it was run again."""

    folder: Path
    batch: FailedBatch
    report: BatchReport


def find_batch(run_dir: RunDir, *, stage: str | None = None, step: int | None = None) -> Path:
    """Return the newest kept batch, of that stage and step if they are named.

    Raises:
        LearnerError: if there is none, listing those there are.
    """
    folders = failed_folders(run_dir.failed)
    fitting = [
        folder
        for folder in folders
        if stage in (None, folder.name.rpartition("-step-")[0])
        and step in (None, int(folder.name.rpartition("-step-")[2]))
    ]
    if not fitting:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise LearnerError(f"run {run_dir.root}: it kept no such batch; there are: {known}")
    return fitting[-1]


def replay_batch(run_dir: RunDir, folder: Path) -> Replay:
    """Build a learner of one rank as it was before the step, and run the batch on it.

    Raises:
        LearnerError: if the batch or its checkpoint cannot be read.
        ConfigError: if the run's config cannot be.
    """
    batch, _ = read_batch(folder)
    learner = _spec(load_config(run_dir.config), run_dir, folder / CHECKPOINT).build(
        rank=0, world_size=1, master=f"127.0.0.1:{_free_port()}"
    )
    try:
        with boundary(LearnerError, f"replay of {folder}"):
            return Replay(folder=folder, batch=batch, report=learner.examine(str(folder)))
    finally:
        learner.close()


def _spec(config: RunConfig, run_dir: RunDir, checkpoint: Path) -> LearnerSpec:
    if not checkpoint.is_dir():
        raise LearnerError(f"failed batch {checkpoint.parent}: it has no checkpoint; put it back or begin again")
    base = run_dir.checkpoint("base")
    return learner_spec(config, run_dir, str(base) if base.is_dir() else config.model.id, checkpoint)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
