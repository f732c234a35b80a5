"""The policy a learner trains: loaded with tree attention, with LoRA adapters if asked, and read back merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from safer_ray.backends.models import resolve_model
from safer_ray.backends.weights import gather_state
from safer_ray.errors import ModelError, boundary

if TYPE_CHECKING:
    import torch

    from safer_ray.backends.logprobs import LogprobModel

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_SCALE = 2.0
"""alpha / rank; an adapter adds ``LORA_SCALE * B @ A`` to its layer."""
_BASE = ".base_layer."


def torch_dtype(name: Literal["bf16", "fp32"]) -> torch.dtype:
    """Return the dtype of the working weights."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def load_policy(
    model: str, *, dtype: Literal["bf16", "fp32"], trust_remote_code: bool, zero3_config: dict[str, Any] | None
) -> LogprobModel:
    """Load a model for training. With a ZeRO-3 config every rank keeps its shard only, from the first tensor on.

    Raises:
        ModelError: if it cannot be found or read, or is of a type that packed training does not know.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig
    from transformers.utils.logging import disable_progress_bar

    from safer_ray.backends.logprobs import LogprobModel
    from safer_ray.backends.tree_attention import check_model_type, register

    disable_progress_bar()  # type: ignore[no-untyped-call]
    place = str(resolve_model(model))
    with boundary(ModelError, f"model {model}: it cannot be loaded for training"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        check_model_type(model, config.model_type)
        # While this object lives, transformers shards whatever it loads.
        sharding = HfDeepSpeedConfig(zero3_config) if zero3_config else None  # type: ignore[no-untyped-call]
        loaded = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=torch_dtype(dtype),
            attn_implementation=register(),
            use_safetensors=True,  # anything else is unpickled
            trust_remote_code=trust_remote_code,
        )
        del sharding
    return LogprobModel(loaded.train())


def add_lora(policy: LogprobModel, *, rank: int, seed: int) -> None:
    """Put a LoRA adapter on every linear layer and freeze the rest; the model computes the same as before."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=int(LORA_SCALE * rank), target_modules=list(LORA_TARGETS), bias="none")
    dtype = policy.model.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # every rank starts from the same adapter
        inject_adapter_in_model(config, policy.model)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def merged_state(policy: LogprobModel, *, zero_stage: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield whole weights under their plain Hugging Face names, adapters merged in; a collective under ZeRO-3.

    The trained weights stay as they are: adding an adapter in bf16 and taking it off again would not restore them.
    """
    base: tuple[str, torch.Tensor] | None = None
    down: torch.Tensor | None = None
    for name, tensor in gather_state(policy.model, zero_stage=zero_stage):
        if name.endswith(f"{_BASE}weight"):
            base = name.replace(_BASE, "."), tensor.clone()
        elif ".lora_A." in name:
            down = tensor.clone()
        elif ".lora_B." in name:
            assert base is not None  # a layer's own weight comes before its adapter's
            assert down is not None
            delta = LORA_SCALE * (tensor.float() @ down.float())
            yield base[0], (base[1].float() + delta).to(base[1].dtype)
            base = down = None
        else:
            yield name.replace(_BASE, "."), tensor


__all__ = ["LORA_SCALE", "add_lora", "load_policy", "merged_state", "torch_dtype"]
