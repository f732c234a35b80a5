"""The rows of the table that are about learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.measure import Bench, BenchmarkError, Line, Result, Row, Side, values

Options = dict[str, Any]
SideOf = Callable[[Options], Side]
Swept = tuple[Options, list[Options]]
"""The fastest options, and all that were tried with what they gave."""

OURS = "benchmarks.learners:Pairs"
TRL_DPO = "benchmarks.trl_trainers:Dpo"
PACK_TOKENS = 1024
ONE_STEP = 1 << 20
"""Tokens per optimiser step that no workload reaches: all pairs of a run are one step, on both sides."""

DPO_FIRST = [{"batch": batch, "precompute": True, "autocast": False} for batch in (1, 2, 4)]
DPO_THEN = [{"precompute": False}, {"autocast": True}]
SFT_FIRST = [
    {"batch": batch, "layout": layout, "autocast": False}
    for batch, layout in ((1, "padded"), (4, "padded_by_length"), (4, "padding_free"), (1, "packed"))
]
SFT_THEN = [{"autocast": True}]


def _shape(bench: Bench, prompts: int, siblings: int, steps: int) -> dict[str, int]:
    """Return the shape the rows are about; ``--quick`` tries the same code on a few short texts."""
    tokens = {"prompt_tokens": 64, "step_tokens": 16} if bench.quick else {"prompt_tokens": 400, "step_tokens": 60}
    return {"prompts": min(prompts, 2) if bench.quick else prompts, **tokens, "siblings": siblings, "steps": steps}


def _ours(shape: Mapping[str, int], *, pack_tokens: int = PACK_TOKENS, tokens_per_step: int = ONE_STEP) -> Side:
    return Side(target=OURS, settings={"pack_tokens": pack_tokens, "tokens_per_step": tokens_per_step, **shape})


def _trl(shape: Mapping[str, int], best: Mapping[str, Any], pairs: int) -> Side:
    return Side(target=TRL_DPO, settings={**best, "pairs": pairs, "shape": dict(shape)})


def _sweep(bench: Bench, what: str, first: Sequence[Options], then: Sequence[Options], side: SideOf) -> Swept:
    """Try the first options, then each change of the best of them: one run each, after a warm-up.

    Returns the fastest options and the rate of all, or why they gave none.
    """
    tried: list[Options] = []

    def best() -> Options:
        return max(tried, key=lambda each: float(each["rate"]))

    def attempt(options: Options) -> None:
        try:
            [figures] = bench.take_turns({f"sweep {what}": side(options)}, runs=1)[f"sweep {what}"]
        except RuntimeError as exc:
            tried.append({**options, "rate": 0.0, "failed": str(exc)})
        else:
            tried.append({**options, "rate": figures["rate"], "peak_rss_mib": figures["peak_rss_mib"]})

    for options in first:
        attempt(options)
    start = {name: best()[name] for name in first[0]}
    for change in then:
        attempt({**start, **change})
    if "failed" in best():
        raise BenchmarkError(f"every setting of the {what} sweep failed, the last with: {tried[-1]['failed']}")
    bench.say(f"best of the {what} sweep: {best()}")
    return {name: best()[name] for name in first[0]}, tried


def best_dpo(bench: Bench) -> Swept:
    """Return TRL's fastest settings on single pairs, swept once, with the whole sweep."""
    if "dpo" not in bench.sweeps:
        shape = _shape(bench, 4, 2, 1)

        def side(options: Options) -> Side:
            return _trl(shape, options, pairs=max(2, options["batch"]))

        bench.sweeps["dpo"] = _sweep(bench, "DPOTrainer", DPO_FIRST[: bench.sizes], DPO_THEN[: bench.sizes], side)
    return bench.sweeps["dpo"]


def _pairs(bench: Bench, line: Line, shape: Mapping[str, int], pairs: int) -> tuple[Result, dict[str, Any]]:
    """Compare on ``shape``; the reference trains ``pairs`` of its pairs, or a batch of its best size."""
    best, tried = best_dpo(bench)
    sides = {"ours": _ours(shape), "reference": _trl(shape, best, max(pairs, best["batch"]))}
    figures = bench.take_turns(sides)
    settings = {"ours": sides["ours"].settings, "reference": {**sides["reference"].settings, "sweep": tried}}
    rates = {name: values(each) for name, each in figures.items()}
    return line.result(rates, settings), figures


