"""One process's share of the seeds, added to a results file: ``python -m benchmarks.chaos.share OUT.json SEED...``."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.chaos.__main__ import break_fakes
from benchmarks.chaos.results import Results

if __name__ == "__main__":
    break_fakes([int(word) for word in sys.argv[2:]], keep=Results(Path(sys.argv[1])).add)
