"""Broken runs without a cluster: the driver in a process of its own, with the shipped fakes in it.

What a driver, a journal, a shard and a disk can suffer is the same as on a cluster, at a tenth of the time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.faults import Kind

KINDS: tuple[Kind, ...] = ("kill driver", "delay", "torn journal line", "truncated shard", "full disk")
_CALL_S = 0.02
"""A call of the fake sampler takes this long, so that faults hit a run in its middle."""
_TESTS = Path(__file__).parents[2] / "tests"


def _local_run() -> Any:
    for folder in (_TESTS, _TESTS / "unit"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import local_run

    return local_run


def prepared(folder: Path, job_seed: int) -> Any:
    """Return the preparation of the small job; its files are written into ``folder``."""
    return _local_run().prepared(folder, seed=job_seed)


def drive(words: list[str], output: str) -> None:
    """Begin or resume the run ``words`` name (its folder and seed), as a driver process."""
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    from safer_ray.backends.fake import FakeSampler, FakeSamplerSpec
    from safer_ray.errors import SaferRayError

    sample = FakeSampler.sample

    def slowly(self: FakeSampler, requests: Any) -> Any:
        time.sleep(_CALL_S)
        return sample(self, requests)

    FakeSampler.sample = slowly  # type: ignore[method-assign]
    root, seed = Path(words[0]), int(words[1])
    prep = prepared(root.parent / "job", seed)
    try:
        _local_run().carry_out(prep, root, sampler=FakeSamplerSpec(seed=seed).build())
    except SaferRayError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
