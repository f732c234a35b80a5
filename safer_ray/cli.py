"""The command line. Heavy imports wait until a command needs them, so help is instant."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from safer_ray import __version__
from safer_ray.cli_audit import audit
from safer_ray.cli_rules import app as rules
from safer_ray.cli_runs import runs
from safer_ray.cli_scale import scaling
from safer_ray.config import RunConfig, StageName
from safer_ray.config_file import find_job, load_config
from safer_ray.errors import ConfigError, SaferRayError, boundary
from safer_ray.terminal import out, say, warn

app = typer.Typer(
    name="safer-ray",
    help="SAFER on Ray: a model that reasons about explicit safety rules before it answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(audit, name="audit")
app.add_typer(scaling)
app.add_typer(rules, name="rules")
app.add_typer(runs)

JobArg = Annotated[str, typer.Argument(help="a job file, or the name of a shipped one such as demo_cpu")]
RunDirOpt = Annotated[Path | None, typer.Option("--run-dir", help="where the run lies; default runs/<name>")]
SetOpt = Annotated[list[str] | None, typer.Option("--set", help="override a config value: a.b=c; may be repeated")]
ResumeOpt = Annotated[bool, typer.Option("--resume", help="go on with the run in the run directory")]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="remove the run in the run directory first")]
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="print the plan and start nothing")]


@app.command()
def run(
    job: JobArg,
    run_dir: RunDirOpt = None,
    set_: SetOpt = None,
    resume: ResumeOpt = False,
    overwrite: OverwriteOpt = False,
    dry_run: DryRunOpt = False,
) -> None:
    """Run every stage of a job: evaluate, synth, sft, erpo rounds, report."""
    _run(load_config(find_job(job), set_ or ()), run_dir, resume=resume, overwrite=overwrite, dry_run=dry_run)


def _stage_command(stage: StageName, what: str) -> None:
    def command(
        job: JobArg,
        run_dir: RunDirOpt = None,
        set_: SetOpt = None,
        resume: ResumeOpt = False,
        overwrite: OverwriteOpt = False,
        dry_run: DryRunOpt = False,
    ) -> None:
        only = [*(set_ or ()), f"stages=[{stage}]"]
        _run(load_config(find_job(job), only), run_dir, resume=resume, overwrite=overwrite, dry_run=dry_run)

    app.command(name={"evaluate": "eval"}.get(stage, stage), help=what)(command)


_stage_command("synth", "Only write synthetic traces.")
_stage_command("sft", "Only fine-tune on existing traces (--set sft.traces=PATH).")
_stage_command("erpo", "Only run ERPO rounds, from the model of the job.")
_stage_command("evaluate", "Only evaluate the model of the job (--set model.id=CHECKPOINT).")


@app.command()
def validate(job: JobArg, set_: SetOpt = None) -> None:
    """Check a job file, its rule pack and its prompts; start nothing."""
    from safer_ray.prepare import prepare

    prep = prepare(load_config(find_job(job), set_ or ()))
    kinds = ", ".join(f"{phase.name} ({phase.items} prompts)" if phase.gathers else phase.name for phase in prep.phases)
    say(f"{job}: valid. {len(prep.prompts.prompts)} prompts, {len(prep.prompts.bad_rows)} rows skipped.")
    say(f"phases: {kinds}")
    for row in prep.prompts.bad_rows:
        warn(f"skipped {row.where}: {row.reason}")


@app.command()
def submit(
    job: JobArg,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, e.g. http://127.0.0.1:8265")],
    run_dir: Annotated[str, typer.Option("--run-dir", help="absolute run directory on storage every node mounts")],
    set_: SetOpt = None,
    resume: ResumeOpt = False,
    follow: Annotated[bool, typer.Option(help="follow the job's log until it ends")] = True,
) -> None:
    """Send this directory to a running Ray cluster, run a job in it and follow its log."""
    from safer_ray.cluster.jobs_api import job_file, run_command, submit_command

    command = run_command(job_file(job, "."), run_dir=run_dir, overrides=set_ or (), resume=resume)
    log = sys.stdout.write if follow else None
    result = submit_command(command, address=address, working_dir=".", follow=log)
    say(f"job {result.job_id}: {result.status}")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="a run directory")],
    to: Annotated[Path | None, typer.Option("--out", help="Parquet file; default RUN/pairs.parquet")] = None,
    round_: Annotated[list[int] | None, typer.Option("--round", help="only this round; may be repeated")] = None,
) -> None:
    """Export step pairs as Parquet with prompt / chosen / rejected columns."""
    from safer_ray.export import export_pairs
    from safer_ray.rundir import RunDir

    target = to or run_dir / "pairs.parquet"
    count = export_pairs(RunDir(run_dir), target, round_ or ())
    say(f"{count} pairs written to {target}")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Write report.html of a run again."""
    from safer_ray.report import write_report

    say(f"report: {write_report(run_dir)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of job files, for editors."""
    sys.stdout.write(json.dumps(RunConfig.model_json_schema(), indent=1) + "\n")


@app.command()
def version() -> None:
    """Print the version."""
    say(__version__)


def _run(config: RunConfig, run_dir: Path | None, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
    from safer_ray.prepare import prepare
    from safer_ray.rundir import RunDir

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: keep the run or replace it")
    place = RunDir((run_dir or Path("runs") / config.name).absolute())
    prep = prepare(config)
    if dry_run:
        from safer_ray.dry_run import print_plan

        print_plan(prep, place, out)
        return
    with boundary(ConfigError, f"run directory {place.root}: cannot be made; choose another --run-dir"):
        place.root.mkdir(parents=True, exist_ok=True)
    from safer_ray.progress import ProgressView
    from safer_ray.run import execute

    try:
        with ProgressView(out) as view:
            execute(prep, place, resume=resume, overwrite=overwrite, observe=view.observe)
    except KeyboardInterrupt:
        warn("stopped; go on with --resume")
        raise
    say(f"report: {place.root / 'report.html'}")


def _set_level(name: str) -> None:
    try:
        logging.getLogger("safer_ray").setLevel(name.upper())
    except ValueError as exc:
        raise ConfigError(f"SAFER_RAY_LOG={name} is no log level; set DEBUG, INFO, WARNING or ERROR") from exc


def main() -> None:
    """Run the command line; a known error is one sentence and exit code 1; Typer makes Ctrl-C exit code 130."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        _set_level(os.environ.get("SAFER_RAY_LOG", "INFO"))
        app()
    except SaferRayError as exc:
        warn(f"error: {exc}", style="red")
        sys.exit(1)
