"""What became of every prompt of a run, read from its directory alone, and what of it must never differ."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safer_ray.core.events import Dropped, Judged, Published, Trained
from safer_ray.journal import JOURNAL, read_journal
from safer_ray.prepare import Preparation
from safer_ray.records import StepPair
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Ends of items by (phase, prompt id), publications, and the SHA-256 of every final file."""

    ends: Counter[tuple[str, str, str]]
    published: tuple[int, ...]
    trained: Counter[str]
    files: dict[str, str]
    twice: int
    """Pair ids that stand more than once in the pairs of a round."""
    dropped: tuple[str, ...]
    """Why prompts were given up."""

    def lost(self, prep: Preparation) -> int:
        """Count items of the plan without an end, and dropped ones: nothing here may be given up."""
        finished = {(phase, prompt) for phase, prompt, end in self.ends if end == "finished"}
        return len(planned(prep) - finished)

    def duplicates(self) -> int:
        """Count ends beyond the first of an item, and pairs kept twice."""
        return sum(count - 1 for count in self.ends.values()) + self.twice

    def trained_twice(self) -> int:
        """Count phases that were trained to their end more than once."""
        return sum(count - 1 for count in self.trained.values())

    def differs(self, other: Ledger, *, bytes_too: bool) -> list[str]:
        """Name what is not equal; ``bytes_too`` compares the final files as they lie on disk."""
        found = [] if self.ends == other.ends else ["the ends of prompts"]
        if self.published != other.published or self.trained != other.trained:
            found.append("publications or stages trained")
        names = self.files.keys() | other.files.keys()
        if self.files.keys() != other.files.keys():
            found.append("which files there are")
        elif bytes_too:
            found += sorted(name for name in names if self.files[name] != other.files[name])
        return found


def planned(prep: Preparation) -> set[tuple[str, str]]:
    """Return (phase, prompt id) of everything a run has to do."""
    return {(name, prompt.prompt_id) for name, prompts in prep.by_phase.items() for prompt in prompts}


def read_ledger(prep: Preparation, root: Path) -> Ledger:
    """Read a run directory."""
    run_dir, events = RunDir(root), [entry.event for entry in read_journal(root / JOURNAL)[1]]
    ends: Counter[tuple[str, str, str]] = Counter()
    for event in events:
        if isinstance(event, Dropped) or (isinstance(event, Judged) and event.final):
            end = "dropped" if isinstance(event, Dropped) else "finished"
            ends[event.phase, prep.by_phase[event.phase][event.item].prompt_id, end] += 1
        elif type(event).__name__ == "Reopened":  # its shard was found damaged: the end does not count any more
            ends[event.phase, prep.by_phase[event.phase][event.item].prompt_id, "finished"] -= 1  # type: ignore[union-attr]
    paths = [*root.glob("rounds/*/*.arrow"), *root.glob("evaluations/*.arrow"), run_dir.traces]
    pairs = [
        (path.parent.name, pair.pair_id)
        for path in root.glob("rounds/*/pairs.arrow")
        for pair in from_table(read_table(path), StepPair)
    ]
    return Ledger(
        ends=ends,
        published=tuple(event.version for event in events if isinstance(event, Published)),
        trained=Counter(event.phase for event in events if isinstance(event, Trained)),
        files={str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.exists()},
        twice=len(pairs) - len(set(pairs)),
        dropped=tuple(event.reason for event in events if isinstance(event, Dropped)),
    )
