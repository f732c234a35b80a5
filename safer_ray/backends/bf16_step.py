"""AdamW on bf16 weights that keep fp32 precision in 16 bits beside each, inside DeepSpeed's engine.

A mixed-precision optimiser holds every weight twice: in fp32 to be updated and in bf16 to compute with. The upper half
of the first is nearly the second. Here a weight is its bf16 value and a *rest*: the distance of the fp32 bits to the
bits of that value, a signed number of 16 bits. Nothing is lost, and two bytes per parameter are saved.

Without ZeRO DeepSpeed casts all gradients to fp32 before it updates anything: four bytes per parameter at the very
moment when memory peaks. It also looks for what is not finite in passes of its own, which the norm tells anyway, and
copies all gradients into buffers and back for a reduction over ranks, even over one. On a CPU a kernel updates
everything in one pass that reads gradients as they are; elsewhere some parameters at a time are joined, updated and
split again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed

from safer_ray.backends.cpu_kernels import Kernels, kernels_for

_PART = 1 << 24
"""Parameters that are joined together: few enough that their fp32 copies do not show in the peak."""
_HALF_REST = 1 << 15


def update_in_parts(engine: Any) -> None:
    """Let an engine without ZeRO update bf16 weights as above; any other engine stays as it is."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    wrapped = engine.optimizer
    if not isinstance(wrapped, FP16_UnfusedOptimizer):
        return
    wrapped.step = partial(step_in_parts, wrapped)
    for master, weight in _pairs(wrapped):
        rest = torch.zeros_like(weight, dtype=torch.int16, requires_grad=False)
        weight.fp32_rest = rest  # type: ignore[attr-defined]
        master.data = master.data.new_empty(0)
    if torch.distributed.get_world_size() == 1:
        engine.enable_backward_allreduce = False


def full_precision(weight: torch.Tensor) -> torch.Tensor | None:
    """Return a copy of such an engine's weight in fp32, None for any other: DeepSpeed's look-ups miss these."""
    rest = getattr(weight, "fp32_rest", None)
    return None if rest is None else join(weight.detach(), rest)


def set_full_precision(weight: torch.Tensor, whole: torch.Tensor) -> bool:
    """Set a weight of such an engine to fp32 values of its shape; return False, and do nothing, for any other."""
    rest = getattr(weight, "fp32_rest", None)
    if rest is not None:
        split(whole, weight.detach(), rest)
    return rest is not None


def join(upper: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return the fp32 values, of ``upper``'s shape, that ``split`` put into bf16 ``upper`` and int16 ``rest``."""
    bits = upper.contiguous().view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return bits.add_(rest).view(torch.float32)


def split(whole: torch.Tensor, upper: torch.Tensor, rest: torch.Tensor) -> None:
    """Put finite fp32 values into ``upper``, as the nearest bf16 (ties away from zero), and ``rest``; in place."""
    bits = whole.contiguous().view(torch.int32)
    high = (bits + _HALF_REST).bitwise_right_shift_(16)
    rest.copy_(bits - high.bitwise_left_shift(16))
    upper.copy_(high.to(torch.int16).view(torch.bfloat16))


def step_in_parts(wrapped: Any, closure: None = None) -> bool:
    """Clip by the norm of all gradients and update; return whether the norm is not finite, so nothing was updated.

    ``wrapped`` is DeepSpeed's ``FP16_UnfusedOptimizer`` around AdamW. A parameter without a gradient is updated with
    zeros, as DeepSpeed does. Gradients are gone afterwards.
    """
    weights = [weight for _, weight in _pairs(wrapped)]
    norm = float(total_norm([weight.grad for weight in weights if weight.grad is not None]))
    if not math.isfinite(norm):
        return bool(wrapped._skip_invalid_grad_norm())
    wrapped.overflow, wrapped._global_grad_norm = False, norm
    wrapped._update_scale(False)
    scale = 1.0 / wrapped.unscale_and_clip_grads(norm, apply_scale=False)
    if kernels := kernels_for(*weights):
        _update_at_once(wrapped, kernels, scale)
    else:
        for part in _parts(_pairs(wrapped)):
            _update_joined(wrapped.optimizer, part, scale)
    return False


def total_norm(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients together, in fp32 or better whatever their type; 0 without any."""
    if grads and (kernels := kernels_for(*grads)):  # torch copies each gradient to fp32 for this
        squares = torch.empty(len(grads), dtype=torch.float64)
        for grad, square in zip(grads, squares, strict=True):
            kernels("square_sum", grad.dtype, grad, square, grad.numel())
        return squares.sum().sqrt()
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _update_at_once(wrapped: Any, kernels: Kernels, scale: float) -> None:
    """Update all parameters in one pass over what belongs to each."""
    inner = wrapped.optimizer
    for group, masters, weights in zip(inner.param_groups, wrapped.fp32_groups, wrapped.fp16_groups, strict=True):
        (beta1, beta2), lr = group["betas"], group["lr"]
        for master, weight in zip(masters, weights, strict=True):
            state = inner.state[master]
            known = bool(state)
            if not known:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
                state["exp_avg_sq"] = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
            state["step"] += 1
            steps = float(state["step"])
            grad = None if weight.grad is None else weight.grad.contiguous()
            kernels(
                "adamw", weight.dtype, weight.detach(), weight.fp32_rest, state["exp_avg"], state["exp_avg_sq"], grad,
                weight.numel(), known, scale, 1.0 - lr * group["weight_decay"], lr / (1.0 - beta1**steps),
                (1.0 - beta2**steps) ** 0.5, 1.0 - beta1, beta2, 1.0 - beta2, group["eps"],
            )  # fmt: skip
            weight.grad = None


def _update_joined(inner: torch.optim.Optimizer, part: list[tuple[torch.Tensor, torch.Tensor]], scale: float) -> None:
    """Join the parameters of a part, let the optimiser update them, and split them again."""
    for master, weight in part:
        master.data = join(weight.detach(), weight.fp32_rest)  # type: ignore[attr-defined]
        master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.to(master.dtype).mul_(scale)
        weight.grad = None
    inner.step()
    for master, weight in part:
        set_full_precision(weight, master.data)
        master.grad, master.data = None, master.data.new_empty(0)


def _pairs(wrapped: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield DeepSpeed's fp32 parameters, empty between updates, with the bf16 weights they stand for."""
    for masters, weights in zip(wrapped.fp32_groups, wrapped.fp16_groups, strict=True):
        yield from zip(masters, weights, strict=True)


def _parts(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield neighbours of at most ``_PART`` elements together; a larger tensor is a part of its own."""
    part: list[tuple[torch.Tensor, torch.Tensor]] = []
    size = 0
    for pair in pairs:
        if part and size + pair[1].numel() > _PART:
            yield part
            part, size = [], 0
        part.append(pair)
        size += pair[1].numel()
    if part:
        yield part


__all__ = ["full_precision", "join", "set_full_precision", "split", "step_in_parts", "total_norm", "update_in_parts"]
