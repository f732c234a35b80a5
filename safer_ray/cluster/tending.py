"""Once a second: signs of life, orders from outside, and as many replicas as the load asks for."""

from __future__ import annotations

import asyncio
import logging

from safer_ray.cluster.orders import ScaleAnswer, ScaleOrder, give_answer, take_order
from safer_ray.cluster.pool import Pool
from safer_ray.cluster.serving import Serving
from safer_ray.core.scaling import ElasticRule, PoolLoad, wanted_replicas
from safer_ray.errors import SaferRayError
from safer_ray.rundir import RunDir

logger = logging.getLogger(__name__)
TICK_S = 1.0


async def tend(serving: Serving, run_dir: RunDir) -> None:
    """Look after both pools until cancelled."""
    pools = (serving.samplers, serving.sampler_crew.elastic), (serving.graders, serving.grader_crew.elastic)
    while True:
        try:
            if order := await asyncio.to_thread(take_order, run_dir):
                await asyncio.to_thread(give_answer, run_dir, obey(order, serving))
        except SaferRayError as exc:  # an unwritable answer must not end the run
            logger.warning("%s", exc)
        for pool, rule in pools:
            pool.look()
            if rule is not None:
                pool.scale(wanted_replicas(rule, load_of(pool)))
            pool.reconcile()
        await asyncio.sleep(TICK_S)


def load_of(pool: Pool) -> PoolLoad:
    """Return what scaling is decided from."""
    now = asyncio.get_running_loop().time()
    outstanding = pool.waiting + pool.in_flight
    return PoolLoad(
        wanted=pool.wanted,
        serving=len(pool.serving()),
        outstanding=outstanding,
        answers_per_s=pool.meter.answers_per_busy_s,
        steady_s=now - pool.changed_at,
        idle_s=0.0 if outstanding else now - pool.idle_since,
    )


def obey(order: ScaleOrder, serving: Serving) -> ScaleAnswer:
    """Carry an order out, or say why not; all of it or nothing."""
    asked = [
        ("samplers", order.samplers, serving.samplers, serving.sampler_crew.elastic),
        ("judges", order.judges, serving.graders, serving.grader_crew.elastic),
    ]
    for name, count, _, rule in asked:
        if count is not None and (why := _refusal(name, count, rule)):
            return ScaleAnswer(order_id=order.order_id, accepted=False, text=f"refused: {why}")
    done = []
    for name, count, pool, _ in asked:
        if count is not None:
            done.append(f"{name} {pool.wanted} -> {count}")
            pool.scale(count)
    logger.info("scale order: %s", ", ".join(done))
    return ScaleAnswer(order_id=order.order_id, accepted=True, text=", ".join(done) or "nothing was asked for")


def _refusal(name: str, count: int, rule: ElasticRule | None) -> str:
    if rule is None:
        return "" if count else f"without any {name} the run would stand still; give at least 1"
    if rule.least <= count <= rule.most:
        return ""
    return f"{name} must be {rule.least} to {rule.most}, as the job's elastic section says"
