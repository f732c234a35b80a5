"""The reference policy of ERPO: weights of the past, kept as copies of this rank's shards of what is trained.

They are needed once a stage, before its first step, so they lie on disk. Tensors have the shapes of their parameters,
or of their ZeRO-3 shards.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import torch

from safer_ray.backends.base import ReferencePolicy
from safer_ray.backends.weights import bytes_of
from safer_ray.errors import LearnerError, boundary

EMA_DECAY = 0.5
"""The share of the older weights in the ``ema`` reference when the next stage begins."""


class Snapshot:
    """Tensors in a file without a name, in the directory for temporary files: it is gone with the process.

    Raises:
        LearnerError: if they cannot be written, or read back.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._like: list[tuple[torch.Size, torch.dtype]] = []
        place = tempfile.gettempdir()
        with boundary(LearnerError, f"reference policy: {place} cannot hold its weights; set TMPDIR to where they fit"):
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            for tensor in tensors:
                host = tensor.detach().cpu().contiguous()
                self._file.write(bytes_of(host).data)
                self._like.append((host.shape, host.dtype))
            self._file.flush()

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Read them one after the other, so that no two need be in memory."""
        with boundary(LearnerError, f"reference policy: its weights in {tempfile.gettempdir()} cannot be read"):
            self._file.seek(0)
            for shape, dtype in self._like:
                tensor = torch.empty(shape, dtype=dtype)
                if self._file.readinto(bytes_of(tensor).data) != tensor.nbytes:  # type: ignore[attr-defined]
                    raise EOFError("the file has become shorter")
                yield tensor


class ReferenceWeights:
    """Snapshots of the trained parameters of a module.

    ``fixed``: as they were when the first stage that has a reference began. ``previous_round``: as they are when
    a stage begins. ``ema``: an exponential average of the weights at the begin of the stages so far.
    Frozen parameters (below LoRA adapters) are the same in every policy and are not copied. ``forget_gathered`` drops
    whole parameters that ZeRO-3 keeps from the last pass for the next one: they would be those of another policy.
    """

    def __init__(self, module: torch.nn.Module, forget_gathered: Callable[[], None]) -> None:
        self._module = module
        self._forget_gathered = forget_gathered
        self._snapshots: dict[str, Snapshot] = {}

    def begin_stage(self, policy: ReferencePolicy) -> None:
        """Take note of the weights a stage begins with."""
        match policy:
            case "previous_round":
                return
            case "fixed":
                if "fixed" not in self._snapshots:
                    self._snapshots["fixed"] = Snapshot(self._shards())
            case "ema":
                shards, average = self._shards(), self._snapshots.get("ema")
                self._snapshots["ema"] = Snapshot(shards if average is None else _averages(average, shards))

    @property
    def policies(self) -> list[str]:
        """The policies of which weights are kept."""
        return sorted(self._snapshots)

    def restore(self, policy: str, shards: list[torch.Tensor]) -> None:
        """Keep ``shards``, of this rank's shapes, as the weights of a policy: those of a run that goes on."""
        mine = self._shards()
        self._snapshots[policy] = Snapshot(
            shard.to("cpu", own.dtype).reshape(own.shape) for shard, own in zip(shards, mine, strict=True)
        )

    @contextmanager
    def applied(self, policy: str) -> Iterator[None]:
        """Let the module compute as the reference; what it is trained to is put back afterwards, bit for bit."""
        if policy not in self._snapshots:
            yield
            return
        shards, kept = self._shards(), self._copies()
        try:
            self._write(shards, self._snapshots[policy])
            self._forget_gathered()
            yield
        finally:
            self._write(shards, kept)
            self._forget_gathered()

    def copies(self) -> list[torch.Tensor]:
        """Return this rank's shards of the trained weights as they are now."""
        return self._copies()

    def put_back(self, copies: list[torch.Tensor]) -> None:
        """Give the trained weights the values they had."""
        self._write(self._shards(), copies)
        self._forget_gathered()

    def _shards(self) -> list[torch.Tensor]:
        trained = (parameter for parameter in self._module.parameters() if parameter.requires_grad)
        return [
            parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data for parameter in trained
        ]

    def _copies(self) -> list[torch.Tensor]:
        """Copy to host memory: on GPUs that is the memory there is enough of."""
        return [shard.to("cpu", copy=True) for shard in self._shards()]

    @staticmethod
    def _write(shards: list[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
        for shard, value in zip(shards, values, strict=True):
            shard.copy_(value)


def _averages(old: Iterable[torch.Tensor], new: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    for average, shard in zip(old, new, strict=True):
        mixed = EMA_DECAY * average.float() + (1.0 - EMA_DECAY) * shard.cpu().float()
        yield mixed.to(average.dtype)


__all__ = ["EMA_DECAY", "ReferenceWeights", "Snapshot"]
