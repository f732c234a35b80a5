"""The journal of a run: append-only, one checksummed JSON line per durable event.

The first line names the run: its config, data fingerprint, versions. A line is ``crc32 json``. Reading stops at the
first line that is torn or wrong; what was lost behind it is asked for again, because the state is only ever the fold
of what was read. A line that begins with ``accept`` says what a resumption was allowed to change. One run directory
has one writer: the lock file is held by a flock, which dies with its process, and names the holder for whoever is
refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import msgspec

from safer_ray.core.events import Event, Judged, from_json, to_json
from safer_ray.errors import JournalError

JOURNAL = "journal.jsonl"
_JUDGED, _REOPENED, _SEALED = b'"event":"Judged"', b'"event":"Reopened"', b'"event":"Sealed"'
_PHASE = b'"phase":"'
_AS_JUDGED = msgspec.json.Decoder(Judged)
"""Reads the one kind of event that comes in millions; what it refuses is looked at by ``from_json``, which says why."""
_LOCK = "writer.lock"
_LOCK_TRIES, _LOCK_PAUSE_S = 5, 0.02
"""Whoever only asks who the writer is holds the lock for microseconds; a writer must not take that for another one."""
_NEAR = 48
"""Bytes of a line in which it says what event it is."""


class _Time(msgspec.Struct, frozen=True):
    at: float


_AS_TIME = msgspec.json.Decoder(_Time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One event and when it was written (seconds since the epoch)."""

    at: float
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What one resumption was allowed to change: rows of name, old and new; and the phases it began anew.

    ``offset`` is where the line begins: what the begun-anew phases wrote before it no longer counts.
    """

    at: float
    offset: int
    changes: tuple[dict[str, Any], ...]
    restarted: tuple[str, ...]


def _line(row: Mapping[str, Any]) -> bytes:
    body = json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _row(body: bytes, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _other_version(path, exc) from exc
    if not isinstance(row, dict):
        raise _other_version(path, "a line is no object")
    return row


def _other_version(path: Path, why: object) -> JournalError:
    return JournalError(f"journal {path}: written by another version ({why}); resume with that version")


class History:
    """What a journal holds, read lazily and any number of times: a million events never lie in memory at once.

    ``head`` is as the last resumption left it; ``size`` counts the bytes of the part that is whole,
    ``event_count`` the events in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}
        self.accepted: list[Accepted] = []
        self.size = 0
        self.event_count = 0
        self._sums: dict[bytes, int] = {}
        """Phases whose seal tells the sum of their items, and where it lies."""
        with _opened(path) as source:
            self._scan(source)
        if not isinstance(self.head, dict) or not self.size:
            raise JournalError(f"journal {path}: the first line is damaged; start the run anew in an empty directory")

    def _scan(self, source: BinaryIO) -> None:
        crc32 = zlib.crc32
        for line in source:
            body = line[9:-1]
            if line[:9] != b"%08x " % crc32(body) or line[-1:] != b"\n":
                return
            if self.size == 0:
                self.head = _row(body, self.path).get("head", ...)
                if not isinstance(self.head, dict):
                    return
            elif body.startswith(b'{"accept"'):
                self._note_accepted(_row(body, self.path))
            else:
                self.event_count += 1
                if _SEALED in body[:_NEAR]:
                    self._note_sealed(_row(body, self.path))
            self.size += len(line)

    def _note_sealed(self, row: Mapping[str, Any]) -> None:
        if isinstance(row.get("finished"), int) and row["finished"] >= 0:
            self._sums[str(row.get("phase")).encode()] = self.size

    def _note_accepted(self, row: dict[str, Any]) -> None:
        try:
            changes = tuple(dict(change) for change in row["accept"])
            found = Accepted(
                at=float(row["at"]), offset=self.size, changes=changes, restarted=tuple(map(str, row["restarted"]))
            )
            self.head = {**self.head, **row["head"]}
        except (KeyError, TypeError, ValueError) as exc:
            raise _other_version(self.path, exc) from exc
        self.accepted.append(found)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the events that count, in the order they were written.

        Raises:
            JournalError: if a whole line is no event of this version.
        """
        for body, event in self._events({}):
            try:
                yield Entry(at=_AS_TIME.decode(body).at, event=event)
            except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                raise _other_version(self.path, exc) from exc

    def events(self, *, summed: bool = False) -> Iterator[Event]:
        """Yield what ``__iter__`` does without the times: a state is folded from no more.

        ``summed`` passes over the finished items of sealed phases; their seal tells what they come to, so that the
        fold is the same. Their lines were checked all the same.

        Raises:
            JournalError: if a whole line is no event of this version.
        """
        return (event for _, event in self._events(self._sums if summed else {}))

    def _events(self, sums: Mapping[bytes, int]) -> Iterator[tuple[bytes, Event]]:
        anew = {phase: accepted.offset for accepted in self.accepted for phase in accepted.restarted}
        with _opened(self.path) as source:
            offset = len(source.readline())
            for line in source:
                if offset >= self.size:
                    return
                body = line[9:-1]
                in_sum = sums and offset < sums.get(_phase_of_finished(body), 0)
                if not in_sum and not body.startswith(b'{"accept"'):
                    event = self._event(body)
                    if not anew or offset >= anew.get(event.phase, 0):
                        yield body, event
                offset += len(line)

    def _event(self, body: bytes) -> Event:
        if _JUDGED in body[:_NEAR]:
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return _AS_JUDGED.decode(body)
        try:
            return from_json(_row(body, self.path))
        except (KeyError, TypeError, ValueError) as exc:
            raise _other_version(self.path, exc) from exc


def _phase_of_finished(body: bytes) -> bytes:
    """Return the phase of an event that finishes an item or takes that back, b"" of any other."""
    head = body[:_NEAR]
    if _JUDGED not in head and _REOPENED not in head:
        return b""
    begin = body.find(_PHASE) + len(_PHASE)
    return body[begin : body.find(b'"', begin)]


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as exc:
        raise JournalError(f"journal {path}: no such file; is this a run directory?") from exc
    except OSError as exc:
        raise JournalError(f"journal {path}: cannot be read ({exc.strerror}); fix its permissions") from exc


def read_journal(path: Path) -> tuple[dict[str, Any], list[Entry], int]:
    """Return the head, the entries, and the size in bytes of the part that is whole.

    Raises:
        JournalError: if there is no journal, its first line is damaged, or another version wrote it.
    """
    history = History(path)
    return history.head, list(history), history.size


class Journal:
    """The writer. Use ``create`` or ``resume``; close it to let another writer in."""

    def __init__(self, run_dir: Path, lock: TextIO, sink: RawIOBase) -> None:
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
        journal = cls(run_dir, lock, path.open("ab", buffering=0))
        journal._write({"head": head, "at": time.time()}, durable=True)
        return journal

    @classmethod
    def resume(cls, run_dir: Path) -> tuple[Journal, dict[str, Any], History, int]:
        """Go on with a run: return the writer, the head, the events, and how many torn bytes were cut off."""
        lock = _take_lock(run_dir)
        path = run_dir / JOURNAL
        try:
            history = History(path)
        except JournalError:
            lock.close()
            raise
        torn = path.stat().st_size - history.size
        if torn:
            os.truncate(path, history.size)
        return cls(run_dir, lock, path.open("ab", buffering=0)), history.head, history, torn

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

    def flush(self) -> None:
        """Bring every line to the disk."""
        try:
            os.fsync(self._sink.fileno())
        except OSError as exc:
            raise self._refusal(exc) from exc

    def accept(self, changes: Sequence[dict[str, Any]], head: Mapping[str, Any], restarted: Sequence[str]) -> None:
        """Note what this resumption was allowed to change, the head from now on, and the phases it begins anew."""
        row = {"accept": list(changes), "head": dict(head), "restarted": list(restarted), "at": time.time()}
        self._write(row, durable=True)

    def _write(self, row: Mapping[str, Any], *, durable: bool) -> None:
        try:
            line = _line(row)
            if self._sink.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(self._sink.fileno())
        except OSError as exc:
            raise self._refusal(exc) from exc

    def _refusal(self, exc: OSError) -> JournalError:
        path = self._run_dir / JOURNAL
        return JournalError(f"journal {path}: cannot be written ({exc.strerror}); free space, then --resume")

    def close(self) -> None:
        """Flush and let another writer in."""
        self._sink.close()
        self._lock.close()


def writer_of(run_dir: Path) -> str | None:
    """Return ``host H pid P`` of the process that writes to a run directory now, None if there is none."""
    try:
        with (run_dir / _LOCK).open(encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "another process"
    except OSError:
        return None
    return None


def _take_lock(run_dir: Path) -> TextIO:
    try:
        return _locked(run_dir)
    except FileNotFoundError as exc:
        raise JournalError(f"run directory {run_dir}: does not exist; there is nothing to resume") from exc
    except OSError as exc:
        raise JournalError(
            f"run directory {run_dir}: cannot be written ({exc.strerror}); free space or fix permissions"
        ) from exc


def _locked(run_dir: Path) -> TextIO:
    lock = (run_dir / _LOCK).open("a+", encoding="utf-8")
    for left in reversed(range(_LOCK_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as exc:
            if left:
                time.sleep(_LOCK_PAUSE_S)
                continue
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise JournalError(f"run directory {run_dir}: {holder} is writing here; wait for it or stop it") from exc
    lock.seek(0)
    lock.truncate()
    lock.write(f"host {socket.gethostname()} pid {os.getpid()}")
    lock.flush()
    return lock
