"""``safer-ray audit``: how far judges and traces can be trusted. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from safer_ray.errors import ConfigError

audit = typer.Typer(
    help="Measure judges against labelled answers, and traces against what they should do.", no_args_is_help=True
)
out = Console()

LabelsOpt = Annotated[Path | None, typer.Option("--labels", help="JSONL of labelled answers; default: the shipped set")]
JudgeOpt = Annotated[
    list[str] | None,
    typer.Option("--judge", help="rules, lists, or a job file whose judge is audited; may be repeated"),
]
OutOpt = Annotated[Path, typer.Option("--out", help="folder for the HTML page and the JSON file")]
SetOpt = Annotated[list[str] | None, typer.Option("--set", help="override a config value of the job files: a.b=c")]


@audit.command("judge")
def judge_command(
    labels: LabelsOpt = None,
    judge: JudgeOpt = None,
    to: OutOpt = Path("audit"),
    set_: SetOpt = None,
) -> None:
    """Compare judges with answers labelled by hand; two or more are also taken together by vote."""
    from safer_ray.audit_page import write_audit
    from safer_ray.auditing import audit_judges
    from safer_ray.backends.labelled_answers import SHIPPED_ANSWERS, read_answers

    answers = read_answers(labels or SHIPPED_ANSWERS)
    audits = audit_judges(answers, judge or ["rules"], overrides=set_ or ())
    table = Table("judge", "3 classes", "held", "full or not", "kappa", "unread")
    for item in audits:
        held = item.by_split.get("held")
        table.add_row(
            item.judge,
            _share(item.classes.share),
            _share(held[0].share if held else None),
            _share(item.full_or_not.share),
            "-" if item.kappa is None else f"{item.kappa:.3f}",
            str(item.unread),
        )
    out.print(table)
    page, data = write_audit(audits, to, labels=labels.name if labels else "the shipped labelled answers")
    out.print(f"page: {page}\ndata: {data}", soft_wrap=True)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def require(condition: bool, message: str) -> None:
    """Refuse a command line that cannot be carried out.

    Raises:
        ConfigError: with ``message``, unless ``condition`` holds.
    """
    if not condition:
        raise ConfigError(message)
