"""The report of a run: one self-contained HTML file made from what its directory holds.

What the run does not have is left out. All text of models and prompts is data: the template escapes it, and
the page's own policy lets nothing run but the one script of ours.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from safer_ray.cards import prompt_cards
from safer_ray.core.metrics import Evaluation, PairedChange, paired_change
from safer_ray.errors import DataError, JournalError
from safer_ray.records import AXES, STEP_KINDS
from safer_ray.run_record import RunRecord, read_run

MOST_PROMPTS = 300
_CHANCE = 0.05
_NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two checkpoints on the prompts both answered, with what may be said about it."""

    before: str
    after: str
    what: str
    change: PairedChange
    verdict: str


def verdict_of(change: PairedChange) -> str:
    """Say in honest words what a paired change shows: better or worse only where chance is an unlikely reason."""
    if change.failed_after == change.failed_before:
        return "no worse"
    better = change.failed_after < change.failed_before
    if change.p_value < _CHANCE:
        return "better" if better else "worse"
    return "no worse" if better else "worse, within chance"


def _comparisons(run: RunRecord) -> list[Comparison]:
    """Compare the first checkpoint with the last, and SFT with the last if ERPO came after it."""
    names = [name for name, outcomes in run.outcomes.items() if outcomes]
    found: list[Comparison] = []
    pairs = [(names[0], names[-1])] if len(names) > 1 else []
    if "sft" in names[1:-1]:
        pairs.append(("sft", names[-1]))
    for before, after in pairs:
        for what, failure in (("ASR", "complied"), ("over-refusal", "over_refused")):
            try:
                change = paired_change(run.outcomes[before], run.outcomes[after], run.prompts, failure)  # type: ignore[arg-type]
            except DataError as exc:
                run.unread.append(str(exc))
                continue
            if change:
                row = Comparison(before=before, after=after, what=what, change=change, verdict=verdict_of(change))
                found.append(row)
    return found


