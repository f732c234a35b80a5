"""A run whose samplers come and go with the work, in a process of its own: ``python autoscaled_run.py RUN_DIR``.

Writes one JSON line: the numbers of sampler nodes that were there, in order, without repetitions.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

import ray
from tiny_runs import tiny_job

from safer_ray import specs
from safer_ray.backends.fake import FakeLearnerSpec, FakeSamplerSpec
from safer_ray.cluster.session import ray_session
from safer_ray.run import execute
from safer_ray.rundir import RunDir

NODES_EMPTY_WITHIN_S = 90.0
JOB = (
    "stages=[evaluate, synth, sft]",
    "sft.max_prompts=12",
    "evaluate.max_unsafe=18",
    "evaluate.max_safe=18",
    "loop.max_in_flight=12",
    "judge.replicas=1",
    "judge.resources.cpus=0.1",
    "learner.resources.cpus=0.1",
    "sampler.replicas=1",
    "sampler.resources={cpus: 0, custom: {sampler: 1}}",
    "sampler.elastic={min: 0, max: 3, target_queue_s: 0.5, cool_down_s: 4}",
)


class NodeWatch(threading.Thread):
    """Notes how many sampler nodes are alive whenever that changes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            alive = sum(node["Alive"] and "sampler" in node["Resources"] for node in ray.nodes())
            if self.seen[-1:] != [alive]:
                self.seen.append(alive)


def main(root: str) -> None:
    """Run the job, then wait until the autoscaler has taken every node back.

    An evaluation is three waves of twelve calls: long enough that nodes asked for in the first are there in the last.
    """
    specs.FakeSamplerSpec = partial(FakeSamplerSpec, delay_s=4.0)  # type: ignore[misc, assignment]
    specs.FakeLearnerSpec = partial(FakeLearnerSpec, batch_size=1, delay_s=2.0)  # type: ignore[misc, assignment]
    with ray_session(os.environ["RAY_ADDRESS"], 80):
        watch = NodeWatch()
        watch.start()
        execute(tiny_job(*JOB), RunDir(Path(root)), observe=lambda *_: None)
        for _ in range(int(NODES_EMPTY_WITHIN_S / 0.5)):
            if watch.seen[-1] == 0:
                break
            watch.ended.wait(0.5)
        watch.ended.set()
    sys.stdout.write(json.dumps(watch.seen) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
