"""A causal language model that returns log-probs, and only those that a loss needs.

Model and head are one module because under ZeRO-3 only what runs inside the wrapped forward sees whole weights.
The head works on the hidden states of L loss positions, in fp32 by small blocks of rows, so neither a [T, V] nor an
fp32 [L, V] matrix is ever made.

Letters: T tokens of the row, L loss positions, V vocabulary, C width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from safer_ray.backends.cpu_kernels import kernels_for
from safer_ray.backends.fused_layers import fuse
from safer_ray.backends.tree_attention import NAME, TreeMask, check_model_type
from safer_ray.backends.wide_products import widen
from safer_ray.core.packing import Pack

KEPT_LOGITS = 2**28
"""Up to this many logits (0.5 GiB in bf16) are kept for the backward pass; more are computed again, in chunks."""
CHUNK_LOGITS = 2**26
BLOCK_LOGITS = {"cpu": 2**20, "cuda": 2**25}
"""Logits per block of fp32 work: on CPUs what the second-level cache holds, on GPUs what keeps a kernel busy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A pack on the device."""

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    source_L: torch.Tensor
    target_L: torch.Tensor
    tree: TreeMask


def to_device(pack: Pack, device: torch.device | str) -> Row:
    """Move what the model needs of a pack."""
    return Row(
        input_ids_1T=torch.from_numpy(pack.input_ids_T)[None].to(device),
        position_ids_1T=torch.from_numpy(pack.position_ids_T)[None].to(device),
        source_L=torch.from_numpy(pack.source_L).to(device),
        target_L=torch.from_numpy(pack.target_L).to(device),
        tree=TreeMask(pack, device),
    )


class LogprobModel(torch.nn.Module):
    """Wraps a Hugging Face causal language model that was loaded with tree attention.

    Raises:
        ModelError: if the model is of a type tree attention does not know.
        ValueError: if it was loaded with another attention.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        check_model_type(str(model.config._name_or_path), model.config.model_type)
        if model.config._attn_implementation != NAME:
            raise ValueError(f"load the model with attn_implementation={NAME!r}")
        self.model = model
        fuse(model)
        widen(model)
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def forward(self, row: Row) -> torch.Tensor:
        """Return ``[L]``: the fp32 log-prob, in nats, of each target token given its ancestors."""
        hidden_TC = self.model.base_model(
            input_ids=row.input_ids_1T, position_ids=row.position_ids_1T, use_cache=False, tree=row.tree
        ).last_hidden_state[0]
        hidden_LC = hidden_TC.index_select(0, row.source_L)
        vocabulary = self.model.config.vocab_size
        # Under ZeRO-3 each call of the output layer is a collective, so every rank makes one, whatever its pack.
        sharded = hasattr(self.model.get_output_embeddings().weight, "ds_id")
        if not sharded and (not torch.is_grad_enabled() or hidden_LC.shape[0] * vocabulary > KEPT_LOGITS):
            rows = max(1, CHUNK_LOGITS // vocabulary)
            chunks = zip(torch.split(hidden_LC, rows), torch.split(row.target_L, rows), strict=True)
            return torch.cat([checkpoint(self._head, *chunk, use_reentrant=False) for chunk in chunks])
        return self._head(hidden_LC, row.target_L)

    def _head(self, hidden_LC: torch.Tensor, target_L: torch.Tensor) -> torch.Tensor:
        logits_LV = self.model.get_output_embeddings()(hidden_LC)
        if self._softcap is not None:
            logits_LV = torch.tanh(logits_LV / self._softcap) * self._softcap
        return TargetLogprob.apply(logits_LV, target_L)  # type: ignore[no-any-return,no-untyped-call]


class TargetLogprob(torch.autograd.Function):
    """``log_softmax(logits)[target]`` in fp32 from logits of any float type; fp32 exists for one block at a time."""

    @staticmethod
    def forward(ctx: Any, logits_LV: torch.Tensor, target_L: torch.Tensor) -> torch.Tensor:
        """Return ``[L]`` in fp32."""
        kernel = kernels_for(logits_LV)
        if kernel is not None:
            logsumexp_L = torch.empty(len(logits_LV))
            kernel("logsumexp", logits_LV.dtype, logits_LV, logsumexp_L, *logits_LV.shape)
            ctx.save_for_backward(logits_LV, target_L, logsumexp_L)
            return logits_LV.gather(1, target_L[:, None])[:, 0].float() - logsumexp_L
        blocks = [torch.logsumexp(block.float(), dim=-1) for block in torch.split(logits_LV, _rows(logits_LV))]
        logsumexp_L = torch.cat(blocks)
        ctx.save_for_backward(logits_LV, target_L, logsumexp_L)
        return logits_LV.gather(1, target_L[:, None])[:, 0].float() - logsumexp_L

    @staticmethod
    def backward(ctx: Any, grad_L: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """Return ``grad * (onehot(target) - softmax(logits))``."""
        logits_LV, target_L, logsumexp_L = ctx.saved_tensors
        grad_LV = torch.empty_like(logits_LV)
        kernel = kernels_for(logits_LV)
        if kernel is not None:
            sums = (logsumexp_L, grad_L.float().contiguous(), target_L.contiguous())
            kernel("logprob_backward", logits_LV.dtype, logits_LV, *sums, grad_LV, *logits_LV.shape)
            return grad_LV, None
        rows = _rows(logits_LV)
        for start in range(0, len(logits_LV), rows):
            part = slice(start, start + rows)
            block = logits_LV[part].float().sub_(logsumexp_L[part, None]).exp_().mul_(-grad_L[part, None])
            block.scatter_add_(1, target_L[part, None], grad_L[part, None])
            grad_LV[part] = block
        return grad_LV, None


def _rows(logits_LV: torch.Tensor) -> int:
    return max(1, BLOCK_LOGITS.get(logits_LV.device.type, CHUNK_LOGITS) // logits_LV.shape[1])


__all__ = ["LogprobModel", "Row", "TargetLogprob", "to_device"]