SINGLE = Line("one pair per prompt", "pairs/s", "ratio >= 4")
MEMORY = Line("peak memory at equal work", "MiB", "ratio <= 0.6")
SIBLINGS = Line("4 siblings, all pairs", "pairs/s", "ratio >= 7")
TREES = Line("whole trees, 4 x 4", "pairs/s", "ratio >= 12")
PEAK = Line("packed step: share of matmul peak", "TFLOP/s", "ratio >= 0.55")
SFT = Line("SFT, real length mix", "tokens/s", "ratio >= 1.5")
GROWN_TIME = Line("growth, 16x pairs: time per pair", "s", "ratio <= 1.1")
GROWN_MEMORY = Line("growth, 16x pairs: memory", "MiB", "ratio <= 1.1")


def single_pairs(bench: Bench) -> Iterator[Result]:
    """One pair per prompt against DPOTrainer: pairs per second, and the peak of memory in the same runs."""
    row, figures = _pairs(bench, SINGLE, _shape(bench, 4, 2, 1), pairs=4)
    yield row
    peaks = {name: values(each, "peak_rss_mib") for name, each in figures.items()}
    yield MEMORY.result(peaks, row.settings)


def sibling_pairs(bench: Bench) -> Iterator[Result]:
    """Four siblings at one step, all their pairs; TRL trains two of the six and its rate is taken."""
    yield _pairs(bench, SIBLINGS, _shape(bench, 1, 4, 1), pairs=2)[0]


def whole_trees(bench: Bench) -> Iterator[Result]:
    """Four steps of four siblings; TRL trains four of the 24 pairs, one of each step, and its rate is taken."""
    yield _pairs(bench, TREES, _shape(bench, 1, 4, 4), pairs=4)[0]


def share_of_peak(bench: Bench) -> Iterator[Result]:
    """Model FLOP/s of optimiser steps over the bf16 matmul peak measured around each of them."""
    side = _ours(_shape(bench, 8, 2, 1))
    figures = bench.take_turns({"ours": side})["ours"]
    rates = {"ours": values(figures, "tflops"), "reference": values(figures, "peak_tflops")}
    yield PEAK.result(rates, {"ours": side.settings})


def sft(bench: Bench) -> Iterator[Result]:
    """SFT on real traces against SFTTrainer."""
    work = {"examples": 4 if bench.quick else 12, "tokens_per_step": 2048}

    def side(options: Options) -> Side:
        return Side(target="benchmarks.trl_trainers:Sft", settings={**options, **work})

    best, tried = _sweep(bench, "SFTTrainer", SFT_FIRST[-bench.sizes :], SFT_THEN[: bench.sizes], side)
    ours = Side(target="benchmarks.learners:Sft", settings={**work, "pack_tokens": PACK_TOKENS})
    figures = bench.take_turns({"ours": ours, "reference": side(best)})
    rates = {name: values(each) for name, each in figures.items()}
    yield SFT.result(rates, {"ours": ours.settings, "reference": {**side(best).settings, "sweep": tried}})


def growth(bench: Bench) -> Iterator[Result]:
    """Seconds per pair and memory at 1, 4 and 16 times the pairs (quick: 1 and 4), steps of equal size."""
    pairs = 2
    sizes = (1, 4) if bench.quick else (1, 4, 16)
    sides = {
        f"{size}x": _ours(
            {"prompts": pairs * size, "prompt_tokens": 100, "step_tokens": 30, "siblings": 2, "steps": 1},
            tokens_per_step=320,
            pack_tokens=320,
        )
        for size in sizes
    }
    figures = bench.take_turns(sides)
    settings = {name: side.settings for name, side in sides.items()}
    per_pair = {name: [1 / rate for rate in values(each)] for name, each in figures.items()}
    peaks = {name: values(each, "peak_rss_mib") for name, each in figures.items()}
    for line, found in ((GROWN_TIME, per_pair), (GROWN_MEMORY, peaks)):
        yield line.result({"ours": found[f"{sizes[-1]}x"], "reference": found["1x"], **found}, settings)


ROWS = (
    Row(name="single_pairs", lines=(SINGLE, MEMORY), measure=single_pairs, deadline_s=900),
    Row(name="sibling_pairs", lines=(SIBLINGS,), measure=sibling_pairs, deadline_s=600),
    Row(name="whole_trees", lines=(TREES,), measure=whole_trees, deadline_s=600),
    Row(name="share_of_peak", lines=(PEAK,), measure=share_of_peak, deadline_s=240),
    Row(name="sft", lines=(SFT,), measure=sft, deadline_s=900),
    Row(name="growth", lines=(GROWN_TIME, GROWN_MEMORY), measure=growth, deadline_s=600),
)
