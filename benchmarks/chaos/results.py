"""The results file of ``make chaos``: figures of the runs carried out so far, written after each of them.

Several processes add to it; a flock on a file beside it keeps them apart. So a part that was interrupted, or run on
another day, is gone on with: what ``names`` lists is not carried out again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos.tally import Tally
from safer_ray.tables import write_whole

Keep = Callable[[Tally], None]
"""Called with the figures of each run as soon as it is over."""


def forget(tally: Tally) -> None:
    """Keep nothing."""


class Results:
    """Figures in a JSON file, ``{}`` where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> Tally:
        """Return what was carried out so far."""
        return Tally(**json.loads(self.path.read_text(encoding="utf-8"))) if self.path.exists() else Tally()

    def add(self, tally: Tally) -> None:
        """Count another tally in and write the file."""
        with self._alone():
            total = self.read()
            total.add(tally)
            figures: dict[str, Any] = asdict(total)
            write_whole((json.dumps(figures, indent=1) + "\n").encode(), self.path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Remove what only writers need."""
        self.path.with_suffix(".lock").unlink(missing_ok=True)
