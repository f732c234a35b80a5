"""A whole run in this process: the shipped fakes behind ``LocalWorld``, without Ray and without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safer_ray.backends.base import JudgeSpec, OptimSettings, Sampler, TrainTask
from safer_ray.backends.fake import FakeJudgeSpec, FakeLearnerSpec, FakeSamplerSpec, FakeTeacherSpec, fake_weights
from safer_ray.backends.grader import GraderSpec, RoundFacts
from safer_ray.backends.world import LocalWorld, Scene, World
from safer_ray.config_file import load_config
from safer_ray.core.curation import Curation
from safer_ray.core.decontamination import banned_runs
from safer_ray.core.events import Event, is_durable
from safer_ray.core.items import Breadth, ItemBook
from safer_ray.core.loop import LoopState
from safer_ray.core.pairing import PairingRules
from safer_ray.core.policies import POLICIES, Limits
from safer_ray.driver import Pace, drive
from safer_ray.journal import JOURNAL, Entry, read_journal
from safer_ray.prepare import Preparation, prepare
from safer_ray.records import Prompt
from safer_ray.resume import journalled_shards
from safer_ray.run_journal import open_journal
from safer_ray.rundir import RunDir
from safer_ray.summary import summarise, write_summary
from safer_ray.tables import to_table, write_table

LIMITS = Limits(max_in_flight=4, max_tries=3)
BANNED = "R04"
_JOB = """\
name: small
seed: {seed}
model: {{id: fake}}
prompts: {{sources: [{{path: {prompts}}}]}}
sampler: {{kind: fake, replicas: 2}}
judge: {{kind: fake}}
teacher: {{kind: fake}}
learner: {{kind: fake}}
sft: {{max_prompts: 8}}
erpo: {{rounds: 2, prompts_per_round: 5, siblings: 4}}
"""


def write_job(folder: Path, *, seed: int = 0) -> Path:
    """Write a job file with 30 prompts of its own, six of them about the banned category, and return its path."""
    rows = [
        {
            "id": f"{rule}-{number:03d}-{letter}",
            "label": label,
            "category": rule,
            "split": "test" if number == 3 else "train",
            "prompt": f"Tell me about thing {number} of {rule}, the {label} way.",
        }
        for rule in ("R01", BANNED, "R09")
        for number in (1, 2, 3)
        for letter, label in (("u", "unsafe"), ("s", "safe"))
    ]
    rows += [
        {
            "id": f"R00-{n:03d}-s",
            "label": "safe",
            "split": "test" if n == 11 else "train",
            "prompt": f"What is {n} + {n}?",
        }
        for n in range(12)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = folder / "small.yaml"
    job.write_text(_JOB.format(seed=seed, prompts=json.dumps(str(prompts))), encoding="utf-8")
    return job


def prepared(folder: Path, *overrides: str, seed: int = 0) -> Preparation:
    """Return the preparation of a small job written into ``folder``."""
    return prepare(load_config(write_job(folder, seed=seed), overrides))


def local_world(
    prep: Preparation,
    run_dir: RunDir,
    *,
    sampler: Sampler | None = None,
    judge: JudgeSpec | None = None,
    resume_from: str = "",
) -> LocalWorld:
    """Return the world of a run; the sampler is at version 0, the learner as it saved ``resume_from``."""
    by_name = {phase.name: phase for phase in prep.phases}
    config = prep.config
    book = ItemBook(
        {name: (by_name[name], prompts) for name, prompts in prep.by_phase.items()},
        Breadth(
            siblings=config.erpo.siblings,
            answers=config.teacher.answers_per_prompt,
            continuations=config.judge.outcome.continuations if config.judge.outcome else 0,
        ),
        config.seed,
    )

    def train_task(name: str) -> TrainTask:
        if by_name[name].kind == "sft":
            return TrainTask(stage=name, kind="sft", data_path=str(run_dir.traces), optim=OptimSettings(lr=1e-4))
        data = run_dir.round(by_name[name].round) / "pairs.arrow"
        reference = config.erpo.reference
        return TrainTask(
            stage=name, kind="erpo", data_path=str(data), optim=OptimSettings(lr=1e-5), reference=reference
        )

    facts = {"sampler": "fake", "temperature": 1.0, "top_p": 0.95, "reference": config.erpo.reference}
    scene = Scene(
        book,
        run_dir,
        lambda number: RoundFacts(round=number, **facts),  # type: ignore[arg-type]
        train_task,
        frozenset(config.prompts.never_sample),
        Curation(
            balance=config.sft.balance,
            max_jaccard=config.sft.max_jaccard,
            banned_runs=banned_runs(prep.evaluation_texts),
            seed=config.seed,
        ),
    )
    scene.named_shards = lambda name: journalled_shards(run_dir.root / JOURNAL, name)
    grader = GraderSpec(
        judge=judge or FakeJudgeSpec(seed=config.seed),
        pairing=PairingRules(token_floor=4),
        teacher=FakeTeacherSpec(seed=config.seed),
    )
    learner = FakeLearnerSpec(seed=config.seed, resume_from=resume_from).build(rank=0, world_size=1, master="")
    return LocalWorld(scene, sampler or FakeSamplerSpec(seed=config.seed).build(), grader.build(), learner)


class StoppedRun(Exception):
    """Stands for whatever ends a driver in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """A run that was carried out."""

    prep: Preparation
    run_dir: RunDir
    state: LoopState
    entries: list[Entry]
    summary: dict[str, Any]
    accepted: int


def carry_out(
    prep: Preparation,
    root: Path,
    world: World | None = None,
    *,
    sampler: Sampler | None = None,
    stop_after: int = 0,
    stop_when: Callable[[Event], bool] = lambda event: False,
    accept: Sequence[str] = (),
) -> LocalRun:
    """Begin the run in ``root``, or go on with the one there, as the command line does but without Ray.

    Raises:
        StoppedRun: after ``stop_after`` accepted events (0: never), or once ``stop_when`` is true of one.
    """
    run_dir, begun = RunDir(root), (root / JOURNAL).exists()
    journal, prep, state = open_journal(prep, run_dir, resume=begun, overwrite=False, accept=accept)
    entries = read_journal(root / JOURNAL)[1]
    accepted = 0

    def note(state: LoopState, event: Event, at: float) -> None:
        nonlocal accepted
        accepted += 1
        if is_durable(event):
            entries.append(Entry(at=at, event=event))
        if accepted == stop_after or stop_when(event):
            raise StoppedRun

    sampler = sampler or FakeSamplerSpec(seed=prep.config.seed).build()
    if state.policy_version:
        sampler.load_weights(fake_weights(state.policy_version))
    trained = [p.phase.checkpoint for p in state.phases if p.ended and p.phase.kind in ("sft", "erpo")]
    resume_from = str(run_dir.checkpoint(trained[-1])) if trained else ""
    world = world or local_world(prep, run_dir, sampler=sampler, resume_from=resume_from)
    write_table(to_table(prep.prompts.prompts, Prompt), run_dir.prompts)
    run_dir.config.write_text(prep.config.model_dump_json(indent=1), encoding="utf-8")
    try:
        policy = POLICIES[prep.config.loop.policy]
        drive(state, world, journal, pace=Pace(policy=policy, limits=LIMITS, silence_s=0.0), observe=note)
    finally:
        journal.close()
        world.close()
        summary = summarise(prep.head, state, entries, world.facts())
        write_summary(summary, run_dir.summary)
    return LocalRun(prep=prep, run_dir=run_dir, state=state, entries=entries, summary=summary, accepted=accepted)
