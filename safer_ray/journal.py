"""The journal of a run: append-only, one checksummed JSON line per durable event.

The first line names the run: the config's hash, data fingerprint, versions. A line is ``crc32 json``.
Reading stops at the first line that is torn or wrong; what was lost behind it is asked for again, because
the state is only ever the fold of what was read. One run directory has one writer: the lock file is held by
a flock, which dies with its process, and names the holder for whoever is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from safer_ray.core.events import Event, Judged, from_json, to_json
from safer_ray.errors import JournalError

JOURNAL = "journal.jsonl"
_LOCK = "writer.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One event and when it was written (seconds since the epoch)."""

    at: float
    event: Event


def _line(row: dict[str, Any]) -> str:
    body = json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"{zlib.crc32(body.encode()):08x} {body}\n"


def _parse(line: str) -> dict[str, Any] | None:
    crc, _, body = line.rstrip("\n").partition(" ")
    if not line.endswith("\n") or crc != f"{zlib.crc32(body.encode()):08x}":
        return None
    row = json.loads(body)
    return row if isinstance(row, dict) else None


def read_journal(path: Path) -> tuple[dict[str, Any], list[Entry], int]:
    """Return the head, the entries, and the size in bytes of the part that is whole.

    Raises:
        JournalError: if there is no journal, or its first line is damaged.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise JournalError(f"journal {path}: no such file; is this a run directory?") from exc
    rows, whole = [], 0
    for chunk in _lines(raw):
        row = _parse(chunk.decode("utf-8", errors="replace"))
        if row is None:
            break
        rows.append(row)
        whole += len(chunk)
    if not rows or rows[0].get("head") is None:
        raise JournalError(f"journal {path}: the first line is damaged; start the run anew in an empty directory")
    try:
        entries = [Entry(at=float(row["at"]), event=from_json(row)) for row in rows[1:]]
    except (KeyError, TypeError, ValueError) as exc:
        raise JournalError(f"journal {path}: written by another version ({exc}); resume with that version") from exc
    return rows[0]["head"], entries, whole


def _lines(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        stop = raw.find(b"\n", start)
        stop = len(raw) if stop < 0 else stop + 1
        yield raw[start:stop]
        start = stop


class Journal:
    """The writer. Use ``create`` or ``resume``; close it to let another writer in."""

    def __init__(self, run_dir: Path, lock: TextIO, sink: TextIO) -> None:
        self._run_dir = run_dir
        self._lock = lock
        self._sink = sink

    @classmethod
    def create(cls, run_dir: Path, head: dict[str, Any]) -> Journal:
        """Start the journal of a new run.

        Raises:
            JournalError: if the directory already has one, or another process writes there.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(run_dir)
        path = run_dir / JOURNAL
        if path.exists():
            lock.close()
            raise JournalError(
                f"run directory {run_dir}: already holds a run; choose another, or pass --resume or --overwrite"
            )
        journal = cls(run_dir, lock, path.open("a", encoding="utf-8"))
        journal._write({"head": head, "at": time.time()}, durable=True)
        return journal

    @classmethod
    def resume(cls, run_dir: Path) -> tuple[Journal, dict[str, Any], list[Entry], int]:
        """Go on with a run: return the writer, the head, the entries, and how many torn bytes were cut off."""
        lock = _take_lock(run_dir)
        path = run_dir / JOURNAL
        try:
            head, entries, whole = read_journal(path)
        except JournalError:
            lock.close()
            raise
        torn = path.stat().st_size - whole
        if torn:
            os.truncate(path, whole)
        return cls(run_dir, lock, path.open("a", encoding="utf-8")), head, entries, torn

    @staticmethod
    def writable(run_dir: Path) -> None:
        """Refuse a run directory another process writes to.

        Raises:
            JournalError: naming the holder's host and pid.
        """
        _take_lock(run_dir).close()

    def append(self, event: Event) -> Entry:
        """Write one event. All but single judged items, which come in thousands, are flushed to disk at once."""
        entry = Entry(at=time.time(), event=event)
        self._write({"at": entry.at, **to_json(event)}, durable=not isinstance(event, Judged))
        return entry

    def _write(self, row: dict[str, Any], *, durable: bool) -> None:
        try:
            self._sink.write(_line(row))
            self._sink.flush()
            if durable:
                os.fsync(self._sink.fileno())
        except OSError as exc:
            raise JournalError(
                f"journal {self._run_dir / JOURNAL}: cannot be written ({exc.strerror}); free space, then --resume"
            ) from exc

    def close(self) -> None:
        """Flush and let another writer in."""
        self._sink.close()
        self._lock.close()


def _take_lock(run_dir: Path) -> TextIO:
    try:
        lock = (run_dir / _LOCK).open("a+", encoding="utf-8")
    except FileNotFoundError as exc:
        raise JournalError(f"run directory {run_dir}: does not exist; there is nothing to resume") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise JournalError(f"run directory {run_dir}: {holder} is writing here; wait for it or stop it") from exc
    lock.seek(0)
    lock.truncate()
    lock.write(f"host {socket.gethostname()} pid {os.getpid()}")
    lock.flush()
    return lock
