"""A worker computes in the threads it was given, whether an environment of ours or Ray itself says so."""

from __future__ import annotations

import os

import pytest
import ray

from safer_ray.cluster.placement import Ask, actor_options


@ray.remote
class Worker:
    def threads(self) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize(("cpus", "threads"), [(0.0, 1), (0.5, 1), (1.0, 1), (1.0, 3), (2.0, 1)])
def test_a_worker_has_the_threads_it_was_given(local_cluster: None, cpus: float, threads: int) -> None:
    options = actor_options(None, Ask(cpus=cpus), threads=threads)
    worker = Worker.options(**options).remote()  # type: ignore[attr-defined]
    assert ray.get(worker.threads.remote(), timeout=60) == str(threads)
    ray.kill(worker)


def test_one_thread_of_a_small_worker_needs_no_environment_of_ours() -> None:
    assert "runtime_env" not in actor_options(None, Ask(cpus=0.5), threads=1)
    assert "runtime_env" in actor_options(None, Ask(cpus=0.5), threads=2)
