"""How soon a run is whole again after a sampler was killed: ``python -m benchmarks.latency``.

A run on the fakes with real Ray actors; its samplers are killed one after another while they work. Every sampler notes
in a common diary when it was ready and when it began each request, the driver's log says when it saw a loss and when a
replica serves. The fakes load weights in no time: what a real engine needs for that is a row of ``make bench``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.soak import TimeIsUp, row
from benchmarks.soak import keep as keep_rows
from safer_ray import specs
from safer_ray.backends.fake import FakeSampler, FakeSamplerSpec
from safer_ray.config_file import find_job, load_config
from safer_ray.core.events import Event
from safer_ray.core.loop import LoopState
from safer_ray.prepare import prepare
from safer_ray.records import Rollout, SampleRequest
from safer_ray.run import execute
from safer_ray.rundir import RunDir

REQUEST_S = 3.0
"""A request takes so long: a sampler that is killed is always at work."""
BETWEEN_KILLS_S = 8.0
SAMPLERS, IN_FLIGHT = 3, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line of the diary: at ``at`` (wall clock, seconds) process ``pid`` was ready, or began or ended a request."""

    at: float
    pid: int
    what: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedSamplerSpec:
    """Builds a fake sampler that keeps the diary."""

    diary: str
    seed: int = 0

    def build(self) -> WatchedSampler:
        """Return the sampler, once it is noted to be ready."""
        sampler = WatchedSampler(FakeSamplerSpec(seed=self.seed, delay_s=REQUEST_S), Path(self.diary))
        sampler.note("ready")
        return sampler


class WatchedSampler(FakeSampler):
    """A fake sampler that notes when it begins and ends a request."""

    def __init__(self, spec: FakeSamplerSpec, diary: Path) -> None:
        super().__init__(spec)
        self._diary = diary

    def note(self, what: str, requests: Iterable[SampleRequest | None] = (None,)) -> None:
        """Append one line per request; short appends of several processes do not mix."""
        rows = [[time.time(), os.getpid(), what, request.request_id if request else ""] for request in requests]
        with self._diary.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """Sample as the fake does, between two notes."""
        self.note("began", requests)
        rollouts = super().sample(requests)
        self.note("ended", requests)
        return rollouts


class Heard(logging.Handler):
    """Keeps when the driver saw a loss, and when a replica began to serve."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[float] = []
        self.serving: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the time of a line that matters here."""
        text = record.getMessage()
        if text.startswith("lost replica="):
            self.lost.append(record.created)
        elif "state=SERVING" in text:
            self.serving.append(record.created)


class Killer(threading.Thread):
    """Kills a sampler that works, again and again; ``kills`` are (time, process)."""

    def __init__(self, diary: Path, wanted: int) -> None:
        super().__init__(daemon=True)
        self.kills: list[tuple[float, int]] = []
        self.ended = threading.Event()
        self._diary = diary
        self._wanted = wanted

    def run(self) -> None:
        """Wait, kill, and leave time to see what comes of the last."""
        rng = random.Random(0)
        while len(self.kills) < self._wanted:
            time.sleep(BETWEEN_KILLS_S)
            busy = sorted({note.pid for note in unfinished(read_diary(self._diary))} - {pid for _, pid in self.kills})
            if busy:
                pid = rng.choice(busy)
                self.kills.append((time.time(), pid))
                os.kill(pid, signal.SIGKILL)
        time.sleep(2 * BETWEEN_KILLS_S)
        self.ended.set()

    def look(self, state: LoopState, event: Event, at: float) -> None:
        """Observe one event: the run ends when the killing has."""
        if self.ended.is_set():
            raise TimeIsUp


def read_diary(path: Path) -> list[Note]:
    """Return all notes in the order of their times."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return sorted(
        (Note(at=at, pid=pid, what=what, request_id=name) for at, pid, what, name in rows), key=lambda n: n.at
    )


def unfinished(notes: Sequence[Note], before: float = float("inf")) -> list[Note]:
    """Return the requests that were begun and not ended at a time."""
    ended = {(note.pid, note.request_id) for note in notes if note.what == "ended" and note.at <= before}
    return [n for n in notes if n.what == "began" and n.at <= before and (n.pid, n.request_id) not in ended]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds from each kill until the driver saw it, from there until each of its requests had begun elsewhere, and
    from each replacement's readiness until it served."""

    seen_s: list[float]
    elsewhere_s: list[float]
    serving_s: list[float]


def delays(notes: Sequence[Note], kills: Sequence[tuple[float, int]], heard: Heard) -> Delays:
    """Put diary, kills and log together."""
    seen_s, elsewhere_s = list[float](), list[float]()
    for at, pid in kills:
        seen = min(moment for moment in heard.lost if moment >= at)
        seen_s.append(seen - at)
        for lost in [note for note in unfinished(notes, at) if note.pid == pid]:
            again = [n.at for n in notes if n.what == "began" and n.request_id == lost.request_id and n.pid != pid]
            elsewhere_s.append(min(moment for moment in again if moment > lost.at) - seen)
    ready = [note.at for note in notes if note.what == "ready" and note.at > kills[0][0]]
    serving_s = [min(moment for moment in heard.serving if moment >= at) - at for at in ready]
    return Delays(seen_s=seen_s, elsewhere_s=elsewhere_s, serving_s=serving_s)


def watched(kills: int, scratch: Path) -> Delays:
    """Run, kill, and say how long everything took."""
    diary, heard = scratch / "diary.jsonl", Heard()
    killer = Killer(diary, kills)
    specs.FakeSamplerSpec = partial(WatchedSamplerSpec, diary=str(diary))  # type: ignore[misc, assignment]
    logging.getLogger("safer_ray.cluster").addHandler(heard)
    logging.getLogger("safer_ray").setLevel(logging.INFO)
    overrides = [
        "stages=[evaluate]", "evaluate.max_unsafe=0", "evaluate.max_safe=0", f"sampler.replicas={SAMPLERS}",
        f"loop.max_in_flight={IN_FLIGHT}", "loop.max_tries=9", "sampler.resources.cpus=0.1",
    ]  # fmt: skip
    prep = prepare(load_config(find_job("tiny_fake"), overrides))
    killer.start()
    with contextlib.suppress(TimeIsUp):
        execute(prep, RunDir(scratch / "run"), observe=killer.look)
    if not killer.ended.is_set():
        raise SystemExit(f"the run ended after {len(killer.kills)} of {kills} kills; ask for fewer")
    return delays(read_diary(diary), killer.kills, heard)


def main() -> None:
    """Measure, and keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--kills", type=int, default=8)
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as scratch:
        found = watched(arguments.kills, Path(scratch))
    settings = {"kills": arguments.kills, "samplers": SAMPLERS, "in_flight": IN_FLIGHT, "load_before": load}

    def rows(name: str, values: list[float], goal: str | None) -> list[dict[str, object]]:
        middle = row(f"{name}_median", statistics.median(values), "s", n=len(values), **settings)
        return [middle, row(f"{name}_max", max(values), "s", goal, n=len(values), **settings)]

    keep_rows(
        [
            *rows("killed_sampler_seen", found.seen_s, None),
            *rows("killed_samplers_work_elsewhere", found.elsewhere_s, "<= 5"),
            *rows("ready_sampler_serves", found.serving_s, "<= 3"),
        ]
    )


if __name__ == "__main__":
    main()
