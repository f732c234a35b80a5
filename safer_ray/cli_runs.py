"""Commands about runs that exist: how they stand, going on with one, replaying a batch that training stopped at."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from safer_ray.terminal import out, say

if TYPE_CHECKING:
    from safer_ray.status import PromptLine

runs = typer.Typer()
RunArg = Annotated[Path, typer.Argument(help="a run directory")]
_COLUMNS = ("asked", "sampled", "judged", "unscored", "paired", "trained")


@runs.command()
def status(
    run_dir: RunArg,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    prompts: Annotated[bool, typer.Option("--prompts", help="list every prompt, by phase")] = False,
    phase: Annotated[list[str] | None, typer.Option(help="with --prompts: only this phase; may be repeated")] = None,
    state: Annotated[list[str] | None, typer.Option(help="with --prompts: only this state; may be repeated")] = None,
) -> None:
    """Show how a run stands, while it goes on and after it ended or died."""
    from safer_ray.rundir import RunDir
    from safer_ray.status import read_status

    found = read_status(RunDir(run_dir))
    lines = found.prompts(phase or (), state or ()) if prompts else []
    if as_json:
        facts = found.facts | ({"prompts": [asdict(line) for line in lines]} if prompts else {})
        sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    elif prompts:
        _show_prompts(lines)
    else:
        _show_status(found.facts)


def _show_status(facts: dict[str, Any]) -> None:
    for line in _headlines(facts):
        say(line)
    rows = [_cells(row) for row in facts["phases"]]
    _show(("phase", "state", *_COLUMNS, "dropped", "rate"), rows)
    replicas = [
        (pool["role"], r["name"], r["state"], _text(r["policy_version"]), str(r["in_flight"]), r["node"][:8])
        for pool in facts["live"].get("pools", ())
        for r in pool["replicas"]
    ]
    if replicas:
        _show(("role", "replica", "state", "version", "in flight", "node"), replicas)
    for row in facts["phases"]:
        for kind in ("dropped", "lost"):
            for reason, count in row[kind].items():
                text = f"{kind} {row['phase']}: {count} x {reason}"
                say(text)


def _headlines(facts: dict[str, Any]) -> list[str]:
    """Return what stands above the tables."""
    journal, writer = facts["journal"], facts["writer"]
    who = f", written by {writer}" if writer else ""
    torn = f", {journal['torn_bytes']} torn bytes at its end" if journal["torn_bytes"] else ""
    ago = f"last event {journal['last_event_age_s']:.0f} s ago"
    lines = [
        f"run {facts['name']}: {facts['state']}{who}; policy version {facts['policy_version']}",
        f"journal: {journal['events']} events, {journal['bytes']} bytes, {ago}{torn}",
    ]
    age = facts["status_age_s"]
    if age is None:
        lines.append("workers and queues: not known, the driver left no status file")
    elif writer:
        lines.append(f"workers and queues: as of {age:.0f} s ago")
    else:
        lines.append(f"workers and queues: the writer is gone; they were as below {age:.0f} s ago")
    for name, row in facts["live"].get("phases", {}).items():
        lines.append(f"queue {name}: {row['sampling']} sampling, {row['judging']} judging, {row['ready']} ready")
    lines += [f"accepted change {row['name']}: {row['old']} -> {row['new']}" for row in facts["accepted"]]
    lines += [f"failed batch {row['folder']}: {row['reason']}; safer-ray replay shows it" for row in facts["failed"]]
    return lines


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["kind"] in ("sft", "erpo"):
        progress = f"step {row['step']}/{row['steps']}" if row["steps"] else ""
        return (row["phase"], row["state"], progress, "", "", "", "", "", "", "")
    if row["kind"] == "publish":
        return (row["phase"], row["state"], *[""] * 8)
    rate = f"{row['per_s']:.2f}/s" if row["state"] == "running" else ""
    counts = [f"{row['asked']}/{row['items']}", *(str(row[name]) for name in _COLUMNS[1:])]
    return (row["phase"], row["state"], *counts, str(sum(row["dropped"].values())), rate)


def _show_prompts(lines: list[PromptLine]) -> None:
    rows = [(line.phase, str(line.item), line.prompt_id, line.state, line.reason) for line in lines]
    _show(("phase", "item", "prompt", "state", "reason"), rows)


def _show(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table on a terminal, tab-separated lines elsewhere."""
    if not out.is_terminal:
        for row in (header, *rows):
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


@runs.command()
def replay(
    run_dir: RunArg,
    stage: Annotated[str | None, typer.Option(help="of this stage, e.g. erpo-1; default: the newest")] = None,
    step: Annotated[int | None, typer.Option(help="of this optimiser step; default: the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Run a batch again that training stopped at, on the weights it met; nothing is changed."""
    from safer_ray.replay import find_batch, replay_batch
    from safer_ray.rundir import RunDir

    place = RunDir(run_dir.absolute())
    found = replay_batch(place, find_batch(place, stage=stage, step=step))
    batch, report = found.batch, found.report
    if as_json:
        row = _told({"batch": asdict(batch), "replay": asdict(report)})
        sys.stdout.write(json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    lines = (
        f"{found.folder.name}: step {batch.step} of {batch.steps}, {batch.reason}; {len(batch.packs)} packs",
        f"then: loss {_text(batch.loss)}, gradient norm {_text(batch.grad_norm)}, learning rate {batch.lr:g}",
        f"now:  loss {report.loss:g}, gradient norm {report.grad_norm:g}",
    )
    for line in lines:
        say(line)
    rows = [
        (str(row.pack), row.row_id, row.prompt_id, *map(_number, (row.loss, row.chosen_logp, row.rejected_logp)))
        for row in report.rows
    ]
    _show(("pack", "row", "prompt", "loss", "chosen logp", "rejected logp"), rows)


def _told(value: Any) -> Any:
    """Return a value with what JSON has no word for as None."""
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@runs.command()
def resume(
    run_dir: RunArg,
    job: Annotated[str | None, typer.Option(help="go on with this job file; default: the config of the run")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override a config value: a.b=c")] = None,
    accept_change: Annotated[
        list[str] | None,
        typer.Option(help="what may have changed since the run began, e.g. erpo.optim.lr; may be repeated"),
    ] = None,
) -> None:
    """Go on with a run that was stopped or died."""
    from safer_ray.config import RunConfig
    from safer_ray.config_file import find_job, load_config
    from safer_ray.prepare import prepare
    from safer_ray.progress import ProgressView
    from safer_ray.run import execute
    from safer_ray.rundir import RunDir

    place = RunDir(run_dir.absolute())
    config = load_config(find_job(job) if job else place.config, set_ or ())
    # The config of a run names every key; what is at its default was not asked for and must not count as asked for.
    prep = prepare(RunConfig.model_validate(config.model_dump(exclude_defaults=True)))
    with ProgressView(out) as view:
        execute(prep, place, resume=True, accept=accept_change or (), observe=view.observe)
    say(f"report: {place.root / 'report.html'}")
