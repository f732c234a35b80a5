"""Reference log-probs kept on disk, so that no token is put to the same reference twice.

A log-prob depends on the reference policy, on the token and on all tokens before it. The key of a token is a hash of
its path from the root of its tree, chained token by token; so a prompt that comes back with other siblings, in another
pack or after a resume finds what it shares. Values are those of the pack a token was first computed in: in bf16
another pack would differ in the last bits.

Letters: T tokens of a row, L log-probs of a pack.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import xxhash

from safer_ray.backends.weights import combine_digests, tensor_digest
from safer_ray.core.packing import Pack
from safer_ray.errors import LearnerError, boundary

logger = logging.getLogger(__name__)
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("logp", "<f4")])
_SUFFIX = ".npy"
Records = npt.NDArray[Any]


def reference_checksum(model: Any) -> str:
    """Hash what a policy computes with: its configuration and every parameter, over all ranks that hold shards.

    A collective if there is a process group. Under ZeRO-3 the checksum depends on the number of ranks.
    """
    shards = (
        (name, parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data)
        for name, parameter in model.named_parameters()
    )
    digests = {name: tensor_digest(shard) for name, shard in shards}
    digests["config"] = xxhash.xxh3_128_hexdigest(
        json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode()
    )
    mine = combine_digests(digests)
    found: list[Any] = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
    return combine_digests({str(rank): digest for rank, digest in enumerate(found)}).removeprefix("xxh3:")


def path_keys(row: Pack) -> Records:
    """Return ``[L, 2]``: per log-prob the 128-bit hash of its target's path from the root.

    ``source_L`` is where the path to the target ends, so the target's key chains the target onto the source's.
    """
    parent_T = np.full(row.tokens, -1, dtype=np.int64)
    for node in row.nodes:
        parent_T[node.start : node.stop] = np.arange(node.start - 1, node.stop - 1)
        parent_T[node.start] = row.nodes[node.parent].stop - 1 if node.parent >= 0 else -1
    ids_T = row.input_ids_T.astype("<i8")
    digests_T: list[bytes] = []
    for token, parent in zip(ids_T, parent_T.tolist(), strict=True):
        digests_T.append(_chain(digests_T[parent] if parent >= 0 else b"", token))
    chained = [
        _chain(digests_T[source], target)
        for source, target in zip(row.source_L.tolist(), row.target_L.astype("<i8"), strict=True)
    ]
    return np.frombuffer(b"".join(chained), dtype="<u8").reshape(-1, 2)


def _chain(before: bytes, token: np.int64) -> bytes:
    return xxhash.xxh3_128_digest(before + token.tobytes())


class ReferenceCache:
    """The log-probs of one reference policy, in segments that appear whole or not at all."""

    def __init__(self, directory: str | Path, checksum: str) -> None:
        """Read what is there; a segment that cannot be read is passed over, its tokens are computed again."""
        self._folder = Path(directory) / checksum
        segments = [records for path in sorted(self._folder.glob(f"*{_SUFFIX}")) for records in _read(path)]
        self._records = _sorted(segments)

    def __len__(self) -> int:
        return len(self._records)

    def find(self, packs: Sequence[Pack]) -> dict[int, torch.Tensor]:
        """Return ``[L]`` per pack all of whose log-probs are known."""
        found = {}
        for index, row in enumerate(packs):
            logps_L = self._look_up(path_keys(row))
            if logps_L is not None:
                found[index] = torch.from_numpy(logps_L)
        return found

    def _look_up(self, keys_L2: Records) -> npt.NDArray[np.float32] | None:
        # Equal high halves of different keys are one in 2^64: then the pack is computed again.
        at_L = np.searchsorted(self._records["high"], keys_L2[:, 0])
        if len(keys_L2) and (not len(self._records) or int(at_L.max()) >= len(self._records)):
            return None
        records_L = self._records[at_L]
        same = (records_L["high"] == keys_L2[:, 0]) & (records_L["low"] == keys_L2[:, 1])
        return records_L["logp"].copy() if bool(same.all()) else None

    def keep(self, packs: Sequence[Pack], logps: Mapping[int, torch.Tensor]) -> None:
        """Write the log-probs ``[L]`` of some packs as one segment.

        Raises:
            LearnerError: if the disk refuses.
        """
        if not logps:
            return
        segment = _sorted([_records(packs[index], logps_L) for index, logps_L in logps.items()])
        path = self._folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        aside = path.with_suffix(".part")
        with boundary(LearnerError, f"reference log-probs: {path} cannot be written; free space or fix permissions"):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    np.save(file, segment)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        self._records = _sorted([self._records, segment])


def missing_anywhere(found: Mapping[int, torch.Tensor], packs: int) -> list[int]:
    """Return the packs that some rank has to compute: a forward is a collective, so all ranks must agree on them."""
    mine = [index for index in range(packs) if index not in found]
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    shares: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, mine)
    return sorted({index for share in shares for index in share})


def _records(row: Pack, logps_L: torch.Tensor) -> Records:
    keys_L2 = path_keys(row)
    records_L = np.empty(len(keys_L2), dtype=_RECORD)
    records_L["high"], records_L["low"] = keys_L2[:, 0], keys_L2[:, 1]
    records_L["logp"] = logps_L.float().numpy()
    return records_L


def _sorted(segments: Iterable[Records]) -> Records:
    """Join segments, sorted by key, each key once."""
    joined = np.concatenate([np.empty(0, dtype=_RECORD), *segments])
    joined = joined[np.lexsort((joined["low"], joined["high"]))]
    first = np.ones(len(joined), dtype=bool)
    first[1:] = (joined["high"][1:] != joined["high"][:-1]) | (joined["low"][1:] != joined["low"][:-1])
    kept: Records = joined[first]
    return kept


def _read(path: Path) -> list[Records]:
    try:
        records = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        logger.warning("reference log-probs: skipped %s (%s)", path.name, exc)
        return []
    if records.dtype != _RECORD or records.ndim != 1:
        logger.warning("reference log-probs: skipped %s (not a segment)", path.name)
        return []
    return [records]


__all__ = ["ReferenceCache", "missing_anywhere", "path_keys", "reference_checksum"]
