"""One run from config to report: prompts, plan, workers, the driver, the summary."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safer_ray.backends.models import resolve_model
from safer_ray.backends.think_tokens import with_think_tokens
from safer_ray.backends.weights import sweep_weights
from safer_ray.backends.world import Scene, World
from safer_ray.cluster.session import ray_session
from safer_ray.cluster.world import RayWorld
from safer_ray.config import RunConfig
from safer_ray.core.events import Event, is_durable
from safer_ray.core.items import Breadth, ItemBook
from safer_ray.core.loop import LoopState
from safer_ray.core.plan import Phase
from safer_ray.core.policies import POLICIES, Limits
from safer_ray.data_card import write_data_card
from safer_ray.driver import Observer, Pace, drive, replay
from safer_ray.errors import JournalError, boundary
from safer_ray.journal import JOURNAL, Entry, Journal
from safer_ray.prepare import Preparation
from safer_ray.records import Prompt
from safer_ray.report import write_report
from safer_ray.rundir import RunDir
from safer_ray.specs import curation_of, fleet_of, round_facts, train_task
from safer_ray.summary import MemoryPeak, summarise, write_summary
from safer_ray.tables import to_table, write_table

logger = logging.getLogger(__name__)


_IDENTITY = (("data_hash", "prompts"), ("rule_pack", "rule pack"), ("model", "model"), ("config_hash", "config"))
"""What must not change between the begin of a run and its resumption."""


def open_journal(prep: Preparation, run_dir: RunDir, *, resume: bool, overwrite: bool) -> tuple[Journal, list[Entry]]:
    """Return the journal of a new or resumed run.

    Raises:
        JournalError: if the directory holds a run and neither flag was given, or if what is resumed is another run.
    """
    if not resume:
        if overwrite and run_dir.root.exists():
            _remove_run(run_dir)
        return Journal.create(run_dir.root, prep.head), []
    journal, head, entries, torn = Journal.resume(run_dir.root)
    for key, what in _IDENTITY:
        if head.get(key) != prep.head[key]:
            journal.close()
            raise JournalError(
                f"run {run_dir.root}: its {what} changed since it began; resume with the old one or start anew"
            )
    if torn:
        logger.warning("dropped a half-written tail of %d bytes; its work is asked for again", torn)
    prep.head.update(head)
    return journal, entries


def _remove_run(run_dir: RunDir) -> None:
    """Remove an earlier run, and only that: a directory without a journal is somebody else's.

    Raises:
        JournalError: if it is no run directory, or another process is writing there.
    """
    if any(run_dir.root.iterdir()) and not (run_dir.root / JOURNAL).exists():
        raise JournalError(f"{run_dir.root}: not empty and not a run directory; --overwrite only replaces runs")
    Journal.writable(run_dir.root)
    shutil.rmtree(run_dir.root)


@dataclass(slots=True)
class _Record:
    """What a running run has so far; enough to conclude it at any moment."""

    prep: Preparation
    run_dir: RunDir
    state: LoopState
    entries: list[Entry]
    extra: dict[str, Any]

    def conclude(self) -> None:
        """Write summary and report of what was done."""
        summary = summarise(self.prep.head, self.state, self.entries, self.extra)
        write_summary(summary, self.run_dir.summary)
        write_data_card(summary, self.run_dir)
        write_report(self.run_dir.root)


def execute(
    prep: Preparation, run_dir: RunDir, *, resume: bool = False, overwrite: bool = False, observe: Observer
) -> None:
    """Carry a prepared run out; summary and report then lie in the run directory.

    A run that is stopped or fails leaves a summary and a report of what was done, and can be resumed.
    """
    config = prep.config
    journal, entries = open_journal(prep, run_dir, resume=resume, overwrite=overwrite)
    record = _Record(prep=prep, run_dir=run_dir, state=LoopState.of(prep.phases), entries=entries, extra={})
    replay(record.state, entries)

    def note(state: LoopState, event: Event, at: float) -> None:
        if is_durable(event):
            entries.append(Entry(at=at, event=event))
        observe(state, event, at)

    with ExitStack() as stack:
        stack.callback(journal.close)
        stack.enter_context(_log_to(run_dir.log))
        stack.callback(record.conclude)
        with boundary(JournalError, f"run directory {run_dir.root}: cannot be written; free space or fix permissions"):
            _write_inputs(prep, run_dir)
        peak = MemoryPeak()
        stack.callback(lambda: record.extra.update(peak_memory_gib=round(peak.gib, 2)))
        stack.callback(peak.close)
        if record.state.current is None:
            logger.info("run %s was finished already; only its report is written again", run_dir.root)
            return
        stack.callback(sweep_weights)
        stack.enter_context(ray_session(config.cluster.address, config.cluster.object_store_mib))
        world = make_world(prep, run_dir, record.state)
        stack.callback(world.close)
        if not entries:
            record.extra.update(ready_at=time.time())
        pace = Pace(
            policy=POLICIES[config.loop.policy],
            limits=Limits(max_in_flight=config.loop.max_in_flight, max_tries=config.loop.max_tries),
            silence_s=config.loop.start_deadline_s + config.loop.call_deadline_s,
        )
        stack.enter_context(_uninterrupted_end())
        drive(record.state, world, journal, pace=pace, observe=note)
        record.extra.update(world.facts())


def make_world(prep: Preparation, run_dir: RunDir, state: LoopState) -> World:
    """Start the workers. A resumed run starts its learner from the last checkpoint it trained."""
    config = prep.config
    by_name = {phase.name: phase for phase in prep.phases}
    book = ItemBook(
        {name: (by_name[name], prompts) for name, prompts in prep.by_phase.items()},
        Breadth(siblings=config.erpo.siblings, answers=config.teacher.answers_per_prompt),
        config.seed,
    )
    scene = Scene(
        book,
        run_dir,
        lambda number: round_facts(config, number),
        lambda name: train_task(config, by_name[name], run_dir),
        frozenset(config.prompts.never_sample),
        curation_of(config, prep.evaluation_texts),
    )
    model = config.model.id
    if config.sampler.kind != "fake":
        found, trusted = resolve_model(model), config.model.trust_remote_code
        model = str(with_think_tokens(found, run_dir.checkpoint("base"), trust_remote_code=trusted))
    trained = [p.phase for p in state.phases if p.ended and p.phase.kind in ("sft", "erpo")]
    _require_known_reference(config, trained)
    learned = str(run_dir.checkpoint(trained[-1].checkpoint)) if trained else model
    fleet = fleet_of(config, run_dir, model=model, learned=learned)
    return RayWorld(scene, fleet, restore_version=state.policy_version, restore_from=_behind(state, trained))


def _behind(state: LoopState, trained: Sequence[Phase]) -> Phase | None:
    """Return what trained the weights that serve, if something newer was trained but not published yet."""
    served = next((phase for phase in trained if phase.version == state.policy_version), None)
    return None if served is None or served is trained[-1] else served


def _require_known_reference(config: RunConfig, trained: Sequence[Phase]) -> None:
    """Refuse to go on with another reference than the run began with: it is not kept across restarts.

    Raises:
        JournalError: naming what can be done instead.
    """
    rounds = [phase for phase in trained if phase.kind == "erpo"]
    if rounds and config.erpo.reference != "previous_round" and config.learner.kind != "fake":
        raise JournalError(
            f"run {config.name}: stopped after {rounds[-1].name}, and its reference policy ({config.erpo.reference}) "
            f"went with its learner; go on from checkpoints/{rounds[-1].checkpoint} with `safer-ray erpo` in a new run"
        )


@contextmanager
def _uninterrupted_end() -> Iterator[None]:
    """Ignore further Ctrl-C once the body ends: the first one stops the run, a second must not stop the cleaning up.

    The handler stays ignored until the process ends or somebody sets it again; outside the main thread, where
    no Ctrl-C arrives, nothing is done.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Keep what this package logs in the run directory as well, resumed runs appended."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    ours = logging.getLogger("safer_ray")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()


def _write_inputs(prep: Preparation, run_dir: RunDir) -> None:
    """Write what the run was given: config, prompts, and the rows that were skipped."""
    run_dir.config.write_text(prep.config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_table(to_table(prep.prompts.prompts, Prompt), run_dir.prompts)
    for row in prep.prompts.bad_rows:
        logger.warning("skipped row where=%s reason=%s", row.where, row.reason)
