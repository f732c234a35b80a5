"""Sealing a gather phase: its per-item shards become the final files, in item order.

Item order does not depend on which worker finished first, so the same samples give the same bytes.
Shards are removed only after the final files are on disk, and sealing twice is sealing once: a mark in the run
directory tells that they are. It holds although the driver died before it could note that, and although a worker that
comes late writes another shard.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from safer_ray.core.curation import Curation, curate
from safer_ray.core.metrics import evaluate_outcomes
from safer_ray.core.plan import Phase
from safer_ray.records import Outcome, Prompt, Rollout, StepPair, TraceExample, Verdict
from safer_ray.rundir import RunDir
from safer_ray.tables import (
    KINDS,
    concat,
    file_digest,
    from_table,
    read_bundle,
    read_table,
    shard_path,
    to_table,
    write_table,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A gather phase whose items all ended; ``shards`` is the digest of each finished item's shard.

    Other files of an item come from work that was given up and do not count.
    """

    phase: Phase
    prompts: Sequence[Prompt]
    shards: Mapping[int, str]


def seal(gathered: Gathered, run_dir: RunDir, curation: Curation) -> dict[str, Any]:
    """Merge the shards of a phase and return its facts: counts, or the metrics of an evaluation.

    ``facts["files"]`` are the digests of the final files, by path in the run directory.

    Written traces are filtered by ``curation``; where that may leave some out, all of them are kept beside.

    Sealing again, because the driver died before it noted that it had, finds the final files and keeps them.
    """
    phase, prompts = gathered.phase, gathered.prompts
    sealed = run_dir.seal_mark(phase.name).is_dir()
    named = () if sealed else sorted(gathered.shards.items())
    shards = [read_bundle(shard_path(run_dir.shard(phase.name, item), digest)) for item, digest in named]
    facts: dict[str, Any]
    written_to: list[Path] = []

    def merge(kind: type, path: Path) -> pa.Table:
        written_to.append(path)
        if sealed:
            return read_table(path)
        name = KINDS[kind]
        table = concat([shard[name] for shard in shards if name in shard], kind)
        write_table(table, path)
        return table

    match phase.kind:
        case "teach":
            written = merge(TraceExample, run_dir.written_traces if curation.filters else run_dir.traces)
            facts = _curated(written, run_dir, prompts, curation)
            written_to.append(run_dir.traces)
        case "explore":
            folder = run_dir.round(phase.round)
            merge(Rollout, folder / "rollouts.arrow")
            merge(Verdict, folder / "verdicts.arrow")
            axes = Counter(merge(StepPair, folder / "pairs.arrow").column("axis").to_pylist())
            facts = {"pairs_by_axis": dict(sorted(axes.items()))}
        case "evaluate":
            outcomes = merge(Outcome, run_dir.evaluation(phase.checkpoint))
            by_id = {prompt.prompt_id: prompt for prompt in prompts}
            facts = asdict(evaluate_outcomes(from_table(outcomes, Outcome), by_id, checkpoint=phase.checkpoint))
        case _:
            raise AssertionError(f"phase {phase.name} gathers nothing")
    _remove(run_dir.shards(phase.name), run_dir.seal_mark(phase.name))
    return facts | {"files": {str(path.relative_to(run_dir.root)): file_digest(path) for path in written_to}}


def _curated(written: pa.Table, run_dir: RunDir, prompts: Sequence[Prompt], curation: Curation) -> dict[str, Any]:
    """Write the traces to train on, if any may be left out, and return how many there are after each filter."""
    if not curation.filters:
        return {"traces": written.num_rows}
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    kept, counts = curate(from_table(written, TraceExample), by_id, curation)
    write_table(to_table(kept, TraceExample), run_dir.traces)
    return {"traces": len(kept), "written": written.num_rows, "filters": [asdict(count) for count in counts]}


def _remove(shards_dir: Path, mark: Path) -> None:
    """Make the folder of shards the mark, in one step, and empty it; who died in between left some in the mark."""
    if mark.is_dir():
        shutil.rmtree(shards_dir, ignore_errors=True)
    elif shards_dir.is_dir():
        shards_dir.replace(mark)
    else:
        mark.mkdir(parents=True)
    for shard in mark.iterdir():
        shard.unlink(missing_ok=True)
