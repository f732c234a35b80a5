"""Laws of the journal: what was read is a prefix of what was written, and a run has one writer."""

from __future__ import annotations

import json
import os
import random
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.events import Dropped, Event, Judged, Lost, Published, Reopened, Sealed, Stepped, Trained, from_json
from safer_ray.core.loop import LoopState, apply, fold, summed
from safer_ray.core.plan import Phase
from safer_ray.errors import JournalError
from safer_ray.journal import JOURNAL, Entry, History, Journal, read_journal
from safer_ray.resume import Past

LAW = settings(max_examples=50, deadline=None)
HEAD: dict[str, Any] = {"name": "demo", "seed": 7, "config_hash": "f00d"}
phase = st.sampled_from(["teach", "explore-1", "evaluate-base"])
number = st.integers(0, 10**6)
text = st.text(max_size=12)
figures = st.dictionaries(text, st.none() | st.floats(allow_nan=False, allow_infinity=False) | number, max_size=3)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        Judged,
        phase=phase,
        item=number,
        level=number,
        attempt=number,
        final=st.just(True),
        counts=st.dictionaries(text, number, max_size=3),
    ),
    st.builds(Lost, phase=phase, item=number, attempt=number, reason=text),
    st.builds(Dropped, phase=phase, item=number, reason=text),
    st.builds(Sealed, phase=phase, facts=figures, wall_s=st.floats(0, 1e6)),
    st.builds(Stepped, phase=phase, facts=figures),
    st.builds(Trained, phase=phase, facts=figures, wall_s=st.floats(0, 1e6)),
    st.builds(Published, phase=phase, version=number, checksum=text, nbytes=number, wall_s=st.floats(0, 1e6)),
)
histories = st.lists(events, min_size=1, max_size=6)


