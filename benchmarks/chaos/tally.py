"""The figures of ``make chaos``."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.chaos.stage import marked_processes


@dataclass(slots=True)
class Tally:
    """The figures of ``make chaos``."""

    runs: int = 0
    faults: int = 0
    lost: int = 0
    duplicates: int = 0
    trained_twice: int = 0
    differing_ledgers: int = 0
    hung: int = 0
    leaked_processes: int = 0
    leaked_shared_memory: int = 0
    tracebacks: int = 0
    resumptions: int = 0
    wall_s: float = 0.0
    """Of the broken runs, added up; runs side by side count each."""
    took_s: float = 0.0
    """Of the whole command, clusters and unbroken runs included; a resumed one adds to it."""
    by_fault: dict[str, int] = field(default_factory=dict)  # a Counter does not survive asdict
    names: list[str] = field(default_factory=list)
    """The runs that were carried out: ``local SEED`` (the driver alone), ``seed SEED`` (on Ray), ``real FAULT``."""
    notes: list[str] = field(default_factory=list)
    """One line per run that was not as it should be."""

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        for name in ("runs", "faults", "lost", "duplicates", "trained_twice", "differing_ledgers", "hung",
                     "leaked_processes", "leaked_shared_memory", "tracebacks", "resumptions"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.by_fault = dict(Counter(self.by_fault) + Counter(other.by_fault))
        self.names = sorted({*self.names, *other.names})
        self.notes += other.notes
        self.wall_s = round(self.wall_s + other.wall_s, 1)
        self.took_s = round(self.took_s + other.took_s, 1)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, done twice, different, stuck or left behind."""
        return not any((self.lost, self.duplicates, self.trained_twice, self.differing_ledgers, self.hung,
                        self.leaked_processes, self.leaked_shared_memory))  # fmt: skip


def left_after(deadline_s: float) -> int:
    """Count what this process started and what still runs after ``deadline_s``; it is killed."""
    end = time.monotonic() + deadline_s
    while marked_processes() and time.monotonic() < end:
        time.sleep(0.2)
    left = marked_processes()
    for process in left:
        process.kill()
    return len(left)
