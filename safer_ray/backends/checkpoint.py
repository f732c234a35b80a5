"""What a learner's checkpoint carries beside the model: which training it includes, and what to go on with.

    checkpoints/erpo-1/                     an ordinary Hugging Face checkpoint
      training_state/manifest.json          stages included, row fingerprints, ranks, digests of the files
      training_state/policy.safetensors     the trained parameters at full precision, adapters unmerged
      training_state/reference.safetensors  the reference policy, where it is not simply the last round's
      training_state/rng.safetensors        the random generator of every rank

The directory appears whole or not at all. Only the newest checkpoint keeps its tensors; all keep their manifest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import xxhash

from safer_ray.backends.base import TrainTask
from safer_ray.errors import LearnerError
from safer_ray.tables import file_digest

STATE = "training_state"
MANIFEST = "manifest.json"
POLICY, REFERENCE, RNG = "policy.safetensors", "reference.safetensors", "rng.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Included:
    """One training stage whose effect is in the weights.

    ``rows`` pairs or traces were trained on, ``row_ids`` is the digest of their ids in order, ``data`` that of the
    file, ``steps`` counts optimiser steps.
    """

    stage: str
    rows: int
    row_ids: str
    data: str
    steps: int


def ids_digest(ids: Sequence[str]) -> str:
    """Return the fingerprint of row ids in order."""
    digest = blake2b(digest_size=16)
    for row_id in ids:
        digest.update(row_id.encode() + b"\0")
    return digest.hexdigest()


def included_stage(task: TrainTask, row_ids: Sequence[str], *, steps: int) -> Included:
    """Return the note of a stage that will be in the weights once its ``steps`` are done."""
    data = file_digest(Path(task.data_path)) or ""
    return Included(stage=task.stage, rows=len(row_ids), row_ids=ids_digest(row_ids), data=data, steps=steps)


def write_checkpoint_manifest(folder: Path, included: Sequence[Included], *, ranks: int, note: Any = None) -> None:
    """Write the manifest of a checkpoint that lies complete in ``folder``; ``note`` is the backend's own, JSON."""
    state = folder / STATE
    state.mkdir(exist_ok=True)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3": _file_hash(path)}
        for path in sorted(folder.rglob("*.safetensors"))
    }
    manifest = {"includes": [asdict(stage) for stage in included], "ranks": ranks, "files": files, "note": note}
    (state / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def replace_checkpoint(aside: Path, target: Path) -> None:
    """Flush a finished checkpoint to disk and give it its name; what had that name before is removed."""
    for path in aside.rglob("*"):
        if path.is_file():
            with path.open("rb") as source:
                os.fsync(source.fileno())
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)


def _file_hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as source:
        while block := source.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, None where a learner of an older version wrote it.

    Raises:
        LearnerError: if there is one that cannot be read.
    """
    path = checkpoint / STATE / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise LearnerError(f"checkpoint manifest {path}: cannot be read ({exc}); restore it from a copy") from exc
    if not isinstance(found, dict):
        raise LearnerError(f"checkpoint manifest {path}: no object in it; restore it from a copy")
    return found


def checkpoint_facts(checkpoint: Path) -> dict[str, Any]:
    """Return what the journal notes of a checkpoint: the training it includes, ranks, digests of its files."""
    manifest = read_manifest(checkpoint) or {}
    return {name: manifest[name] for name in ("includes", "ranks", "files") if name in manifest}


def damaged_files(checkpoint: Path, facts: dict[str, Any]) -> list[str]:
    """Return the files of a checkpoint that are not as the journal noted them, each with why."""
    faults = []
    for name, noted in facts.get("files", {}).items():
        path = checkpoint / name
        if not path.is_file():
            faults.append(f"{name} is gone")
        elif path.stat().st_size != noted["bytes"]:
            faults.append(f"{name} has {path.stat().st_size} bytes, not {noted['bytes']}")
        elif _file_hash(path) != noted["xxh3"]:
            faults.append(f"{name} holds other bytes than when it was written")
    return faults


def has_state(checkpoint: Path) -> bool:
    """Whether a learner can go on from the checkpoint exactly as if it had never stopped."""
    return (checkpoint / STATE / POLICY).is_file()


def drop_state(checkpoint: Path) -> None:
    """Remove what only the newest checkpoint needs; the model and the manifest stay."""
    for name in (POLICY, REFERENCE, RNG):
        (checkpoint / STATE / name).unlink(missing_ok=True)


__all__ = [
    "MANIFEST", "POLICY", "REFERENCE", "RNG", "STATE", "Included", "checkpoint_facts", "damaged_files", "drop_state",
    "has_state", "ids_digest", "included_stage", "read_manifest", "replace_checkpoint", "write_checkpoint_manifest",
]  # fmt: skip
