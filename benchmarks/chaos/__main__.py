"""``python -m benchmarks.chaos``: break runs on fakes and on the real stack, print and write what came of it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.chaos import local
from benchmarks.chaos.breaking import Breaker, Broken
from benchmarks.chaos.faults import KINDS, Kind, plan_faults
from benchmarks.chaos.ledger import Ledger, read_ledger
from benchmarks.chaos.results import Keep, Results, forget
from benchmarks.chaos.stage import SmallDisk, Stage, end_orderly, marked_environment, shared_memory, workers
from benchmarks.chaos.tally import Tally, left_after
from safer_ray.config_file import find_job, load_config
from safer_ray.journal import JOURNAL
from safer_ray.prepare import Preparation, prepare

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"
DEADLINE_S = 300.0
GONE_S = 20.0
JOB_SEEDS = 4
"""Broken runs share this many unbroken ones to be compared with."""
PLACES = ("sampler.resources.custom.worker=1", "learner.resources.custom.worker=1")
"""Samplers and ranks live on the node whose raylet is killed; drivers and judges on the head."""
POOLS = ((2, 2), (1, 2), (1, 1), (2, 1))
"""Samplers and judges by seed of the job: with one of a kind all its work waits for the replacement."""


class Fakes:
    """Broken runs of the tiny job on a real Ray cluster with fake samplers, judges and learner."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stage = Stage()
        self._whole: dict[int, tuple[Preparation, Ledger, int]] = {}
        self.mounts = True

    def _words(self, job_seed: int, root: Path) -> list[str]:
        samplers, judges = POOLS[job_seed % len(POOLS)]
        sets = (f"seed={job_seed}", f"sampler.replicas={samplers}", f"judge.replicas={judges}",
                f"cluster.address={self._stage.address}", "loop.max_tries=20",
                "loop.start_deadline_s=120", "loop.call_deadline_s=30", *PLACES)  # fmt: skip
        return ["run", "tiny_fake", f"--run-dir={root}", *(word for each in sets for word in ("--set", each))]

    def _unbroken(self, job_seed: int) -> tuple[Preparation, Ledger, int]:
        """Carry the run out that nobody breaks, once per seed of the job."""
        if job_seed not in self._whole:
            disk = SmallDisk(self._scratch / f"whole-{job_seed}")
            root = disk.root / "run"
            try:
                words = self._words(job_seed, root)
                result = Breaker(self._stage, disk, words, deadline_s=DEADLINE_S).carry_out([])
                if result.hung or result.drivers > 1:
                    raise SystemExit(f"the run that nobody breaks failed: {result.said}")
                prep = prepare(load_config(find_job("tiny_fake"), [f"seed={job_seed}"]))
                lines = (root / JOURNAL).read_bytes().count(b"\n")
                self._whole[job_seed] = prep, read_ledger(prep, root), lines
            finally:
                disk.close()
        return self._whole[job_seed]

    def broken(self, seed: int) -> Tally:
        """Break one run and compare it with the unbroken one."""
        job_seed = seed % JOB_SEEDS
        prep, whole, lines = self._unbroken(job_seed)
        disk, memory = SmallDisk(self._scratch / f"run-{seed}"), shared_memory()
        self.mounts &= disk.mounted
        try:
            words = self._words(job_seed, disk.root / "run")
            breaker = Breaker(self._stage, disk, words, deadline_s=DEADLINE_S)
            result = breaker.carry_out(plan_faults(seed, lines, _possible(KINDS, disk)))
            tally = judged(result, prep, whole, disk.root / "run", f"seed {seed}")
            tally.leaked_processes = len(self._left_workers())
            tally.leaked_shared_memory = len(shared_memory() - memory)
        finally:
            disk.close()
        return tally

    def _left_workers(self) -> list[psutil.Process]:
        """Return the workers that outlive their run; they are killed, so that the next run starts clean."""
        end = time.monotonic() + GONE_S
        while True:
            left = [process for role in ("sampler", "judge", "learner") for process in workers(role)]
            if not left or time.monotonic() > end:
                break
            time.sleep(0.1)
        for process in left:
            process.kill()
        return left

    def close(self) -> None:
        """End the cluster."""
        self._stage.close()


def judged(result: Broken, prep: Preparation, whole: Ledger, root: Path, who: str) -> Tally:
    """Compare a broken run's directory with the unbroken one's and say how it went."""
    tally = Tally(runs=1, faults=len(result.done), by_fault=dict(Counter(result.done)), names=[who])
    tally.wall_s = result.wall_s
    tally.resumptions, tally.tracebacks = result.drivers - 1, result.tracebacks
    different, dropped = list[str](), tuple[str, ...]()
    if result.hung:
        tally.hung = 1
    else:
        ledger = read_ledger(prep, root)
        different, dropped = ledger.differs(whole, bytes_too=True), ledger.dropped
        tally.lost, tally.duplicates = ledger.lost(prep), ledger.duplicates()
        tally.trained_twice, tally.differing_ledgers = ledger.trained_twice(), int(bool(different))
    if not tally.clean or tally.tracebacks:
        tally.notes.append(f"{who}: {result.done}; differs: {different}; dropped: {dropped}; said: {result.said}")
    sys.stdout.write(f"{who}: {', '.join(result.done)}; {result.drivers} drivers, {result.wall_s} s, "
                     f"{'clean' if tally.clean else tally.notes}\n")  # fmt: skip
    sys.stdout.flush()
    return tally


