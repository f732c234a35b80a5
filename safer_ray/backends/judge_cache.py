"""Verdicts kept across rounds and runs, by (judge, version, rubric hash, text hash), in one SQLite file.

Only scores and abstentions are kept: what failed is asked again. Several processes of one machine may share a
file; on a network file system give each run its own.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safer_ray.core.verdicts import Ruling
from safer_ray.errors import JudgeError, boundary

_SCHEMA = """CREATE TABLE IF NOT EXISTS rulings (
    judge TEXT NOT NULL, version TEXT NOT NULL, rubric TEXT NOT NULL, text TEXT NOT NULL, ruling TEXT NOT NULL,
    PRIMARY KEY (judge, version, rubric, text)) WITHOUT ROWID"""
_BUSY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RulingKey:
    """What decides a verdict: the judge's model, the version of its template, the rubric, and all text judged."""

    judge: str
    version: str
    rubric: str
    text: str


class RulingCache:
    """Kept rulings. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with boundary(JudgeError, f"{path}: cannot be used to keep verdicts; delete it or name another"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
            self._store.execute("PRAGMA journal_mode=WAL")
            self._store.execute(_SCHEMA)
            self._store.commit()

    def get(self, keys: Sequence[RulingKey]) -> list[Ruling | None]:
        """Return what is kept, None where nothing is. A row that does not read back counts as not kept."""
        query = "SELECT ruling FROM rulings WHERE judge = ? AND version = ? AND rubric = ? AND text = ?"
        with self._lock, boundary(JudgeError, f"{self._path}: verdicts cannot be read"):
            rows = [
                self._store.execute(query, (key.judge, key.version, key.rubric, key.text)).fetchone() for key in keys
            ]
        return [_read(row[0]) if row else None for row in rows]

    def put(self, rulings: Mapping[RulingKey, Ruling]) -> None:
        """Keep scores and abstentions; they are on disk when this returns."""
        rows = [
            (key.judge, key.version, key.rubric, key.text, json.dumps(asdict(ruling)))
            for key, ruling in rulings.items()
            if ruling.kind != "failed"
        ]
        with self._lock, boundary(JudgeError, f"{self._path}: verdicts cannot be kept"):
            self._store.executemany("INSERT OR REPLACE INTO rulings VALUES (?, ?, ?, ?, ?)", rows)
            self._store.commit()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._store.close()


def _read(text: str) -> Ruling | None:
    try:
        row = json.loads(text)
        return Ruling(**{**row, "rules": tuple(row["rules"])})
    except (ValueError, TypeError, KeyError):
        return None


def user_cache_path() -> Path:
    """Return where verdicts are kept for all runs of this user."""
    import platformdirs

    return platformdirs.user_cache_path("safer_ray") / "judge" / "verdicts.sqlite"
