"""Exporting pairs as Parquet in the ``prompt / chosen / rejected`` form preference trainers read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from safer_ray.errors import DataError
from safer_ray.records import Prompt, StepPair
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table


def export_pairs(run_dir: RunDir, out: Path, rounds: Sequence[int] = ()) -> int:
    """Write the pairs of ``rounds`` (none given: of all) to one Parquet file and return how many there are.

    ``chosen`` and ``rejected`` are assistant turns: the steps before, which both share and which cancel in
    a preference loss, then the preferred or the other sibling. Token ids, without the shared part, and the
    lineage ride along in columns of their own.

    Raises:
        DataError: if the run has no pairs of those rounds, or ``out`` cannot be written.
    """
    found = sorted(int(path.name.removeprefix("round-")) for path in run_dir.root.glob("rounds/round-*"))
    wanted = [number for number in found if not rounds or number in rounds]
    missing = sorted(set(rounds) - set(found))
    if missing or not wanted:
        if not found:
            raise DataError(f"run {run_dir.root}: it has no pairs yet; run its erpo stage first")
        raise DataError(f"run {run_dir.root}: no pairs of round {missing}; it has rounds {found}")
    prompts = {prompt.prompt_id: prompt for prompt in from_table(read_table(run_dir.prompts), Prompt)}
    rows = []
    for number in wanted:
        for pair in from_table(read_table(run_dir.round(number) / "pairs.arrow"), StepPair):
            rows.append(_row(pair, prompts[pair.prompt_id], number))
    if not rows:
        raise DataError(f"run {run_dir.root}: rounds {wanted} hold no pairs; were all siblings alike?")
    aside = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), aside)
        aside.replace(out)
    except OSError as exc:
        with suppress(OSError):
            aside.unlink()
        raise DataError(f"{out}: cannot be written ({exc.strerror}); choose another --out") from exc
    return len(rows)


def _row(pair: StepPair, prompt: Prompt, number: int) -> dict[str, object]:
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return {
        "prompt": turns,
        "prefix_ids": list(pair.prefix_ids),
        "chosen": [{"role": "assistant", "content": pair.prefix_text + pair.chosen_text}],
        "rejected": [{"role": "assistant", "content": pair.prefix_text + pair.rejected_text}],
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
        "prompt_ids": list(pair.prompt_ids),
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "step": pair.step_kind,
        "axis": pair.axis,
        "margin": pair.margin,
        "policy_version": pair.policy_version,
        "round": number,
        "judge": pair.lineage.judge,
        "rule_pack_hash": pair.lineage.rule_pack_hash,
        "sampler": pair.lineage.sampler,
        "temperature": pair.lineage.temperature,
        "top_p": pair.lineage.top_p,
        "reference": pair.lineage.reference,
    }
