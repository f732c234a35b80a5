"""Attention over prefix-tree packs, plugged into transformers models.

A model loaded with ``attn_implementation=register()`` and called with ``tree=TreeMask(...)`` attends along the tree
of ``core.packing``: a token sees its ancestors and itself, nothing else. On CPUs the row is cut into blocks of
queries, each against the keys any of them sees, so no T x T mask is made. On CUDA devices it is one
``flex_attention`` call with a block mask of the same rule.

Letters: T tokens of the row, Q queries and K keys of a block, H query heads, G key heads, R = H / G, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from safer_ray.core.packing import Pack, attention_blocks
from safer_ray.errors import ModelError

NAME = "safer_ray_tree"
MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Models whose attention is what ``tree_attention`` computes, checked by a test for each."""


def register() -> str:
    """Make tree attention known to transformers and return the name to load models with."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    return NAME


def check_model_type(model: str, model_type: str) -> None:
    """Refuse models whose attention has not been shown to be tree attention's.

    Raises:
        ModelError: naming the model types that work.
    """
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"model {model}: its type {model_type} cannot be trained in packed form;"
            f" use a model of type {', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}"
        )


class TreeMask:
    """Who sees whom in one row, in the form the device's attention wants; made once, shared by all layers."""

    def __init__(self, row: Pack, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.tokens = row.tokens
        self._stop_T = torch.from_numpy(row.subtree_stop_T).to(self.device)
        self._position_T = torch.from_numpy(row.position_ids_T).to(self.device)
        self._longest = int(row.position_ids_T.max()) + 1
        self._biases: dict[tuple[int | None, torch.dtype], list[torch.Tensor]] = {}
        self._stops: dict[int | None, list[torch.Tensor]] = {}
        self._flex: dict[int | None, Any] = {}
        if self.device.type != "cuda":
            blocks = attention_blocks(row)
            self.query_sizes = [block.stop - block.start for block in blocks]
            self.key_sizes = [len(block.key_T) for block in blocks]
            self._blocks = [(b.start, b.stop, torch.from_numpy(b.key_T).to(self.device)) for b in blocks]
            # Without ancestors the blocks' keys are the row itself: nothing to gather.
            self.key_T = None if self.key_sizes == self.query_sizes else torch.cat([key for _, _, key in self._blocks])

    def window(self, sliding_window: int | None) -> int | None:
        """Return the window if any token of the row lies beyond it, else None."""
        return sliding_window if sliding_window is not None and sliding_window < self._longest else None

    def biases(self, window: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """Return per block ``[Q, K]``: 0 where visible, -inf elsewhere."""
        if (window, dtype) not in self._biases:
            made = []
            for seen_QK in self._seen(window):
                bias_QK = torch.zeros(seen_QK.shape, dtype=dtype, device=self.device)
                made.append(bias_QK.masked_fill_(~seen_QK, float("-inf")))
            self._biases[window, dtype] = made
        return self._biases[window, dtype]

    def stops(self, window: int | None) -> list[torch.Tensor]:
        """Return per block ``[Q]``: one more than the last of the block's keys that a query sees."""
        if window not in self._stops:
            self._stops[window] = [
                (seen_QK * torch.arange(1, seen_QK.shape[1] + 1, device=self.device)).amax(1)
                for seen_QK in self._seen(window)
            ]
        return self._stops[window]

    def _seen(self, window: int | None) -> Iterator[torch.Tensor]:
        for start, stop, key_K in self._blocks:
            query_Q1 = torch.arange(start, stop, device=self.device)[:, None]
            yield _visible(query_Q1, key_K[None], self._stop_T, self._position_T, window)

    def flex(self, window: int | None) -> Any:
        """Return the ``BlockMask`` of the rule."""
        if window not in self._flex:
            from torch.nn.attention.flex_attention import create_block_mask

            stop_T, position_T = self._stop_T, self._position_T

            def rule(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
                return _visible(query, key, stop_T, position_T, window)

            self._flex[window] = create_block_mask(rule, None, None, self.tokens, self.tokens, device=self.device.type)
        return self._flex[window]


def _visible(
    query: torch.Tensor, key: torch.Tensor, stop_T: torch.Tensor, position_T: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Return whether row position ``key`` is visible to ``query``, broadcast: the one rule for every device."""
    seen = (key <= query) & (query < stop_T[key])
    if window is not None:
        seen = seen & (position_T[query] - position_T[key] < window)
    return seen


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend along a tree; the signature transformers calls attention functions with.

    Shapes: ``query [1, H, T, D]``, ``key`` and ``value`` ``[1, G, T, D]``; returns ``[1, T, H, D]``.

    Raises:
        ModelError: if no tree was passed, or the row is not a single one.
    """
    tree = kwargs.get("tree")
    if not isinstance(tree, TreeMask) or attention_mask is not None or query.shape[0] != 1:
        raise ModelError(
            "tree attention: call the model with one row, no attention mask and tree=TreeMask(row, device)"
        )
    scoring = _Scoring(
        scale=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        softcap=kwargs.get("softcap"),
        dropout=kwargs.get("dropout") or 0.0,
        window=tree.window(kwargs.get("sliding_window")),
    )
    attend = flex_attention if query.device.type == "cuda" else block_attention
    return attend(query, key, value, tree, scoring), None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    """What a layer does to its scores; ``softcap`` bounds them smoothly, ``window`` hides what lies further back."""

    scale: float
    softcap: float | None
    dropout: float
    window: int | None


def block_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeMask, scoring: _Scoring
) -> torch.Tensor:
    """Attend block by block. All query heads of a key head are rows of one product, so it stays large.

    The row is cut with one split and joined with one cat: their gradients are one cat and one split, where a slice
    per block would each make a zero tensor of the whole row.
    """
    groups, tokens, width = key.shape[1:]
    query_TGRD = (query[0] * scoring.scale).transpose(0, 1).reshape(tokens, groups, -1, width)
    key_TGD, value_TGD = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if tree.key_T is not None:
        key_TGD, value_TGD = key_TGD.index_select(0, tree.key_T), value_TGD.index_select(0, tree.key_T)
    out = []
    for query_QGRD, key_KGD, value_KGD, bias_QK in zip(
        torch.split(query_TGRD, tree.query_sizes),
        torch.split(key_TGD, tree.key_sizes),
        torch.split(value_TGD, tree.key_sizes),
        tree.biases(scoring.window, query.dtype),
        strict=True,
    ):
        rows_GMD = query_QGRD.transpose(0, 1).reshape(groups, -1, width)
        score_GMK = torch.bmm(rows_GMD, key_KGD.permute(1, 2, 0))
        if scoring.softcap is not None:
            score_GMK = torch.tanh(score_GMK / scoring.softcap) * scoring.softcap
        score_GMK.view(groups, len(query_QGRD), -1, len(key_KGD)).add_(bias_QK[:, None])
        weight_GMK = torch.softmax(score_GMK, dim=-1)
        if scoring.dropout:
            weight_GMK = F.dropout(weight_GMK, scoring.dropout)
        seen_GMD = torch.bmm(weight_GMK, value_KGD.transpose(0, 1))
        out.append(
            seen_GMD.view(groups, len(query_QGRD), -1, width).transpose(0, 1).reshape(len(query_QGRD), -1, width)
        )
    return torch.cat(out)[None]


def flex_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeMask, scoring: _Scoring
) -> torch.Tensor:
    """Attend in one fused kernel that skips the blocks of the T x T square nobody sees.

    Raises:
        ModelError: if the model asks for attention dropout, which the kernel does not have.
    """
    if scoring.dropout:
        raise ModelError("tree attention: attention dropout does not work on CUDA; set attention_dropout to 0")

    def capped(score: Any, _batch: Any, _head: Any, _query: Any, _key: Any) -> Any:
        assert scoring.softcap is not None
        return torch.tanh(score / scoring.softcap) * scoring.softcap

    out: torch.Tensor = _flex_kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if scoring.softcap is None else capped,
        block_mask=tree.flex(scoring.window),
        scale=scoring.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()


@cache
def _flex_kernel(device_type: str) -> Any:
    from torch.nn.attention import flex_attention as flex

    # Rows differ in length: a static kernel would be compiled for each.
    return torch.compile(flex.flex_attention, dynamic=True) if device_type == "cuda" else flex.flex_attention
