"""One rank of a learner group in a process of its own: ``python learner_rank.py RANK RANKS PORT MODEL FOLDER``.

Trains one optimiser step of each stage per ZeRO stage from the same start, and leaves the weights in FOLDER.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from safer_ray.backends.base import OptimSettings, StepReport, TrainTask
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec

ZERO: tuple[Literal[2, 3], ...] = (2, 3)
TRAINED: tuple[tuple[str, Literal["sft", "erpo"]], ...] = (("sft", "sft"), ("erpo-1", "erpo"), ("erpo-2", "erpo"))
"""Stages in order, and their loss: in the second ERPO round the fixed reference is another policy than the trained."""


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def task(kind: Literal["sft", "erpo"], data: Path, **settings: float) -> TrainTask:
    """A stage over ``data`` of two packs a step at least, without warm-up."""
    optim = OptimSettings(**{"lr": 1e-3, "tokens_per_step": 260, "pack_tokens": 70, "warmup_ratio": 0.0, **settings})  # type: ignore[arg-type]
    return TrainTask(stage=kind, kind=kind, data_path=str(data), optim=optim)


def train_one_step(spec: DeepSpeedLearnerSpec, group: tuple[int, int, int], folder: Path) -> list[StepReport]:
    """Take one step of each stage as rank ``group[0]`` of ``group[1]`` at port ``group[2]``; rank 0 saves."""
    learner = spec.build(rank=group[0], world_size=group[1], master=f"127.0.0.1:{group[2]}")
    reports = []
    for name, kind in TRAINED:
        learner.begin(replace(task(kind, folder / f"{kind}.arrow"), stage=name, reference="fixed"))
        reports.append(learner.step())
        learner.save(str(folder / f"zero{spec.zero_stage}-{group[1]}-{name}"))
    learner.close()
    return reports


def main() -> None:
    """Run the rank named on the command line."""
    rank, ranks, port = (int(argument) for argument in sys.argv[1:4])
    model, folder = sys.argv[4], Path(sys.argv[5])
    for zero in ZERO:
        spec = DeepSpeedLearnerSpec(model=model, zero_stage=zero, dtype="fp32", threads=1)
        train_one_step(spec, (rank, ranks, port + zero), folder)


if __name__ == "__main__":
    main()
    # An actor's process ends like this, too. Taking the interpreter down has aborted in a thread that torch had left.
    sys.stdout.flush()
    os._exit(0)
