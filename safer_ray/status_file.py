"""The status file: what a running driver knows that no event tells - workers, queues, work in flight.

Written aside and renamed every few seconds, never flushed to disk and never needed to resume. A reader judges by its
age and by the writer's lock how much it is worth.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safer_ray.core.loop import LoopState

MOST_ITEMS = 2000
"""Open items that are listed one by one; all are counted."""
Pools = Callable[[], list[dict[str, Any]]]


def snapshot(state: LoopState, pools: list[dict[str, Any]], at: float) -> dict[str, Any]:
    """Return the status of a run at time ``at``: open items of each phase, queue depths, workers."""
    phases = {}
    for progress in state.phases:
        items = list(progress.open.items())
        if not items:
            continue
        sampling = sum(1 for _, item in items if item.waiting and item.next == "sample")
        judging = sum(1 for _, item in items if item.waiting and item.next == "judge")
        phases[progress.phase.name] = {
            "open": len(items),
            "sampling": sampling,
            "judging": judging,
            "ready": len(items) - sampling - judging,
            "items": [[index, item.level, item.next] for index, item in items[:MOST_ITEMS]],
        }
    return {
        "at": at,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "policy_version": state.policy_version,
        "late_events": state.ignored,
        "phases": phases,
        "pools": pools,
    }


def write_status(status: dict[str, Any], path: Path) -> None:
    """Write the status aside and rename it."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(status, separators=(",", ":")), encoding="utf-8")
    aside.replace(path)


class StatusWriter:
    """Writes the status file from a thread of its own, so that it stays fresh through a long training step."""

    def __init__(self, state: LoopState, path: Path, pools: Pools, *, every_s: float = 2.0) -> None:
        self._state, self._path, self._pools, self._every_s = state, path, pools, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="status", daemon=True)
        self._thread.start()

    def _keep_writing(self) -> None:
        while True:
            self._write()
            if self._stop.wait(self._every_s):
                return

    def _write(self) -> None:
        try:
            write_status(snapshot(self._state, self._pools(), time.time()), self._path)
        except (OSError, RuntimeError):
            return  # a full disk, or a table that changed while it was read: the next one will do

    def close(self) -> None:
        """Write once more and stop."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._write()