def _possible(kinds: tuple[Kind, ...], disk: SmallDisk) -> tuple[Kind, ...]:
    return kinds if disk.mounted else tuple(kind for kind in kinds if kind != "full disk")


def break_local(seeds: Iterable[int], budget_s: float = float("inf"), keep: Keep = forget) -> Tally:
    """Break one run per seed, each a driver process with the fakes in it, until the budget is used up."""
    total, begun, scratch = Tally(), time.monotonic(), Path(tempfile.mkdtemp(prefix="chaos-"))
    wholes: dict[int, tuple[Preparation, Ledger, int]] = {}
    try:
        with marked_environment():
            for seed in seeds:
                if time.monotonic() - begun > budget_s:
                    break
                tally = _broken_local(seed, scratch, wholes)
                tally.leaked_processes += left_after(GONE_S)
                keep(tally)
                total.add(tally)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return total


def _broken_local(seed: int, scratch: Path, wholes: dict[int, tuple[Preparation, Ledger, int]]) -> Tally:
    job_seed = seed % JOB_SEEDS
    disk = SmallDisk(scratch / f"local-{seed}")
    try:
        root = disk.root / "run"
        prep = local.prepared(disk.root / "job", job_seed)
        if job_seed not in wholes:
            result = Breaker(None, disk, [str(root), str(job_seed)], deadline_s=DEADLINE_S).carry_out([])
            if result.hung or result.drivers > 1:
                raise SystemExit(f"the run that nobody breaks failed: {result.said}")
            wholes[job_seed] = prep, read_ledger(prep, root), (root / JOURNAL).read_bytes().count(b"\n")
            shutil.rmtree(root)
        _, whole, lines = wholes[job_seed]
        faults = plan_faults(seed, lines, _possible(local.KINDS, disk))
        result = Breaker(None, disk, [str(root), str(job_seed)], deadline_s=DEADLINE_S).carry_out(faults)
        return judged(result, prep, whole, root, f"local {seed}")
    finally:
        disk.close()


def break_fakes(seeds: Iterable[int], budget_s: float = float("inf"), keep: Keep = forget) -> Tally:
    """Break one run per seed, until the budget is used up, and count what of the cluster is left behind."""
    total, begun = Tally(), time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with marked_environment():
            fakes = Fakes(scratch)
            try:
                for seed in seeds:
                    if time.monotonic() - begun > budget_s:
                        break
                    tally = fakes.broken(seed)
                    keep(tally)
                    total.add(tally)
                left = Tally()
                if not fakes.mounts:
                    left.notes.append("no file system could be mounted here, so no disk was filled")
            finally:
                fakes.close()
            left.leaked_processes += left_after(GONE_S)
            keep(left)
            total.add(left)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return total


def main() -> None:
    """Run what is asked for; exit 1 if anything was lost, done twice, different, stuck or left behind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--runs", type=int, default=100, help="broken runs on fakes")
    parser.add_argument("--local", type=int, default=40, help="how many of these have no cluster, but real processes")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2, help="runs that are broken side by side")
    parser.add_argument("--real", type=int, default=4, help="broken runs on vLLM and DeepSpeed")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--resume", action="store_true", help="go on with the results file: only runs it lacks")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are written")
    given = parser.parse_args()
    end_orderly()
    if not given.resume:
        given.json.unlink(missing_ok=True)
    results, begun = Results(given.json), time.monotonic()
    done, last = set(results.read().names), given.first_seed + given.runs
    middle = given.first_seed + max(0, given.runs - given.local)
    for kind, who, breaks, seeds in (
        ("local", "local", break_local, range(middle, last)),
        ("cluster", "seed", break_fakes, range(given.first_seed, middle)),
    ):
        left = [seed for seed in seeds if f"{who} {seed}" not in done]
        if left and given.slots > 1:
            _side_by_side(kind, left, given)
        elif left:
            breaks(left, given.budget / 2, results.add)
    if given.real:
        from benchmarks.chaos.real import BREAKS, break_real

        wanted = [fault for fault in BREAKS[: given.real] if f"real {fault.name}" not in done]
        if wanted:
            break_real(wanted, results.add)
    results.add(Tally(took_s=round(time.monotonic() - begun, 1)))
    results.close()
    sys.stdout.write(given.json.read_text(encoding="utf-8"))
    sys.exit(not results.read().clean)


def _side_by_side(kind: str, seeds: list[int], given: argparse.Namespace) -> None:
    """Share the seeds out over processes, each with a stage of its own; they add to the figures themselves."""
    parts = [seeds[slot :: given.slots] for slot in range(given.slots)]
    words = [sys.executable, "-m", "benchmarks.chaos.share", str(given.json), kind, str(given.budget / 2)]
    started = [subprocess.Popen([*words, *map(str, part)]) for part in parts if part]
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:  # none is left but where this process was told to end
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
