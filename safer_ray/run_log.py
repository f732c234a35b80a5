"""What this package logs, kept in the run directory as well: resumed runs append to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class _RunLog(logging.FileHandler):
    """A log file whose disk may fill: that is said once, in a sentence, and stops no run.

    What must not be lost is in the journal, whose writer ends the run when the disk refuses.
    """

    _refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it to the other handlers instead of printing a traceback for each line that was not kept."""
        if not self._refused:
            self._refused = True  # before the warning, which arrives here again
            logging.getLogger(__name__).warning(
                "%s cannot be written, so it lacks lines from here on; free space or fix permissions",
                self.baseFilename,
            )

    def close(self) -> None:
        """Close the file; lines that the disk refused until now stay unwritten."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Keep what is logged in ``path``, too, until the body ends."""
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    ours = logging.getLogger("safer_ray")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()
