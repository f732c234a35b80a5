"""Weights on their way from a learner to samplers: gathered, written once, hashed, read, freed.

They travel as one safetensors file with Hugging Face names, in shared memory (``shm://``) or, for samplers on
other machines, in a directory all of them mount (``file://``). The checksum covers every name, dtype, shape and byte
and does not depend on the order of the tensors.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safer_ray.errors import WeightsError, boundary
from safer_ray.records import WeightsRef

if TYPE_CHECKING:
    import numpy
    import torch

SHARED_MEMORY = "/dev/shm"
_PREFIX, _SUFFIX = "safer_ray-", ".safetensors"
_PADDING = "__padding__"
_HEADER_BYTES = 4 * 2**20
"""Room for the names and shapes of some 30,000 tensors."""
_DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL", "uint8": "U8",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


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
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    version: int,
    directory: str = SHARED_MEMORY,
    *,
    recycled: WeightsRef | None = None,
) -> WeightsRef:
    """Write one version of the weights, aside and renamed, and return where it lies and what it hashes to.

    Every tensor goes straight from where it lies into the file, hashed on the way: beside the file, no more host
    memory is taken than one tensor that comes from a GPU or is not contiguous. ``recycled`` is a version that nobody
    reads any more: its file becomes the new one, so that the system need not find and clear its memory anew. A writer
    without one is new here, perhaps after another was killed: what that left in shared memory is deleted first.

    Raises:
        WeightsError: if there are no tensors, or ``directory`` has no room.
    """
    place = Path(directory)
    path = place / _new_name(version)
    aside = path.with_suffix(".partial")
    try:
        with boundary(WeightsError, f"weights v{version} in {directory}"):
            if recycled is None:
                sweep_weights()
            old = weights_path(recycled) if recycled is not None else None
            if old is not None and old.parent == place and old.is_file():
                os.replace(old, aside)
            else:
                aside.touch(exist_ok=False)
            with aside.open("r+b") as file:
                digests, nbytes = _stream(file, named_tensors, version)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    scheme = "shm" if path.is_relative_to(SHARED_MEMORY) else "file"
    return WeightsRef(version=version, uri=f"{scheme}://{path}", checksum=combine_digests(digests), nbytes=nbytes)


def _stream(
    file: BinaryIO, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
) -> tuple[dict[str, str], int]:
    """Write a safetensors file whose header comes last, into room left for it; return digests and bytes of tensors.

    The format allows blanks after the header but no holes between tensors: what aligns a wide type is a tensor, too.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "version": str(version)}}
    digests: dict[str, str] = {}
    offset = nbytes = 0
    have = file.seek(0, os.SEEK_END)
    file.seek(_HEADER_BYTES)
    with ThreadPoolExecutor(1) as hasher:
        for name, tensor in named_tensors:
            host = tensor.detach().cpu().contiguous()
            unused = max(0, have - _HEADER_BYTES - offset)
            if shutil.disk_usage(Path(file.name).parent).free + unused < host.nbytes:
                raise WeightsError(
                    f"weights v{version}: {name} and what came before it, {(nbytes + host.nbytes) / 2**30:.2f} GiB, do"
                    " not fit; enlarge the directory (docker: --shm-size) or name another one"
                )
            digest = hasher.submit(tensor_digest, host)
            if gap := -offset % host.element_size():
                file.write(bytes(gap))
                header[f"{_PADDING}{offset}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [offset, offset + gap]}
                offset += gap
            file.write(bytes_of(host).data)
            digests[name] = digest.result()
            span = [offset, offset + host.nbytes]
            header[name] = {"dtype": _dtype_name(host), "shape": list(host.shape), "data_offsets": span}
            offset, nbytes = span[1], nbytes + host.nbytes
    if not digests:
        raise WeightsError(f"weights v{version}: there are no tensors to write")
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > _HEADER_BYTES - 8:
        raise WeightsError(f"weights v{version}: {len(digests)} tensors are more than a header can name; merge some")
    file.truncate(_HEADER_BYTES + offset)
    file.seek(0)
    file.write((_HEADER_BYTES - 8).to_bytes(8, "little") + text.ljust(_HEADER_BYTES - 8))
    return digests, nbytes


def _dtype_name(tensor: torch.Tensor) -> str:
    """Return safetensors' name of a type."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise WeightsError(f"weights: tensors of type {name} cannot be published; convert them to bf16 or fp32")
    return _DTYPES[name]


def bytes_of(tensor: torch.Tensor) -> numpy.ndarray[Any, Any]:
    """Return the bytes of a contiguous host tensor, not copied."""
    import torch

    data: numpy.ndarray[Any, Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return data


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
            for name in sorted(name for name in file.keys() if not name.startswith(_PADDING)):  # noqa: SIM118
                yield name, file.get_tensor(name)


def free_weights(ref: WeightsRef) -> None:
    """Delete the file behind ``ref``; who has it mapped keeps reading. Safe to call twice."""
    weights_path(ref).unlink(missing_ok=True)


def sweep_weights(directory: str = SHARED_MEMORY) -> int:
    """Delete what writers that no longer run left in ``directory`` and return how many files that were.

    Containers may share the directory and not see each other's processes: what was written in another process
    namespace is left to whoever sweeps there.
    """
    swept = 0
    for path in Path(directory).glob(f"{_PREFIX}*"):
        pid, _, rest = path.name.removeprefix(_PREFIX).partition("-")
        space, _, _ = rest.partition("-")
        if pid.isdigit() and space == _process_space() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def _new_name(version: int) -> str:
    """Return a file name that no one else writes, and that tells whether its writer still runs."""
    return f"{_PREFIX}{os.getpid()}-{_process_space()}-{uuid.uuid4().hex[:8]}-v{version}{_SUFFIX}"


def _process_space() -> str:
    """Return the number of the namespace in which this process has its pid; "0" where the system has none."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


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
    import xxhash

    digest = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(bytes_of(tensor.detach().cpu().contiguous()))  # type: ignore[arg-type]
    return digest.hexdigest()


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the checksum of named tensors from the digest of each."""
    import xxhash

    total = xxhash.xxh3_128()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode())
    return f"xxh3:{total.hexdigest()}"


def read_payload(ref: WeightsRef) -> numpy.ndarray[Any, Any]:
    """Return the bytes behind ``ref`` as one array, for a host that cannot see this one's memory."""
    import numpy

    path = weights_path(ref)
    with boundary(WeightsError, f"weights v{ref.version}: reading {path}"):
        return numpy.fromfile(path, dtype=numpy.uint8)


def land_payload(ref: WeightsRef, payload: numpy.ndarray[Any, Any], directory: str = SHARED_MEMORY) -> WeightsRef:
    """Write bytes that came from another host into this one's shared memory; free them after loading.

    A sampler killed in between leaves them there: they are deleted first. What does not fit leaves nothing.

    Raises:
        WeightsError: if ``directory`` has no room.
    """
    path = Path(directory) / _new_name(ref.version)
    with boundary(WeightsError, f"weights v{ref.version}: writing {path}"):
        sweep_weights()
        try:
            payload.tofile(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return replace(ref, uri=f"shm://{path}")
