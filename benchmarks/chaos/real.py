"""Broken runs on the real stack: vLLM samplers, a DeepSpeed learner and rule judges, on a tiny random model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.ledger import Ledger, read_ledger
from benchmarks.chaos.results import Keep
from benchmarks.chaos.stage import Driver, last_words, marked_environment, marked_processes, shared_memory, workers
from benchmarks.chaos.tally import Tally, left_after
from safer_ray.config import RunConfig
from safer_ray.journal import JOURNAL
from safer_ray.prepare import Preparation, prepare

DEADLINE_S = 420.0
_MOST_DRIVERS = 4
_TRAINED = '"event":"Trained","phase":"sft"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Whom to kill, and the moment: a look at the journal's text."""

    name: str
    role: str
    due: Callable[[str], bool]


BREAKS = (
    Break(name="kill sampler mid-generation", role="sampler", due=lambda text: text.count('"evaluate-base"') >= 2),
    Break(name="kill learner rank mid-step", role="learner", due=lambda text: text.count('"event":"Stepped"') >= 3),
    Break(name="kill driver between train and publish", role="driver", due=lambda text: _TRAINED in text),
    Break(name="kill sampler during weight load", role="sampler", due=lambda text: _TRAINED in text and _written(1)),
)


def _written(version: int) -> bool:
    return any(name.endswith(f"-v{version}.safetensors") for name in shared_memory())


def _job(folder: Path) -> Path:
    """Write model, prompts and job: few prompts, few steps, one round."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from real_runs import _config, _few_prompts
    from tiny_model import make_tiny_model

    config: dict[str, Any] = _config(make_tiny_model(folder / "model"), _few_prompts(folder)).model_dump(mode="json")
    config["sft"]["optim"]["epochs"] = 4
    config["sampler"] |= {"max_step_tokens": 60, "max_trace_tokens": 200}
    config["loop"] |= {"max_tries": 10, "start_deadline_s": 200.0, "call_deadline_s": 120.0}
    path = folder / "real.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _carry_out(job: Path, root: Path, fault: Break | None) -> tuple[int, bool, list[str]]:
    """Return how many drivers the run took, whether the fault happened, and what failed drivers said last."""
    begun, drivers, happened, said = time.monotonic(), 0, False, list[str]()
    while time.monotonic() - begun < DEADLINE_S and drivers < _MOST_DRIVERS:
        resume = ["--resume"] if (root / JOURNAL).exists() else []
        output = root.with_suffix(f".{drivers}.log")
        driver = Driver(["run", str(job), f"--run-dir={root}", *resume], output)
        drivers += 1
        while driver.code is None and time.monotonic() - begun < DEADLINE_S:
            if fault and not happened and fault.due(_text(root / JOURNAL)):
                happened = _kill(fault.role, driver)
            time.sleep(0.005)
        if driver.code == 0:
            return drivers, happened, said
        driver.kill()
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        said.append(last_words(text, root))
    return _MOST_DRIVERS + 1, happened, said


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kill(role: str, driver: Driver) -> bool:
    if role == "driver":
        driver.kill()
        return True
    for process in workers(role)[:1]:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return True
    return False


def break_real(faults: Sequence[Break], keep: Keep) -> None:
    """Carry one run out unbroken and one per fault broken, and compare prompts, rounds and counts."""
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with marked_environment():
            job = _job(scratch)
            prep = prepare(RunConfig.model_validate_json(job.read_text(encoding="utf-8")))
            drivers, _, said = _carry_out(job, scratch / "whole", None)
            if drivers > 1:
                raise SystemExit(f"the real run that nobody breaks failed: {said}")
            whole = read_ledger(prep, scratch / "whole")
            for fault in faults:
                keep(_broken(job, prep, whole, fault))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _broken(job: Path, prep: Preparation, whole: Ledger, fault: Break) -> Tally:
    memory, root, begun = shared_memory(), job.with_name(fault.name.replace(" ", "-")), time.monotonic()
    drivers, happened, said = _carry_out(job, root, fault)
    tally = Tally(runs=1, faults=int(happened), by_fault={f"real: {fault.name}": int(happened)})
    tally.names = [f"real {fault.name}"]
    different: list[str] = []
    if drivers > _MOST_DRIVERS:
        tally.hung = 1
    else:
        tally.resumptions = drivers - 1
        ledger = read_ledger(prep, root)
        different = ledger.differs(whole, bytes_too=False)
        tally.lost, tally.duplicates = ledger.lost(prep), ledger.duplicates()
        tally.trained_twice, tally.differing_ledgers = ledger.trained_twice(), int(bool(different))
    tally.leaked_processes = left_after(30.0)
    tally.leaked_shared_memory = len(shared_memory() - memory)
    if not tally.clean or said:
        tally.notes.append(f"real, {fault.name}: {drivers} drivers; differs: {different}; said: {said}")
    tally.wall_s = round(time.monotonic() - begun, 1)
    sys.stdout.write(f"real, {fault.name}: {drivers} drivers, {tally.wall_s:.0f} s, clean: {tally.clean}\n")
    sys.stdout.flush()
    return tally


__all__ = ["BREAKS", "break_real", "marked_processes"]
