"""One rank of a DeepSpeed learner group: ZeRO stages 0 to 3, gloo on CPUs and NCCL on GPUs.

Weights work in bf16 with fp32 masters (or all in fp32). A step accumulates the packs of its plan, each scaled by its
share of the step's total weight over all ranks, so the result does not depend on packing or on the number of ranks.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import shutil
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safer_ray.backends.base import OptimSettings, StepReport, TrainTask
from safer_ray.errors import LearnerError, ModelError, boundary
from safer_ray.records import WeightsRef

if TYPE_CHECKING:
    import torch

    from safer_ray.backends.logprobs import LogprobModel
    from safer_ray.backends.stage import Stage

logger = logging.getLogger(__name__)
TRIM_EVERY = 8
"""Optimiser steps after which freed memory goes back: 4.3 GB fell to 2.5 GB on the 135M model."""
KEPT_VERSIONS = 2
"""Published versions kept in shared memory: the newest, and the one samplers may still be reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedLearnerSpec:
    """Builds one rank of a :class:`DeepSpeedLearner` group.

    ``threads`` is per rank on CPUs, 0 leaves torch's default. ``lora_rank`` 0 trains all weights; otherwise adapters,
    merged in what is published and saved. ``weights_dir`` is where versions are published: shared memory, or for
    samplers on other machines a directory all of them mount. ``reference_cache`` is a directory that keeps reference
    log-probs between stages and runs; None keeps none.
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

    def build(self, *, rank: int, world_size: int, master: str) -> DeepSpeedLearner:
        """Join the group at ``master`` (``host:port``) and load the model.

        Raises:
            LearnerError: if the rank is not in the group, the group does not form, or DeepSpeed refuses.
            ModelError: if the model cannot be loaded for training.
        """
        if not 0 <= rank < world_size:
            raise LearnerError(f"learner: rank {rank} is not in 0..{world_size - 1}; fix the group")
        with boundary(LearnerError, f"learner rank {rank} of {world_size} at {master}"):
            device = _join_group(self, rank, world_size, master)
            return DeepSpeedLearner(self, rank, world_size, device)


def _join_group(spec: DeepSpeedLearnerSpec, rank: int, world_size: int, master: str) -> torch.device:
    """Set up the process for its accelerator and enter the process group."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        _keep_freed_memory()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    host, _, port = master.rpartition(":")
    # Each rank is a process with one visible device, so its local rank is always 0.
    places = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": host, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    # DeepSpeed looks for ninja on PATH; it lies beside this interpreter, which need not be activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    import deepspeed

    # DeepSpeed 0.19 calls collectives by names that torch 2.13 warns about, once per parameter.
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")
    if world_size == 1:
        # The shared-memory operator speeds up collectives between CPU ranks; compiling it takes 20 s and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: otherwise every activation is mapped, zeroed and unmapped by the kernel.

    Measured on 1024 tokens of a 135M model: 520,000 page faults and 1.0 s of kernel time per step before, none after.
    """
    trim_threshold, mmap_threshold = -1, -3
    with suppress(OSError, AttributeError):  # another libc has no mallopt, and no such habit
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _give_back_memory() -> None:
    """Return what glibc kept and nobody uses: with rows of many lengths the kept blocks only ever grow."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def deepspeed_config(spec: DeepSpeedLearnerSpec) -> dict[str, Any]:
    """Return DeepSpeed's configuration; clipping is set per stage, the schedule is ours."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": spec.dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": spec.zero_stage,
            "overlap_comm": False,
            # A parameter that stays whole would not follow a swap of its shard to the reference policy.
            "stage3_param_persistence_threshold": 0,
        },
    }


def scheduled_lr(optim: OptimSettings, step: int, steps: int) -> float:
    """Return the learning rate of optimiser step ``step`` (from 0): linear warm-up, then the schedule, never 0."""
    warmup = math.ceil(optim.warmup_ratio * steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    shape = {"linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left)), "constant": 1.0}
    return optim.lr * shape[optim.schedule]


class DeepSpeedLearner:
    """One rank; every rank gets the same calls in the same order, because most of them are collectives."""

    def __init__(self, spec: DeepSpeedLearnerSpec, rank: int, world_size: int, device: torch.device) -> None:
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
        self._engine = _initialize(self._policy, config)
        self._reference = ReferenceWeights(self._policy)
        self._stage: Stage | None = None
        self._step = 0
        self._failed = False
        self._published: list[WeightsRef] = []

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
        self._reset_optimizer(task.optim)
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
            LearnerError: if no step is left, or loss or gradients are not finite on any rank; the weights are then as
                before the step, and the learner trains no further.
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
        if not math.isfinite(float(figures[0])):
            self._fail(stage, f"the loss is {float(figures[0])}")
        norm = self._update()
        if not math.isfinite(norm):
            self._fail(stage, f"the gradient norm is {norm}")
        self._step += 1
        if self._device.type == "cpu" and (self._step % TRIM_EVERY == 0 or self._step == stage.steps):
            _give_back_memory()
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
        """Write a Hugging Face checkpoint with the base model's tokenizer; rank 0 writes, aside and renamed.

        Raises:
            LearnerError: if it cannot be written.
        """
        state = {name: tensor.cpu().clone() for name, tensor in self._whole_state() if self._rank == 0}
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
            shutil.rmtree(target, ignore_errors=True)
            aside.replace(target)

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
        from safer_ray.core.packing import balance

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

        turns = stage.plan[self._step].ranks[self._rank]
        idle = min(stage.plan[self._step].packs, key=lambda index: stage.packs[index].tokens)
        total = None
        for number, turn in enumerate(turns):
            self._engine.set_gradient_accumulation_boundary(number + 1 == len(turns))
            index = idle if turn is None else turn
            logps_L = self._engine(to_device(stage.packs[index], self._device))
            loss, figures = pack_loss(stage, index, logps_L)
            share = 0.0 if turn is None else self._ranks / stage.weights[self._step]
            self._engine.backward(loss * share)
            if turn is None:
                figures.zero_()
            total = figures if total is None else total + figures
        assert total is not None  # every rank has at least one turn
        if self._ranks > 1:
            total = total.to(self._device)
            dist.all_reduce(total)
        return total.cpu()

    def _update(self) -> float:
        """Apply the accumulated gradients and return their norm before clipping; not finite if nothing was applied."""
        import torch

        norm = None
        if self._spec.zero_stage == 0 and self._spec.dtype == "fp32":  # DeepSpeed keeps no norm of plain fp32
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in self._policy.parameters() if p.grad is not None])
            )
            if not math.isfinite(norm):
                return norm
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return norm if self._engine.was_step_applied() else float("nan")

    def _fail(self, stage: Stage, what: str) -> None:
        self._failed = True
        self._stage = None
        raise LearnerError(
            f"learner rank {self._rank}: {what} at step {self._step + 1} of stage {stage.task.stage};"
            " the weights are as before the step; lower the learning rate or look at the data"
        )

    def _reset_optimizer(self, optim: OptimSettings) -> None:
        wrapped = self._engine.optimizer
        inner = wrapped.optimizer if hasattr(wrapped, "optimizer") else wrapped
        inner.state.clear()
        for group in wrapped.param_groups:
            group["weight_decay"] = optim.weight_decay if group["decays"] else 0.0
        # DeepSpeed reads the limit from its config for plain fp32, and from the wrapper it copied it to otherwise.
        self._engine._config.gradient_clipping = optim.max_grad_norm
        wrapped.clip_grad = optim.max_grad_norm


def _initialize(policy: LogprobModel, config: dict[str, Any]) -> Any:
    """Return a DeepSpeed engine with AdamW over what is trained; matrices may decay, norms and biases never do."""
    import deepspeed
    import torch

    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError("learner: nothing in the model can be trained; check lora_rank")

    def dimensions(parameter: Any) -> int:
        return len(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.ndim

    groups = [
        {"params": [p for p in trained if (dimensions(p) > 1) == decays], "decays": decays} for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, weight_decay=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


__all__ = ["DeepSpeedLearner", "DeepSpeedLearnerSpec", "deepspeed_config", "scheduled_lr"]
