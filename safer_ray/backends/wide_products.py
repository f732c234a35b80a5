"""Linear layers that multiply bf16 matrices in fp32, for CPUs that are faster so.

With AMX a CPU multiplies bf16 several times as fast as fp32. Without it there may be a bf16 instruction that is slower
than two fp32 ones: then a copy in fp32, multiplied and rounded once, takes less time and is no less exact. Which holds
is measured once per process.

Letters: T tokens, C inputs, N outputs of a layer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)
WORTH_IT = 1.3
"""How many times as fast fp32 must be, because copies take time and a close race should not change from run to run."""
TRIED = (512, 576, 1536)
TRIALS = 4
CHUNK = 2**21
"""Elements of a weight that are fp32 at a time; only output layers have more."""
_scratch = threading.local()


def widen(model: torch.nn.Module) -> None:
    """Give linear layers a forward that multiplies in fp32 where the tensors are bf16 on a CPU that is faster so."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = _linear(module, module.forward)  # type: ignore[method-assign]


@cache
def fp32_pays() -> bool:
    """Return whether this CPU multiplies fp32 faster than bf16 by ``WORTH_IT`` or more; takes some 0.1 s."""
    rows, inputs, outputs = TRIED
    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    with torch.no_grad():
        for trial in range(TRIALS):
            for dtype in best:
                left, right = torch.ones(rows, inputs, dtype=dtype), torch.ones(inputs, outputs, dtype=dtype)
                started_s = time.perf_counter()
                torch.mm(left, right)
                if trial:  # the first one sets kernels up
                    best[dtype] = min(best[dtype], time.perf_counter() - started_s)
    times = best[torch.bfloat16] / best[torch.float32]
    if times >= WORTH_IT:
        logger.info("this CPU multiplies fp32 %.1f times as fast as bf16: bf16 layers multiply in fp32", times)
    return times >= WORTH_IT


def _linear(module: torch.nn.Linear, plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        both_bf16 = x.dtype == weight.dtype == torch.bfloat16
        if not both_bf16 or x.device.type != "cpu" or not fp32_pays():
            return plain(x)  # type: ignore[no-any-return]
        y: torch.Tensor = WideProduct.apply(x, weight)  # type: ignore[no-untyped-call]
        return y if module.bias is None else y + module.bias

    return forward


class WideProduct(torch.autograd.Function):
    """``x @ weight.T`` for ``x [..., C]`` and ``weight [N, C]``, both bf16, computed and accumulated in fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return ``[..., N]`` in bf16."""
        ctx.save_for_backward(x, weight)
        wide_TC = _wide("x", x.flatten(0, -2))
        y_TN = x.new_empty(len(wide_TC), len(weight))
        for part, weight_NC in _parts(weight):
            out_TN = _room("y", len(wide_TC), len(weight_NC))
            y_TN[:, part] = torch.mm(wide_TC, weight_NC.t(), out=out_TN)
        return y_TN.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # type: ignore[override]
        """Return the gradients of ``x`` and ``weight``, those that are asked for."""
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        wide_TC, grad_TN = _wide("x", x.flatten(0, -2)), grad.flatten(0, -2)
        dx_TC = _room("y", *wide_TC.shape)
        dweight = torch.empty_like(weight) if of_weight else None
        for part, weight_NC in _parts(weight):
            out_TN = _wide("g", grad_TN[:, part])
            if of_x:
                dx_TC.addmm_(out_TN, weight_NC, beta=float(part.start > 0))
            if dweight is not None:
                dweight[part] = torch.mm(out_TN.t(), wide_TC, out=_room("dw", *weight_NC.shape))
        return (dx_TC.to(x.dtype).view_as(x) if of_x else None), dweight


def _parts(weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield a weight's rows in fp32, so many at a time that they stay small."""
    rows = max(1, CHUNK // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, min(start + rows, len(weight)))
        yield part, _wide("w", weight[part])


def _wide(name: str, of: torch.Tensor) -> torch.Tensor:
    return _room(name, *of.shape).copy_(of)


def _room(name: str, rows: int, columns: int) -> torch.Tensor:
    """Return ``[rows, columns]`` of fp32 with any content, at the same place each time.

    New memory of this size would come from the kernel page by page at every product.
    """
    kept: torch.Tensor | None = getattr(_scratch, name, None)
    if kept is None or kept.numel() < rows * columns:
        kept = torch.empty(rows * columns)
        setattr(_scratch, name, kept)
    return kept[: rows * columns].view(rows, columns)


__all__ = ["WORTH_IT", "WideProduct", "fp32_pays", "widen"]
