"""Weights on their way from a learner to samplers: gathered, written once, hashed, read, freed.

They travel as one safetensors file with Hugging Face names, in shared memory (``shm://``) or, for samplers on
other machines, in a directory all of them mount (``file://``). The checksum covers every name, dtype, shape and byte
and does not depend on the order of the tensors.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safer_ray.errors import WeightsError, boundary
from safer_ray.records import WeightsRef

if TYPE_CHECKING:
    import numpy
    import torch

SHARED_MEMORY = "/dev/shm"
_PREFIX, _SUFFIX = "safer_ray-", ".safetensors"


def gather_state(module: torch.nn.Module, *, zero_stage: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the whole parameters of a Hugging Face ``module``, by name, tied ones once.

    Under ZeRO stage 3 every parameter is sharded, and gathering is a collective: all ranks iterate to the end, in
    step. Stages 0 to 2 keep whole parameters. A yielded tensor is valid only until the next one is asked for.
    """
    groups: dict[str, list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():  # a tied parameter is listed under its first name only
        groups.setdefault(_layer_of(name), []).append((name, parameter))
    for group in groups.values():
        with _whole([parameter for _, parameter in group], zero_stage):
            for name, parameter in group:
                yield name, parameter.detach()


def _layer_of(name: str) -> str:
    """Return the name up to its first number: one decoder layer is gathered at a time."""
    parts = name.split(".")
    cut = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:cut])


def _whole(parameters: list[torch.nn.Parameter], zero_stage: int) -> AbstractContextManager[Any]:
    if zero_stage < 3:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


def write_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]], version: int, directory: str = SHARED_MEMORY
) -> WeightsRef:
    """Write one version of the weights, aside and renamed, and return where it lies and what it hashes to.

    Raises:
        WeightsError: if there are no tensors, or ``directory`` has no room.
    """
    from safetensors.torch import save_file

    tensors = {name: _own_copy(tensor) for name, tensor in named_tensors}
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    if not tensors:
        raise WeightsError(f"weights v{version}: there are no tensors to write")
    place = Path(directory)
    with boundary(WeightsError, f"weights v{version} in {directory}"):
        free = shutil.disk_usage(place).free
    if free < nbytes:
        raise WeightsError(
            f"weights v{version}: {nbytes / 2**30:.2f} GiB do not fit into {directory} ({free / 2**30:.2f} GiB free);"
            " enlarge it (docker: --shm-size) or name another directory"
        )
    path = place / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}-v{version}{_SUFFIX}"
    aside = path.with_suffix(".partial")
    checksum = combine_digests({name: tensor_digest(tensor) for name, tensor in tensors.items()})
    try:
        with boundary(WeightsError, f"weights v{version}: writing {aside}"):
            save_file(tensors, aside, metadata={"format": "pt", "version": str(version)})
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    scheme = "shm" if path.is_relative_to(SHARED_MEMORY) else "file"
    return WeightsRef(version=version, uri=f"{scheme}://{path}", checksum=checksum, nbytes=nbytes)


def read_weights(ref: WeightsRef) -> dict[str, torch.Tensor]:
    """Return the tensors behind ``ref``, checked. They are mapped, not copied: do not write into them.

    Raises:
        WeightsError: if they are gone, or version or checksum differ.
    """
    tensors = dict(iter_weights(ref))
    found = combine_digests({name: tensor_digest(tensor) for name, tensor in tensors.items()})
    if found != ref.checksum:
        raise WeightsError(f"weights v{ref.version}: {ref.uri} hashes to {found}, expected {ref.checksum}")
    return tensors


def iter_weights(ref: WeightsRef) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors behind ``ref`` as they lie in the file, layer by layer, checksum not compared.

    Raises:
        WeightsError: if the file is gone, unreadable, or of another version.
    """
    from safetensors import safe_open

    path = weights_path(ref)
    if not path.is_file():
        raise WeightsError(
            f"weights v{ref.version}: {path} does not exist; was it freed, or written on another machine?"
        )
    with boundary(WeightsError, f"weights v{ref.version}: reading {path}"):
        with safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get("version")
            if version != str(ref.version):
                raise WeightsError(f"weights v{ref.version}: {path} holds version {version}")
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def free_weights(ref: WeightsRef) -> None:
    """Delete the file behind ``ref``; who has it mapped keeps reading. Safe to call twice."""
    weights_path(ref).unlink(missing_ok=True)


def sweep_weights(directory: str = SHARED_MEMORY) -> int:
    """Delete what writers that no longer run left in ``directory`` and return how many files that were."""
    swept = 0
    for path in Path(directory).glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def weights_path(ref: WeightsRef) -> Path:
    """Return the file behind ``ref``.

    Raises:
        WeightsError: if the uri is neither ``shm://`` nor ``file://``.
    """
    scheme, separator, path = ref.uri.partition("://")
    if not separator or scheme not in ("shm", "file"):
        raise WeightsError(f"weights v{ref.version}: {ref.uri!r} is neither a shm:// nor a file:// uri")
    return Path(path)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hash one tensor: dtype, shape and bytes."""
    import torch
    import xxhash

    data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(data)
    return digest.hexdigest()


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the checksum of named tensors from the digest of each."""
    import xxhash

    total = xxhash.xxh3_128()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode())
    return f"xxh3:{total.hexdigest()}"


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy to host memory: a gathered parameter is gone once the next one is gathered."""
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def read_payload(ref: WeightsRef) -> numpy.ndarray[Any, Any]:
    """Return the bytes behind ``ref`` as one array, for a host that cannot see this one's memory."""
    import numpy

    path = weights_path(ref)
    with boundary(WeightsError, f"weights v{ref.version}: reading {path}"):
        return numpy.fromfile(path, dtype=numpy.uint8)


def land_payload(ref: WeightsRef, payload: numpy.ndarray[Any, Any], directory: str = SHARED_MEMORY) -> WeightsRef:
    """Write bytes that came from another host into this one's shared memory; free them after loading."""
    path = Path(directory) / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}-v{ref.version}{_SUFFIX}"
    with boundary(WeightsError, f"weights v{ref.version}: writing {path}"):
        payload.tofile(path)
    return replace(ref, uri=f"shm://{path}")
