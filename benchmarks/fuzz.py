"""``make fuzz``: every reader of foreign text against inputs that atheris makes up, led by coverage.

A reader may refuse with one of our errors and with nothing else; no input may take longer than ``TIMEOUT_S`` or more
than ``MEMORY_MIB``. Each target runs in a process of its own; the first fault ends it, and its input is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

READERS = ("trace", "rule_pack", "config", "journal")
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
TIMEOUT_S = 20
MEMORY_MIB = 2048
_MODULES = {
    "trace": ["safer_ray.core.trace"],
    "rule_pack": ["safer_ray.core.rules", "safer_ray.core.located_yaml"],
    "config": ["safer_ray.config_file", "safer_ray.core.located_yaml"],
    "journal": ["safer_ray.journal", "safer_ray.core.events"],
}
"""Where new coverage is looked for."""


def seeds_of(reader: str) -> list[bytes]:
    """Return small valid inputs to begin with."""
    root = Path(__file__).parents[1]
    head, event = (
        b'{"head":{"name":"x"},"at":1.0}',
        (b'{"at":2.0,"event":"Judged","phase":"teach","item":0,"level":0,"attempt":0,"final":true,"counts":{}}'),
    )
    pack = (root / "rule_packs" / "default" / "pack.yaml").read_bytes()
    return {
        "trace": [
            b"<think>\n<assessment>a</assessment>\n<verification>b</verification>\n<calibration>c</calibration>\n"
            b"</think>\nanswer"
        ],
        "rule_pack": [
            pack.split(b"\n- id: R02")[0] + b"\n",
            b"name: a\nversion: '1'\nnone_label: R00\nrules:\n  - id: R01\n",
        ],
        "config": [path.read_bytes()[:1500] for path in sorted((root / "jobs").glob("*.yaml"))],
        "journal": [
            b"\n".join(b"%08x %s" % (zlib.crc32(row), row) for row in (head, event)) + b"\n",
            head + b"\n" + event,
        ],
    }[reader]


def target_of(reader: str, scratch: Path) -> Callable[[bytes], bool]:
    """Return what reads one input and says whether it was taken, not refused; it raises what is a fault."""
    from safer_ray.errors import SaferRayError

    def read(data: bytes) -> bool:
        try:
            _READ[reader](data, scratch)
        except SaferRayError:
            return False
        return True

    return read


def _read_trace(data: bytes, scratch: Path) -> None:
    from safer_ray.core import trace

    text = data.decode("utf-8", errors="replace")
    trace.response_of(text)
    escaped = trace.escape_tags(text)
    assert trace.escape_tags(escaped) == escaped
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    if pieces:
        steps = trace.split_steps(pieces)
        assert steps[0].start == 0
        assert steps[-1].stop == len(pieces)
    for index in range(4):
        trace.step_text(index, text)
    found = trace.parse(text)
    assert trace.parse(trace.render(found)) == found


def _read_pack(data: bytes, scratch: Path) -> None:
    from safer_ray.core.rules import load_pack

    load_pack(data.decode("utf-8", errors="surrogateescape"), "pack.yaml")


def _read_config(data: bytes, scratch: Path) -> None:
    from safer_ray.config_file import load_config

    job, override = scratch / "job.yaml", data[:24].decode("utf-8", errors="replace")
    job.write_bytes(data)
    load_config(job, [override] if data[:1] == b"=" else [])


def _read_journal(data: bytes, scratch: Path) -> None:
    from safer_ray.core.loop import LoopState, apply
    from safer_ray.core.plan import Phase
    from safer_ray.journal import read_journal

    path = scratch / "journal.jsonl"
    rows = data.split(b"\n")
    if data[:1] == b"{":  # rows without a checksum get one: else nothing would ever come past it
        path.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(row), row) for row in rows))
    else:
        path.write_bytes(data)
    _, entries, whole = read_journal(path)
    assert 0 < whole <= path.stat().st_size
    state = LoopState.of([Phase(name="teach", kind="teach", items=2, version=0)])
    for entry in entries:
        apply(state, entry.event)


_READ: dict[str, Callable[[bytes, Path], None]] = {
    "trace": _read_trace, "rule_pack": _read_pack, "config": _read_config, "journal": _read_journal,
}  # fmt: skip


def _fuzz_one(reader: str, runs: int, corpus: Path) -> None:
    """Run atheris in this process; it ends the process itself."""
    atheris: Any = importlib.import_module("atheris")
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=_MODULES[reader]):
        for module in _MODULES[reader]:
            importlib.import_module(module)
    with tempfile.TemporaryDirectory() as scratch:
        faults = f"{corpus.parent}/fault-{reader}-"
        arguments = [f"-runs={runs}", "-max_len=4096", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MIB}",
                     f"-artifact_prefix={faults}", "-print_final_stats=1", str(corpus)]  # fmt: skip
        read = target_of(reader, Path(scratch))

        def once(data: bytes) -> None:
            read(data)

        atheris.Setup([sys.argv[0], *arguments], once)
        atheris.Fuzz()


def main() -> None:
    """Fuzz each reader; exit 1 if any input was more than one reader could take."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs of each reader")
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, default=Path("runs") / "fuzz", help="where faults are kept")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        _fuzz_one(given.reader[0], given.runs, given.inside)
        return
    rows: dict[str, dict[str, Any]] = {}
    for reader in given.reader or READERS:
        corpus = given.keep / reader
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds_of(reader)):
            (corpus / f"seed-{number}").write_bytes(seed)
        begun = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzz",
            "--reader",
            reader,
            "--runs",
            str(given.runs),
            "--inside",
            str(corpus),
        ]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env={**os.environ})
        stats = dict(
            line.removeprefix("stat::").split(":") for line in result.stderr.splitlines() if line.startswith("stat::")
        )
        rows[reader] = {
            "inputs": int(stats.get("number_of_executed_units", 0)),
            "peak_rss_mib": int(stats.get("peak_rss_mb", 0)),
            "slowest_s": int(stats.get("slowest_unit_time_sec", 0)),
            "faults": int(result.returncode != 0),
            "wall_s": round(time.monotonic() - begun, 1),
        }
        sys.stdout.write(f"{reader}: {rows[reader]}\n")
        if result.returncode:
            sys.stdout.write("\n".join(result.stderr.splitlines()[-30:]) + "\n")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["faults"] for row in rows.values()))


if __name__ == "__main__":
    main()
