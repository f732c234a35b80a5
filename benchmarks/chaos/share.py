"""One process's share of the seeds: ``python -m benchmarks.chaos.share OUT.json SEED...``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos.__main__ import break_fakes

if __name__ == "__main__":
    tally = break_fakes([int(word) for word in sys.argv[2:]])
    Path(sys.argv[1]).write_text(json.dumps(asdict(tally)), encoding="utf-8")
