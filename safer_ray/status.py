"""The status of a run from its directory alone: while it goes on, after it ended, and after it died.

What is durable is counted from the journal; what is not - workers, queues, work in flight - comes from the driver's
last status file and is only shown as what it was then.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from safer_ray.backends.failed_batch import META, failed_folders
from safer_ray.config import RunConfig
from safer_ray.core.events import Judged
from safer_ray.core.ledger import Ledger, PhaseLedger
from safer_ray.core.plan import Phase
from safer_ray.errors import DataError, JournalError
from safer_ray.journal import JOURNAL, History, writer_of
from safer_ray.prepare import phase_facts, plan_of
from safer_ray.records import Prompt
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table

RECENT_S = 60.0
"""Rates are those of the last minute before the journal's last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLine:
    """One prompt in one phase; ``prompt_id`` is "" where the prompts are not those of the run any more."""

    phase: str
    item: int
    prompt_id: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What a run directory tells: ``facts`` as JSON values, and the ledger and prompt ids they were counted from."""

    facts: dict[str, Any]
    ledger: Ledger
    prompt_ids: dict[str, list[str]]

    def prompts(self, phases: Sequence[str] = (), states: Sequence[str] = ()) -> list[PromptLine]:
        """Return one line per prompt and phase, of the phases and states asked for (none: all)."""
        live = self.facts["live"].get("phases", {}) if self.facts["state"] == "running" else {}
        lines = []
        for name, entry in self.ledger.phases.items():
            if phases and name not in phases:
                continue
            open_items = {item: step for item, _, step in live.get(name, {}).get("items", ())}
            ids = self.prompt_ids.get(name, [])
            for item in range(len(entry.flags)):
                state, reason = self.ledger.state_of(name, item)
                if item in open_items and state in ("waiting", "asked again"):
                    state = "sampling" if open_items[item] == "sample" else "judging"  # type: ignore[assignment]
                if not states or state in states:
                    prompt_id = ids[item] if item < len(ids) else ""
                    lines.append(PromptLine(phase=name, item=item, prompt_id=prompt_id, state=state, reason=reason))
        return lines


def read_status(run_dir: RunDir) -> RunStatus:
    """Read a run directory; the run may be going on.

    Raises:
        JournalError: if there is no run, or its plan cannot be told.
    """
    journal = run_dir.root / JOURNAL
    history = History(journal)
    plan, prompt_ids = _plan(run_dir, history.head)
    ledger, recent = Ledger(plan), Counter[str]()
    times: list[tuple[float, str]] = []
    last_at = float(history.head.get("started_at", 0.0))
    for entry in history:
        ledger.note(entry.event, entry.at)
        last_at = entry.at
        if isinstance(entry.event, Judged):
            times.append((entry.at, entry.event.phase))
            if len(times) > 100_000:
                times = [each for each in times if each[0] > last_at - RECENT_S]
    recent.update(phase for at, phase in times if at > last_at - RECENT_S)
    writer, live = writer_of(run_dir.root), _live(run_dir)
    finished = all(entry.ended for entry in ledger.phases.values())
    state = "running" if writer else "finished" if finished else "stopped"
    now = time.time()
    facts = {
        "run": str(run_dir.root),
        "name": history.head.get("name", ""),
        "state": state,
        "writer": writer,
        "policy_version": ledger.policy_version,
        "journal": {
            "events": history.event_count,
            "bytes": history.size,
            "torn_bytes": journal.stat().st_size - history.size,
            "last_event_age_s": round(max(0.0, now - last_at), 1),
        },
        "status_age_s": round(max(0.0, now - live["at"]), 1) if live else None,
        "phases": [_row(ledger, entry, live if writer else {}, recent) for entry in ledger.phases.values()],
        "live": live,
        "accepted": [change for accepted in history.accepted for change in accepted.changes],
        "failed": failed_batches(run_dir),
    }
    return RunStatus(facts=facts, ledger=ledger, prompt_ids=prompt_ids)


def _plan(run_dir: RunDir, head: Mapping[str, Any]) -> tuple[list[Phase], dict[str, list[str]]]:
    """Return the plan, and the prompt ids of each phase as far as they are those the run works on."""
    noted = head.get("phases")
    names = [item.name for item in fields(Phase)]
    try:
        config = RunConfig.model_validate_json(run_dir.config.read_bytes())
        prompts = from_table(read_table(run_dir.prompts), Prompt)
    except (OSError, DataError, ValidationError) as exc:
        if noted is None:
            raise JournalError(
                f"run {run_dir.root}: its plan cannot be told, {JOURNAL} is of an older version and config.json or "
                f"prompts.arrow cannot be read ({exc})"
            ) from exc
        return [Phase(**{name: row[name] for name in names}) for row in noted.values()], {}
    phases, by_phase = plan_of(config, prompts)
    ids = {name: [prompt.prompt_id for prompt in asked] for name, asked in by_phase.items()}
    if noted is None:
        return list(phases), ids
    now = phase_facts(phases, by_phase)
    same = {name: ids[name] for name, row in noted.items() if name in now and now[name]["prompts"] == row["prompts"]}
    return [Phase(**{name: row[name] for name in names}) for row in noted.values()], same


def _live(run_dir: RunDir) -> dict[str, Any]:
    try:
        found = json.loads(run_dir.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("at"), int | float) else {}


def failed_batches(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return, oldest first, what is known of each batch that training stopped at."""
    found = []
    for folder in failed_folders(run_dir.failed):
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            found.append({name: meta[name] for name in ("stage", "step", "reason")} | {"folder": folder.name})
        except (OSError, ValueError, KeyError, TypeError):
            found.append({"stage": "?", "step": 0, "reason": "meta.json cannot be read", "folder": folder.name})
    return found


def _row(ledger: Ledger, entry: PhaseLedger, live: Mapping[str, Any], recent: Mapping[str, int]) -> dict[str, Any]:
    phase = entry.phase
    running = live.get("phases", {}).get(phase.name, {})
    counts = {name: count for name, count in sorted(entry.counts.items()) if count}
    pairs = {name.removeprefix("pairs_"): count for name, count in counts.items() if name.startswith("pairs_")}
    dropped, judged = entry.dropped, entry.judged
    ended = judged + dropped.total()
    sampled = sum(1 for _, level, step in running.get("items", ()) if level or step == "judge")
    seen = min(RECENT_S, entry.last_at - entry.first_at)
    return {
        "phase": phase.name,
        "kind": phase.kind,
        "round": phase.round,
        "state": "ended" if entry.ended else "running" if entry.first_at or running else "waiting",
        "items": phase.items,
        "asked": ended + running.get("open", 0),
        "sampled": judged + sampled,
        "judged": judged,
        "unscored": counts.get("unscored", 0),
        "paired": entry.paired,
        "pairs": pairs,
        "trained": sum(pairs.values()) if ledger.trained(entry) else 0,
        "dropped": dict(sorted(dropped.items())),
        "lost": dict(sorted(entry.lost.items())),
        "in_flight": running.get("open", 0),
        "queues": {name: running[name] for name in ("sampling", "judging", "ready")} if running else {},
        "per_s": round(recent.get(phase.name, 0) / seen, 3) if seen > 0 else 0.0,
        "counts": counts,
        "step": entry.step,
        "steps": entry.steps,
        "duplicates": entry.duplicates,
        "never_ended": entry.lost_items,
    }


__all__ = ["PromptLine", "RunStatus", "failed_batches", "read_status"]
