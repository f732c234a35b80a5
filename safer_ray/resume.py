"""Going on with a run: what changed since it began, whether that was accepted, and what is damaged.

A run that goes on with another rule pack, model, data, seed or setting is another run. So each difference has a
name, and only what ``--accept-change NAME`` names may differ; what was accepted is journalled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safer_ray.backends.checkpoint import checkpoint_facts, damaged_files
from safer_ray.config import RunConfig
from safer_ray.core.events import Event, Judged, Reopened, Sealed, Trained
from safer_ray.core.loop import LoopState, apply
from safer_ray.core.plan import Phase
from safer_ray.errors import JournalError
from safer_ray.journal import History, Journal
from safer_ray.prepare import Preparation, identity
from safer_ray.rundir import RunDir
from safer_ray.tables import file_digest, shard_path

logger = logging.getLogger(__name__)
_LENGTH = 60
_PLACE = ("kind", "round", "version", "checkpoint")
"""What a phase that has begun must be in a changed plan, too."""
_HASHES = (("data", "data_hash"), ("model_files", "model_files"), ("sft.traces_file", "traces_file"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference between a run as it began and as it is to go on; values as text, for people."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        """Return ``name: old -> new``."""
        return f"{self.name}: {self.old} -> {self.new}"

    def accepted_by(self, names: Sequence[str]) -> bool:
        """Whether one of ``names`` is this change's or a section it lies in."""
        return any(self.name == name or self.name.startswith(f"{name}.") for name in names)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return how the head of a run differs from that of the run to go on with: config keys, rules, data, model.

    A run of an older version has no config in its head, and what it does not tell is not compared.
    """
    found = []
    if "config" in old:
        before, after = dict(_flat(_completed(old["config"]))), dict(_flat(new["config"]))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                found.append(Change(name=key, old=_shown(before.get(key)), new=_shown(after.get(key))))
    else:
        keys = (("model.id", "model"), ("seed", "seed"))
        found += [
            Change(name=name, old=_shown(old.get(key)), new=_shown(new.get(key)))
            for name, key in keys
            if old.get(key) != new.get(key)
        ]
    was, now = old.get("rule_pack", {}), new["rule_pack"]
    if was.get("hash") != now["hash"]:
        found.append(Change(name="rule_pack", old=_pack(was), new=_pack(now)))
    for name, key in _HASHES:
        if key in old and old[key] != new[key]:
            sizes = [f"{head.get('prompts', '?')} prompts, " if name == "data" else "" for head in (old, new)]
            texts = [f"{size}hash {_shown(head[key])[:12]}" for size, head in zip(sizes, (old, new), strict=True)]
            found.append(Change(name=name, old=texts[0], new=texts[1]))
    return found


def _pack(head: Mapping[str, Any]) -> str:
    return f"{head.get('name')} {head.get('version')} hash {str(head.get('hash'))[:12]}"


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the defaults of keys that did not exist when it was written."""
    try:
        return identity(RunConfig.model_validate(config))
    except ValidationError:
        return dict(config)


@dataclass(slots=True)
class Past:
    """What a resumption looks at, gathered in one pass over the journal.

    ``state`` is the fold of all events over the plan to go on with; ``files`` are the digests of the final files of
    sealed phases, ``shards`` those of the finished items of the phases that are not sealed.
    """

    history: History
    state: LoopState
    begun: set[str] = field(default_factory=set)
    sealed: set[str] = field(default_factory=set)
    trained: Trained | None = None
    files: dict[str, str] = field(default_factory=dict)
    shards: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History, plan: Sequence[Phase]) -> Past:
        """Read the journal; ``plan`` is the one to go on with."""
        past = cls(history, LoopState.of(plan))
        for event in history.events(summed=True):
            apply(past.state, event)
            past._note(event)
        return past

    def _note(self, event: Event) -> None:
        self.begun.add(event.phase)
        match event:
            case Judged() if event.final:
                self.shards.setdefault(event.phase, {}).setdefault(event.item, event.shard)
            case Reopened():
                self.shards.get(event.phase, {}).pop(event.item, None)
            case Sealed():
                self.sealed.add(event.phase)
                self.files.update(event.facts.get("files") or {})
                self.shards.pop(event.phase, None)
            case Trained():
                self.trained = event
            case _:
                pass


def changed_files(run_dir: RunDir, past: Past) -> list[Change]:
    """Return the final files of ended phases that are not as the journal noted them."""
    found = []
    for name, digest in past.files.items():
        now = file_digest(run_dir.root / name)
        if now != digest:
            found.append(Change(name=name, old=f"hash {digest[:12]}", new=f"hash {now[:12]}" if now else "gone"))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """A run that may go on: the preparation with what already ended as it was, and the phases to begin anew."""

    prep: Preparation
    changes: tuple[Change, ...]
    restarted: tuple[str, ...]


