"""One run, broken as planned and resumed until it is done or its deadline has passed."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos import local
from benchmarks.chaos.faults import Fault, Kind
from benchmarks.chaos.stage import Driver, SmallDisk, Stage, last_words, workers
from safer_ray.journal import JOURNAL

_POLL_S = 0.01
_PAUSE_S = 2.0
"""How long a delay or a full disk lasts."""
_PATIENCE_S = 5.0
_MOST_DRIVERS = 14


@dataclass(slots=True)
class Broken:
    """How a broken run went."""

    done: list[str] = field(default_factory=list)
    drivers: int = 0
    hung: bool = False
    tracebacks: int = 0
    wall_s: float = 0.0
    said: list[str] = field(default_factory=list)
    """The last line of each driver that did not end well."""


class Breaker:
    """Carries one run out and breaks it."""

    def __init__(self, stage: Stage | None, disk: SmallDisk, words: list[str], *, deadline_s: float) -> None:
        """Without a stage the driver has everything in itself, and ``words`` are those of ``local.drive``."""
        self._stage = stage
        self._disk = disk
        self._words = words
        self._deadline_s = deadline_s
        self._journal = disk.root / "run" / JOURNAL
        self._output = disk.root.with_suffix(".log")
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._result = Broken()
        self._tried_since = 0.0
        self._driver: Driver

    def carry_out(self, faults: list[Fault]) -> Broken:
        """Return how it went. An interruption ends the driver, too, or its disk could not be unmounted."""
        self._start()
        try:
            return self._until_done(deque(faults))
        finally:
            if self._driver.code is None:
                self._driver.kill()

    def _until_done(self, waiting: deque[Fault]) -> Broken:
        begun = time.monotonic()
        while time.monotonic() - begun < self._deadline_s:
            self._due()
            code = self._driver.code
            if code == 0:
                break
            if code is not None:
                if self._result.drivers >= _MOST_DRIVERS:
                    self._result.said.append(f"gave up after {_MOST_DRIVERS} drivers")
                    self._result.hung = True
                    break
                self._mend()
                self._start()
            elif waiting and self._lines() >= waiting[0].at_line:
                self._try(waiting)
            time.sleep(_POLL_S)
        else:
            self._result.hung = True
            self._driver.kill()
        self._mend()
        self._result.wall_s = round(time.monotonic() - begun, 1)
        return self._result

    def _try(self, waiting: deque[Fault]) -> None:
        """Do what is due; what finds no victim for some seconds is left out, so that the others come to pass."""
        if self._inject(waiting[0]):
            self._result.done.append(waiting.popleft().kind)
            self._tried_since = 0.0
        elif not self._tried_since:
            self._tried_since = time.monotonic()
        elif time.monotonic() - self._tried_since > _PATIENCE_S:
            waiting.popleft()
            self._tried_since = 0.0

    def _start(self) -> None:
        resume = ["--resume"] if self._journal.exists() and self._stage else []
        self._driver = Driver([*self._words, *resume], self._output, None if self._stage else local.drive)
        self._result.drivers += 1

    def _mend(self) -> None:
        """Do at once what was to come later, and note what a driver that failed said last."""
        for _, act in self._later:
            act()
        self._later.clear()
        if self._driver.code not in (0, -signal.SIGKILL) and self._output.exists():
            text = self._output.read_text(encoding="utf-8", errors="replace")
            self._result.tracebacks += "Traceback (most recent call last)" in text
            self._result.said.append(last_words(text, self._disk.root))
        with suppress(FileNotFoundError):
            self._output.unlink()

    def _due(self) -> None:
        now = time.monotonic()
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            item[1]()

    def _lines(self) -> int:
        try:
            return self._journal.read_bytes().count(b"\n")
        except OSError:
            return 0

    def _inject(self, fault: Fault) -> bool:
        """Do it; return False if there is nothing to do it to yet."""
        match fault.kind:
            case "kill sampler" | "kill judge" | "kill learner":
                return self._signal(fault.kind.removeprefix("kill "), fault.pick, signal.SIGKILL) is not None
            case "delay":
                role = ("sampler", "judge", "driver")[int(fault.pick * 3)] if self._stage else "driver"
                victim = psutil.Process(self._driver.pid) if role == "driver" else None
                victim = victim or self._signal(role, fault.pick, signal.SIGSTOP)
                if victim is None:
                    return False
                os.kill(victim.pid, signal.SIGSTOP)
                self._soon(lambda: _continue(victim))
            case "kill driver":
                self._driver.kill()
            case "kill raylet":
                assert self._stage is not None, "only a cluster has raylets"
                self._stage.lose_node()
                self._soon(self._stage.grow)
            case "torn journal line":
                self._driver.kill()
                _tear(self._journal, fault.pick)
            case "truncated shard":
                return self._cut_shard(fault.pick)
            case "full disk":
                self._disk.fill()
                self._soon(self._disk.free)
        return True

    def _soon(self, act: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + _PAUSE_S, act))

    def _signal(self, role: str, pick: float, number: int) -> psutil.Process | None:
        found = workers(role)
        if not found:
            return None
        victim = found[int(pick * len(found))]
        with suppress(ProcessLookupError):
            os.kill(victim.pid, number)
        return victim

    def _cut_shard(self, pick: float) -> bool:
        """Kill the driver, then cut one of the shards that are there to half its length."""
        if not list(self._journal.parent.glob("shards/*/*.arrow")):
            return False
        self._driver.kill()
        shards = sorted(self._journal.parent.glob("shards/*/*.arrow"))
        if shards:
            shard = shards[int(pick * len(shards))]
            os.truncate(shard, shard.stat().st_size // 2)
        return bool(shards)


def _continue(victim: psutil.Process) -> None:
    with suppress(psutil.Error):
        victim.resume()


def _tear(journal: Path, pick: float) -> None:
    """Cut the last line in its middle, as a crash during the write does; never into the first line."""
    raw = journal.read_bytes()
    last = raw.rstrip(b"\n").rfind(b"\n") + 1
    if last > 0:
        os.truncate(journal, last + max(1, int(pick * (len(raw) - last - 1))))


__all__ = ["Breaker", "Broken", "Kind"]
