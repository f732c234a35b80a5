"""The loop on a real local cluster with the fakes: nothing is lost, whatever dies, and one seed gives one result."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from tiny_runs import (
    Watched,
    assert_every_prompt_once,
    events_of,
    living_actors,
    living_groups,
    pair_bytes,
    published_versions,
    tiny_job,
    watched_run,
)

from safer_ray import errors, specs
from safer_ray.backends.fake import FakeLearnerSpec
from safer_ray.backends.vllm_sampler import VllmSamplerSpec
from safer_ray.cluster.actors import answer
from safer_ray.core.events import Event, Judged, Lost, Stepped
from safer_ray.core.loop import LoopState
from safer_ray.errors import ClusterError, LearnerError, ModelError, SaferRayError, SamplerError, boundary
from safer_ray.records import StepPair
from safer_ray.run import execute
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table

GONE_DEADLINE_S = 20.0


def summary_of(run_dir: RunDir) -> dict[str, Any]:
    return dict(json.loads(run_dir.summary.read_text()))


def unwatched(state: LoopState, event: Event, at: float) -> None:
    """Look at nothing."""


def holds_within(deadline_s: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


# ---- a run as it should be ----


def test_the_tiny_job_does_every_prompt_once_and_gives_its_workers_back(whole: Watched) -> None:
    summary = summary_of(whole.run_dir)
    assert summary["finished"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0
    assert [each["checkpoint"] for each in summary["evaluations"]] == ["base", "sft", "erpo-1", "erpo-2"]
    assert published_versions(whole.run_dir) == [1, 2, 3]
    assert_every_prompt_once(whole.prep, whole.run_dir)
    assert holds_within(GONE_DEADLINE_S, lambda: not living_actors() and not living_groups())


def test_every_pair_says_where_it_comes_from(whole: Watched) -> None:
    for number in (1, 2):
        pairs = from_table(read_table(whole.run_dir.round(number) / "pairs.arrow"), StepPair)
        asked = {prompt.prompt_id for prompt in whole.prep.by_phase[f"explore-{number}"]}
        assert pairs
        assert len({pair.pair_id for pair in pairs}) == len(pairs)
        for pair in pairs:
            origin = pair.lineage
            assert pair.prompt_id in asked
            assert pair.policy_version == origin.round == number
            assert origin.judge
            assert origin.rule_pack_hash
            assert (origin.sampler, origin.reference) == ("fake", "fixed")
            assert (origin.temperature, origin.top_p) == (1.0, 0.95)


@pytest.fixture(scope="module")
def scaled(local_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The same job with other numbers of workers, in batches of another size."""
    return watched_run(
        tmp_path_factory.mktemp("scaled"),
        "sampler.replicas=3",
        "sampler.tensor_parallel=2",
        "sampler.resources.cpus=0.1",
        "judge.replicas=1",
        "learner.ranks=2",
        "learner.resources.cpus=0.1",
        "loop.max_in_flight=5",
    )


def test_samplers_their_width_judges_and_ranks_are_four_independent_numbers(whole: Watched, scaled: Watched) -> None:
    assert whole.actors == {"SamplerActor": 2, "GraderActor": 2, "LearnerActor": 1}
    assert scaled.actors == {"SamplerActor": 3, "GraderActor": 1, "LearnerActor": 2}
    # each engine has a group of its own, as wide as the engine; so have the ranks together; this judge asks for nothing
    assert whole.bundles == [1, 1, 1]
    assert scaled.bundles == [2, 2, 2, 2]


def test_one_seed_writes_the_same_pairs_with_any_number_of_workers(whole: Watched, scaled: Watched) -> None:
    assert len(pair_bytes(whole.run_dir)) == 2
    assert pair_bytes(scaled.run_dir) == pair_bytes(whole.run_dir)
    assert_every_prompt_once(scaled.prep, scaled.run_dir)


# ---- what fails, and what that costs ----


@dataclass
class Killer:
    """Kills one sampler's process while samplers are busy, and another one while they are idle."""

    killed: set[int] = field(default_factory=set)
    judged: int = 0

    def look(self, state: LoopState, event: Event, at: float) -> None:
        if isinstance(event, Judged) and event.phase == "explore-1":
            self.judged += 1
            if self.judged == 5:
                self._kill()
        elif isinstance(event, Stepped) and event.phase == "erpo-1" and event.facts["step"] == 1:
            self._kill()

    def _kill(self) -> None:
        pids = [row["Pid"] for row in living_actors() if row["ActorClassName"] == "SamplerActor"]
        pid = next(pid for pid in pids if pid not in self.killed)
        assert psutil.Process(pid).parent() is not None
        os.kill(pid, signal.SIGKILL)
        self.killed.add(pid)


