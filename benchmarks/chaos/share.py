"""One process's share of the seeds, added to a results file.

python -m benchmarks.chaos.share OUT.json local|cluster SEED...
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.chaos.__main__ import break_fakes, break_local
from benchmarks.chaos.results import Results

if __name__ == "__main__":
    _, figures, kind, *seeds = sys.argv
    {"local": break_local, "cluster": break_fakes}[kind](map(int, seeds), keep=Results(Path(figures)).add)
