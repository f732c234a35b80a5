"""How much memory a model takes, from its config alone: nothing is downloaded but a small JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safer_ray.errors import ModelError, boundary

GIB = 2**30
ADAM_BYTES = 8
"""Two fp32 moments per trained parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes that decide memory. ``kv_bytes_per_token`` is for bf16 keys and values of all layers."""

    parameters: int
    kv_bytes_per_token: int


def model_size(model: str | Path, *, trust_remote_code: bool = False) -> ModelSize:
    """Count parameters on the meta device: shapes only, no weights.

    Raises:
        ModelError: if the config cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with boundary(ModelError, f"model {model}: its config cannot be read"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * 2 * config.num_hidden_layers * heads * head_dim
    return ModelSize(parameters=sum(p.numel() for p in shell.parameters()), kv_bytes_per_token=per_token)


def rank_gib(size: ModelSize, *, zero_stage: int, ranks: int, weight_bytes: int) -> float:
    """Estimate one learner rank's memory for weights, gradients and optimiser, activations left out.

    Forward weights and gradients take ``weight_bytes`` each, Adam's moments 8 bytes a parameter and ZeRO's fp32 master
    4; without ZeRO only what the weights lack of fp32 is kept. ZeRO 1 shares the last two over the ranks, 2 the
    gradients as well, 3 everything.
    """
    master = 4 if zero_stage else 4 - weight_bytes
    weights, gradients, optimiser = weight_bytes, weight_bytes, master + ADAM_BYTES
    shared = {0: 0, 1: optimiser, 2: optimiser + gradients, 3: optimiser + gradients + weights}[zero_stage]
    own = weights + gradients + optimiser - shared
    return size.parameters * (own + shared / ranks) / GIB


def engine_gib(size: ModelSize, *, kv_cache_gib: float, tensor_parallel: int, weight_bytes: int) -> float:
    """Estimate one engine worker's memory: its share of the weights, and the key-value cache."""
    return size.parameters * weight_bytes / tensor_parallel / GIB + kv_cache_gib