def test_a_sampler_that_dies_is_replaced_and_costs_no_prompt(whole: Watched, tmp_path: Path) -> None:
    killer, prep, run_dir = Killer(), tiny_job(), RunDir(tmp_path)
    execute(prep, run_dir, observe=killer.look)
    assert len(killer.killed) == 2
    assert summary_of(run_dir)["sampler_restarts"] == 2
    assert any(isinstance(event, Lost) for event in events_of(run_dir))
    assert_every_prompt_once(prep, run_dir)
    assert pair_bytes(run_dir) == pair_bytes(whole.run_dir)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_resumed_run_ends_as_if_it_never_happened(
    whole: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prep, run_dir = tiny_job(), RunDir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(specs, "FakeLearnerSpec", partial(FakeLearnerSpec, nan_at_step=6))
        with pytest.raises(LearnerError, match=r"^learner fake: loss is nan at step 6 of stage erpo-1: .*the lr$"):
            execute(prep, run_dir, observe=unwatched)
    assert published_versions(run_dir) == [1]
    assert not run_dir.checkpoint("erpo-1").exists()
    assert not summary_of(run_dir)["finished"]
    assert (run_dir.root / "report.html").exists()

    execute(tiny_job(), run_dir, resume=True, observe=unwatched)
    summary = summary_of(run_dir)
    assert summary["finished"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0
    assert published_versions(run_dir) == [1, 2, 3]
    assert pair_bytes(run_dir) == pair_bytes(whole.run_dir)
    steps = [(row["stage"], row["step"]) for row in summary["training"]]
    assert steps == [(row["stage"], row["step"]) for row in summary_of(whole.run_dir)["training"]]
    assert_every_prompt_once(prep, run_dir)


def test_a_placement_that_cannot_be_met_names_what_was_asked_for_and_what_is_free(
    local_cluster: None, tmp_path: Path
) -> None:
    prep = tiny_job("sampler.resources.cpus=1000", "judge.resources.cpus=1000", "loop.start_deadline_s=2")
    with pytest.raises(
        ClusterError, match=r"not placed in 2 s; asked for .*'CPU': 1000.*free in the cluster: node .*: CPU "
    ):
        execute(prep, RunDir(tmp_path), observe=unwatched)
    assert holds_within(GONE_DEADLINE_S, lambda: not living_actors() and not living_groups())


def test_without_a_free_gpu_the_run_says_that_no_node_has_one(local_cluster: None, tmp_path: Path) -> None:
    prep = tiny_job("sampler.resources.gpus=1", "judge.resources.gpus=1", "loop.start_deadline_s=2")
    with pytest.raises(ClusterError, match=r"asked for .*'GPU': 1.*; no node has any GPU; lower the"):
        execute(prep, RunDir(tmp_path), observe=unwatched)


def test_a_sampler_that_cannot_start_ends_the_run_with_its_own_sentence(
    local_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "sampler_spec", lambda config, model: VllmSamplerSpec(model="./gone"))
    with pytest.raises(ModelError, match=r"^model \./gone: there is no such directory$"):
        execute(tiny_job(), RunDir(tmp_path), observe=unwatched)


# ---- errors between processes ----


def _kinds(kind: type[SaferRayError]) -> Iterator[type[SaferRayError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


class Failing:
    """Fails as told."""

    def fail(self, kind: str, text: str) -> None:
        raise getattr(errors, kind)(text)

    def divide(self) -> float:
        with boundary(SamplerError, "sampler a"):
            return 1 / 0


@pytest.fixture(scope="module")
def failing(local_cluster: None) -> Iterator[Any]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    make: Any = ray.remote(num_cpus=0)(Failing)
    actor = make.remote()
    yield actor
    ray.kill(actor)


async def answered(ref: Any) -> Any:
    return await answer(ref)


@pytest.mark.parametrize("kind", list(_kinds(SaferRayError)))
def test_an_error_arrives_from_an_actor_as_it_was_raised(failing: Any, kind: type[SaferRayError]) -> None:
    text = "shard {a}.arrow: 100% gone, naïvely; resume"
    with pytest.raises(kind) as caught:
        asyncio.run(answered(failing.fail.remote(kind.__name__, text)))
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_a_foreign_error_arrives_as_the_error_of_its_boundary(failing: Any) -> None:
    with pytest.raises(SamplerError, match=r"^sampler a: ZeroDivisionError: division by zero$"):
        asyncio.run(answered(failing.divide.remote()))


def test_steps_are_valued_by_continuations_that_the_samplers_add(local_cluster: None, tmp_path: Path) -> None:
    run = watched_run(tmp_path, "judge.outcome={continuations: 2}", "erpo.rounds=1", "stages=[synth, sft, erpo]")
    assert_every_prompt_once(run.prep, run.run_dir)
    pairs = from_table(read_table(run.run_dir.round(1) / "pairs.arrow"), StepPair)
    assert {pair.lineage.judge for pair in pairs} == {"outcome(fake-judge@1 x2)@1"}
    assert summary_of(run.run_dir)["rounds"][0]["continuations"] > 0
