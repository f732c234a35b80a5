"""A real run - vLLM, DeepSpeed, rule judge, template teacher - on a tiny random model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tiny_model import make_tiny_model
from tiny_runs import living_actors

from safer_ray.config import RunConfig
from safer_ray.config_file import shipped
from safer_ray.core.events import Event, Published
from safer_ray.core.loop import LoopState
from safer_ray.prepare import Preparation, prepare
from safer_ray.run import execute
from safer_ray.rundir import RunDir


@dataclass
class RealRun:
    """A run that ended: its directory, its publications in order, and the process ids its workers had."""

    prep: Preparation
    run_dir: RunDir
    published: list[Published] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    def look(self, state: LoopState, event: Event, at: float) -> None:
        """Keep what the journal's figures are compared with."""
        if isinstance(event, Published):
            self.published.append(event)
            self.pids |= {row["Pid"] for row in living_actors()}


def _few_prompts(root: Path) -> Path:
    """Write 12 train prompts and 8 test prompts of the shipped ones: rounds then sample what was learnt by heart."""
    rows = [
        json.loads(line)
        for name in ("R09", "R10")
        for line in (shipped("rule_packs") / "default" / "prompts" / f"{name}.jsonl").read_text().splitlines()
    ]
    plain = [row for row in rows if row["form"] != "encoded"]
    kept = [row for row in plain if row["split"] == "train"][:12] + [row for row in plain if row["split"] == "test"][:8]
    path = root / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def _config(model: Path, prompts: Path) -> RunConfig:
    """Few prompts, short samples; the model learns the traces by heart, so that some steps are well-formed."""
    return RunConfig.model_validate(
        {
            "name": "real",
            "model": {"id": str(model)},
            "prompts": {"sources": [{"path": str(prompts)}]},
            "sampler": {
                "kv_cache_gib": 0.125,
                "max_num_seqs": 16,
                "threads": 1,
                "temperature": 1.0,
                "max_step_tokens": 200,
                "max_trace_tokens": 520,
                "max_answer_tokens": 16,
            },
            "learner": {"zero_stage": 0, "threads": 1},
            "teacher": {"answers_per_prompt": 1},
            "sft": {
                "optim": {"lr": 5e-3, "epochs": 240, "tokens_per_step": 2048, "pack_tokens": 1024},
            },
            "erpo": {"rounds": 1, "prompts_per_round": 4, "siblings": 4, "optim": {"lr": 1e-3, "pack_tokens": 1024}},
            "evaluate": {"max_unsafe": 4, "max_safe": 4},
            "cluster": {"object_store_mib": 128},
        }
    )


def real_run_at(root: Path) -> RealRun:
    """Make the model and run the whole loop, in a cluster of its own that ends with it."""
    model = make_tiny_model(root / "model")
    run = RealRun(prep=prepare(_config(model, _few_prompts(root))), run_dir=RunDir(root / "run"))
    execute(run.prep, run.run_dir, observe=run.look)
    return run
