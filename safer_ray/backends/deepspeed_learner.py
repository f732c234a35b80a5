"""One rank of a DeepSpeed learner group: ZeRO stages 0 to 3, gloo on CPUs and NCCL on GPUs.

Weights work in bf16 and are kept in fp32 (or all in fp32). A step accumulates the packs of its plan, each scaled by its
share of the step's total weight over all ranks, so the result does not depend on packing or on the number of ranks.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from safer_ray.backends.base import BatchReport, RowReport, StepReport, TrainTask
from safer_ray.backends.checkpoint import Included, read_manifest, replace_checkpoint, write_checkpoint_manifest
from safer_ray.backends.deepspeed_engine import deepspeed_config, initialize, reset_optimizer, scheduled_lr
from safer_ray.backends.failed_batch import (
    CHECKPOINT,
    FailedBatch,
    described,
    keep_batch,
    prompts_of,
    read_batch,
)
from safer_ray.backends.host_memory import give_back_memory
from safer_ray.backends.rank_process import join_group
from safer_ray.errors import DataError, LearnerError, boundary
from safer_ray.records import StepPair, TraceExample, WeightsRef

if TYPE_CHECKING:
    import torch

    from safer_ray.backends.batch_loss import StepFigures
    from safer_ray.backends.logprobs import LogprobModel
    from safer_ray.backends.stage import Stage

logger = logging.getLogger(__name__)
TRIM_STEPS, TRIM_ROWS = 8, 4
"""Optimiser steps, and rows of one step, after which freed memory goes back: 4.3 GB fell to 2.5 on the 135M model."""
KEPT_VERSIONS = 2
"""Published versions kept in shared memory: the newest, and the one samplers may still be reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedLearnerSpec:
    """Builds one rank of a :class:`DeepSpeedLearner` group.

    ``threads`` is per rank on CPUs, 0 leaves torch's default. ``lora_rank`` 0 trains all weights; otherwise adapters,
    merged in what is published and saved. ``weights_dir`` is where versions are published: shared memory, or for
    samplers on other machines a directory all of them mount. ``reference_cache`` is a directory that keeps reference
    log-probs between stages and runs; None keeps none. ``resume_from`` is a checkpoint to go on from exactly as the
    learner that saved it would have; the model is then still the one that learner began with.
    """

    model: str
    zero_stage: Literal[0, 1, 2, 3] = 0
    dtype: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    trust_remote_code: bool = False
    seed: int = 0
    weights_dir: str = "/dev/shm"
    reference_cache: str | None = None
    resume_from: str = ""

    def build(self, *, rank: int, world_size: int, master: str) -> DeepSpeedLearner:
        """Join the group at ``master`` (``host:port``) and load the model.

        Raises:
            LearnerError: if the rank is not in the group, the group does not form, or DeepSpeed refuses.
            ModelError: if the model cannot be loaded for training.
        """
        if not 0 <= rank < world_size:
            raise LearnerError(f"learner: rank {rank} is not in 0..{world_size - 1}; fix the group")
        with boundary(LearnerError, f"learner rank {rank} of {world_size} at {master}"):
            device = join_group(rank, world_size, master, threads=self.threads)
            return DeepSpeedLearner(self, rank, world_size, device)


