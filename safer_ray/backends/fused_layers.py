"""Decoder layers on CPUs with norms, gates, rotary positions and softmax in one pass over memory each.

transformers computes them one operator at a time. ``fuse`` gives the modules of a model forwards that compute the same
by ``cpu_kernels``; on other devices and types, and without a compiler, they compute as they did.

Letters: T tokens, C width, H query heads, G key heads, R = H / G, D head width, Q queries and K keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from safer_ray.backends.cpu_kernels import Kernels, kernels, kernels_for
from safer_ray.backends.tree_attention import TreeMask

ROTATED = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
"""Attention of the form projections, rotary positions, softmax, projection; others have norms or caps in between."""
SILU = ("SiLU", "SiLUActivation")


def fuse(model: torch.nn.Module) -> None:
    """Give the layers that are known faster forwards."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = _norm(module, module.forward)  # type: ignore[method-assign]
        elif name.endswith("MLP") and type(getattr(module, "act_fn", None)).__name__ in SILU:
            module.forward = _mlp(module, module.forward)  # type: ignore[method-assign]
        elif name in ROTATED and not module.attention_dropout:
            module.forward = _attention(module, module.forward)  # type: ignore[method-assign]


def _norm(module: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if kernels_for(hidden_states, module.weight) is None:
            return plain(hidden_states)  # type: ignore[no-any-return]
        return FusedNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # type: ignore[no-any-return,no-untyped-call]

    return forward


def _mlp(module: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if kernels_for(x) is None:
            return plain(x)  # type: ignore[no-any-return]
        gate, up = module.gate_proj(x), module.up_proj(x)
        return module.down_proj(FusedGate.apply(gate, up))  # type: ignore[no-any-return,no-untyped-call]

    return forward


def _attention(module: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        tree = kwargs.get("tree")
        if not isinstance(tree, TreeMask) or kernels_for(hidden_states, *position_embeddings) is None:
            return plain(hidden_states, position_embeddings, attention_mask, **kwargs)  # type: ignore[no-any-return]
        sliding = module.sliding_window if hasattr(module, "sliding_window") else None
        if type(module).__name__ == "MistralAttention":
            sliding = module.config.sliding_window
        heads = [
            project(hidden_states).view(tree.tokens, -1, module.head_dim)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        ]
        cos, sin = (each.reshape(tree.tokens, -1) for each in position_embeddings)
        way = _Way(tree=tree, window=tree.window(sliding), cos=cos, sin=sin, scale=module.scaling)
        out = FusedAttention.apply(*heads, way)  # type: ignore[no-untyped-call]
        return module.o_proj(out.view(*hidden_states.shape[:-1], -1)), None

    return forward


def _compiled() -> Kernels:
    found = kernels()
    assert found is not None  # or the module had computed as it did before
    return found


class FusedNorm(torch.autograd.Function):
    """``weight * x / rms(x)`` over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return a tensor like ``x``."""
        width = x.shape[-1]
        y, rstd = torch.empty_like(x), torch.empty(x.numel() // width)
        _compiled()("norm_forward", x.dtype, x, weight, y, rstd, rstd.numel(), width, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        """Return the gradients of ``x`` and ``weight``."""
        x, weight, rstd = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        arrays = (grad.contiguous(), x, weight, rstd, dx, dweight)
        _compiled()("norm_backward", x.dtype, *arrays, rstd.numel(), x.shape[-1])
        return dx, dweight, None


class FusedGate(torch.autograd.Function):
    """``silu(gate) * up``."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return a tensor like ``gate``."""
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        _compiled()("gate_forward", gate.dtype, gate, up, y, gate.numel() // gate.shape[-1], gate.shape[-1])
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Return the gradients of both."""
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        arrays = (grad.contiguous(), gate, up, dgate, dup)
        _compiled()("gate_backward", gate.dtype, *arrays, gate.numel() // gate.shape[-1], gate.shape[-1])
        return dgate, dup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """How a layer attends: along which tree, how far back, turned by which angles ``[T, D]``, scaled by what."""

    tree: TreeMask
    window: int | None
    cos: torch.Tensor
    sin: torch.Tensor
    scale: float


class FusedAttention(torch.autograd.Function):
    """Rotary positions and attention along a tree: ``[T, H, D]`` and twice ``[T, G, D]``."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, way: _Way) -> torch.Tensor:
        """Return ``[T, H, D]``."""
        tree, groups, ratio = way.tree, key.shape[1], query.shape[1] // key.shape[1]
        query_GTRD = _to_groups(query, groups, (way.cos, way.sin), way.scale)
        key_GTD, value_GTD = _to_groups(key, groups, (way.cos, way.sin))[:, :, 0], _to_groups(value, groups)[:, :, 0]
        if tree.key_T is not None:
            key_GTD, value_GTD = key_GTD.index_select(1, tree.key_T), value_GTD.index_select(1, tree.key_T)
        out_GTRD, weights = torch.empty_like(query_GTRD), []
        for number, (rows, keys) in enumerate(_blocks(tree)):
            score = torch.bmm(query_GTRD[:, rows].flatten(1, 2), key_GTD[:, keys].transpose(1, 2))
            sizes = (groups, tree.query_sizes[number], ratio, tree.key_sizes[number])
            bias, stops = tree.biases(way.window, query.dtype)[number], tree.stops(way.window)[number]
            _compiled()("softmax_forward", query.dtype, score, bias, stops, *sizes)
            out_GTRD[:, rows] = torch.bmm(score, value_GTD[:, keys]).view_as(out_GTRD[:, rows])
            weights.append(score)
        ctx.save_for_backward(query_GTRD, key_GTD, value_GTD, *weights)
        ctx.way = way
        return _from_groups(out_GTRD)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of query, key and value."""
        query_GTRD, key_GTD, value_GTD, *weights = ctx.saved_tensors
        way, tree, (groups, tokens, ratio, _) = ctx.way, ctx.way.tree, query_GTRD.shape
        grad_GTRD = _to_groups(grad.contiguous(), groups)
        dquery, dkey, dvalue = (torch.empty_like(each) for each in (query_GTRD, key_GTD, value_GTD))
        for number, (rows, keys) in enumerate(_blocks(tree)):
            queries, out, weight = query_GTRD[:, rows].flatten(1, 2), grad_GTRD[:, rows].flatten(1, 2), weights[number]
            dvalue[:, keys] = torch.bmm(weight.transpose(1, 2), out)
            dscore = torch.bmm(out, value_GTD[:, keys].transpose(1, 2))
            sizes = (groups, tree.query_sizes[number], ratio, tree.key_sizes[number])
            _compiled()("softmax_backward", grad.dtype, dscore, weight, tree.stops(way.window)[number], *sizes)
            dquery[:, rows] = torch.bmm(dscore, key_GTD[:, keys]).view_as(dquery[:, rows])
            dkey[:, keys] = torch.bmm(dscore.transpose(1, 2), queries)
        if tree.key_T is not None:
            dkey, dvalue = (
                each.new_zeros(groups, tokens, each.shape[2]).index_add_(1, tree.key_T, each) for each in (dkey, dvalue)
            )
        return (
            _from_groups(dquery, (way.cos, way.sin), way.scale),
            _from_groups(dkey[:, :, None], (way.cos, way.sin)),
            _from_groups(dvalue[:, :, None]),
            None,
        )


def _blocks(tree: TreeMask) -> list[tuple[slice, slice]]:
    """Return per block its rows among the queries and its keys among the keys gathered for all blocks."""
    blocks, row, key = [], 0, 0
    for rows, keys in zip(tree.query_sizes, tree.key_sizes, strict=True):
        blocks.append((slice(row, row + rows), slice(key, key + keys)))
        row, key = row + rows, key + keys
    return blocks


Angles = tuple[torch.Tensor | None, torch.Tensor | None]


def _to_groups(x: torch.Tensor, groups: int, angles: Angles = (None, None), scale: float = 1.0) -> torch.Tensor:
    """Return ``[G, T, R, D]`` of ``[T, H, D]``: what one key head serves lies together. Turned by the angles."""
    tokens, heads, width = x.shape
    out = x.new_empty(groups, tokens, heads // groups, width)
    _compiled()("to_groups", x.dtype, x, *angles, out, tokens, groups, heads // groups, width, scale)
    return out


def _from_groups(x: torch.Tensor, angles: Angles = (None, None), scale: float = 1.0) -> torch.Tensor:
    """Return ``[T, H, D]`` of ``[G, T, R, D]``, turned back: the gradient of ``_to_groups``."""
    groups, tokens, ratio, width = x.shape
    out = x.new_empty(tokens, groups * ratio, width)
    _compiled()("from_groups", x.dtype, x.contiguous(), *angles, out, tokens, groups, ratio, width, scale)
    return out


__all__ = ["FusedAttention", "FusedGate", "FusedNorm", "fuse"]
