"""Whole runs, and what must hold of any of them: the tiny job on the fakes, watched while it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray._private.state
from ray.util.placement_group import placement_group_table

from safer_ray.config_file import find_job, load_config
from safer_ray.core.events import Dropped, Event, Judged, Published, Stepped
from safer_ray.core.loop import LoopState
from safer_ray.journal import JOURNAL, read_journal
from safer_ray.prepare import Preparation, prepare
from safer_ray.records import Outcome, Rollout
from safer_ray.run import execute
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table

ACTORS = ("SamplerActor", "GraderActor", "LearnerActor")


SMALL = ("sft.max_prompts=20", "erpo.prompts_per_round=10", "evaluate.max_unsafe=6", "evaluate.max_safe=6")
"""What makes the tiny job smaller: a dozen runs of it are part of the tests."""


def tiny_job(*overrides: str) -> Preparation:
    """Prepare the shipped tiny job on the fakes, with fewer prompts."""
    return prepare(load_config(find_job("tiny_fake"), [*SMALL, *overrides]))


def events_of(run_dir: RunDir) -> list[Event]:
    """Return what the journal holds, in order."""
    return [entry.event for entry in read_journal(run_dir.root / JOURNAL)[1]]


def published_versions(run_dir: RunDir) -> list[int]:
    """Return the policy versions that samplers were given."""
    return [event.version for event in events_of(run_dir) if isinstance(event, Published)]


def pair_bytes(run_dir: RunDir) -> list[bytes]:
    """Return the pairs of every round as they lie on disk."""
    return [path.read_bytes() for path in sorted(run_dir.root.glob("rounds/*/pairs.arrow"))]


def assert_every_prompt_once(prep: Preparation, run_dir: RunDir) -> None:
    """Compare journal and tables of a finished run with its plan: nothing lost, dropped or done twice."""
    events = events_of(run_dir)
    assert [event for event in events if isinstance(event, Dropped)] == []
    ends = Counter((event.phase, event.item) for event in events if isinstance(event, Judged) and event.final)
    assert ends == Counter((phase.name, item) for phase in prep.phases for item in range(phase.items))
    for phase in prep.phases:
        asked = sorted(prompt.prompt_id for prompt in prep.by_phase[phase.name])
        if phase.kind == "evaluate":
            outcomes = from_table(read_table(run_dir.evaluation(phase.checkpoint)), Outcome)
            assert sorted(outcome.prompt_id for outcome in outcomes) == asked
            assert {outcome.policy_version for outcome in outcomes} == {phase.version}
        elif phase.kind == "explore":
            rollouts = from_table(read_table(run_dir.round(phase.round) / "rollouts.arrow"), Rollout)
            first = Counter(rollout.prompt_id for rollout in rollouts if rollout.first_step == 0)
            assert first == dict.fromkeys(asked, prep.config.erpo.siblings)
            assert {rollout.policy_version for rollout in rollouts} == {phase.version}


def living_actors() -> list[dict[str, Any]]:
    """Return what Ray knows of the workers that are alive."""
    alive = ray._private.state.actors(actor_state_name="ALIVE").values()
    return [row for row in alive if row["ActorClassName"] in ACTORS]


def living_groups() -> list[dict[str, Any]]:
    """Return the placement groups that hold resources."""
    return [group for group in placement_group_table().values() if group["state"] == "CREATED"]


@dataclass
class Watched:
    """A run, and the workers it had while it trained."""

    prep: Preparation
    run_dir: RunDir
    actors: Counter[str] = field(default_factory=Counter)
    bundles: list[int] = field(default_factory=list)
    """How many bundles each placement group had, in descending order."""

    def look(self, state: LoopState, event: Event, at: float) -> None:
        """Count the workers when all roles are there: at the first training step."""
        if isinstance(event, Stepped) and not self.actors:
            self.actors = Counter(row["ActorClassName"] for row in living_actors())
            self.bundles = sorted((len(group["bundles"]) for group in living_groups()), reverse=True)


def watched_run(root: Path, *overrides: str) -> Watched:
    """Run the tiny job to its end, on the cluster this process has joined."""
    run = Watched(prep=tiny_job(*overrides), run_dir=RunDir(root))
    execute(run.prep, run.run_dir, observe=run.look)
    return run
