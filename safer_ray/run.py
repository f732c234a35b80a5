"""One run from config to report: prompts, plan, workers, the driver, the summary."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import Any

from safer_ray.backends.checkpoint import drop_state, has_state
from safer_ray.backends.models import resolve_model
from safer_ray.backends.think_tokens import with_think_tokens
from safer_ray.backends.weights import sweep_weights
from safer_ray.backends.world import Scene
from safer_ray.cluster.session import ray_session
from safer_ray.cluster.world import RayWorld
from safer_ray.config import RunConfig
from safer_ray.core.events import Event, Trained
from safer_ray.core.items import Breadth, ItemBook
from safer_ray.core.loop import LoopState
from safer_ray.core.plan import Phase
from safer_ray.core.policies import POLICIES, Limits
from safer_ray.data_card import write_data_card
from safer_ray.driver import Observer, Pace, drive
from safer_ray.errors import JournalError, boundary
from safer_ray.journal import JOURNAL, History
from safer_ray.prepare import Preparation
from safer_ray.records import Prompt
from safer_ray.report import write_report
from safer_ray.resume import journalled_shards
from safer_ray.run_journal import open_journal
from safer_ray.run_log import log_to
from safer_ray.rundir import RunDir
from safer_ray.specs import curation_of, fleet_of, round_facts, train_task
from safer_ray.status_file import StatusWriter
from safer_ray.summary import MemoryPeak, summarise, write_summary
from safer_ray.tables import to_table, write_table, write_whole
from safer_ray.tracking import tracked

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Record:
    """What a running run has so far; enough to conclude it at any moment."""

    prep: Preparation
    run_dir: RunDir
    state: LoopState
    extra: dict[str, Any]

    def conclude(self) -> None:
        """Write summary and report of what was done, counted from the journal."""
        summary = summarise(self.prep.head, self.state, History(self.run_dir.root / JOURNAL), self.extra)
        write_summary(summary, self.run_dir.summary)
        write_data_card(summary, self.run_dir)
        write_report(self.run_dir.root)


def execute(
    prep: Preparation,
    run_dir: RunDir,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept: Sequence[str] = (),
    observe: Observer,
) -> None:
    """Carry a prepared run out; summary and report then lie in the run directory.

    A run that is stopped or fails leaves a summary and a report of what was done, and can be resumed.
    """
    journal, prep, state = open_journal(prep, run_dir, resume=resume, overwrite=overwrite, accept=accept)
    config = prep.config
    record = _Record(prep=prep, run_dir=run_dir, state=state, extra={})

    with ExitStack() as stack:
        stack.enter_context(_sigterm_as_before())
        stack.callback(journal.close)
        stack.enter_context(log_to(run_dir.log))
        track = stack.enter_context(tracked(run_dir.curves, config.track))

        def note(state: LoopState, event: Event, at: float) -> None:
            if isinstance(event, Trained):
                _drop_older_states(run_dir, prep.phases, event.phase)
            track(state, event, at)
            observe(state, event, at)

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
        _terminated_like_interrupted()
        world = make_world(prep, run_dir, record.state)
        stack.callback(world.close)
        status = StatusWriter(record.state, run_dir.status, partial(_workers, world))
        stack.callback(status.close)
        if not resume:
            record.extra.update(ready_at=time.time())
        stack.enter_context(_uninterrupted_end())
        drive(record.state, world, journal, pace=_pace(config), observe=note)
        record.extra.update(world.facts())


def _pace(config: RunConfig) -> Pace:
    return Pace(
        policy=POLICIES[config.loop.policy],
        limits=Limits(max_in_flight=config.loop.max_in_flight, max_tries=config.loop.max_tries),
        # The longest a driver hears nothing while all goes by its deadlines: a rank that does not answer, the placement
        # and start of its successor, its weights laid out anew, its reference log-probs and its first step.
        silence_s=2 * config.loop.start_deadline_s + 4 * config.loop.call_deadline_s,
    )


def _workers(world: RayWorld) -> list[dict[str, Any]]:
    """Return each pool with its replicas, as JSON values."""
    replicas = [asdict(replica) for replica in world.replicas()]
    return [
        {**asdict(pool), "replicas": [row for row in replicas if row["role"] == pool.role]} for pool in world.pools()
    ]


def _drop_older_states(run_dir: RunDir, phases: Sequence[Phase], newest: str) -> None:
    """Free what only the newest checkpoint needs, now that the journal tells of a newer one."""
    for phase in phases:
        if phase.name == newest:
            return
        if phase.kind in ("sft", "erpo"):
            drop_state(run_dir.checkpoint(phase.checkpoint))


def make_world(prep: Preparation, run_dir: RunDir, state: LoopState) -> RayWorld:
    """Start the workers. A resumed run starts its learner from the last checkpoint it trained."""
    config = prep.config
    by_name = {phase.name: phase for phase in prep.phases}
    book = ItemBook(
        {name: (by_name[name], prompts) for name, prompts in prep.by_phase.items()},
        Breadth(
            siblings=config.erpo.siblings,
            answers=config.teacher.answers_per_prompt,
            continuations=config.judge.outcome.continuations if config.judge.outcome else 0,
            whole_share=config.teacher.whole_share,
        ),
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
    scene.named_shards = lambda name: journalled_shards(run_dir.root / JOURNAL, name)
    model = config.model.id
    if config.sampler.kind != "fake":
        found, trusted = resolve_model(model), config.model.trust_remote_code
        model = str(with_think_tokens(found, run_dir.checkpoint("base"), trust_remote_code=trusted))
    trained = [p.phase for p in state.phases if p.ended and p.phase.kind in ("sft", "erpo")]
    begun = run_dir.checkpoint(trained[-1].checkpoint) if trained else None
    if begun is not None and not has_state(begun):
        _require_known_reference(config, trained)
    fleet = fleet_of(config, run_dir, model=model, resume_from=begun)
    return RayWorld(scene, fleet, restore_version=state.policy_version, restore_from=_behind(state, trained))


def _behind(state: LoopState, trained: Sequence[Phase]) -> Phase | None:
    """Return what trained the weights that serve, if something newer was trained but not published yet."""
    served = next((phase for phase in trained if phase.version == state.policy_version), None)
    return None if served is None or served is trained[-1] else served


def _require_known_reference(config: RunConfig, trained: Sequence[Phase]) -> None:
    """Refuse to go on with another reference than the run began with: runs of older versions did not keep it.

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
def _sigterm_as_before() -> Iterator[None]:
    """Put back, once all is over, whatever SIGTERM did before the body."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: the handler was not Python's own, it is that of a Ray session that was there before
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _terminated_like_interrupted() -> None:
    """Let SIGTERM stop the run as Ctrl-C does: job managers send it, and the handler Ray installs aborts on it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does now, also where it is ignored because a shell started us in the background."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(number, frame)


@contextmanager
def _uninterrupted_end() -> Iterator[None]:
    """Ignore further signals once the body ends: the first one stops the run, a second must not stop the cleaning up.

    Ctrl-C stays ignored until the process ends or somebody sets it again; outside the main thread, where no signal
    arrives, nothing is done.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # Not SIG_IGN, which processes started later would inherit.
            signal.signal(signal.SIGTERM, lambda *_: None)


def _write_inputs(prep: Preparation, run_dir: RunDir) -> None:
    """Write what the run was given: config, prompts, and the rows that were skipped."""
    run_dir.scale_order.unlink(missing_ok=True)  # what nobody withdrew was meant for an earlier driver
    write_whole((prep.config.model_dump_json(indent=1) + "\n").encode(), run_dir.config)
    write_table(to_table(prep.prompts.prompts, Prompt), run_dir.prompts)
    for row in prep.prompts.bad_rows:
        logger.warning("skipped row where=%s reason=%s", row.where, row.reason)
