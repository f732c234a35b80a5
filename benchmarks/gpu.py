"""``make bench-gpu``: the learner rows on one CUDA device, where attention is one ``flex_attention`` kernel."""

from __future__ import annotations

import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

WORK = (
    ("one pair per prompt", {"prompts": 64, "siblings": 2, "steps": 1}),
    ("4 siblings, all pairs", {"prompts": 32, "siblings": 4, "steps": 1}),
    ("whole trees, 4 x 4", {"prompts": 16, "siblings": 4, "steps": 4}),
)
PACK_TOKENS = 8192
RUNS = 5
H100_PEAK_TFLOPS = 989.0
"""Dense bf16 peak of H100 and H200, of their data sheets; the share of it is the MFU papers report."""


def measure(shape: dict[str, int]) -> list[dict[str, Any]]:
    """Return the figures of ``RUNS`` runs, after a warm-up that compiles the kernel."""
    from benchmarks.learners import Pairs

    tree = {"prompt_tokens": 400, "step_tokens": 60, **shape}
    subject = Pairs(pack_tokens=PACK_TOKENS, tokens_per_step=4 * PACK_TOKENS, threads=8, **tree)
    torch.cuda.reset_peak_memory_stats()
    figures = [subject.run() for _ in range(RUNS)]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    subject.close()
    return [{**each, "peak_gib": peak_gib} for each in figures]


def main() -> None:
    """Measure and print, or say that there is no device."""
    console = Console(width=150)
    if not torch.cuda.is_available():
        console.print("bench-gpu: no CUDA device is visible to torch here, so there is nothing to measure.")
        sys.exit(0)
    device = torch.cuda.get_device_name()
    columns = ("benchmark", "pairs/s", "tokens/s of the steps", "TFLOP/s", "of measured peak", "of 989 TFLOP/s", "GiB")
    table = Table(*columns, title=f"{device}, medians of {RUNS} runs, min to max in brackets")
    for name, shape in WORK:
        figures = measure(shape)

        def middle(key: Any, runs: list[dict[str, Any]] = figures) -> str:
            values = sorted(key(run) for run in runs)
            return f"{values[len(values) // 2]:.3g} [{values[0]:.3g}, {values[-1]:.3g}]"

        table.add_row(
            name,
            middle(lambda run: run["rate"]),
            middle(lambda run: run["packed_tokens"] / run["step_s"]),
            middle(lambda run: run["tflops"]),
            middle(lambda run: run["share_of_peak"]),
            middle(lambda run: run["tflops"] / H100_PEAK_TFLOPS),
            f"{figures[0]['peak_gib']:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
