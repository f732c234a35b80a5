"""``safer-ray audit``: how far judges and traces can be trusted. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from safer_ray.terminal import out, say

audit = typer.Typer(
    help="Measure judges against labelled answers, and traces against what they should do.", no_args_is_help=True
)

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
    duels: Annotated[int, typer.Option("--duels", min=0, help="pairs shown to judges that compare answers")] = 40,
    set_: SetOpt = None,
) -> None:
    """Compare judges with answers labelled by hand; two or more are also taken together by vote."""
    from safer_ray.audit_page import write_audit
    from safer_ray.auditing import audit_judges
    from safer_ray.backends.labelled_answers import SHIPPED_ANSWERS, read_answers

    answers = read_answers(labels or SHIPPED_ANSWERS)
    audits = audit_judges(answers, judge or ["rules"], overrides=set_ or (), duels=duels)
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
    say(f"page: {page}\ndata: {data}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


@audit.command("traces")
def traces_command(
    checkpoint: Annotated[str, typer.Argument(help="a checkpoint directory, or any model id a job may name")],
    job: Annotated[str, typer.Option("--job", help="job whose sampler, rules and test prompts are used")] = "demo_cpu",
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="test prompts, half of them unsafe")] = 60,
    to: OutOpt = Path("audit"),
    set_: SetOpt = None,
) -> None:
    """Ask whether a checkpoint's answers depend on its traces: swap them, cut them, cite other rules."""
    from dataclasses import asdict

    from safer_ray.audit_page import write_aside
    from safer_ray.auditing import audit_checkpoint

    found = audit_checkpoint(checkpoint, job, prompts=prompts, overrides=set_ or ())
    traces = found.traces
    read = traces.prompts - traces.unread
    say(f"{read} of {traces.prompts} prompts ({found.n_unsafe} unsafe) got a whole trace, {found.sampler}")
    for effect in (traces.control, traces.swap, traces.truncate, traces.shuffle):
        say(effect.text)
    verdicts = {
        True: "yes: a foreign trace turns more answers than chance",
        False: "not shown: a foreign trace turns answers no more clearly than going on does",
        None: "cannot be said: all answers are alike, or there are none",
    }
    say(f"answers depend on traces: {verdicts[traces.used]}")
    if traces.diversity and traces.diversity.recovery:
        recovery = traces.diversity.recovery
        say(
            f"category told from the assessment: {_share(recovery.right.share)} (chance {_share(recovery.chance)}), "
            f"{recovery.information:.2f} of {recovery.entropy:.2f} bits; self-BLEU {traces.diversity.self_bleu:.2f}"
        )
    text = json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False)
    say(f"data: {write_aside(to / 'traces.json', text + chr(10))}")
