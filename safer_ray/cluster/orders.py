"""Orders to a run that is going on: a file in its run directory, and another one with the answer.

Both are written aside and renamed, so neither is ever read half-written; the last order counts.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safer_ray.errors import ClusterError, SaferRayError, boundary
from safer_ray.rundir import RunDir

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOrder:
    """How many replicas a run shall have from now on; None: as many as before."""

    order_id: str
    samplers: int | None = None
    judges: int | None = None

    def __post_init__(self) -> None:
        for name in ("samplers", "judges"):
            count = getattr(self, name)
            if count is not None and (not isinstance(count, int) or count < 0):
                raise ValueError(f"{name} must be a whole number of replicas, got {count!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAnswer:
    """What became of an order, in one sentence."""

    order_id: str
    accepted: bool
    text: str


def order_scale(run_dir: RunDir, *, samplers: int | None, judges: int | None, patience_s: float) -> ScaleAnswer:
    """Give a run an order and wait for its answer.

    Raises:
        ClusterError: if there is no answer in time; the order is then withdrawn.
    """
    order = ScaleOrder(order_id=uuid.uuid4().hex, samplers=samplers, judges=judges)
    _write(run_dir.scale_order, asdict(order))
    end = time.monotonic() + patience_s
    try:
        while time.monotonic() < end:
            answer = _read(run_dir.scale_answer)
            if answer and answer.get("order_id") == order.order_id:
                return ScaleAnswer(**answer)
            time.sleep(_LOOK_S)
    finally:
        # Withdrawn also on Ctrl-C, or the next driver would obey it; somebody else's newer order stays.
        if (_read(run_dir.scale_order) or {}).get("order_id") == order.order_id:
            _remove(run_dir.scale_order)
    raise ClusterError(
        f"run {run_dir.root}: its driver did not answer in {patience_s:.0f} s, and the order was withdrawn; "
        "is it starting or ending?"
    )


def take_order(run_dir: RunDir) -> ScaleOrder | None:
    """Return the order that lies in the run directory, if any, and remove it; one that makes no sense is refused."""
    row = _read(run_dir.scale_order)
    if row is None:
        return None
    _remove(run_dir.scale_order)
    try:
        return ScaleOrder(**row)
    except (TypeError, ValueError) as exc:
        give_answer(run_dir, ScaleAnswer(order_id=str(row.get("order_id")), accepted=False, text=f"refused: {exc}"))
        return None


def give_answer(run_dir: RunDir, answer: ScaleAnswer) -> None:
    """Write the answer to an order."""
    _write(run_dir.scale_answer, asdict(answer))


def _remove(path: Path) -> None:
    with boundary(ClusterError, f"{path}: cannot be removed"):
        path.unlink(missing_ok=True)


def _write(path: Path, row: dict[str, Any]) -> None:
    with boundary(ClusterError, f"{path}: cannot be written"):
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(row), encoding="utf-8")
        aside.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with boundary(ClusterError, f"{path}: cannot be read"):
            if not path.exists():
                return None
            row = json.loads(path.read_text(encoding="utf-8"))
    except SaferRayError:  # gone between two looks, or nothing we wrote: the same as no order
        return None
    return row if isinstance(row, dict) else None
