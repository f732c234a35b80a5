"""Taking turns, medians and results: what is the same for every row of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.worker import Worker
from safer_ray.errors import SaferRayError, boundary

LOGS = Path(__file__).parent / "results" / "tmp"
Figures = dict[str, Any]


class BenchmarkError(SaferRayError):
    """A row that could not be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row. ``ours`` and ``reference`` are medians in ``unit``; ``goal`` bounds ``ratio`` or ``ours``.

    ``runs`` holds what was measured, ``settings`` all that the subjects were built with. A row that failed has no
    ``ours``, and ``settings`` say why.
    """

    name: str
    ours: float | None
    reference: float | None
    unit: str
    ratio: float | None
    goal: str
    met: bool
    runs: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Line:
    """A row as it is announced: its name, its unit, and a goal that reads ``ratio >= 4`` or ``ours <= 0.25``."""

    name: str
    unit: str
    goal: str

    def result(self, runs: Mapping[str, Sequence[float]], settings: Mapping[str, Any]) -> Result:
        """Return the row from the values of each side."""
        ours = statistics.median(runs["ours"])
        reference = statistics.median(runs["reference"]) if runs.get("reference") else None
        ratio = ours / reference if reference else None
        what, sign, bound = self.goal.split()
        value = {"ratio": ratio, "ours": ours}[what]
        assert value is not None, f"{self.name}: a goal for the ratio needs a reference"
        met = value >= float(bound) if sign == ">=" else value <= float(bound)
        return Result(
            name=self.name, ours=ours, reference=reference, unit=self.unit, ratio=ratio, goal=self.goal, met=met,
            runs=dict(runs), settings=dict(settings),
        )  # fmt: skip

    def failed(self, why: str) -> Result:
        """Return the row as one that gave no number."""
        return Result(
            name=self.name, ours=None, reference=None, unit=self.unit, ratio=None, goal=self.goal, met=False,
            runs={}, settings={"failed": why},
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one measurement gives: one line of the table or several, in order, within ``deadline_s``."""

    name: str
    lines: tuple[Line, ...]
    measure: Callable[[Bench], Iterator[Result]]
    deadline_s: float

    def results(self, bench: Bench) -> Iterator[Result]:
        """Yield every line; those that could not be measured say why."""
        bench.until = time.monotonic() + self.deadline_s
        missing = {line.name: line for line in self.lines}
        why = "the measurement ended without it"
        try:
            with boundary(BenchmarkError, self.name):
                for found in self.measure(bench):
                    del missing[found.name]
                    yield found
        except SaferRayError as exc:
            why = str(exc)
        for line in missing.values():
            yield line.failed(why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A subject by its import path, with its settings."""

    target: str
    settings: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Bench:
    """How much is measured, and on how many threads; ``sweeps`` remembers what a sweep found.

    ``until`` is the ``time.monotonic`` by which the row that is being measured must be done.
    """

    runs: int
    threads: int
    quick: bool
    console: Console = field(default_factory=lambda: Console(stderr=True, width=160))
    sweeps: dict[str, Any] = field(default_factory=dict)
    until: float = float("inf")
    _count: int = 0

    @property
    def sizes(self) -> int:
        """How many settings of each part of a sweep are tried."""
        return 1 if self.quick else 99

    def take_turns(self, sides: Mapping[str, Side], runs: int | None = None) -> dict[str, list[Figures]]:
        """Build every side in a process of its own, then let them run A B A B; return their figures.

        This machine's speed may drift by the minute; neighbours in time meet the same speed.
        """
        figures: dict[str, list[Figures]] = {name: [] for name in sides}
        with ExitStack() as stack:
            workers = {}
            for name, side in sides.items():
                self._count += 1
                begin = time.perf_counter()
                log = LOGS / f"{self._count:03d}-{side.target.replace(':', '.').split('.', 1)[1]}.log"
                workers[name] = Worker(side.target, {**side.settings, "threads": self.threads}, log, self.until)
                stack.callback(workers[name].close)
                self.say(f"{name}: {side.target} ready in {time.perf_counter() - begin:.0f} s")
            for turn in range(runs or self.runs):
                for name, worker in workers.items():
                    figures[name].append(worker.run())
                    last = figures[name][-1]
                    self.say(f"  run {turn + 1} {name}: {last['seconds']:.2f} s, rate {last['rate']:.4g}")
        return figures

    def say(self, text: str) -> None:
        """Print one line of progress."""
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False)


def values(figures: Sequence[Figures], key: str = "rate") -> list[float]:
    """Return one figure of every run."""
    return [float(each[key]) for each in figures]


__all__ = ["Bench", "BenchmarkError", "Figures", "Line", "Result", "Row", "Side", "values"]
