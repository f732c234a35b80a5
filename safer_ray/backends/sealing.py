"""Sealing a gather phase: its per-item shards become the final files, in item order.

Item order does not depend on which worker finished first, so the same samples give the same bytes.
Shards are removed only after the final files are on disk.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from safer_ray.core.metrics import evaluate_outcomes
from safer_ray.core.plan import Phase
from safer_ray.records import Outcome, Prompt, Rollout, StepPair, TraceExample, Verdict
from safer_ray.rundir import RunDir
from safer_ray.tables import KINDS, concat, from_table, read_bundle, write_table


def seal(phase: Phase, run_dir: RunDir, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Merge the shards of ``phase`` and return its facts: counts, or the metrics of an evaluation."""
    shards = [read_bundle(path) for path in sorted(run_dir.shards(phase.name).glob("*.arrow"))]

    def merged(kind: type) -> pa.Table:
        name = KINDS[kind]
        return concat([shard[name] for shard in shards if name in shard], kind)

    match phase.kind:
        case "teach":
            write_table(merged(TraceExample), run_dir.traces)
            facts: dict[str, Any] = {"traces": merged(TraceExample).num_rows}
        case "explore":
            folder = run_dir.round(phase.round)
            for kind, name in ((Rollout, "rollouts"), (Verdict, "verdicts"), (StepPair, "pairs")):
                write_table(merged(kind), folder / f"{name}.arrow")
            axes = Counter(merged(StepPair).column("axis").to_pylist())
            facts = {"pairs_by_axis": dict(sorted(axes.items()))}
        case "evaluate":
            outcomes = merged(Outcome)
            write_table(outcomes, run_dir.evaluation(phase.checkpoint))
            by_id = {prompt.prompt_id: prompt for prompt in prompts}
            facts = asdict(evaluate_outcomes(from_table(outcomes, Outcome), by_id))
        case _:
            raise AssertionError(f"phase {phase.name} gathers nothing")
    shutil.rmtree(run_dir.shards(phase.name), ignore_errors=True)
    return facts
