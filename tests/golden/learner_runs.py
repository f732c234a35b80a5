"""The runs behind the golden numbers; ``python tests/golden/learner_runs.py`` writes them anew."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

from learner_tables import write_examples, write_pairs
from tiny_model import make_tiny_model

from safer_ray.backends.base import OptimSettings, TrainTask
from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec

STEPS = 20
GOLDEN = Path(__file__).with_name("learner_losses.json")


def losses(kind: Literal["sft", "erpo"], folder: Path) -> list[float]:
    """Return the loss of 20 optimiser steps of the tiny model in fp32."""
    data = folder / f"{kind}.arrow"
    if kind == "sft":
        write_examples(data, rows=20)
    else:
        write_pairs(data, prompts=10)
    model = make_tiny_model(folder / f"model_{kind}")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    spec = DeepSpeedLearnerSpec(model=str(model), dtype="fp32", threads=1)
    learner = spec.build(rank=0, world_size=1, master=f"127.0.0.1:{port}")
    optim = OptimSettings(lr=1e-3, epochs=STEPS, tokens_per_step=10_000, pack_tokens=256)
    try:
        steps = learner.begin(TrainTask(stage=kind, kind=kind, data_path=str(data), optim=optim))
        return [learner.step().loss for _ in range(steps)]
    finally:
        learner.close()


def main() -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        golden = {kind: [round(loss, 6) for loss in losses(kind, Path(folder))] for kind in ("sft", "erpo")}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
