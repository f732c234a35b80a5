"""Saving and restoring what a learner needs to go on as if it had never stopped.

Beside the model a checkpoint keeps the trained parameters at full precision - the model file rounds them - with
adapters unmerged, the reference policy, and every rank's random generator. Optimiser moments are not kept: each stage
begins with a fresh optimiser, and a stage that was cut short begins anew.

Tensors are whole in the files, whatever the ranks hold; names are the module's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safer_ray.backends.bf16_step import full_precision, set_full_precision
from safer_ray.backends.checkpoint import POLICY, REFERENCE, RNG, STATE
from safer_ray.backends.weights import gather_state
from safer_ray.errors import LearnerError, boundary

if TYPE_CHECKING:
    from safer_ray.backends.reference import ReferenceWeights

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """What rank 0 writes; empty on the others. Reference names are ``POLICY/parameter``, generators ``rank-N``."""

    policy: Tensors = field(default_factory=dict)
    reference: Tensors = field(default_factory=dict)
    rng: Tensors = field(default_factory=dict)

    def write(self, checkpoint: Path) -> None:
        """Write into a checkpoint that is not yet in its place."""
        from safetensors.torch import save_file

        folder = checkpoint / STATE
        folder.mkdir(exist_ok=True)
        for name, tensors in ((POLICY, self.policy), (REFERENCE, self.reference), (RNG, self.rng)):
            if tensors:
                save_file(tensors, folder / name)


def trained_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield what is trained, tied parameters once."""
    return ((name, each) for name, each in module.named_parameters() if each.requires_grad)


def collect_state(
    module: torch.nn.Module,
    reference: ReferenceWeights,
    *,
    zero_stage: int,
    rank: int,
    ranks: int,
    rounded: bool = False,
) -> LearnerState:
    """Gather the state of a group; a collective that every rank enters.

    ``rounded`` takes the parameters as the forward pass sees them: only these are as before a step taken back.
    """
    state = LearnerState()
    trained = {name for name, _ in trained_parameters(module)}
    for name, parameter in () if rounded else trained_parameters(module):
        whole = _full_precision(parameter)
        if rank == 0:
            state.policy[name] = whole.cpu().clone()
    for name, tensor in gather_state(module, zero_stage=zero_stage) if rounded else ():
        if rank == 0 and name in trained:
            state.policy[name] = tensor.to("cpu", torch.float32, copy=True)
    for policy in reference.policies:
        with reference.applied(policy):
            for name, tensor in gather_state(module, zero_stage=zero_stage):
                if rank == 0 and name in trained:
                    state.reference[f"{policy}/{name}"] = tensor.cpu().clone()
    generators = [_generators()] * ranks
    if ranks > 1:
        import torch.distributed as dist

        dist.all_gather_object(generators, generators[0])
    if rank == 0:
        for number, found in enumerate(generators):
            state.rng.update({f"rank-{number}/{name}": value for name, value in found.items()})
    return state


def _full_precision(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return a whole parameter as the optimiser holds it, in fp32; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    found: torch.Tensor | None = full_precision(parameter)
    found = safe_get_full_fp32_param(parameter) if found is None else found
    whole = parameter.detach().float() if found is None else found
    return whole.reshape(getattr(parameter, "ds_shape", parameter.shape))


def _generators() -> Tensors:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore_state(
    checkpoint: Path, module: torch.nn.Module, reference: ReferenceWeights, *, rank: int, ranks: int
) -> None:
    """Put a saved state into a freshly built learner.

    With another number of ranks than it was saved with, the random generators begin anew; nothing else depends on it.

    Raises:
        LearnerError: if the state cannot be read, or is not of this model.
    """
    folder = checkpoint / STATE
    parameters = dict(trained_parameters(module))
    with boundary(LearnerError, f"learner state {folder}: it cannot be read"):
        policy = _read(folder / POLICY)
        snapshots = _read(folder / REFERENCE)
        rng = _read(folder / RNG)
    shapes = {name: tuple(getattr(each, "ds_shape", each.shape)) for name, each in parameters.items()}
    if {name: tuple(each.shape) for name, each in policy.items()} != shapes:
        raise LearnerError(
            f"learner state {folder}: it is of another model or other adapters; resume with the model and the "
            "lora_rank the run began with"
        )
    for name, parameter in parameters.items():
        _set_full_precision(parameter, policy[name], rank)
    for kind in sorted({name.split("/", 1)[0] for name in snapshots}):
        shards = [shard_of(snapshots[f"{kind}/{name}"], each, rank) for name, each in parameters.items()]
        reference.restore(kind, shards)
    if sum(name.endswith("/cpu") for name in rng) == ranks:
        torch.set_rng_state(rng[f"rank-{rank}/cpu"])
        if torch.cuda.is_available() and f"rank-{rank}/cuda" in rng:
            torch.cuda.set_rng_state(rng[f"rank-{rank}/cuda"])


def _read(path: Path) -> Tensors:
    from safetensors.torch import load_file

    return load_file(path) if path.exists() else {}


def shard_of(whole: torch.Tensor, parameter: Any, rank: int) -> torch.Tensor:
    """Return this rank's part of a whole tensor: all of it, or the ZeRO-3 partition, padded like DeepSpeed's."""
    if not hasattr(parameter, "ds_tensor"):
        return whole
    size = parameter.ds_tensor.numel()
    flat = whole.flatten()[size * rank : size * (rank + 1)]
    return torch.cat([flat, flat.new_zeros(size - flat.numel())])


def _set_full_precision(parameter: Any, whole: torch.Tensor, rank: int) -> None:
    """Set a parameter's working copy and the optimiser's."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    shard = shard_of(whole, parameter, rank)
    with torch.no_grad():
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data.copy_(shard)
            safe_set_local_fp32_param(parameter, shard.to(parameter.ds_tensor.device))
        else:
            parameter.data.copy_(shard)
            if not set_full_precision(parameter, whole.to(parameter.device)):
                safe_set_full_fp32_param(parameter, whole.to(parameter.device))


__all__ = ["LearnerState", "collect_state", "restore_state", "shard_of", "trained_parameters"]
