"""Nodes and workers that come, go, die and hang while a run goes on: time is lost, never a prompt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from tiny_runs import SMALL, assert_every_prompt_once, events_of, living_actors, pair_bytes, tiny_job

from safer_ray import run, specs
from safer_ray.backends.fake import FakeLearnerSpec, FakeSampler, FakeSamplerSpec
from safer_ray.cluster.orders import order_scale
from safer_ray.cluster.world import RayWorld
from safer_ray.core.events import Dropped, Event, Judged, Lost, Sealed, Stepped
from safer_ray.core.loop import LoopState
from safer_ray.core.replicas import ReplicaState
from safer_ray.errors import LearnerError
from safer_ray.journal import JOURNAL
from safer_ray.prepare import Preparation
from safer_ray.records import Rollout, SampleRequest
from safer_ray.run import execute
from safer_ray.rundir import RunDir

PATIENCE_S = 90.0
"""No figure of ours: nothing that is waited for here takes seconds on an idle machine."""
STORE_BYTES = 80 * 2**20
QUICK_PROBES = ("cluster.probe_every_s=1", "cluster.probe_deadline_s=5")
ASKED = (
    "stages=[evaluate]",
    "evaluate.max_unsafe=13",
    "evaluate.max_safe=14",
    "loop.max_in_flight=6",
    "judge.replicas=1",
)
ON_SAMPLER_NODES = ("sampler.resources.cpus=0", "sampler.resources.custom={sampler: 1}")


def evaluation(*overrides: str) -> Preparation:
    """Prepare a run that only evaluates: 27 prompts."""
    return tiny_job(*ASKED, *overrides)


@pytest.fixture(autouse=True)
def slow_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call take long enough for something to happen to it."""
    monkeypatch.setattr(specs, "FakeSamplerSpec", partial(FakeSamplerSpec, delay_s=0.3))


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[RayWorld]:
    """The worlds that runs make from now on."""
    made: list[RayWorld] = []

    class Known(RayWorld):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    monkeypatch.setattr(run, "RayWorld", Known)
    return made


