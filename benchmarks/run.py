"""``make bench``: run every row, print the table, write results/latest.json and the table of docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import learner_rows, serving_rows
from benchmarks.measure import Bench
from benchmarks.table import machine, show, write_document

RESULTS = Path(__file__).parent / "results"
ROWS = {row.__name__: row for row in (*learner_rows.ROWS, *serving_rows.ROWS)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two runs of small sizes; for development, writes no document"
    )
    parser.add_argument("--runs", type=int, default=0, help="runs of each side (default 5; quick 2)")
    parser.add_argument("--threads", type=int, default=0, help="threads of each subject (default: the cores given)")
    parser.add_argument(
        "--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="only these rows; kept ones stay"
    )
    parser.add_argument("--note", default="", help="a sentence about the machine, kept with the results")
    return parser.parse_args()


def main() -> None:
    """Run what was asked for."""
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
    kept = json.loads(target.read_text()) if target.is_file() and asked.only != list(ROWS) else []
    found: dict[str, dict[str, object]] = {row["name"]: row for row in kept}
    facts = {**machine(), "cores": str(cores), "threads": str(threads), "note": asked.note}
    for name in asked.only:
        bench.say(f"[bold]{name}[/bold]")
        for row in ROWS[name](bench):
            found[row.name] = {**row.as_dict(), "settings": {**row.settings, "machine": facts}}
            bench.say(
                f"[bold]{row.name}[/bold]: ratio {row.ratio}, ours {row.ours:.4g} {row.unit}, {row.goal}: {row.met}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(list(found.values()), indent=1, default=str) + "\n")
    minutes = (time.perf_counter() - begin) / 60
    rows = list(found.values())
    show(rows, bench.console)
    bench.say(f"{len(rows)} rows in {minutes:.1f} min, in {target}")
    if not asked.quick:
        command = (
            "make bench" if asked.only == list(ROWS) else "python -m benchmarks.run --only " + " ".join(asked.only)
        )
        write_document(rows, {**facts, "minutes": f"{minutes:.1f}", "command": command})
    sys.exit(0)


if __name__ == "__main__":
    main()
