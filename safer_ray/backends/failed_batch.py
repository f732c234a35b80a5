"""A batch that training stopped at, kept so that it can be run again: its rows, its figures, the weights it met.

failed/erpo-1-step-00007/
  batch.arrow        the pairs (pairs/1) or traces (traces/1) of the optimiser step, pack after pack
  meta.json          stage, step, reason, packs with their losses and row ids, reference log-probs, the task
  checkpoint/        the weights as they were before the step
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from safer_ray.backends.base import LossSettings, OptimSettings, TrainTask
from safer_ray.errors import DataError, LearnerError, boundary
from safer_ray.records import StepPair, TraceExample
from safer_ray.tables import from_table, read_table, write_table, write_whole

BATCH, META, CHECKPOINT = "batch.arrow", "meta.json", "checkpoint"
_NAMED = 6
"""Rows named in an error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPack:
    """One packed row of the batch; ``loss`` is its sum, None where it was no number.

    ``references`` are, per pair, the reference's log-probs of chosen and rejected; ``prompt_pairs`` is how many pairs
    the pair's prompt has in the stage.
    """

    index: int
    loss: float | None
    row_ids: tuple[str, ...]
    references: tuple[tuple[float, float], ...] = ()
    prompt_pairs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedBatch:
    """What is told of a batch. ``weight`` is the step's total loss weight; figures that are no number are None."""

    stage: str
    kind: Literal["sft", "erpo"]
    step: int
    steps: int
    reason: str
    loss: float | None
    grad_norm: float | None
    lr: float
    weight: float
    ranks: int
    task: dict[str, Any]
    packs: tuple[FailedPack, ...] = field(default_factory=tuple)

    @property
    def folder_name(self) -> str:
        """Where in ``failed/`` it lies."""
        return f"{self.stage}-step-{self.step:05d}"

    def worst(self) -> FailedPack:
        """Return the pack that is no number, else the one with the largest loss."""
        return max(self.packs, key=lambda pack: math.inf if pack.loss is None else pack.loss)

    def train_task(self) -> TrainTask:
        """Return the task the batch is a part of."""
        known = dict(self.task)
        loss = dict(known.pop("loss"))
        for name in ("axis_weights", "step_weights"):
            loss[name] = tuple(tuple(pair) for pair in loss[name])
        return TrainTask(**{**known, "optim": OptimSettings(**known["optim"]), "loss": LossSettings(**loss)})


def finite(value: float) -> float | None:
    """Return a number, None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def keep_batch(batch: FailedBatch, folder: Path) -> None:
    """Write rows and figures of a batch; the checkpoint is the learner's to save.

    Raises:
        DataError: if the disk refuses, or the stage's table is gone.
    """
    table = read_table(Path(batch.task["data_path"]))
    ids = table["pair_id" if batch.kind == "erpo" else "example_id"].to_pylist()
    place = {row_id: number for number, row_id in enumerate(ids)}
    rows = [place[row_id] for pack in batch.packs for row_id in pack.row_ids]
    write_table(table.take(pa.array(rows, pa.int64())), folder / BATCH)
    write_whole((json.dumps(asdict(batch), indent=1, allow_nan=False) + "\n").encode(), folder / META)


def read_batch(folder: Path) -> tuple[FailedBatch, list[StepPair] | list[TraceExample]]:
    """Return a kept batch and its rows.

    Raises:
        LearnerError: if there is none, or it cannot be read.
    """
    try:
        row = json.loads((folder / META).read_text(encoding="utf-8"))
        packs = tuple(
            FailedPack(
                index=pack["index"],
                loss=pack["loss"],
                row_ids=tuple(pack["row_ids"]),
                references=tuple((chosen, rejected) for chosen, rejected in pack["references"]),
                prompt_pairs=tuple(pack["prompt_pairs"]),
            )
            for pack in row.pop("packs")
        )
        known = {item.name for item in fields(FailedBatch)}
        batch = FailedBatch(packs=packs, **{name: value for name, value in row.items() if name in known})
        table = read_table(folder / BATCH)
        return batch, from_table(table, StepPair) if batch.kind == "erpo" else from_table(table, TraceExample)
    except (OSError, ValueError, KeyError, TypeError, DataError) as exc:
        raise LearnerError(f"failed batch {folder}: cannot be read ({exc}); is this a folder of failed/?") from exc


def described(batch: FailedBatch, prompts: Mapping[str, str]) -> str:
    """Return the batch in words: its packs, and the rows and prompts of the worst of them."""
    worst = batch.worst()
    kind = "pairs" if batch.kind == "erpo" else "traces"
    shown = ", ".join(f"{row} of {prompts.get(row, '?')}" for row in worst.row_ids[:_NAMED])
    more = f" and {len(worst.row_ids) - _NAMED} more" if len(worst.row_ids) > _NAMED else ""
    return f"{len(batch.packs)} packs, worst is pack {worst.index} with the {kind} {shown}{more}"


def prompts_of(batch: FailedBatch) -> dict[str, str]:
    """Return the prompt of each row of the stage's table that is in the batch."""
    with boundary(DataError, f"stage {batch.stage}: its table cannot be read"):
        table = read_table(Path(batch.task["data_path"]))
        ids = table["pair_id" if batch.kind == "erpo" else "example_id"].to_pylist()
        prompts = dict(zip(ids, table["prompt_id"].to_pylist(), strict=True))
    return {row_id: prompts[row_id] for pack in batch.packs for row_id in pack.row_ids if row_id in prompts}


def failed_folders(failed: Path) -> Sequence[Path]:
    """Return the kept batches, oldest first."""
    return sorted(
        (path.parent for path in failed.glob(f"*/{META}")), key=lambda folder: (folder / META).stat().st_mtime
    )


__all__ = [
    "BATCH", "CHECKPOINT", "META", "FailedBatch", "FailedPack", "described", "failed_folders", "finite", "keep_batch",
    "prompts_of", "read_batch",
]  # fmt: skip
