"""Placement groups: one per engine, one for the learner ranks, each with a deadline.

A group that cannot be placed ends in a sentence with what was asked for and what is free, never in a wait
without end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import ray
import ray._private.state
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from safer_ray.errors import ClusterError

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one actor asks for. ``workers`` bundles of the same size are placed together (tensor parallelism)."""

    cpus: float
    gpus: float = 0.0
    custom: dict[str, float] = field(default_factory=dict)
    workers: int = 1

    def bundle(self) -> dict[str, float]:
        """Return the bundle as Ray writes it, without zeros."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount for name, amount in wanted.items() if amount}


async def place(role: str, ask: Ask, *, strategy: str, deadline_s: float) -> PlacementGroup | None:
    """Return a placed group of ``ask.workers`` bundles, or None for an actor that asks for nothing.

    While it waits, Ray's autoscaler sees the demand and may add a node. A wait that is cancelled takes its group back.

    Raises:
        ClusterError: if it is not placed by the deadline; the group is removed.
    """
    if not ask.bundle():
        return None
    bundles = [ask.bundle()] * ask.workers
    group: PlacementGroup = placement_group(bundles, strategy=strategy)
    try:
        async with asyncio.timeout(deadline_s):
            while placement_group_table(group)["state"] != "CREATED":
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as exc:
        remove_placement_group(group)
        lacking = sorted(ask.bundle().keys() - ray.cluster_resources().keys())
        raise ClusterError(
            f"{role}: not placed in {deadline_s:.0f} s; asked for {bundles}, free in the cluster: {free_by_node()}; "
            + (f"no node has any {' or '.join(lacking)}; " if lacking else "")
            + "lower the job's resources or add nodes"
        ) from exc
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def free_by_node() -> str:
    """Return what each node has free of what it has, e.g. ``node 10.0.0.4 (3f2a91c0): CPU 0 of 8, sampler 1 of 1``."""
    free = ray._private.state.available_resources_per_node()
    lines = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        left = free.get(node["NodeID"], {})
        parts = [
            f"{name} {left.get(name, 0.0):g} of {total:g}"
            for name, total in sorted(node["Resources"].items())
            if ":" not in name and "_group_" not in name and name not in ("memory", "object_store_memory")
        ]
        lines.append(f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]}): {', '.join(parts) or 'nothing'}")
    return "; ".join(lines)


def release(group: PlacementGroup | None) -> None:
    """Give a group's resources back."""
    if group is not None:
        remove_placement_group(group)


def actor_options(group: PlacementGroup | None, ask: Ask, index: int = 0, *, threads: int = 0) -> dict[str, Any]:
    """Return the ``.options(...)`` of an actor in bundle ``index``.

    OMP_NUM_THREADS is set because Ray otherwise sets it to the number of CPUs an actor asked for, 1 for fewer than two.
    Where that is what is wanted it is left to Ray: an actor with an environment needs a worker started for it alone.
    """
    options: dict[str, Any] = {"num_cpus": ask.cpus, "num_gpus": ask.gpus, "resources": dict(ask.custom)}
    if threads and not (threads == 1 and ask.cpus < 2):
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=index,
            placement_group_capture_child_tasks=True,
        )
    return options
