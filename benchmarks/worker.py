"""One subject of a benchmark in a process of its own, told by its parent when to run.

The parent sends ``run`` lines and gets one JSON line per run, so that two subjects can take turns on the same
cores and each has a memory peak of its own. What a library writes to standard output goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    """The parent's side of one subject.

    Raises:
        RuntimeError: if the subject cannot be built or dies, with the end of its log.
    """

    def __init__(self, target: str, settings: Mapping[str, Any], log: Path) -> None:
        self.target, self.settings, self._log = target, dict(settings), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", target, json.dumps(self.settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, cwd=REPOSITORY, text=True,
            )  # fmt: skip
        self.ready = self._answer()

    def run(self) -> dict[str, Any]:
        """Run the subject once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = self._log.read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{self.target} {self.settings}: ended with {self._process.returncode}\n{tail}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
