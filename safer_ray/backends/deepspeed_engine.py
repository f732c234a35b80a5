"""DeepSpeed's engine for one learner rank: its configuration, its optimiser, the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from safer_ray.backends.base import OptimSettings
from safer_ray.errors import ModelError

if TYPE_CHECKING:
    from safer_ray.backends.deepspeed_learner import DeepSpeedLearnerSpec
    from safer_ray.backends.logprobs import LogprobModel


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


def initialize(policy: LogprobModel, config: dict[str, Any]) -> Any:
    """Return a DeepSpeed engine with AdamW over what is trained; matrices may decay, norms and biases never do."""
    import deepspeed
    import torch

    from safer_ray.backends.bf16_step import update_in_parts

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
    update_in_parts(engine)
    return engine


def reset_optimizer(engine: Any, optim: OptimSettings) -> None:
    """Begin a stage: forget the moments, take its weight decay and clipping."""
    wrapped = engine.optimizer
    inner = wrapped.optimizer if hasattr(wrapped, "optimizer") else wrapped
    inner.state.clear()
    if hasattr(wrapped, "_hp_optimizer_states_linked"):  # ZeRO 1 and 2 keep views of the moments, and so the moments
        for parameter in (p for group in wrapped.bit16_groups for p in group):
            if parameter._hp_mapping is not None:
                parameter._hp_mapping.optim_fragment = {}
        wrapped._hp_optimizer_states_linked = False
    for group in wrapped.param_groups:
        group["weight_decay"] = optim.weight_decay if group["decays"] else 0.0
    # DeepSpeed reads the limit from its config for plain fp32, and from the wrapper it copied it to otherwise.
    engine._config.gradient_clipping = optim.max_grad_norm
    wrapped.clip_grad = optim.max_grad_norm


__all__ = ["deepspeed_config", "initialize", "reset_optimizer", "scheduled_lr"]
