"""AdamW on bf16 weights with fp32 masters, a part of the parameters at a time, inside DeepSpeed's engine.

Without ZeRO DeepSpeed casts all gradients to fp32 before it updates anything: four bytes per parameter at the very
moment when memory peaks. It also looks for what is not finite in passes of its own, which the norm tells anyway, and
copies all gradients into buffers and back for a reduction over ranks, even over one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed

_PART = 1 << 24
"""Parameters that are updated together: few enough that their fp32 gradients do not show in the peak."""


def update_in_parts(engine: Any) -> None:
    """Let an engine without ZeRO update bf16 weights part by part; any other engine stays as it is."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    wrapped = engine.optimizer
    if not isinstance(wrapped, FP16_UnfusedOptimizer):
        return
    wrapped.step = partial(step_in_parts, wrapped)
    for group, lower in zip(wrapped.fp32_groups, wrapped.fp16_groups, strict=True):
        for master, weight in zip(group, lower, strict=True):
            weight.fp32_master = master
    if torch.distributed.get_world_size() == 1:
        engine.enable_backward_allreduce = False


def master_of(weight: torch.Tensor) -> torch.Tensor | None:
    """Return the fp32 master of a weight of such an engine, None for any other: DeepSpeed's look-ups miss these."""
    return getattr(weight, "fp32_master", None)


def step_in_parts(wrapped: Any, closure: None = None) -> bool:
    """Clip by the norm of all gradients and update; return whether the norm is not finite, so nothing was updated.

    ``wrapped`` is DeepSpeed's ``FP16_UnfusedOptimizer`` around an optimiser of fp32 masters. A parameter without a
    gradient is updated with zeros, as DeepSpeed does. Gradients are gone afterwards.
    """
    norm = float(total_norm([p.grad for group in wrapped.fp16_groups for p in group if p.grad is not None]))
    if not math.isfinite(norm):
        return bool(wrapped._skip_invalid_grad_norm())
    wrapped.overflow, wrapped._global_grad_norm = False, norm
    wrapped._update_scale(False)
    scale = 1.0 / wrapped.unscale_and_clip_grads(norm, apply_scale=False)
    for part in _parts(wrapped.fp32_groups, wrapped.fp16_groups):
        for master, weight in part:
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.to(master.dtype)
            weight.grad = None
            if scale != 1.0:
                master.grad.mul_(scale)
        wrapped.optimizer.step()
        for master, weight in part:
            master.grad = None
            weight.data.copy_(master.data)
    return False


def total_norm(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients together, in fp32 whatever their type; 0 without any."""
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _parts(
    masters: Sequence[Sequence[torch.Tensor]], weights: Sequence[Sequence[torch.Tensor]]
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield neighbours of at most ``_PART`` elements together; a larger tensor is a part of its own."""
    part: list[tuple[torch.Tensor, torch.Tensor]] = []
    size = 0
    for group, lower in zip(masters, weights, strict=True):
        for pair in zip(group, lower, strict=True):
            if part and size + pair[0].numel() > _PART:
                yield part
                part, size = [], 0
            part.append(pair)
            size += pair[0].numel()
    if part:
        yield part


__all__ = ["update_in_parts", "master_of", "step_in_parts", "total_norm"]
