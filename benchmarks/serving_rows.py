"""The rows of the table that are about sampling, weights and judging."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Bench, Line, Result, Row, Side, values

THROUGH_RAY = Line("sampler through Ray", "tokens/s", "ratio >= 0.95")
TREES = Line("step-wise trees: tokens computed", "tokens", "ratio <= 0.5")
PUBLISH = {1: Line("publish to 1 sampler", "s", "ours <= 0.25"), 4: Line("publish to 4 samplers", "s", "ours <= 0.5")}
RULE_JUDGE = Line("rule judge", "steps/s", "ours >= 5000")
ROUNDS = Line("overlapped rounds, lag at most 1", "s", "ratio <= 0.65")


def through_ray(bench: Bench) -> Iterator[Result]:
    """Generated tokens per second through Ray against bare vLLM."""
    load = (
        {"prompts": 3, "siblings": 4, "step_tokens": 16}
        if bench.quick
        else {"prompts": 8, "siblings": 4, "step_tokens": 64}
    )
    sides = {
        "ours": Side(target="benchmarks.samplers:ThroughRay", settings=load),
        "reference": Side(target="benchmarks.samplers:BareVllm", settings=load),
    }
    figures = bench.take_turns(sides)
    rates = {name: values(each) for name, each in figures.items()}
    yield THROUGH_RAY.result(rates, load)


def stepwise_trees(bench: Bench) -> Iterator[Result]:
    """Tokens that went through the model while trees grew, against siblings sampled each from its prompt."""
    load = {"prompts": 2, "siblings": 4, "step_tokens": 24 if bench.quick else 60, "prompt_tokens": 250}
    side = Side(target="benchmarks.samplers:StepwiseTrees", settings=load)
    figures = bench.take_turns({"ours": side})["ours"]
    tokens = {"ours": values(figures, "computed_tokens"), "reference": values(figures, "alone_tokens")}
    settings = {**load, "prefix_cache_hit_rate": values(figures, "hit_rate")}
    yield TREES.result(tokens, settings)


def publishing(bench: Bench) -> Iterator[Result]:
    """Seconds from trained weights to samplers that confirmed them; the reference is a copy of the same bytes."""
    for samplers in (1,) if bench.quick else tuple(PUBLISH):
        side = Side(target="benchmarks.samplers:Publishing", settings={"samplers": samplers})
        figures = bench.take_turns({"ours": side})["ours"]
        runs = {"ours": values(figures), "reference": values(figures, "copy_s"), "write": values(figures, "write_s")}
        yield PUBLISH[samplers].result(runs, {**side.settings, "nbytes": figures[0]["nbytes"]})


def rule_judge(bench: Bench) -> Iterator[Result]:
    """Steps judged per second of one core, from Arrow to Arrow."""
    work = {"prompts": 60 if bench.quick else 600, "siblings": 4, "deals": 1 + bench.runs}
    side = Side(target="benchmarks.judging:RuleJudging", settings=work)
    figures = bench.take_turns({"ours": side})["ours"]
    yield RULE_JUDGE.result({"ours": values(figures)}, side.settings)


def overlapped_rounds(bench: Bench) -> Iterator[Result]:
    """Wall time of rounds that explore while they train, lag at most 1, against the same rounds one after the other.

    A run of many rounds is one measurement: the first and the last round cannot overlap.
    """
    work = {"rounds": 2, "prompts": 1, "epochs": 4} if bench.quick else {"rounds": 6, "prompts": 2}
    policies = {"ours": "one_round_ahead", "reference": "synchronous"}
    sides = {
        name: Side(target="benchmarks.rounds:Rounds", settings={"policy": policy, **work})
        for name, policy in policies.items()
    }
    figures = bench.take_turns(sides, runs=1)
    seconds = {name: values(each, "seconds") for name, each in figures.items()}
    details = {name: {key: each[0][key] for key in ("stages", "pairs", "taught_by")} for name, each in figures.items()}
    yield ROUNDS.result(seconds, {**work, **details})


ROWS = (
    Row(name="through_ray", lines=(THROUGH_RAY,), measure=through_ray, deadline_s=420),
    Row(name="stepwise_trees", lines=(TREES,), measure=stepwise_trees, deadline_s=300),
    Row(name="publishing", lines=tuple(PUBLISH.values()), measure=publishing, deadline_s=480),
    Row(name="rule_judge", lines=(RULE_JUDGE,), measure=rule_judge, deadline_s=180),
    Row(name="overlapped_rounds", lines=(ROUNDS,), measure=overlapped_rounds, deadline_s=900),
)
