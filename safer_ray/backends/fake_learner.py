"""The fake learner: reads the real tables, counts real steps, and pretends to learn."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safer_ray.backends.base import OptimSettings, StepReport, TrainTask
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
    is slept in each step.
    """

    seed: int = 0
    batch_size: int = 8
    nan_at_step: int | None = None
    delay_s: float = 0.0

    def build(self, *, rank: int, world_size: int, master: str) -> FakeLearner:
        """Return one rank.

        Raises:
            LearnerError: if the rank is not in the group.
        """
        if not 0 <= rank < world_size:
            raise LearnerError(f"learner fake: rank {rank} is not in 0..{world_size - 1} of {master}; fix the group")
        return FakeLearner(self, rank)


class FakeLearner:
    """A learner whose loss falls from ln 2 (ERPO) or 3 (SFT) the same way on every rank and in every run."""

    def __init__(self, spec: FakeLearnerSpec, rank: int) -> None:
        self._spec = spec
        self._rank = rank
        self._task: TrainTask | None = None
        self._tokens: list[int] = []
        self._step = self._steps = 0

    def begin(self, task: TrainTask) -> int:
        """Read the stage's table and return its optimiser steps: rows over batch size, rounded up, per epoch.

        Raises:
            DataError: if the table is not ``traces/1`` (SFT) or ``pairs/1`` (ERPO).
            LearnerError: if it is empty.
        """
        table = read_table(Path(task.data_path))
        if task.kind == "sft":
            tokens = [len(e.prompt_ids) + len(e.completion_ids) for e in from_table(table, TraceExample)]
        else:
            pairs = from_table(table, StepPair)
            tokens = [len(p.prompt_ids + p.prefix_ids + p.chosen_ids + p.rejected_ids) for p in pairs]
        if not tokens:
            raise LearnerError(f"learner fake: stage {task.stage} has no rows in {task.data_path}; nothing to train on")
        self._task, self._tokens, self._step = task, tokens, 0
        self._steps = math.ceil(len(tokens) / self._spec.batch_size) * task.optim.epochs
        return self._steps

    def step(self) -> StepReport:
        """Count one optimiser step; reports are numbered from 1.

        Raises:
            LearnerError: before ``begin``, after the last step, and at ``nan_at_step``; the step is then not counted.
        """
        started_s = time.perf_counter()
        if self._task is None or self._step >= self._steps:
            raise LearnerError(f"learner fake: no step is left after {self._step} of {self._steps}; call begin first")
        time.sleep(self._spec.delay_s)
        task, step = self._task, self._step + 1
        if step == self._spec.nan_at_step:
            raise LearnerError(f"learner fake: loss is nan at step {step} of stage {task.stage}; lower the lr")
        self._step = step
        done = step / self._steps
        noise = digest_rng(self._spec.seed, task.seed, task.stage, step).uniform(-0.005, 0.005)
        loss = _FIRST_LOSS[task.kind] * math.exp(-done) * (1.0 + noise)
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

    def _batch_tokens(self, step: int) -> int:
        size = self._spec.batch_size
        start = (step - 1) % math.ceil(len(self._tokens) / size) * size
        return sum(self._tokens[start : start + size])

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
            (aside / "model.safetensors").write_bytes(_no_tensors({"made_by": "safer_ray fake learner, no weights"}))
            if target.exists():
                shutil.rmtree(target)
            aside.replace(target)
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
