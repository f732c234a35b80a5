"""``make soak``: the driver for a long time, alone and with 48 real sampler processes.

    python -m benchmarks.soak alone --prompts 1000000        events/s, memory over time, journal size, time to resume
    python -m benchmarks.soak resumption               time to resume alone, from a journal that was only written
    python -m benchmarks.soak ray --samplers 48 --minutes 10   the same driver with actors on Ray
    python -m benchmarks.soak journal --run runs/demo        what journalling costs a run that was really made

Wall times are of this machine as busy as it was (``load_before``); CPU times are what one core of one's own takes.
Each part replaces its own rows of ``benchmarks/results/soak.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak_world import SimulatedSamplers
from safer_ray.config_file import find_job, load_config
from safer_ray.core.events import Event, Judged, Lost, Published, Sealed, Stepped, Trained
from safer_ray.core.loop import LoopState, apply, summed
from safer_ray.core.plan import Phase, PlanSizes, make_plan
from safer_ray.core.policies import POLICIES, Limits
from safer_ray.driver import Pace, drive
from safer_ray.journal import JOURNAL, Journal, read_journal
from safer_ray.prepare import prepare
from safer_ray.resume import Past
from safer_ray.rundir import RunDir
from safer_ray.summary import machine

RESULTS = Path(__file__).parent / "results" / "soak.json"
_MIB = 2**20
_SIBLINGS = 4
_SAMPLE_EVERY = 20_000
"""Events between two looks at the memory."""


def row(name: str, value: float, unit: str, goal: str | None = None, *, n: int, **settings: Any) -> dict[str, Any]:
    """Return one result; ``goal`` reads ``<= 600`` or ``>= 3000``, None where a figure is only reported."""
    met = None
    if goal is not None:
        sign, bound = goal.split()
        met = value <= float(bound) if sign == "<=" else value >= float(bound)
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "goal": goal,
        "met": met,
        "n": n,
        "settings": settings,
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": machine(),
    }


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows and put them into the results, in place of those of the same name."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {each["name"] for each in rows}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    merged = sorted([*(each for each in old if each["name"] not in names), *rows], key=lambda each: str(each["name"]))
    RESULTS.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    for each in rows:
        goal = f"goal {each['goal']}: {'met' if each['met'] else 'NOT MET'}" if each["goal"] else ""
        sys.stdout.write(f"{each['name']:<44} {each['value']:>14,.2f} {each['unit']:<10} {goal}\n")


# ---- the driver alone ----


@dataclass(slots=True)
class Watch:
    """Counts accepted events and looks at the memory of this process now and then."""

    events: int = 0
    memory_mib: list[float] = field(default_factory=list)
    _process: psutil.Process = field(default_factory=psutil.Process)

    def look(self, state: LoopState, event: Event, at: float) -> None:
        """Observe one event."""
        self.events += 1
        if self.events % _SAMPLE_EVERY == 0:
            self.memory_mib.append(self._process.memory_info().rss / _MIB)


def plan_of(prompts: int, policy: str) -> tuple[Phase, ...]:
    """Return ERPO rounds that explore ``prompts`` prompts in all."""
    rounds = 10
    sizes = PlanSizes(teach=0, explore=prompts // rounds, evaluate=0, rounds=rounds)
    return make_plan(("erpo",), sizes, max_lag={"synchronous": 0, "one_round_ahead": 1, "fully_async": 2}[policy])


def alone(args: argparse.Namespace) -> None:
    """Drive ``--prompts`` prompts over simulated samplers, then resume from the journal in a fresh process."""
    settings = {"prompts": args.prompts, "samplers": args.samplers, "levels": args.levels, "policy": args.policy}
    settings["load_before"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        run_dir, watch = Path(scratch) / "run", Watch()
        state = LoopState.of(plan_of(args.prompts, args.policy))
        world = SimulatedSamplers(args.samplers, levels=args.levels, siblings=_SIBLINGS)
        journal = Journal.create(run_dir, {"name": "soak"})
        limits = Limits(max_in_flight=2 * args.samplers, max_tries=3)
        pace = Pace(policy=POLICIES[args.policy], limits=limits, silence_s=0.0)
        wall, cpu = time.perf_counter(), time.process_time()
        drive(state, world, journal, pace=pace, observe=watch.look)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        journal.close()
        assert state.lost_items == 0, "the driver lost a prompt"
        nbytes = (run_dir / JOURNAL).stat().st_size
        resumed = _resumed(run_dir, args)
    events, late = watch.events, watch.memory_mib[len(watch.memory_mib) // 10 :]
    n = {"n": events}
    keep(
        [
            row("driver_events_per_wall_s", events / wall, "events/s", ">= 3000", **n, **settings),
            row("driver_events_per_cpu_s", events / cpu, "events/s", **n, **settings),
            row("driver_memory_peak", max(watch.memory_mib), "MiB", "<= 600", n=len(watch.memory_mib), **settings),
            row("driver_memory_growth_after_10_percent", late[-1] - late[0], "MiB", n=len(late), **settings),
            row("journal_bytes_per_event", nbytes / resumed["events"], "bytes", n=resumed["events"], **settings),
            row("journal_size", nbytes / _MIB, "MiB", n=resumed["events"], **settings),
            *_resume_rows(resumed, settings),
        ]
    )


def resumption(args: argparse.Namespace) -> None:
    """Write the journal of a run in which nothing went wrong, without driving it, and resume it: ``alone``'s end."""
    settings = {"prompts": args.prompts, "policy": args.policy, "load_before": round(os.getloadavg()[0], 1)}
    plan, counts = plan_of(args.prompts, args.policy), {"rollouts": 4, "steps": 4, "unscored": 0, "pairs_safety": 1}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        run_dir, state = Path(scratch) / "run", LoopState.of(plan)
        journal = Journal.create(run_dir, {"name": "soak"})
        for phase in plan:
            for item in range(phase.items):
                judged = Judged(
                    phase=phase.name, item=item, level=0, attempt=0, final=True, counts=counts, shard="0" * 32
                )
                apply(state, judged)
                journal.append(judged)
            end: Event = Trained(phase=phase.name, facts={}, wall_s=1.0)
            if phase.gathers:
                end = summed(state, Sealed(phase=phase.name, facts={"pairs_by_axis": {}}, wall_s=1.0))
            elif phase.kind == "publish":
                end = Published(phase=phase.name, version=phase.version, checksum="c", nbytes=1, wall_s=1.0)
            apply(state, end)
            journal.append(end)
        journal.close()
        keep(_resume_rows(_resumed(run_dir, args), settings))