class DeepSpeedLearner:
    """One rank; every rank gets the same calls in the same order, because most of them are collectives."""

    def __init__(self, spec: DeepSpeedLearnerSpec, rank: int, world_size: int, device: torch.device) -> None:
        from safer_ray.backends.learner_state import restore_state
        from safer_ray.backends.policy_model import add_lora, load_policy
        from safer_ray.backends.reference import ReferenceWeights

        self._spec, self._rank, self._ranks, self._device = spec, rank, world_size, device
        config = deepspeed_config(spec)
        self._policy: LogprobModel = load_policy(
            spec.model,
            dtype=spec.dtype,
            trust_remote_code=spec.trust_remote_code,
            zero3_config=config if spec.zero_stage == 3 else None,
        )
        if spec.lora_rank:
            add_lora(self._policy, rank=spec.lora_rank, seed=spec.seed)
        if spec.gradient_checkpointing:
            self._policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._engine = initialize(self._policy, config)
        self._reference = ReferenceWeights(self._policy, self._engine.empty_partition_cache)
        self._stage: Stage | None = None
        self._step = 0
        self._failed = False
        self._published: list[WeightsRef] = []
        self._included: list[Included] = []
        self._losses: dict[int, float] = {}
        if spec.resume_from:
            manifest = read_manifest(Path(spec.resume_from)) or {}
            self._included = [Included(**row) for row in manifest.get("includes", ())]
            restore_state(Path(spec.resume_from), self._policy, self._reference, rank=rank, ranks=world_size)

    def begin(self, task: TrainTask) -> int:
        """Plan a stage with a fresh optimiser and compute its reference log-probs.

        Raises:
            DataError: if the table cannot be read.
            LearnerError: if it is empty, or an earlier step failed.
        """
        from safer_ray.backends.stage import make_stage

        if self._failed:
            raise LearnerError(f"learner rank {self._rank}: a step failed before; build the learner again")
        started_s = time.perf_counter()
        self._stage, self._step = make_stage(task, ranks=self._ranks), 0
        reset_optimizer(self._engine, task.optim)
        if task.kind == "erpo":
            self._reference.begin_stage(task.reference)
            with self._reference.applied(task.reference):
                self._stage.reference_L.update(self._all_logps(self._stage))
        tokens = sum(row.tokens for row in self._stage.packs)
        logger.info(
            "stage=%s kind=%s packs=%d tokens=%d steps=%d planned_in_s=%.1f",
            task.stage, task.kind, len(self._stage.packs), tokens, self._stage.steps, time.perf_counter() - started_s,
        )  # fmt: skip
        return self._stage.steps

    def step(self) -> StepReport:
        """Run the next optimiser step.

        Raises:
            LearnerError: if no step is left, or loss or gradients are not finite on any rank or above the stage's
                bounds; the weights are then as before the step, the batch is kept, and the learner trains no further.
        """
        from safer_ray.backends.stage import report

        stage = self._stage
        if stage is None or self._step >= stage.steps:
            raise LearnerError(f"learner rank {self._rank}: no step is left; call begin first")
        started_s = time.perf_counter()
        lr = scheduled_lr(stage.task.optim, self._step, stage.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        figures = self._accumulate(stage)
        norm = self._checked_update(stage, float(figures[0]) / stage.weights[self._step], lr)
        self._step += 1
        if self._step == stage.steps:
            self._included.append(stage.included)
        if self._step % TRIM_STEPS == 0 or self._step == stage.steps:
            give_back_memory()
        seconds = time.perf_counter() - started_s
        return report(stage, self._step - 1, figures, grad_norm=norm, lr=lr, seconds=seconds)

    def publish(self, version: int) -> WeightsRef | None:
        """Gather the weights; rank 0 writes them and returns the reference, the others None."""
        from safer_ray.backends.weights import write_weights

        state = self._whole_state()
        if self._rank:
            for _ in state:  # gathering is a collective
                pass
            return None
        oldest = self._published.pop(0) if len(self._published) == KEPT_VERSIONS else None
        ref = write_weights(state, version, self._spec.weights_dir, recycled=oldest)
        self._published.append(ref)
        return ref

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint with the base model's tokenizer, and what a learner goes on from.

        Rank 0 writes, aside and renamed.

        Raises:
            LearnerError: if it cannot be written.
        """
        from safer_ray.backends.learner_state import collect_state

        state = {name: tensor.cpu().clone() for name, tensor in self._whole_state() if self._rank == 0}
        going_on = collect_state(
            self._policy, self._reference, zero_stage=self._spec.zero_stage, rank=self._rank, ranks=self._ranks,
            rounded=self._failed,
        )  # fmt: skip
        if self._rank:
            return
        from transformers import AutoTokenizer

        from safer_ray.backends.models import resolve_model

        target = Path(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}.part")
        with boundary(LearnerError, f"learner: checkpoint {path} cannot be written"):
            shutil.rmtree(aside, ignore_errors=True)
            self._policy.model.save_pretrained(aside, state_dict=state)
            AutoTokenizer.from_pretrained(
                str(resolve_model(self._spec.model)), trust_remote_code=self._spec.trust_remote_code
            ).save_pretrained(aside)
            going_on.write(aside)
            write_checkpoint_manifest(aside, self._included, ranks=self._ranks)
            replace_checkpoint(aside, target)

    def close(self) -> None:
        """Free what was published and leave the process group. Safe to call twice."""
        from safer_ray.backends.weights import free_weights

        while self._published:
            free_weights(self._published.pop())
        self._stage = None
        if self._engine is not None:
            import deepspeed

            self._engine.destroy()
            self._engine = None
            deepspeed.comm.destroy_process_group()
            # DeepSpeed keeps its backend otherwise, and the next learner of this process would meet a dead group.
            deepspeed.comm.comm.cdb = None

    def _whole_state(self) -> Any:
        from safer_ray.backends.policy_model import merged_state

        return merged_state(self._policy, zero_stage=self._spec.zero_stage)

    def _all_logps(self, stage: Stage) -> dict[int, torch.Tensor]:
        """Compute the log-probs of all packs that are not cached, shared among ranks, without gradient."""
        import torch
        import torch.distributed as dist

        from safer_ray.backends.logprobs import to_device
        from safer_ray.backends.reference_cache import ReferenceCache, missing_anywhere, reference_checksum
        from safer_ray.core.step_plan import balance

        folder = self._spec.reference_cache
        cache = ReferenceCache(folder, reference_checksum(self._policy.model)) if folder else None
        known = cache.find(stage.packs) if cache is not None else {}
        lengths = {index: stage.packs[index].tokens for index in missing_anywhere(known, len(stage.packs))}
        if not lengths:
            return known
        shortest = min(lengths, key=lambda index: lengths[index])
        mine: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for turn in balance(lengths, self._ranks).ranks[self._rank]:
                row = to_device(stage.packs[shortest if turn is None else turn], self._device)
                logps_L = self._engine(row).cpu()
                if turn is not None:
                    mine[turn] = logps_L
        shares: list[dict[int, torch.Tensor]] = [mine] * self._ranks
        if self._ranks > 1:
            dist.all_gather_object(shares, mine)
        if cache is not None:
            cache.keep(stage.packs, mine)
        return known | {index: logps_L for share in shares for index, logps_L in share.items()}

    def _accumulate(self, stage: Stage) -> torch.Tensor:
        """Forward and backward over this rank's packs; return the figures summed over all ranks.

        DeepSpeed averages gradients over ranks, hence the factor. An idle turn runs a short pack for nothing: under
        ZeRO-3 its forward and backward are collectives the other ranks wait in.
        """
        import torch.distributed as dist

        from safer_ray.backends.logprobs import to_device
        from safer_ray.backends.stage import pack_loss

        self._losses.clear()
        turns = stage.plan[self._step].ranks[self._rank]
        idle = min(stage.plan[self._step].packs, key=lambda index: stage.packs[index].tokens)
        total = None
        for number, turn in enumerate(turns):
            self._engine.set_gradient_accumulation_boundary(number + 1 == len(turns))
            index = idle if turn is None else turn
            logps_L = self._engine(to_device(stage.packs[index], self._device))
            loss, figures = pack_loss(stage, index, logps_L)
            if turn is not None:
                self._losses[turn] = float(figures[0])
            share = 0.0 if turn is None else self._ranks / stage.weights[self._step]
            self._engine.backward(loss * share)
            if turn is None:
                figures.zero_()
            total = figures if total is None else total + figures
            if (number + 1) % TRIM_ROWS == 0:
                give_back_memory()
        assert total is not None  # every rank has at least one turn
        if self._ranks > 1:
            total = total.to(self._device)
            dist.all_reduce(total)
        return total.cpu()

    def _update(self) -> float:
        """Apply the accumulated gradients and return their norm before clipping; not finite if nothing was applied."""
        from safer_ray.backends.bf16_step import total_norm

        norm = None
        if self._spec.zero_stage == 0 and self._spec.dtype == "fp32":  # DeepSpeed keeps no norm of plain fp32
            norm = float(total_norm([p.grad for p in self._policy.parameters() if p.grad is not None]))
            if not math.isfinite(norm):
                return norm
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return norm if self._engine.was_step_applied() else float("nan")

    def _checked_update(self, stage: Stage, loss: float, lr: float) -> float:
        """Apply the gradients unless loss or norm tell of a failure; return the norm."""
        from safer_ray.backends.batch_loss import StepFigures

        optim = stage.task.optim
        if not math.isfinite(loss) or loss > (optim.stop_loss or math.inf):
            above = "" if not math.isfinite(loss) else f", above stop_loss {optim.stop_loss:g}"
            reason = f"the loss is {loss:g}{above}"
            self._fail(stage, StepFigures(reason=reason, loss=loss, grad_norm=math.nan, lr=lr))
        kept = self._reference.copies() if optim.stop_grad_norm else None
        norm = self._update()
        if not math.isfinite(norm) or norm > (optim.stop_grad_norm or math.inf):
            if kept is not None:
                self._reference.put_back(kept)
            above = "" if not math.isfinite(norm) else f", above stop_grad_norm {optim.stop_grad_norm:g}"
            reason = f"the gradient norm is {norm:g}{above}"
            self._fail(stage, StepFigures(reason=reason, loss=loss, grad_norm=norm, lr=lr))
        return norm

    def _fail(self, stage: Stage, figures: StepFigures) -> NoReturn:
        """Keep the batch with the weights it met, then raise; every rank comes here in the same step."""
        import torch.distributed as dist

        from safer_ray.backends.batch_loss import failed_batch

        shares: list[dict[int, float]] = [self._losses] * self._ranks
        if self._ranks > 1:
            dist.all_gather_object(shares, dict(self._losses))
        losses = {index: loss for share in shares for index, loss in share.items()}
        batch = failed_batch(stage, self._step, figures, losses, ranks=self._ranks)
        self._failed, self._stage = True, None
        try:
            where = self._keep(batch)
        except (DataError, LearnerError) as exc:
            where = f"the batch could not be kept ({exc})"
        if self._ranks > 1:
            dist.barrier()  # the first error ends the run, and rank 0 writes
        raise LearnerError(
            f"learner rank {self._rank}: {figures.reason} at step {batch.step} of stage {batch.stage}: "
            f"{described(batch, prompts_of(batch))}; the weights are as before the step; {where}; "
            "lower the learning rate or look at the data"
        )

    def _keep(self, batch: FailedBatch) -> str:
        """Write the batch where the task says; return where that is, in words."""
        if not batch.task["failed_dir"]:
            return "the batch is not kept, the task names no place for it"
        folder = Path(batch.task["failed_dir"]) / batch.folder_name
        if self._rank == 0:
            keep_batch(batch, folder)
        self.save(str(folder / CHECKPOINT))
        return f"the batch is kept in failed/{batch.folder_name}, see it with safer-ray replay"

    def examine(self, folder: str) -> BatchReport:
        """Run a kept batch again on the weights this learner has, and change nothing. One rank only.

        Raises:
            LearnerError: if the batch cannot be read, or the group has more ranks.
        """
        from safer_ray.backends.batch_loss import loss_again, packs_again
        from safer_ray.backends.logprobs import to_device

        if self._ranks > 1:
            raise LearnerError(f"learner: a batch is examined on one rank, this group has {self._ranks}")
        batch, rows = read_batch(Path(folder))
        task, prompts = batch.train_task(), {_row_id(row): row.prompt_id for row in rows}
        reset_optimizer(self._engine, task.optim)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        total, reports = 0.0, list[RowReport]()
        for number, (kept, row) in enumerate(zip(batch.packs, packs_again(batch, rows), strict=True)):
            self._engine.set_gradient_accumulation_boundary(number + 1 == len(batch.packs))
            loss, found = loss_again(task, row, kept, self._engine(to_device(row, self._device)), prompts)
            self._engine.backward(loss / batch.weight)
            total += float(loss.detach()) / batch.weight
            reports += found
        return BatchReport(loss=total, grad_norm=self._update(), rows=tuple(reports))


def _row_id(row: StepPair | TraceExample) -> str:
    return row.pair_id if isinstance(row, StepPair) else row.example_id


__all__ = ["DeepSpeedLearner", "DeepSpeedLearnerSpec", "deepspeed_config", "scheduled_lr"]
