"""The fake learner: reads the real tables, counts real steps, and pretends to learn."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from safer_ray.backends.base import BatchReport, OptimSettings, ReferencePolicy, RowReport, StepReport, TrainTask
from safer_ray.backends.checkpoint import (
    POLICY,
    STATE,
    Included,
    included_stage,
    read_manifest,
    replace_checkpoint,
    write_checkpoint_manifest,
)
from safer_ray.backends.failed_batch import (
    CHECKPOINT,
    FailedBatch,
    FailedPack,
    described,
    finite,
    keep_batch,
    read_batch,
)
from safer_ray.backends.toy_policy import digest_rng
from safer_ray.backends.toy_tokenizer import VOCAB_SIZE
from safer_ray.errors import LearnerError
from safer_ray.records import StepPair, TraceExample, WeightsRef
from safer_ray.tables import from_table, read_table

_FIRST_LOSS = {"sft": 3.0, "erpo": math.log(2.0)}


def fake_weights(version: int) -> WeightsRef:
    """Return the reference that fake learners publish for ``version`` and fake samplers accept."""
    checksum = hashlib.blake2b(f"fake weights {version}".encode(), digest_size=16).hexdigest()
    return WeightsRef(version=version, uri=f"fake://{version}", checksum=checksum)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeLearnerSpec:
    """Builds one rank of a :class:`FakeLearner` group; the ranks need not find each other.

    ``batch_size`` rows make an optimiser step. Step ``nan_at_step`` of every stage raises LearnerError; ``delay_s``
    is slept in each step. ``resume_from`` is a checkpoint to go on from as if nothing had happened since.
    """

    seed: int = 0
    batch_size: int = 8
    nan_at_step: int | None = None
    delay_s: float = 0.0
    resume_from: str = ""

    def build(self, *, rank: int, world_size: int, master: str) -> FakeLearner:
        """Return one rank.

        Raises:
            LearnerError: if the rank is not in the group.
        """
        if not 0 <= rank < world_size:
            raise LearnerError(f"learner fake: rank {rank} is not in 0..{world_size - 1} of {master}; fix the group")
        return FakeLearner(self, rank, world_size)


class FakeLearner:
    """A learner whose loss falls from ln 2 (ERPO) or 3 (SFT) the same way on every rank and in every run.

    Its weights are the list of stages it was trained on, its reference policy such a list of the past; the loss
    depends on both, so that a learner which forgets either over a restart shows it.
    """

    def __init__(self, spec: FakeLearnerSpec, rank: int, ranks: int = 1) -> None:
        self._spec = spec
        self._rank, self._ranks = rank, ranks
        self._task: TrainTask | None = None
        self._tokens: list[int] = []
        self._rows: list[tuple[str, str]] = []
        self._step = self._steps = 0
        self._stage: Included | None = None
        self._included: list[Included] = []
        self._reference: dict[str, list[str]] = {}
        if spec.resume_from:
            manifest = read_manifest(Path(spec.resume_from)) or {}
            self._included = [Included(**row) for row in manifest.get("includes", ())]
            self._reference = manifest.get("note") or {}

    def begin(self, task: TrainTask) -> int:
        """Read the stage's table and return its optimiser steps: rows over batch size, rounded up, per epoch.

        Raises:
            DataError: if the table is not ``traces/1`` (SFT) or ``pairs/1`` (ERPO).
            LearnerError: if it is empty.
        """
        table = read_table(Path(task.data_path))
        if task.kind == "sft":
            examples = from_table(table, TraceExample)
            rows = [(e.example_id, e.prompt_id) for e in examples]
            tokens = [len(e.prompt_ids) + len(e.completion_ids) for e in examples]
        else:
            pairs = from_table(table, StepPair)
            rows = [(p.pair_id, p.prompt_id) for p in pairs]
            tokens = [len(p.prompt_ids + p.prefix_ids + p.chosen_ids + p.rejected_ids) for p in pairs]
        if not tokens:
            raise LearnerError(f"learner fake: stage {task.stage} has no rows in {task.data_path}; nothing to train on")
        self._task, self._rows, self._tokens, self._step = task, rows, tokens, 0
        self._steps = math.ceil(len(tokens) / self._spec.batch_size) * task.optim.epochs
        self._stage = included_stage(task, [row_id for row_id, _ in rows], steps=self._steps)
        if task.kind == "erpo":
            self._take_reference(task.reference)
        return self._steps

    def _take_reference(self, policy: ReferencePolicy) -> None:
        weights = [stage.stage for stage in self._included]
        match policy:
            case "fixed":
                self._reference.setdefault("fixed", weights)
            case "ema":
                self._reference["ema"] = [*self._reference.get("ema", ()), *weights]
            case "previous_round":
                self._reference["previous_round"] = weights

    def step(self) -> StepReport:
        """Count one optimiser step; reports are numbered from 1.

        Raises:
            LearnerError: before ``begin``, after the last step, and at ``nan_at_step`` or a loss above the task's
                bound; the step is then not counted, and its batch is kept.
        """
        started_s = time.perf_counter()
        if self._task is None or self._step >= self._steps:
            raise LearnerError(f"learner fake: no step is left after {self._step} of {self._steps}; call begin first")
        time.sleep(self._spec.delay_s)
        task, step = self._task, self._step + 1
        done = step / self._steps
        weights = " ".join(stage.stage for stage in self._included)
        reference = " ".join(self._reference.get(task.reference, ())) if task.kind == "erpo" else ""
        noise = digest_rng(self._spec.seed, task.seed, task.stage, step, weights, reference).uniform(-0.005, 0.005)
        loss = self._loss(task, step, done, noise)
        if not loss <= (task.optim.stop_loss or math.inf):
            self._fail(task, step, loss)
        self._step = step
        if step == self._steps and self._stage is not None:
            self._included.append(self._stage)
        learnt = {"chosen_logp": -20.0 + done, "margin": 2.0 * done, "accuracy": 0.5 + 0.4 * done}
        return StepReport(
            step=step,
            steps=self._steps,
            loss=loss,
            grad_norm=loss / 2.0,
            lr=_lr(task.optim, step, self._steps),
            tokens=self._batch_tokens(step),
            seconds=time.perf_counter() - started_s,
            **(learnt if task.kind == "erpo" else {}),
        )

    def _loss(self, task: TrainTask, step: int, done: float, noise: float) -> float:
        if step == self._spec.nan_at_step:
            return math.nan
        return _FIRST_LOSS[task.kind] * math.exp(-done) * (1.0 + noise)

    def _fail(self, task: TrainTask, step: int, loss: float) -> NoReturn:
        """Keep the batch as a real learner does, then raise."""
        rows = dict(self._rows[self._batch(step)])
        pairs = len(rows) if task.kind == "erpo" else 0
        pack = FailedPack(
            index=0, loss=finite(loss), row_ids=tuple(rows), references=((0.0, 0.0),) * pairs, prompt_pairs=(1,) * pairs
        )
        batch = FailedBatch(
            stage=task.stage, kind=task.kind, step=step, steps=self._steps, reason=f"the loss is {loss:g}",
            loss=finite(loss), grad_norm=None, lr=_lr(task.optim, step, self._steps), weight=float(len(rows)),
            ranks=self._ranks, task=asdict(task), packs=(pack,),
        )  # fmt: skip
        if task.failed_dir and self._rank == 0:
            folder = Path(task.failed_dir) / batch.folder_name
            keep_batch(batch, folder)
            self.save(str(folder / CHECKPOINT))
        self._task = None
        where = f"step {step} of stage {task.stage}"
        raise LearnerError(f"learner fake: loss is {loss:g} at {where}: {described(batch, rows)}; lower the lr")

    def examine(self, folder: str) -> BatchReport:
        """Run a kept batch again: the loss it had, shared out over its rows.

        Raises:
            LearnerError: if the batch cannot be read.
        """
        batch, rows = read_batch(Path(folder))
        loss = math.nan if batch.loss is None else batch.loss
        reports = tuple(
            RowReport(
                row_id=row.pair_id if isinstance(row, StepPair) else row.example_id,
                prompt_id=row.prompt_id,
                pack=0,
                loss=loss / len(rows),
                chosen_logp=-loss / len(rows),
            )
            for row in rows
        )
        return BatchReport(loss=loss, grad_norm=loss / 2.0, rows=reports)

    def _batch(self, step: int) -> slice:
        size = self._spec.batch_size
        start = (step - 1) % math.ceil(len(self._tokens) / size) * size
        return slice(start, start + size)

    def _batch_tokens(self, step: int) -> int:
        return sum(self._tokens[self._batch(step)])

    def publish(self, version: int) -> WeightsRef | None:
        """Return the reference of ``version`` on rank 0, None elsewhere."""
        return fake_weights(version) if self._rank == 0 else None

    def save(self, path: str) -> None:
        """Write, on rank 0, a checkpoint directory that says it is fake and holds no tensor; replaces what was there.

        Raises:
            LearnerError: if it cannot be written.
        """
        if self._rank:
            return
        target = Path(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            config = {"model_type": "safer_ray_fake", "vocab_size": VOCAB_SIZE, "steps": self._step}
            (aside / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            nothing = _no_tensors({"made_by": "safer_ray fake learner, no weights"})
            (aside / STATE).mkdir()
            for name in ("model.safetensors", f"{STATE}/{POLICY}"):
                (aside / name).write_bytes(nothing)
            write_checkpoint_manifest(aside, self._included, ranks=self._ranks, note=self._reference)
            replace_checkpoint(aside, target)
        except OSError as exc:
            raise LearnerError(f"learner fake: cannot write checkpoint {path} ({exc.strerror}); free space") from exc

    def close(self) -> None:
        """Forget the stage."""
        self._task = None


def _lr(optim: OptimSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule."""
    warmup = max(1, round(optim.warmup_ratio * steps))
    if step <= warmup:
        return optim.lr * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    shape = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "constant": 1.0}
    return optim.lr * shape[optim.schedule]


def _no_tensors(metadata: dict[str, Any]) -> bytes:
    """Return a valid safetensors file of no tensors: its header's length, then the header."""
    header = json.dumps({"__metadata__": metadata}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header