def _resume_rows(resumed: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    n = int(resumed["events"])
    return [
        row("resume_wall", resumed["wall_s"], "s", "<= 20", n=n, **settings),
        row("resume_cpu", resumed["cpu_s"], "s", n=n, **settings),
        row("resume_memory_peak", resumed["memory_mib"], "MiB", "<= 600", n=n, **settings),
    ]


def _resumed(run_dir: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Fold the journal in a process of its own, as a resumed run does."""
    command = [sys.executable, "-m", "benchmarks.soak", "resume", str(run_dir)]
    command += ["--prompts", str(args.prompts), "--policy", args.policy]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out))


def resume(args: argparse.Namespace) -> None:
    """Open the journal for writing and read it as a resumed run does; print what that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    journal, _, history, _ = Journal.resume(Path(args.run))
    state = Past.of(history, plan_of(args.prompts, args.policy)).state
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    journal.close()
    assert state.current is None, "the journal does not hold the whole run"
    assert state.lost_items == 0, "the journal lost a prompt"
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        json.dumps({"wall_s": wall, "cpu_s": cpu, "events": history.event_count, "memory_mib": memory_mib})
    )


# ---- what journalling costs a real run ----


def journal(args: argparse.Namespace) -> None:
    """Write a run's journal again, with every fsync, and compare with how long the run's rounds took."""
    head, entries, _ = read_journal(Path(args.run) / JOURNAL)
    rounds = _round_seconds(args.run)
    shares, costs = list[float](), list[float]()
    for _ in range(args.repeats):
        per_phase: dict[str, float] = {}
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            sink = Journal.create(Path(scratch) / "run", head)
            for entry in entries:
                begun = time.perf_counter()
                sink.append(entry.event)
                cost = time.perf_counter() - begun
                costs.append(cost)
                per_phase[entry.event.phase] = per_phase.get(entry.event.phase, 0.0) + cost
            sink.close()
        for wall_s, phases in rounds:
            shares.append(100.0 * sum(per_phase.get(phase, 0.0) for phase in phases) / wall_s)
    settings = {"run": head["name"], "rounds": len(rounds), "repeats": args.repeats, "events": len(entries)}
    keep(
        [
            row("journalling_share_of_a_demo_round", max(shares), "%", "<= 2", n=len(shares), **settings),
            row("journal_append_median", 1e6 * statistics.median(costs), "us", n=len(costs), **settings),
            row("journal_append_p99", 1e6 * statistics.quantiles(costs, n=100)[98], "us", n=len(costs), **settings),
        ]
    )


def _round_seconds(run: str) -> list[tuple[float, list[str]]]:
    """Return, per ERPO round of a run, how long it took and the phases it is made of."""
    _, entries, _ = read_journal(Path(run) / JOURNAL)
    ends = {e.event.phase: e.at for e in entries if isinstance(e.event, Sealed | Trained | Published)}
    order, found = sorted(ends, key=lambda name: ends[name]), []
    for name in order:
        if not name.startswith("explore-"):
            continue
        number = name.removeprefix("explore-")
        phases = order[order.index(name) : order.index(f"erpo-{number}") + 2]
        before = order[order.index(name) - 1]
        found.append((ends[phases[-1]] - ends[before], phases))
    return found


# ---- with sampler processes on Ray ----


class TimeIsUp(Exception):
    """The soak has lasted long enough."""


@dataclass(slots=True)
class RayWatch(Watch):
    """Ends the run in time, and counts what went wrong meanwhile."""

    lasts_s: float = 600.0
    begun_at: float = 0.0
    prompts: int = 0
    steps: int = 0
    lost: int = 0

    def look(self, state: LoopState, event: Event, at: float) -> None:
        """Observe one event."""
        self.begun_at = self.begun_at or time.time()
        self.events += 1
        self.prompts += isinstance(event, Judged) and event.final
        self.steps += isinstance(event, Stepped)
        self.lost += isinstance(event, Lost)
        if self.events % 500 == 0:
            self.memory_mib.append(psutil.Process().memory_info().rss / _MIB)
        if time.time() > self.begun_at + self.lasts_s:
            raise TimeIsUp


def with_ray(args: argparse.Namespace) -> None:
    """Run fake samplers in actors until the time is up; the run is then stopped like any other."""
    from safer_ray.run import execute

    overrides = [
        f"sampler.replicas={args.samplers}", "sampler.resources.cpus=0.01", "judge.replicas=4",
        "learner.resources.cpus=0.01", f"loop.max_in_flight={4 * args.samplers}", "loop.policy=fully_async",
        "erpo.rounds=2000", "evaluate.checkpoints=ends", "stages=[synth,sft,erpo]",
    ]  # fmt: skip
    watch = RayWatch(lasts_s=60.0 * args.minutes)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        run_dir = RunDir(Path(scratch) / "run")
        with contextlib.suppress(TimeIsUp):
            execute(prepare(load_config(find_job("tiny_fake"), overrides)), run_dir, observe=watch.look)
        summary = json.loads(run_dir.summary.read_text(encoding="utf-8"))
    wall_s = time.time() - watch.begun_at
    late = watch.memory_mib[len(watch.memory_mib) // 10 :]
    settings = {
        "samplers": args.samplers,
        "minutes": args.minutes,
        "measured_s": round(wall_s, 1),
        "policy": "fully_async",
    }
    n = {"n": watch.events}
    keep(
        [
            row("ray_events_per_s", watch.events / wall_s, "events/s", **n, **settings),
            row("ray_prompts_per_s", watch.prompts / wall_s, "prompts/s", n=watch.prompts, **settings),
            row("ray_lost_prompts", summary["lost_prompts"], "prompts", "<= 0", n=watch.prompts, **settings),
            row("ray_duplicate_prompts", summary["duplicate_prompts"], "prompts", "<= 0", n=watch.prompts, **settings),
            row("ray_asked_again", watch.lost, "prompts", n=watch.prompts, **settings),
            row("ray_rounds_trained", len(summary["rounds"]), "rounds", n=watch.steps, **settings),
            row("ray_driver_memory_peak", max(watch.memory_mib), "MiB", "<= 600", n=len(watch.memory_mib), **settings),
            row("ray_driver_memory_growth_after_10_percent", late[-1] - late[0], "MiB", n=len(late), **settings),
        ]
    )


def main() -> None:
    """Read the command line and run one part."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scratch", default=None, help="where run directories are made; default: the system's")
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("alone")
    part.add_argument("--samplers", type=int, default=1000)
    part.add_argument("--levels", type=int, default=4, help="sample-and-judge levels of a prompt")
    part.set_defaults(call=alone)
    again = parts.add_parser("resume")
    again.add_argument("run")
    again.set_defaults(call=resume)
    reread = parts.add_parser("resumption")
    reread.set_defaults(call=resumption)
    for each in (part, again, reread):
        each.add_argument("--prompts", type=int, default=1_000_000)
        each.add_argument("--policy", choices=sorted(POLICIES), default="one_round_ahead")
    part = parts.add_parser("ray")
    part.add_argument("--samplers", type=int, default=48)
    part.add_argument("--minutes", type=float, default=10.0)
    part.set_defaults(call=with_ray)
    part = parts.add_parser("journal")
    part.add_argument("--run", required=True, help="directory of a finished run")
    part.add_argument("--repeats", type=int, default=5)
    part.set_defaults(call=journal)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
