"""One subject of a benchmark in a process of its own, told by its parent when to run.

The parent sends ``run`` lines and gets one JSON line per run, so that two subjects can take turns on the same
cores and each has a memory peak of its own. What a library writes to standard output goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO

REPOSITORY = Path(__file__).parents[1]


class Subject(Protocol):
    """What is measured. It is built with its settings, warm-up included, before the first run."""

    def run(self) -> dict[str, Any]:
        """Do the work once; return at least ``seconds``."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Worker:
    """The parent's side of one subject. ``until`` is the ``time.monotonic`` by which every answer must have come.

    Raises:
        RuntimeError: if the subject cannot be built or dies, with the end of its log.
        TimeoutError: if it did not answer by ``until``; it is ended then.
    """

    def __init__(self, target: str, settings: Mapping[str, Any], log: Path, until: float = float("inf")) -> None:
        self.target, self.settings, self._log, self._until = target, dict(settings), log, until
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", target, json.dumps(self.settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, cwd=REPOSITORY, text=True,
                start_new_session=True,  # a group of its own, so that what it started ends with it
            )  # fmt: skip
        self.ready = self._answer()

    def run(self) -> dict[str, Any]:
        """Run the subject once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        left = max(0.0, self._until - time.monotonic())
        if not select.select([stdout], [], [], None if left == float("inf") else left)[0]:
            self._kill()
            raise TimeoutError(f"{self.target}: no answer by the deadline of the row, so it was ended")
        line = stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self._kill()
            tail = self._log.read_text(errors="replace").strip()[-400:]
            raise RuntimeError(f"{self.target}: ended with {self._process.returncode}: {tail}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._kill()
        self._let_go()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def peak_rss_mib(*, reset: bool = False) -> float:
    """Return this process's peak resident memory since the last reset (Linux)."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) / 1024


def _serve(subject: Subject, answers: TextIO) -> None:
    peak_rss_mib(reset=True)
    answers.write(json.dumps({"ready": True, **getattr(subject, "facts", {})}) + "\n")
    answers.flush()
    for _ in sys.stdin:
        figures = subject.run()
        answers.write(json.dumps({**figures, "peak_rss_mib": peak_rss_mib()}) + "\n")
        answers.flush()
    subject.close()


def main() -> None:
    """Build the subject named on the command line and serve it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    subject: Subject = getattr(import_module(module), name)(**json.loads(sys.argv[2]))
    _serve(subject, answers)
    # Engines leave threads behind that would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
