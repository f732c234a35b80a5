"""The command that changes the number of workers of a run that is going on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safer_ray.errors import ClusterError, ConfigError, JournalError
from safer_ray.terminal import say

scaling = typer.Typer()


@scaling.command()
def scale(
    run_dir: Annotated[Path, typer.Argument(help="the directory of a run that is going on")],
    samplers: Annotated[int | None, typer.Option(min=0, help="samplers wanted from now on")] = None,
    judges: Annotated[int | None, typer.Option(min=0, help="judges wanted from now on")] = None,
    wait_s: Annotated[float, typer.Option("--wait", min=1, help="seconds to wait for the driver's answer")] = 15.0,
) -> None:
    """Change the number of samplers and judges while a run goes on."""
    from safer_ray.cluster.orders import order_scale
    from safer_ray.rundir import RunDir

    if samplers is None and judges is None:
        raise ConfigError("scale: name --samplers N, --judges N, or both")
    require_driver(run_dir)
    answer = order_scale(RunDir(run_dir), samplers=samplers, judges=judges, patience_s=wait_s)
    if not answer.accepted:
        raise ClusterError(f"run {run_dir}: {answer.text}")
    say(f"{run_dir}: {answer.text}; what is missing joins, what is too many ends its calls and goes")


def require_driver(run_dir: Path) -> None:
    """Refuse a run nobody is carrying out.

    Raises:
        JournalError: if it is no run directory.
        ClusterError: if no driver is at work there.
    """
    from safer_ray.journal import JOURNAL, Journal

    if not (run_dir / JOURNAL).exists():
        raise JournalError(f"journal {run_dir / JOURNAL}: no such file; is this a run directory?")
    try:
        Journal.writable(run_dir)
    except JournalError:  # its writer holds the lock
        return
    raise ClusterError(f"run {run_dir}: no driver is at work there; go on with --resume, then scale")
