"""Opening the journal of a run: a new one, one to go on with, or one in place of an earlier run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence

from safer_ray.core.loop import LoopState, apply, fold
from safer_ray.errors import JournalError, SaferRayError
from safer_ray.journal import JOURNAL, History, Journal
from safer_ray.prepare import Preparation
from safer_ray.resume import Past, check_checkpoint, note_resumption, plan_resumption, reopened
from safer_ray.rundir import RunDir

logger = logging.getLogger(__name__)


def open_journal(
    prep: Preparation, run_dir: RunDir, *, resume: bool, overwrite: bool, accept: Sequence[str] = ()
) -> tuple[Journal, Preparation, LoopState]:
    """Return the journal of a new or resumed run, the preparation it goes on with, and the fold of its events.

    ``accept`` names what may have changed since a resumed run began.

    Raises:
        JournalError: if the directory holds a run and neither flag was given, or if what is resumed is another run,
            or its checkpoint is damaged.
    """
    if not resume:
        if overwrite and run_dir.root.exists():
            _remove_run(run_dir)
        return Journal.create(run_dir.root, prep.head), prep, LoopState.of(prep.phases)
    journal, _, history, torn = Journal.resume(run_dir.root)
    try:
        past = Past.of(history, prep.phases)
        plan = plan_resumption(prep, run_dir, past, accept)
        check_checkpoint(run_dir, past, plan.prep.phases)
        note_resumption(journal, plan)
        for phase in plan.restarted:
            for folder in (run_dir.shards(phase), run_dir.seal_mark(phase)):
                shutil.rmtree(folder, ignore_errors=True)
            past.shards.pop(phase, None)
        state = past.state
        if plan.restarted or plan.prep.phases != prep.phases:
            state = fold(plan.prep.phases, History(run_dir.root / JOURNAL).events(summed=True))
        for event in reopened(run_dir, past):
            logger.warning("asked for again phase=%s item=%d reason=%s", event.phase, event.item, event.reason)
            apply(state, journal.append(event).event)
    except SaferRayError:
        journal.close()
        raise
    if torn:
        logger.warning("dropped a half-written tail of %d bytes; its work is asked for again", torn)
    return journal, plan.prep, state


def _remove_run(run_dir: RunDir) -> None:
    """Remove an earlier run, and only that: a directory without a journal is somebody else's.

    Raises:
        JournalError: if it is no run directory, or another process is writing there.
    """
    if any(run_dir.root.iterdir()) and not (run_dir.root / JOURNAL).exists():
        raise JournalError(f"{run_dir.root}: not empty and not a run directory; --overwrite only replaces runs")
    Journal.writable(run_dir.root)
    shutil.rmtree(run_dir.root)
