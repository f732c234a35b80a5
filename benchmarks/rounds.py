"""Whole ERPO rounds through the command line: exploring, training and publishing on one core each."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.worker import REPOSITORY
from benchmarks.workload import shipped_prompts

TAUGHT = REPOSITORY / "benchmarks" / "results" / "tmp" / "taught"
"""A run whose checkpoint writes traces, made once: an untrained model closes no step, so nothing pairs.

Another run's directory may be laid here instead, as that of ``make demo``; the results name the run.
"""
COMMON = """\
prompts: {{sources: [{{path: "{prompts}"}}]}}
sampler: {{threads: 1, kv_cache_gib: 0.5, max_step_tokens: 110, max_trace_tokens: 300, max_answer_tokens: 16}}
judge: {{kind: fake}}
"""
TEACH = """\
name: teach
model: {{id: "embedded:smollm2-135m"}}
stages: [synth, sft]
sft: {{optim: {{lr: 3.0e-4, epochs: {epochs}, tokens_per_step: 1024, pack_tokens: 1024}}}}
"""
ROUNDS = """\
name: rounds
model: {{id: "{model}"}}
stages: [erpo]
learner: {{threads: 1}}
erpo:
  rounds: {rounds}
  prompts_per_round: {prompts_per_round}
  siblings: 4
  optim: {{lr: 1.0e-6, epochs: 1, tokens_per_step: 1024, pack_tokens: 1024}}
loop: {{policy: {policy}}}
"""
PROMPTS = 16


def _run(config: Path, run_dir: Path) -> dict[str, Any]:
    """Run a config in a process of its own; return its summary."""
    command = [sys.executable, "-m", "safer_ray", "run", str(config), "--run-dir", str(run_dir), "--overwrite"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rounds: the run ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads((run_dir / "summary.json").read_text()))


def _prompts(path: Path) -> Path:
    unsafe = [prompt for prompt in shipped_prompts(2000) if prompt.label == "unsafe"][:PROMPTS]
    rows = [
        {"id": prompt.prompt_id, "prompt": prompt.text, "label": prompt.label, "category": prompt.category}
        for prompt in unsafe
    ]
    path.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    return path


def taught_checkpoint(folder: Path, *, epochs: int) -> Path:
    """Return the checkpoint, trained now if it is not there."""
    checkpoint = TAUGHT / "checkpoints" / "sft"
    if not (checkpoint / "config.json").is_file():
        TAUGHT.parent.mkdir(parents=True, exist_ok=True)
        config = folder / "teach.yaml"
        config.write_text((TEACH + COMMON).format(epochs=epochs, prompts=_prompts(folder / "prompts.jsonl")))
        _run(config, TAUGHT)
    return checkpoint


class Rounds:
    """ERPO rounds of the taught model. The judge is the shipped fake, whose taste differs enough to make pairs."""

    def __init__(self, *, policy: str, rounds: int, prompts: int, epochs: int = 12, threads: int = 2) -> None:
        assert threads  # each worker has one, whatever there are
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._rounds, self._config = rounds, folder / "rounds.yaml"
        model = taught_checkpoint(folder, epochs=epochs)
        shape = {"model": model, "rounds": rounds, "prompts_per_round": prompts, "policy": policy}
        self._config.write_text((ROUNDS + COMMON).format(**shape, prompts=_prompts(folder / "prompts.jsonl")))

    def run(self) -> dict[str, Any]:
        """Run it; the start of workers is no part of the time."""
        summary = _run(self._config, Path(self._folder.name) / "run")
        stages = {stage["name"]: float(stage["wall_s"]) for stage in summary["stages"]}
        pairs = [sum(each["pairs_by_axis"].values()) for each in summary["rounds"]]
        if not sum(pairs):
            raise RuntimeError("rounds: not one pair was made, so nothing was learnt and nothing can overlap")
        seconds = sum(wall_s for name, wall_s in stages.items() if name != "start")
        taught = json.loads((TAUGHT / "config.json").read_text())["name"]
        return {
            "seconds": seconds, "rate": seconds / self._rounds, "stages": stages, "pairs": pairs, "taught_by": taught,
        }  # fmt: skip

    def close(self) -> None:
        """Remove the run."""
        self._folder.cleanup()
