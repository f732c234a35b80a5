"""``--dry-run``: what a run would start, ask of the cluster and compute; nothing is started."""

from __future__ import annotations

import math
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from safer_ray.backends.model_size import engine_gib, model_size, rank_gib
from safer_ray.backends.models import resolve_model
from safer_ray.config import LoopConfig, Resources, RunConfig
from safer_ray.prepare import Preparation
from safer_ray.records import STEP_KINDS
from safer_ray.rundir import RunDir

_BYTES = {"bf16": 2, "fp32": 4}


def print_plan(prep: Preparation, run_dir: RunDir, console: Console) -> None:
    """Print actors, resources per node type, phases with their token bounds, and memory estimates."""
    config = prep.config
    console.print(f"run {config.name} in {run_dir.root}: {len(prep.prompts.prompts)} prompts, seed {config.seed}")
    console.print(_actors(config))
    console.print(_node_types(config))
    console.print(_phases(prep))
    console.print(_order(config.loop))
    console.print(_memory(config))


def _roles(config: RunConfig) -> list[tuple[str, int, int, Resources]]:
    """Return (role, actors, bundles each, resources of a bundle)."""
    roles = [
        ("sampler", config.sampler.replicas, config.sampler.tensor_parallel, config.sampler.resources),
        ("judge", config.judge.replicas, 1, config.judge.resources),
    ]
    if {"sft", "erpo"} & set(config.stages):
        roles.append(("learner", config.learner.ranks, 1, config.learner.resources))
    return roles


def _actors(config: RunConfig) -> Table:
    table = Table("actor", "count", "CPUs each", "GPUs each", "custom", title="actors", title_justify="left")
    for role, count, bundles, ask in _roles(config):
        custom = ", ".join(f"{name} {amount:g}" for name, amount in ask.custom.items()) or "-"
        table.add_row(role, str(count), f"{ask.cpus * bundles:g}", f"{ask.gpus * bundles:g}", custom)
    return table


def _node_types(config: RunConfig) -> Table:
    """Sum what is asked of each node type; without a custom resource any node will do."""
    total: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for _, count, bundles, ask in _roles(config):
        node = ", ".join(ask.custom) or "any"
        wanted = {"CPU": ask.cpus, "GPU": ask.gpus, **ask.custom}
        for name, amount in wanted.items():
            total[node][name] += amount * count * bundles
    table = Table("node type", "asked for", title="resources per node type", title_justify="left")
    for node, wanted in sorted(total.items()):
        table.add_row(node, ", ".join(f"{name} {amount:g}" for name, amount in wanted.items() if amount) or "nothing")
    return table


def _phases(prep: Preparation) -> Table:
    config = prep.config
    table = Table("phase", "prompts", "samples", "tokens at most", title="phases", title_justify="left")
    sampler, steps = config.sampler, len(STEP_KINDS)
    for phase in prep.phases:
        match phase.kind:
            case "evaluate":
                samples, longest = phase.items, sampler.max_trace_tokens
            case "teach":
                safe = sum(1 for prompt in prep.by_phase[phase.name] if prompt.label != "unsafe")
                answered = math.ceil(safe * config.teacher.whole_share)
                samples, longest = answered * config.teacher.answers_per_prompt, sampler.max_answer_tokens
            case "explore":
                samples, longest = phase.items * steps * config.erpo.siblings, sampler.max_step_tokens
            case "sft" | "erpo":
                section = config.sft if phase.kind == "sft" else config.erpo
                per_step = section.optim.tokens_per_step
                table.add_row(phase.name, "-", "-", f"{per_step:,} per optimiser step, {section.optim.epochs} epochs")
                continue
            case _:
                table.add_row(phase.name, "-", "-", "-")
                continue
        table.add_row(phase.name, f"{phase.items:,}", f"{samples:,}", f"{samples * longest:,}")
        if phase.kind == "explore" and (outcome := config.judge.outcome) is not None:
            ahead = phase.items * (steps - 1) * config.erpo.siblings * outcome.continuations
            table.add_row("  continuations", "-", f"{ahead:,}", f"{ahead * sampler.max_trace_tokens:,}")
    return table


_ORDERS = {
    "synchronous": "one phase after the other; every preference is from the newest weights",
    "one_round_ahead": "the next round is explored while this one trains and publishes",
    "fully_async": "rounds are explored side by side, while others train and publish",
}


def _order(loop: LoopConfig) -> str:
    lag = f"; preferences may be {loop.max_lag} versions behind the newest weights" if loop.max_lag else ""
    return f"policy {loop.policy}: {_ORDERS[loop.policy]}{lag}; {loop.max_in_flight} prompts in flight at most"


def _memory(config: RunConfig) -> Table:
    table = Table("memory", "GiB", "of it", title="memory estimate", title_justify="left")
    if "fake" in (config.sampler.kind, config.learner.kind):
        table.add_row("fakes", "0", "no model is loaded")
        return table
    model = resolve_model(config.model.id)
    size, width = model_size(model, trust_remote_code=config.model.trust_remote_code), _BYTES[config.model.dtype]
    widened = width < 4 and config.sampler.fp32_where_faster and not config.sampler.resources.gpus
    engine_width = 4 if widened else width
    engine = engine_gib(
        size,
        kv_cache_gib=config.sampler.kv_cache_gib,
        tensor_parallel=config.sampler.tensor_parallel,
        weight_bytes=engine_width,
    )
    tokens = int(config.sampler.kv_cache_gib * 2**30 / (size.kv_bytes_per_token * engine_width / _BYTES["bf16"]))
    what = f"weights, and a cache of {tokens:,} tokens (CPU)" + ("; as fp32, if that is faster" if widened else "")
    table.add_row("each engine worker", f"{engine:.2f}", what)
    learner = config.learner
    rank = rank_gib(size, zero_stage=learner.zero_stage, ranks=learner.ranks, weight_bytes=width)
    table.add_row("each learner rank", f"{rank:.2f}", "weights, also as fp32; gradients, Adam; activations come on top")
    table.add_row("object store", f"{config.cluster.object_store_mib / 1024:.2f}", "only on a cluster started here")
    return table