@contextmanager
def sampler_node(cluster: Cluster) -> Iterator[Any]:
    """Add a node for one sampler."""
    node = cluster.add_node(num_cpus=0, resources={"sampler": 1}, object_store_memory=STORE_BYTES)
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def holds(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


@dataclass
class Script:
    """What happens once so many prompts are judged: ``{3: act, ...}``."""

    acts: dict[int, Callable[[], object]]
    judged: int = 0

    def look(self, state: LoopState, event: Event, at: float) -> None:
        if isinstance(event, Judged):
            self.judged += 1
            if act := self.acts.pop(self.judged, None):
                act()


def sampler_pids() -> list[int]:
    return [int(row["Pid"]) for row in living_actors() if row["ActorClassName"] == "SamplerActor"]


def serving(world: RayWorld) -> list[str]:
    return [each.name for each in world.replicas() if each.role == "sampler" and each.state is ReplicaState.SERVING]


def test_a_node_that_joins_is_used_and_draining_lets_every_call_end(
    many_nodes: Cluster, tmp_path: Path, worlds: list[RayWorld]
) -> None:
    prep, run_dir, joined = evaluation(*ON_SAMPLER_NODES, "sampler.replicas=1"), RunDir(tmp_path), list[Any]()

    def more() -> None:
        assert order_scale(run_dir, samplers=2, judges=None, patience_s=PATIENCE_S).text == "samplers 1 -> 2"
        assert not order_scale(run_dir, samplers=0, judges=None, patience_s=PATIENCE_S).accepted

    def node() -> None:
        assert [(p.wanted, p.restarts) for p in worlds[0].pools() if p.role == "sampler"] == [(2, 0)]
        joined.append(many_nodes.add_node(num_cpus=0, resources={"sampler": 1}, object_store_memory=STORE_BYTES))
        holds(lambda: serving(worlds[0]) == ["sampler-1", "sampler-2"])

    def fewer() -> None:
        assert order_scale(run_dir, samplers=1, judges=None, patience_s=PATIENCE_S).accepted

    with sampler_node(many_nodes):
        execute(prep, run_dir, observe=Script({2: more, 4: node, 18: fewer}).look)
    many_nodes.remove_node(joined[0])
    states = {each.name: each for each in worlds[0].replicas() if each.role == "sampler"}
    assert set(states) == {"sampler-1", "sampler-2"}
    assert min(each.answered for each in states.values()) > 0
    assert len({each.node for each in states.values()}) == 2
    assert not [event for event in events_of(run_dir) if isinstance(event, Lost)]
    assert_every_prompt_once(prep, run_dir)


def test_a_node_that_dies_takes_no_prompt_with_it(many_nodes: Cluster, tmp_path: Path, worlds: list[RayWorld]) -> None:
    prep = evaluation(*ON_SAMPLER_NODES, *QUICK_PROBES, "sampler.replicas=2")
    run_dir = RunDir(tmp_path)
    with sampler_node(many_nodes), sampler_node(many_nodes) as second:

        def die() -> None:
            holds(lambda: len(serving(worlds[0])) == 2)
            many_nodes.remove_node(second, allow_graceful=False)

        execute(prep, run_dir, observe=Script({4: die}).look)
    lost = [event for event in events_of(run_dir) if isinstance(event, Lost)]
    assert lost
    assert all(event.killed_worker for event in lost)
    assert_every_prompt_once(prep, run_dir)


def test_a_sampler_that_hangs_without_dying_is_found_out_killed_and_replaced(
    many_nodes: Cluster, tmp_path: Path, worlds: list[RayWorld]
) -> None:
    prep, run_dir, hung = evaluation(*QUICK_PROBES, "sampler.resources.cpus=0.1"), RunDir(tmp_path), list[Any]()

    def hang() -> None:
        holds(lambda: len(serving(worlds[0])) == 2)
        hung.append(psutil.Process(sampler_pids()[0]))
        hung[0].send_signal(signal.SIGSTOP)

    # A full object store on the way: what does not fit is spilled, and tables still travel.
    ballast: list[Any] = []

    def fill() -> None:
        ballast.extend(ray.put(np.ones(40 * 2**20, np.uint8)) for _ in range(5))

    execute(prep, run_dir, observe=Script({2: fill, 4: hang}).look)
    assert len(ballast) == 5
    assert psutil.wait_procs(hung, timeout=PATIENCE_S)[1] == []
    assert any(isinstance(event, Lost) and event.killed_worker for event in events_of(run_dir))
    assert_every_prompt_once(prep, run_dir)


def processes_of(node: Any) -> list[psutil.Process]:
    """Return a node's raylet and everything it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def test_a_node_cut_off_for_a_moment_costs_nothing_and_for_good_only_its_replica(
    many_nodes: Cluster, tmp_path: Path, worlds: list[RayWorld]
) -> None:
    prep = evaluation(*ON_SAMPLER_NODES, *QUICK_PROBES, "sampler.replicas=2")
    run_dir, cut, restarts = RunDir(tmp_path), list[psutil.Process](), list[int]()
    with sampler_node(many_nodes), sampler_node(many_nodes) as second:

        def cut_off() -> None:
            holds(lambda: len(serving(worlds[0])) == 2)
            cut.extend(processes_of(second))
            for process in cut:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()

        def reconnect() -> None:
            while cut:
                with suppress(psutil.NoSuchProcess):
                    cut.pop().resume()

        moment = threading.Timer(3.0, reconnect)

        def for_a_moment() -> None:
            cut_off()
            moment.start()

        def for_good() -> None:
            moment.join()  # or it would end this cut, too
            restarts.append(sum(pool.restarts for pool in worlds[0].pools()))
            cut_off()

        try:
            execute(prep, run_dir, observe=Script({3: for_a_moment, 16: for_good}).look)
            restarts.append(sum(pool.restarts for pool in worlds[0].pools()))
        finally:
            reconnect()
    assert restarts[0] == 0 < restarts[1]
    assert_every_prompt_once(prep, run_dir)


class DeadlySampler(FakeSampler):
    """Ends its process over one prompt."""

    deadly = ""

    def sample(self, requests: list[SampleRequest]) -> list[Rollout]:
        if any(request.prompt_id == self.deadly for request in requests):
            os._exit(1)
        return super().sample(requests)


class DeadlySpec(FakeSamplerSpec):
    """Builds samplers that one prompt kills."""

    def build(self) -> FakeSampler:
        return DeadlySampler(self)


def test_a_prompt_that_kills_its_samplers_is_quarantined_and_no_other_with_it(
    many_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    prep, run_dir = evaluation("sampler.resources.cpus=0.1", "loop.max_in_flight=4"), RunDir(tmp_path)
    victim = prep.by_phase["evaluate-base"][5].prompt_id
    monkeypatch.setattr(DeadlySampler, "deadly", victim)
    monkeypatch.setattr(specs, "FakeSamplerSpec", partial(DeadlySpec, delay_s=0.1))
    execute(prep, run_dir, observe=lambda *_: None)
    events = events_of(run_dir)
    [dropped] = [event for event in events if isinstance(event, Dropped)]
    assert prep.by_phase["evaluate-base"][dropped.item].prompt_id == victim
    assert dropped.reason.startswith("quarantined after ")
    deaths = [event for event in events if isinstance(event, Lost) and event.item == dropped.item]
    assert 2 <= len(deaths) <= 4
    assert sum(death.alone for death in deaths) == 2
    assert deaths[-1].alone
    assert sum(isinstance(event, Judged) and event.final for event in events) == 26
    assert any(isinstance(event, Sealed) for event in events)


SHORT_TRAINING = ("stages=[synth, sft]", "sft.max_prompts=12", "learner.ranks=2", "learner.resources.cpus=0.1")


def kill_a_rank(state: LoopState, event: Event, at: float) -> None:
    if isinstance(event, Stepped) and event.facts["step"] == 1:
        ranks = [int(row["Pid"]) for row in living_actors() if row["ActorClassName"] == "LearnerActor"]
        os.kill(ranks[-1], signal.SIGKILL)


def test_a_lost_rank_restarts_the_group_and_its_phase_until_it_happens_too_often(
    many_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "FakeLearnerSpec", partial(FakeLearnerSpec, batch_size=1, delay_s=0.3))
    run_dir = RunDir(tmp_path)
    with pytest.raises(LearnerError, match=r"lost rank \d of 2 .*; the group was started again 1 times already"):
        execute(tiny_job(*SHORT_TRAINING, "cluster.learner_restarts=1"), run_dir, observe=kill_a_rank)
    assert [event.facts["step"] for event in events_of(run_dir) if isinstance(event, Stepped)].count(1) == 2
    assert not run_dir.checkpoint("sft").exists()
    killed = list[int]()

    def kill_once(state: LoopState, event: Event, at: float) -> None:
        if not killed and isinstance(event, Stepped):
            kill_a_rank(state, event, at)
            killed.append(1)

    execute(tiny_job(*SHORT_TRAINING), run_dir, resume=True, observe=kill_once)
    assert killed
    assert (run_dir.checkpoint("sft") / "config.json").exists()


def test_a_driver_that_is_killed_leaves_a_run_another_one_finishes_alike(many_nodes: Cluster, tmp_path: Path) -> None:
    small = ("stages=[erpo]", "erpo.rounds=1", "erpo.prompts_per_round=8", "sampler.resources.cpus=0.1")
    first, second = RunDir(tmp_path / "killed"), RunDir(tmp_path / "whole")
    words = [sys.executable, "-m", "safer_ray", "run", "tiny_fake", f"--run-dir={first.root}"]
    words += [f"--set={each}" for each in (*SMALL, *small)]
    driver = subprocess.Popen(words, env=os.environ | {"RAY_ADDRESS": many_nodes.address}, start_new_session=True)
    try:
        journal = first.root / JOURNAL
        holds(lambda: driver.poll() is not None or (journal.exists() and journal.read_text().count("Judged") >= 3))
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.wait()
    before = events_of(first)
    execute(tiny_job(*small), first, resume=True, observe=lambda *_: None)
    execute(tiny_job(*small), second, observe=lambda *_: None)
    assert events_of(first)[: len(before)] == before
    assert pair_bytes(first) == pair_bytes(second)
    assert_every_prompt_once(tiny_job(*small), first)
