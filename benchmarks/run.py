"""``make bench``: run every row, print the table, write results/latest.json and the table of docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import learner_rows, serving_rows
from benchmarks.measure import Bench, Row
from benchmarks.table import machine, show, write_document

RESULTS = Path(__file__).parent / "results"
ROWS = {row.name: row for row in (*learner_rows.ROWS, *serving_rows.ROWS)}
LINES = tuple(line.name for row in ROWS.values() for line in row.lines)
Found = dict[str, dict[str, Any]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two runs of small sizes; for development, writes no document"
    )
    parser.add_argument("--runs", type=int, default=0, help="runs of each side (default 5; quick 2)")
    parser.add_argument("--threads", type=int, default=0, help="threads of each subject (default: the cores given)")
    parser.add_argument(
        "--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="only these rows; the others stay as they are"
    )
    parser.add_argument("--minutes", type=float, default=90.0, help="begin no row later than this (default 90)")
    parser.add_argument("--note", default="", help="a sentence about the machine, kept with the results")
    return parser.parse_args()


def read_kept(path: Path) -> Found:
    """Return the lines measured earlier by name; none if there is no file."""
    rows = json.loads(path.read_text()) if path.is_file() else []
    return {row["name"]: row for row in rows if row["name"] in LINES}


def measure(row: Row, bench: Bench, found: Found, facts: dict[str, str]) -> None:
    """Measure one row and put its lines into ``found``, each with where and when it was measured."""
    begin = time.perf_counter()
    began_at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    for line in row.results(bench):
        took = {"row": row.name, "began_at": began_at, "took_s": f"{time.perf_counter() - begin:.0f}"}
        found[line.name] = {**line.as_dict(), "settings": {**line.settings, "machine": {**facts, **took}}}
        what = line.settings.get("failed") or f"ratio {line.ratio}, ours {line.ours}, {line.goal}: {line.met}"
        bench.say(f"[bold]{line.name}[/bold]: {what}")


def write_results(found: Found, path: Path) -> Sequence[dict[str, Any]]:
    """Write the lines in the order of the table; return them."""
    rows = [found[name] for name in LINES if name in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    return rows


def main() -> None:
    """Run what was asked for; after every row the results and the table of the document are written."""
    asked = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    threads = asked.threads or len(cores)
    # Both sides inherit the same cores and the same number of threads, whatever library asks for them.
    os.environ.update(
        {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    )
    os.environ.update({"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TQDM_DISABLE": "1"})
    bench = Bench(runs=asked.runs or (2 if asked.quick else 5), threads=threads, quick=asked.quick)
    begin = time.perf_counter()
    target = RESULTS / ("tmp/quick.json" if asked.quick else "latest.json")
    found = read_kept(target)
    facts = {**machine(), "cores": str(len(cores)), "threads": str(threads), "note": asked.note}
    rows: Sequence[dict[str, Any]] = list(found.values())
    for name in asked.only:
        minutes = (time.perf_counter() - begin) / 60
        if minutes > asked.minutes:
            bench.say(f"[bold]{name}[/bold]: not begun, {minutes:.0f} minutes are over; run it with --only {name}")
            continue
        bench.say(f"[bold]{name}[/bold]")
        measure(ROWS[name], bench, found, facts)
        rows = write_results(found, target)
        if not asked.quick:
            write_document(rows)
    show(rows, bench.console)
    bench.say(f"{len(rows)} of {len(LINES)} lines in {(time.perf_counter() - begin) / 60:.1f} min, in {target}")


if __name__ == "__main__":
    main()
