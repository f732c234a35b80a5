"""Whole ERPO rounds through the command line: exploring, training and publishing on one core each."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.worker import REPOSITORY

CONFIG = """\
name: rounds
model: {{id: "embedded:smollm2-135m"}}
stages: [erpo]
sampler: {{threads: 1, kv_cache_gib: 0.5, max_step_tokens: {step_tokens}, max_trace_tokens: 64, max_answer_tokens: 16}}
judge: {{kind: fake}}
learner: {{threads: 1}}
erpo:
  rounds: {rounds}
  prompts_per_round: {prompts}
  siblings: 4
  optim: {{lr: 1.0e-6, epochs: {epochs}, tokens_per_step: 1024, pack_tokens: 1024}}
loop: {{policy: {policy}}}
"""


class Rounds:
    """A run of ``rounds`` rounds. The judge is the shipped fake: it makes pairs of what an untrained model says."""

    def __init__(
        self, *, policy: str, rounds: int, prompts: int, step_tokens: int, epochs: int = 1, threads: int = 2
    ) -> None:
        assert threads  # each worker has one, whatever there are
        self._folder = tempfile.TemporaryDirectory()
        self._rounds, self._config = rounds, Path(self._folder.name) / "rounds.yaml"
        self._config.write_text(
            CONFIG.format(policy=policy, rounds=rounds, prompts=prompts, step_tokens=step_tokens, epochs=epochs)
        )

    def run(self) -> dict[str, Any]:
        """Run it; the start of workers and the last evaluation are no part of the time."""
        run_dir = Path(self._folder.name) / "run"
        command = [
            sys.executable,
            "-m",
            "safer_ray",
            "run",
            str(self._config),
            "--run-dir",
            str(run_dir),
            "--overwrite",
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"rounds: the run ended with {done.returncode}: {done.stderr[-2000:]}")
        summary = json.loads((run_dir / "summary.json").read_text())
        stages = {stage["name"]: float(stage["wall_s"]) for stage in summary["stages"]}
        seconds = sum(wall_s for name, wall_s in stages.items() if name != "start")
        return {"seconds": seconds, "rate": seconds / self._rounds, "stages": stages, "rounds": summary["rounds"]}

    def close(self) -> None:
        """Remove the run."""
        self._folder.cleanup()