def write(run_dir: Path, history: list[Event], head: dict[str, Any] | None = None) -> list[Entry]:
    """Write a journal anew and return its entries."""
    (run_dir / JOURNAL).unlink(missing_ok=True)
    journal = Journal.create(run_dir, HEAD if head is None else head)
    entries = [journal.append(event) for event in history]
    journal.close()
    return entries


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run directory that every example writes anew."""
    return tmp_path_factory.mktemp("journal")


@LAW
@given(histories, histories)
def test_what_was_appended_before_and_after_a_resumption_is_read_back(
    scratch: Path, before: list[Event], after: list[Event]
) -> None:
    written = write(scratch, before)
    journal, head, entries, torn = Journal.resume(scratch)
    assert (head, list(entries), torn) == (HEAD, written, 0)
    written += [journal.append(event) for event in after]
    journal.close()
    assert read_journal(scratch / JOURNAL) == (HEAD, written, (scratch / JOURNAL).stat().st_size)
    assert [entry.event for entry in written] == [*before, *after]


@LAW
@given(histories, st.integers(0, 10**6), events)
def test_a_journal_cut_anywhere_gives_a_prefix_and_goes_on_from_there(
    scratch: Path, history: list[Event], place: int, later: Event
) -> None:
    written = write(scratch, history)
    path = scratch / JOURNAL
    whole = path.read_bytes()
    kept = place % (len(whole) + 1)
    path.write_bytes(whole[:kept])
    lines = whole[:kept].count(b"\n")
    if not lines:
        with pytest.raises(JournalError, match="the first line is damaged"):
            Journal.resume(scratch)
        return
    journal, head, entries, torn = Journal.resume(scratch)
    added = journal.append(later)
    journal.close()
    assert (head, list(entries)) == (HEAD, written[: lines - 1])
    assert torn == kept - (whole[:kept].rfind(b"\n") + 1)
    assert read_journal(path)[1] == [*entries, added]


@LAW
@given(
    st.fixed_dictionaries(
        {"event": st.just("Judged"), "phase": phase, "item": number, "level": number, "attempt": number},
        optional={"final": st.booleans(), "counts": st.dictionaries(text, number, max_size=3), "shard": text},
    ),
    st.dictionaries(
        st.sampled_from(["phase", "item", "level", "final", "counts", "shard", "new"]),
        st.none() | st.booleans() | st.floats() | st.integers() | text | st.dictionaries(text, st.floats(), max_size=2),
        max_size=2,
    ),
)
def test_reading_fast_gives_the_event_that_reading_slowly_gives(
    scratch: Path, row: dict[str, Any], other: dict[str, Any]
) -> None:
    """Whatever a line with a right checksum says of a judged prompt: the same event, or both refuse it."""
    write(scratch, [])
    body = json.dumps({"at": 1.0, **row, **other}, separators=(",", ":")).encode()
    path = scratch / JOURNAL
    with path.open("ab") as sink:
        sink.write(b"%08x %s\n" % (zlib.crc32(body), body))
    try:
        wanted = from_json(json.loads(body))
    except ValueError:
        with pytest.raises(JournalError, match="written by another version"):
            list(History(path).events())
        return
    assert list(map(repr, History(path).events())) == [repr(wanted)]


@LAW
@given(histories, st.integers(0, 10**6))
def test_a_resumption_folds_what_a_fold_of_everything_gives_wherever_the_journal_ends(
    scratch: Path, history: list[Event], place: int
) -> None:
    plan = [Phase(name=name, kind="explore", items=10**6 + 1) for name in ("teach", "explore-1", "evaluate-base")]
    write(scratch, history)
    path = scratch / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    kept = place % len(lines)
    path.write_bytes(b"".join(lines[: kept + 1]) + lines[-1][: place % len(lines[-1])])
    journal, _, found, _ = Journal.resume(scratch)
    journal.close()
    past = Past.of(found, plan)
    assert past.state == fold(plan, history[:kept])
    assert [entry.event for entry in found] == list(found.events()) == history[:kept]


ITEMS = 4
fates = st.lists(
    st.tuples(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=2),
        st.sampled_from(["judged", "dropped", "reopened and judged", "reopened and dropped"]),
        st.dictionaries(st.sampled_from(["steps", "unscored"]), st.integers(0, 9)),
    ),
    min_size=2 * ITEMS,
    max_size=2 * ITEMS,
)


def lives(phase: str, item: int, fate: Any) -> list[Event]:
    """Return what happens to one item of a phase, in order."""
    losses, end, counts = fate
    found: list[Event] = [
        Lost(phase=phase, item=item, attempt=n, reason=f"lost {n}", killed_worker=killed, alone=alone, stale=stale)
        for n, (killed, alone, stale) in enumerate(losses)
    ]
    judged = Judged(phase=phase, item=item, level=0, attempt=len(losses), final=True, counts=counts)
    if end != "dropped":
        found.append(judged)
    if end.startswith("reopened"):
        found.append(Reopened(phase=phase, item=item, reason="shard is gone", counts=counts))
    if end.endswith("dropped"):
        found.append(Dropped(phase=phase, item=item, reason="too often lost"))
    elif end.startswith("reopened"):
        found.append(judged)
    return found


@LAW
@given(fates, st.randoms(use_true_random=False), st.integers(0, 10**6))
def test_a_fold_that_passes_over_sealed_items_gives_the_same_state_wherever_the_journal_ends(
    scratch: Path, every: list[Any], order: random.Random, place: int
) -> None:
    plan = [Phase(name=name, kind="explore", items=ITEMS) for name in ("explore-1", "explore-2")]
    state, happened = LoopState.of(plan), list[Event]()
    for number, phase in enumerate(plan):
        waiting = [lives(phase.name, item, every[number * ITEMS + item]) for item in range(ITEMS)]
        while waiting := [events for events in waiting if events]:
            happened.append(order.choice(waiting).pop(0))
        happened.append(Sealed(phase=phase.name, facts={}, wall_s=1.0))
    write(scratch, [])
    journal, *_ = Journal.resume(scratch)
    for event in happened:
        event = summed(state, event)
        apply(state, event)
        journal.append(event)
    journal.close()
    assert state.current is None
    assert (state.ignored, state.lost_items) == (0, 0)
    path = scratch / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + place % len(lines)]))
    history = History(path)
    whole, short = fold(plan, history.events()), fold(plan, history.events(summed=True))
    assert short == whole
    assert place % len(lines) < len(happened) or whole == state


def test_a_line_that_lacks_only_its_end_is_torn(tmp_path: Path) -> None:
    written = write(tmp_path, [Dropped(phase="teach", item=n, reason="too long") for n in range(2)])
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-1])
    journal, _, entries, torn = Journal.resume(tmp_path)
    added = journal.append(Dropped(phase="teach", item=5, reason="too long"))
    journal.close()
    assert torn > 0
    assert read_journal(path)[1] == [*entries, added] == [written[0], added]


@LAW
@given(histories, st.integers(0, 10**6), st.integers(1, 255))
def test_reading_stops_at_a_flipped_byte(scratch: Path, history: list[Event], place: int, flip: int) -> None:
    written = write(scratch, history)
    path = scratch / JOURNAL
    damaged = bytearray(path.read_bytes())
    at = place % len(damaged)
    line = bytes(damaged[:at]).count(b"\n")
    damaged[at] ^= flip
    path.write_bytes(damaged)
    if line == 0:
        with pytest.raises(JournalError, match="the first line is damaged"):
            read_journal(path)
        return
    head, entries, whole = read_journal(path)
    assert (head, entries) == (HEAD, written[: line - 1])
    assert whole <= at


def test_what_lies_behind_the_damage_is_cut_off_when_the_run_goes_on(tmp_path: Path) -> None:
    entries = write(tmp_path, [Lost(phase="teach", item=n, attempt=0, reason="gone") for n in range(5)])
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"?" * 20, *lines[4:]]))
    journal, _, read, torn = Journal.resume(tmp_path)
    journal.close()
    assert list(read) == entries[:2]
    assert torn == 20 + len(b"".join(lines[4:]))
    assert path.read_bytes() == b"".join(lines[:3])


def test_a_second_writer_is_refused_by_host_and_pid_until_the_first_is_done(tmp_path: Path) -> None:
    first = Journal.create(tmp_path, HEAD)
    holder = f"host {socket.gethostname()} pid {os.getpid()} is writing here"
    for refused in (lambda: Journal.resume(tmp_path), lambda: Journal.create(tmp_path, HEAD)):
        with pytest.raises(JournalError, match=holder):
            refused()
    with pytest.raises(JournalError, match=holder):
        Journal.writable(tmp_path)
    first.append(Dropped(phase="teach", item=0, reason="too long"))
    first.close()
    Journal.writable(tmp_path)
    second, _, entries, _ = Journal.resume(tmp_path)
    second.close()
    assert [entry.event for entry in entries] == [Dropped(phase="teach", item=0, reason="too long")]


def of_another_user(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("reason", ["Permission denied", "Is a directory"])
def test_a_lock_that_cannot_be_opened_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "Is a directory":
        (tmp_path / "writer.lock").mkdir()
    else:
        monkeypatch.setattr(Path, "open", of_another_user)  # root may open what belongs to others
    begun = (
        lambda: Journal.resume(tmp_path),
        lambda: Journal.create(tmp_path, HEAD),
        lambda: Journal.writable(tmp_path),
    )
    for refused in begun:
        with pytest.raises(JournalError) as told:
            refused()
        assert str(told.value) == (
            f"run directory {tmp_path}: cannot be written ({reason}); free space or fix permissions"
        )


def test_a_disk_that_refuses_to_flush_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal.create(tmp_path, HEAD)
    monkeypatch.setattr("safer_ray.journal.os.fsync", full)
    with pytest.raises(JournalError) as told:
        journal.flush()
    journal.close()
    path = tmp_path / JOURNAL
    assert str(told.value) == f"journal {path}: cannot be written (No space left on device); free space, then --resume"


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    write(tmp_path, [Dropped(phase="teach", item=0, reason="too long")])
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(JournalError, match="already holds a run; choose another, or pass --resume or --overwrite"):
        Journal.create(tmp_path, {"name": "other"})
    assert (tmp_path / JOURNAL).read_bytes() == before
    Journal.writable(tmp_path)


def test_there_is_nothing_to_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="does not exist; there is nothing to resume"):
        Journal.resume(tmp_path / "none")
    with pytest.raises(JournalError, match="no such file; is this a run directory"):
        Journal.resume(tmp_path)
    Journal.writable(tmp_path)


def test_a_whole_line_of_another_version_is_not_taken_for_damage(tmp_path: Path) -> None:
    write(tmp_path, [Dropped(phase="teach", item=0, reason="too long")])
    body = json.dumps({"at": 1.0, "event": "Teleported", "phase": "teach"})
    with (tmp_path / JOURNAL).open("a") as sink:
        sink.write(f"{zlib.crc32(body.encode()):08x} {body}\n")
    with pytest.raises(
        JournalError, match=r"written by another version \(unknown event 'Teleported'.*resume with that"
    ):
        read_journal(tmp_path / JOURNAL)


def test_a_whole_line_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    body = b'{"at":2.0,"event":"Judged","phase":"\x80","item":0,"level":0,"attempt":0,"final":true,"counts":{}}'
    lines = (b'{"head":{},"at":1.0}', body)
    (tmp_path / JOURNAL).write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
    with pytest.raises(JournalError):
        read_journal(tmp_path / JOURNAL)


def test_a_figure_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, HEAD)
    with pytest.raises(ValueError, match="JSON"):
        journal.append(Stepped(phase="sft", facts={"loss": float("nan")}))
    journal.close()
    assert read_journal(tmp_path / JOURNAL)[1] == []
