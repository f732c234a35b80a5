"""What a run directory holds, read as far as it can be.

Everything in the directory is optional: a run that died early has no summary, one without ERPO no rounds.
What is missing stays empty; what is there but cannot be read is named in ``unread``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from safer_ray.cards import PairCard, pair_cards, sampled
from safer_ray.core.metrics import CategoryCounts, Evaluation, evaluate_outcomes
from safer_ray.errors import DataError
from safer_ray.records import Outcome, Prompt, StepPair
from safer_ray.tables import from_table, read_table

MOST_PAIRS = 400
"""Pairs that are read in full, over all rounds; all are counted."""
Kind = TypeVar("Kind", Prompt, Outcome)


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """What was found in a run directory; outcomes by checkpoint in training order."""

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    prompts: dict[str, Prompt] = field(default_factory=dict)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    pairs: list[PairCard] = field(default_factory=list)
    pairs_by_round: dict[int, Counter[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def _by_training_order(checkpoint: str) -> tuple[int, int, str]:
    stem, _, number = checkpoint.partition("-")
    rank = {"base": 0, "sft": 1, "erpo": 2}.get(stem, 3)
    return rank, int(number) if number.isdigit() else 0, checkpoint


def _read_json(path: Path, run: RunRecord) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        run.unread.append(f"{path.relative_to(run.path)}: not JSON that can be read ({exc})")
        return {}


def _read_records(path: Path, kind: type[Kind], run: RunRecord) -> list[Kind]:
    """Return a table's records; a missing file has none, a broken one is noted and has none."""
    if not path.exists():
        return []
    try:
        return from_table(read_table(path), kind)
    except DataError as exc:
        run.unread.append(f"{path.relative_to(run.path)}: {exc}")
        return []


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    values = {item.name: row[item.name] for item in fields(Evaluation)}
    for name, value in values.items():
        if name.endswith("_ci") and value is not None:
            values[name] = (float(value[0]), float(value[1]))
    values["per_category"] = tuple(CategoryCounts(**item) for item in row["per_category"])
    return Evaluation(**values)


def _evaluations(run: RunRecord) -> list[Evaluation]:
    """Return the summary's evaluations, with those it lacks counted again from the tables."""
    found: dict[str, Evaluation] = {}
    for row in run.summary.get("evaluations") or ():
        try:
            found[row["checkpoint"]] = _evaluation(row)
        except (KeyError, TypeError, ValueError) as exc:
            run.unread.append(f"summary.json: an evaluation lacks or breaks {exc}; counted from the tables instead")
    for checkpoint, outcomes in run.outcomes.items():
        if checkpoint in found or not outcomes:
            continue
        try:
            found[checkpoint] = evaluate_outcomes(outcomes, run.prompts)
        except DataError as exc:
            run.unread.append(str(exc))
    return sorted(found.values(), key=lambda item: _by_training_order(item.checkpoint))


def _read_pairs(run: RunRecord) -> list[PairCard]:
    """Return cards of at most ``MOST_PAIRS`` pairs, equally many per round, and count all of them."""
    folders = sorted(path for path in run.path.glob("rounds/round-*") if (path / "pairs.arrow").exists())
    cards: list[PairCard] = []
    for folder in folders:
        try:
            table = read_table(folder / "pairs.arrow")
            axes, ids = table["axis"].to_pylist(), table["pair_id"].to_pylist()
            shown = sampled(range(len(ids)), ids, MOST_PAIRS // len(folders))
            pairs = from_table(table.take(pa.array(shown, pa.int64())), StepPair)
        except (DataError, KeyError) as exc:
            run.unread.append(f"{folder.relative_to(run.path)}: {exc}")
            continue
        run.pairs_by_round[int(re.sub(r"\D", "", folder.name) or 0)] = Counter(axes)
        cards += pair_cards(pairs, run.prompts)
    return cards


def read_run(run_dir: Path) -> RunRecord:
    """Read what a run directory holds; nothing in it is required and nothing is raised for what is broken."""
    run = RunRecord(path=run_dir)
    summary, config = _read_json(run_dir / "summary.json", run), _read_json(run_dir / "config.json", run)
    run.summary = summary if isinstance(summary, dict) else {}
    run.config = json.dumps(config, indent=2, ensure_ascii=False) if config else ""
    run.prompts = {prompt.prompt_id: prompt for prompt in _read_records(run_dir / "prompts.arrow", Prompt, run)}
    for path in sorted(run_dir.glob("evaluations/*.arrow"), key=lambda item: _by_training_order(item.stem)):
        run.outcomes[path.stem] = _read_records(path, Outcome, run)
    run.evaluations = _evaluations(run)
    run.pairs = _read_pairs(run)
    return run
