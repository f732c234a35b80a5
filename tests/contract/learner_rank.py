"""One rank of a learner group in a process of its own: ``python learner_rank.py RANK RANKS PORT MODEL FOLDER``.

Trains one optimiser step per ZeRO stage and kind of loss from the same start, and leaves the weights in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from safer_ray.backends.base import OptimSettings, StepReport, TrainTask
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec

STAGES: tuple[Literal[2, 3], ...] = (2, 3)


def task(kind: Literal["sft", "erpo"], data: Path, **settings: float) -> TrainTask:
    """A stage over ``data`` of two packs a step at least, without warm-up."""
    optim = OptimSettings(**{"lr": 1e-3, "tokens_per_step": 260, "pack_tokens": 70, "warmup_ratio": 0.0, **settings})  # type: ignore[arg-type]
    return TrainTask(stage=kind, kind=kind, data_path=str(data), optim=optim)


def train_one_step(spec: DeepSpeedLearnerSpec, group: tuple[int, int, int], folder: Path) -> list[StepReport]:
    """Take one SFT and one ERPO step as rank ``group[0]`` of ``group[1]`` at port ``group[2]``; rank 0 saves."""
    learner = spec.build(rank=group[0], world_size=group[1], master=f"127.0.0.1:{group[2]}")
    reports = []
    for kind in ("sft", "erpo"):
        learner.begin(task(kind, folder / f"{kind}.arrow"))
        reports.append(learner.step())
        learner.save(str(folder / f"zero{spec.zero_stage}-{group[1]}-{kind}"))
    learner.close()
    return reports


def main() -> None:
    """Run the rank named on the command line."""
    rank, ranks, port = (int(argument) for argument in sys.argv[1:4])
    model, folder = sys.argv[4], Path(sys.argv[5])
    for stage in STAGES:
        spec = DeepSpeedLearnerSpec(model=model, zero_stage=stage, dtype="fp32", threads=1)
        train_one_step(spec, (rank, ranks, port + stage), folder)


if __name__ == "__main__":
    main()
