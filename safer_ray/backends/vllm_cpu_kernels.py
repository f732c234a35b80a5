"""What vLLM 0.32 computes on CPU operator by operator, or by sorting the vocabulary, done in one pass.

vLLM has a kernel for norms on CPU and calls it on other devices only. Its top-p sorts every row of logits; a
row's likely tokens are found among its greatest few hundred. It packs an embedding for products even where it is
only looked up. All of it is set on the objects of one engine; other engines, other devices and layers that are not
plain stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from safer_ray.backends.host_memory import keep_freed_memory

_LIKELY = 256
"""Tokens looked at first; a row that needs more is sorted. 128 rows of 49,152: 17 ms, and 287 by sorting."""


class CpuKernels:
    """Worker extension: lets the sampler fit each worker to a CPU."""

    model_runner: Any

    def fit_to_cpu(self) -> dict[str, int]:
        """Keep freed memory, set this module's kernels, and return how many modules of each kind have one now."""
        keep_freed_memory()
        used = {"norms": 0, "embeddings": 0, "samplers": 0}
        modules = list(self.model_runner.model.modules())
        with_head = any(isinstance(module, ParallelLMHead) for module in modules)
        for module in modules:
            if type(module) is RMSNorm and module.variance_size_override is None and module.has_weight:
                module._forward_method = _norm(module, module._forward_method)
                used["norms"] += 1
            # Without an output layer of its own a model multiplies with the embedding.
            if with_head and type(module) is VocabParallelEmbedding and _is_plain(module):
                module.quant_method = _Table()
                module.quant_method.process_weights_after_loading(module)
                used["embeddings"] += 1
        sampler = self.model_runner.sampler
        if type(getattr(sampler, "topk_topp_sampler", None)) is TopKTopPSampler:
            sampler.topk_topp_sampler.forward = _drawing(sampler.topk_topp_sampler.forward)
            sampler.gather_logprobs = _gathering(sampler.gather_logprobs)
            used["samplers"] += 1
        return used


def _is_plain(embedding: VocabParallelEmbedding) -> bool:
    return type(embedding.quant_method) is UnquantizedEmbeddingMethod


class _Table(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """An embedding of which no packed copy is kept, nor made again with every new weights."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let go of the packed copy, if there is one."""
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]


def keep_likely(logits_NV: torch.Tensor, top_p_N: torch.Tensor) -> torch.Tensor:
    """Set logits outside the top-p set of their row to -inf, in place, and return them.

    The set holds a token if those likelier than it have less than ``top_p`` of the probability together; so the
    likeliest is always in it. Tokens exactly as likely as the last one in it are, too. With 1 it holds all.
    """
    top_NK = logits_NV.topk(min(_LIKELY, logits_NV.shape[1]), dim=-1).values
    prob_NK = (top_NK - logits_NV.logsumexp(dim=-1, keepdim=True)).exp()
    kept_NK = prob_NK.cumsum(dim=-1) - prob_NK < top_p_N.unsqueeze(1)
    kept_NK[:, 0] = True
    # The kept ones come first, so the last one's logit is where the set ends.
    end_N1 = top_NK.gather(1, kept_NK.sum(dim=-1, keepdim=True) - 1)
    end_N1.masked_fill_(top_p_N.unsqueeze(1) >= 1, -torch.inf)
    unsure_N = kept_NK[:, -1] & (top_p_N < 1)
    sorted_rows = None
    if top_NK.shape[1] < logits_NV.shape[1] and bool(unsure_N.any()):
        sorted_rows = apply_top_k_top_p(logits_NV[unsure_N], None, top_p_N[unsure_N])
    logits_NV.masked_fill_(logits_NV < end_N1, -torch.inf)
    if sorted_rows is not None:
        logits_NV[unsure_N] = sorted_rows
    return logits_NV


def _norm(module: Any, general: Callable[..., Any]) -> Callable[..., Any]:
    """Return RMSNorm by vLLM's kernel, also of a sum that is kept; what the kernel cannot take goes to ``general``."""

    def forward(x_ND: torch.Tensor, residual_ND: torch.Tensor | None = None) -> Any:
        weight_D = module.weight.data
        whole = x_ND.is_contiguous() and (residual_ND is None or residual_ND.is_contiguous())
        if not whole or weight_D.dtype != x_ND.dtype:
            return general(x_ND, residual_ND)
        if residual_ND is not None:
            torch.ops._C.fused_add_rms_norm(x_ND, residual_ND, weight_D, module.variance_epsilon)
            return x_ND, residual_ND
        out_ND = torch.empty_like(x_ND)
        torch.ops._C.rms_norm(out_ND, x_ND, weight_D, module.variance_epsilon)
        return out_ND

    return forward


def _drawing(general: Callable[..., Any]) -> Callable[..., Any]:
    """Return sampling whose top-p sorts only rows that need it; rows with top-k as well go to ``general`` whole."""

    def forward(logits_NV: torch.Tensor, generators: Any, k: torch.Tensor | None, p: torch.Tensor | None) -> Any:
        if k is not None or p is None:
            return general(logits_NV, generators, k, p)
        return general(keep_likely(logits_NV, p), generators, None, None)

    return forward


def _gathering(general: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gathering of log-probs that does not rank a sampled token when only its own log-prob is asked for.

    Ranking compares it with the whole vocabulary, which took a sixteenth of the time of greedy decoding; our samplers
    do not read ranks.
    """

    def gather(logprobs_NV: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        if num_logprobs:
            return general(logprobs_NV, num_logprobs, token_ids)
        ids_N1 = token_ids.unsqueeze(-1)
        return LogprobsTensors(ids_N1.to(torch.int32), logprobs_NV.gather(-1, ids_N1), torch.zeros_like(token_ids))

    return gather
