"""One process's share of the seeds, added to a results file; no run is begun once the budget in seconds is used up.

python -m benchmarks.chaos.share OUT.json local|cluster BUDGET_S SEED...
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.chaos.__main__ import break_fakes, break_local
from benchmarks.chaos.results import Results
from benchmarks.chaos.stage import end_orderly

if __name__ == "__main__":
    _, figures, kind, budget, *seeds = sys.argv
    end_orderly()
    keep = Results(Path(figures)).add
    {"local": break_local, "cluster": break_fakes}[kind](map(int, seeds), float(budget), keep)