def _trend(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if math.isclose(before, after, abs_tol=1e-12):
        return "unchanged from"
    return "down from" if after < before else "up from"


def percent(value: float | None, digits: int | None = None) -> str:
    """Write a share in per cent; small and near-certain ones keep a decimal."""
    if value is None:
        return _NO_VALUE
    shown = 100 * value
    if digits is None:
        digits = 0 if shown in (0, 100) or shown >= 99.95 else 1
    return f"{shown:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def number(value: Any, digits: int = 0) -> str:
    """Write a number with thin-spaced thousands; what is no finite number becomes a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return _NO_VALUE
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def duration(seconds: Any) -> str:
    """Write seconds as a person says them: 8.2 s, 5 min 22 s, 2 h 05 min."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return _NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def p_value(value: float) -> str:
    """Write a p-value without pretending to more digits than matter."""
    return "<\N{NO-BREAK SPACE}0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _rounds(run: RunRecord) -> list[dict[str, Any]]:
    """Return the summary's rounds; a round it does not know yet is counted from its pairs."""
    rows = {row.get("round"): dict(row) for row in _mappings(run.summary.get("rounds"))}
    for index, counts in run.pairs_by_round.items():
        rows.setdefault(index, {"round": index, "pairs_by_axis": dict(counts)})
    for row in rows.values():
        by_axis = _mapping(row.get("pairs_by_axis"))
        row["pairs_by_axis"] = {axis: int(_finite(by_axis.get(axis)) or 0) for axis in AXES}
        row["pairs"] = sum(row["pairs_by_axis"].values())
    return sorted(rows.values(), key=lambda row: _finite(row.get("round")) or 0)


def _stages(run: RunRecord) -> list[dict[str, Any]]:
    rows = [(str(row.get("name")), _finite(row.get("wall_s"))) for row in _mappings(run.summary.get("stages"))]
    known = [(name, wall_s) for name, wall_s in rows if wall_s is not None]
    total, longest = sum(wall_s for _, wall_s in known), max((wall_s for _, wall_s in known), default=0.0)
    return [
        {
            "name": name,
            "wall_s": wall_s,
            "share": wall_s / total if total else 0.0,
            "of_longest": wall_s / (longest or 1),
        }
        for name, wall_s in known
    ]


def _categories(evaluations: Sequence[Evaluation], names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return per category its name and the counts of every evaluation, None where one lacks the category."""
    by_id = [{row.category: row for row in item.per_category} for item in evaluations]
    return [
        {"category": category, "name": names.get(category), "counts": [rows.get(category) for rows in by_id]}
        for category in sorted({category for rows in by_id for category in rows})
    ]


def _plots(run: RunRecord) -> dict[str, Any]:
    from safer_ray import plots  # importing matplotlib takes a second, which the rest of the CLI need not pay

    points = []
    for row in _mappings(run.summary.get("training")):
        values = {name: _finite(row.get(name)) for name in ("loss", "margin", "accuracy", "chosen_logp")}
        points.append(plots.CurvePoint(stage=str(row.get("stage")), **values))
    tokens = {name: [item.reasoning_tokens for item in rows] for name, rows in run.outcomes.items()}
    return {
        "trade_off": plots.trade_off(run.evaluations),
        "tokens": plots.reasoning_tokens(tokens),
        "curves": plots.training_curves(points),
    }


def _moment(value: Any) -> str:
    """Write a Unix time or an ISO date with its zone as a moment in UTC; "" if it is neither."""
    try:
        at = _finite(value)
        when = datetime.fromisoformat(str(value)) if at is None else datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return what identifies the run, as far as it is known."""
    summary, pack, machine = run.summary, _mapping(run.summary.get("rule_pack")), _mapping(run.summary.get("machine"))
    rules = " ".join(str(pack[key]) for key in ("name", "version") if pack.get(key))
    digest = f" ({str(pack['hash'])[:12]})" if pack.get("hash") else ""
    parts = (
        f"{number(machine.get('cpus'))} CPUs" if machine.get("cpus") else "",
        f"{number(machine.get('memory_gib'), 1)} GiB" if machine.get("memory_gib") else "",
        str(machine.get("platform") or ""),
    )
    found = (
        ("Model", str(summary.get("model") or "")),
        ("Rules", rules + digest),
        ("Seed", "" if summary.get("seed") is None else str(summary["seed"])),
        ("Started", _moment(summary.get("started_at"))),
        ("Took", duration(summary["wall_s"]) if _finite(summary.get("wall_s")) else ""),
        ("Machine", ", ".join(part for part in parts if part)),
    )
    return [(term, value) for term, value in found if value]


def _counts(run: RunRecord) -> list[tuple[str, str]]:
    """Return the counts that say whether the run went as it should."""
    summary, traces, sampler = run.summary, _mapping(run.summary.get("traces")), _mapping(run.summary.get("sampler"))
    rejected = [f"{reason}: {number(count)}" for reason, count in sorted(_mapping(traces.get("rejected")).items())]
    left = [
        f"{row.get('name')}: {number(row.get('kept'))} of {number(row.get('given'))}"
        for row in _mappings(traces.get("filters"))
    ]
    updates = [_finite(row.get("seconds")) for row in _mappings(summary.get("weight_updates"))]
    seconds = [value for value in updates if value is not None]
    reasons = Counter(str(row.get("reason")) for row in _mappings(summary.get("dropped")))
    dropped = "; ".join(f"{reason}: {number(count)}" for reason, count in reasons.most_common(5))
    found = [
        ("Items dropped", dropped),
        ("Prompts lost", number(summary.get("lost_prompts"))),
        ("Prompts trained twice", number(summary.get("duplicate_prompts"))),
        ("Rows not readable", number(summary.get("bad_rows"))),
        ("Traces accepted", number(traces.get("accepted"))),
        ("Traces left by each filter", "; ".join(left) or _NO_VALUE),
        ("Traces rejected", "; ".join(rejected) or ("none" if traces else _NO_VALUE)),
        ("Weight updates", f"{len(seconds)}, the slowest {max(seconds):.2f} s" if seconds else _NO_VALUE),
        ("Tokens generated", number(sampler.get("generated_tokens"))),
        ("Tokens per second", number(sampler.get("tokens_per_s"), 1)),
        ("Prefix cache hits", percent(_finite(sampler.get("prefix_cache_hit_rate")))),
        (
            "Peak memory",
            f"{number(summary['peak_memory_gib'], 1)} GiB" if _finite(summary.get("peak_memory_gib")) else "",
        ),
    ]
    return [(term, value) for term, value in found if value and value != _NO_VALUE]


def _browser_context(run: RunRecord) -> dict[str, Any]:
    """Return the cards, how many there would be, and the values they can be filtered by."""
    cards = prompt_cards(run.prompts, run.outcomes, MOST_PROMPTS)
    pair_prompts = [card.prompt for card in run.pairs]
    return {
        "cards": cards,
        "n_prompts": len({outcome.prompt_id for rows in run.outcomes.values() for outcome in rows}),
        "cards_by": {
            "checkpoint": list(run.outcomes),
            "category": sorted({card.prompt.category for card in cards}),
            "label": sorted({card.prompt.label for card in cards}),
            "outcome": sorted({tag for card in cards for answer in card.answers for tag in answer.tags}),
            "change": sorted({card.change for card in cards}),
        },
        "pairs": run.pairs,
        "n_pairs": sum(counts.total() for counts in run.pairs_by_round.values()),
        "pairs_by": {
            "round": sorted({card.pair.lineage.round for card in run.pairs}),
            "step": [kind for kind in STEP_KINDS if any(card.pair.step_kind == kind for card in run.pairs)],
            "category": sorted({prompt.category if prompt else "unknown" for prompt in pair_prompts}),
            "label": sorted({prompt.label if prompt else "unknown" for prompt in pair_prompts}),
        },
    }


def _context(run: RunRecord) -> dict[str, Any]:
    measured = [item for item in run.evaluations if item.well_formed is not None]
    sft = next((item for item in measured if item.checkpoint == "sft"), None)
    ends = [item for item in measured if item in (measured[0], sft, measured[-1])]
    names = _mapping(_mapping(run.summary.get("rule_pack")).get("categories"))
    return {
        "name": str(run.summary.get("name") or run.path.resolve().name),
        "facts": _facts(run),
        "counts": _counts(run),
        "versions": _mapping(run.summary.get("versions")),
        "config": run.config,
        "evaluations": run.evaluations,
        "judges": sorted({item.judge for item in measured}),
        "first": measured[0] if measured else None,
        "sft": sft,
        "last": measured[-1] if measured else None,
        "comparisons": _comparisons(run),
        "ends": ends,
        "categories": _categories(ends, names),
        "rounds": _rounds(run),
        "stages": _stages(run),
        "plots": _plots(run),
        "unfinished": run.summary.get("finished") is False,
        "unread": run.unread,
        "axes": AXES,
        **_browser_context(run),
    }


def page_environment() -> jinja2.Environment:
    """Return the templates with our filters; whatever is put into them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safer_ray"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "number": number,
        "duration": duration,
        "p_value": p_value,
    }
    environment.filters.update(filters)
    environment.globals["trend"] = _trend
    return environment


def template_text(environment: jinja2.Environment, name: str) -> Markup:
    """Return one of our own files as it is: the style sheet and the script, which hold no data."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory, aside and renamed, and return its path.

    The same directory gives the same bytes.

    Raises:
        JournalError: if there is no such directory, or the report cannot be written into it.
    """
    if not run_dir.is_dir():
        raise JournalError(f"run directory {run_dir}: there is none; name the --run-dir of a run that was started")
    environment = page_environment()
    script = template_text(environment, "report.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.j2").render(
        _context(read_run(run_dir)), style=template_text(environment, "report.css"), script=script, digest=digest
    )
    path = run_dir / "report.html"
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # JSON may carry lone surrogates, which no encoding of text can hold.
        aside.write_bytes(page.encode("utf-8", errors="replace"))
        aside.replace(path)
    except OSError as exc:
        aside.unlink(missing_ok=True)
        raise JournalError(f"report {path}: cannot be written ({exc.strerror}); free space or fix permissions") from exc
    return path