def plan_resumption(prep: Preparation, run_dir: RunDir, past: Past, accepted: Sequence[str] = ()) -> Resumption:
    """Compare a journal with what is to go on.

    Raises:
        JournalError: naming every difference that was not accepted, or one that cannot be.
    """
    before = past.history.head
    changes = changes_between(before, prep.head) + changed_files(run_dir, past)
    refused = [change for change in changes if not change.accepted_by(accepted)]
    if refused:
        flags = " ".join(f"--accept-change {change.name}" for change in refused)
        raise JournalError(
            f"run {run_dir.root}: changed since it began: {'; '.join(map(str, refused))}; "
            f"go on with what it began with, or accept it: safer-ray resume {run_dir.root} {flags}"
        )
    phases, facts, restarted = _kept_plan(prep, run_dir, past)
    head = {**prep.head, "phases": facts, "started_at": before.get("started_at", prep.head["started_at"])}
    kept = replace(prep, phases=phases, head=head)
    return Resumption(prep=kept, changes=tuple(changes), restarted=tuple(restarted))


def _kept_plan(prep: Preparation, run_dir: RunDir, past: Past) -> tuple[tuple[Phase, ...], dict[str, Any], list[str]]:
    """Return the plan in which ended phases are as they were, its facts, and the begun phases with other prompts.

    Raises:
        JournalError: if a phase that has begun is not in the plan, or does something else there.
    """
    facts: dict[str, Any] = dict(prep.head["phases"])
    was: Mapping[str, Any] = past.history.head.get("phases", {})
    phases = {phase.name: phase for phase in prep.phases}
    restarted = []
    for name in was:
        if name not in past.begun:
            continue
        if any(facts.get(name, {}).get(key) != was[name][key] for key in _PLACE):
            raise JournalError(
                f"run {run_dir.root}: phase {name} has begun and is another one in the changed plan; "
                "this change cannot be accepted, start a new run"
            )
        if all(facts[name][key] == was[name][key] for key in ("items", "prompts")):
            continue
        if name in past.sealed:
            facts[name] = was[name]
            phases[name] = replace(phases[name], items=int(was[name]["items"]))
        else:
            restarted.append(name)
    return tuple(phases.values()), facts, restarted


def note_resumption(journal: Journal, plan: Resumption) -> None:
    """Journal what was accepted, if anything was."""
    if not plan.changes:
        return
    for change in plan.changes:
        logger.warning("accepted change %s", change)
    head = {key: value for key, value in plan.prep.head.items() if key != "versions"}
    journal.accept([asdict(change) for change in plan.changes], head, plan.restarted)


# ---- what is damaged --------------------------------------------------------------------------------------------


def journalled_shards(path: Path, phase: str) -> dict[int, str]:
    """Return the digest of each finished item's shard of a phase, as the journal at ``path`` names it."""
    found: dict[int, str] = {}
    for event in History(path).events():
        if event.phase == phase and isinstance(event, Judged) and event.final:
            found[event.item] = event.shard
        elif event.phase == phase and isinstance(event, Reopened):
            found.pop(event.item, None)
    return found


def reopened(run_dir: RunDir, past: Past) -> list[Reopened]:
    """Return an event for each finished item, of phases not yet sealed, whose shard is gone or damaged."""
    faults: dict[tuple[str, int], str] = {}
    for phase, items in past.shards.items():
        if run_dir.seal_mark(phase).is_dir():
            continue  # sealed: only the note of it was lost with the driver
        for item, digest in items.items():
            path = shard_path(run_dir.shard(phase, item), digest)
            now = file_digest(path)
            if now is None:
                faults[phase, item] = f"shard {path.name} is gone"
            elif digest and now != digest:
                faults[phase, item] = f"shard {path.name} is damaged"
    found = {}
    for event in past.history.events() if faults else ():
        if isinstance(event, Judged) and event.final and (event.phase, event.item) in faults:
            reason = faults[event.phase, event.item]
            again = Reopened(phase=event.phase, item=event.item, reason=reason, counts=event.counts)
            found[event.phase, event.item] = again
    return list(found.values())


def check_checkpoint(run_dir: RunDir, past: Past, phases: Sequence[Phase]) -> Path | None:
    """Return the checkpoint to go on from, None before the first; it must be the one that the journal tells of.

    Raises:
        JournalError: if it is gone or damaged, or holds other training than the journal says.
    """
    last = past.trained
    if last is None:
        return None
    checkpoint = run_dir.checkpoint({phase.name: phase for phase in phases}[last.phase].checkpoint)
    if not checkpoint.is_dir():
        raise JournalError(f"checkpoint {checkpoint}: it is gone; put it back, or start a new run")
    noted = last.facts.get("checkpoint") or {}
    faults = damaged_files(checkpoint, noted)
    found = checkpoint_facts(checkpoint).get("includes", [])
    if found != noted.get("includes", found):
        faults.append(f"it includes the training {_stages(found)}, the journal says {_stages(noted['includes'])}")
    if faults:
        raise JournalError(
            f"checkpoint {checkpoint}: {'; '.join(faults)}; put a whole copy back, or start a new run from the "
            "checkpoint before it"
        )
    return checkpoint


def _stages(included: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['stage']} of {row['rows']} rows ({row['row_ids'][:8]})" for row in included) or "none"
