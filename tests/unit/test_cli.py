"""The command line: what it prints, what it leaves, and one sentence with exit code 1 where it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from local_run import LocalRun, StoppedRun, carry_out, write_job
from typer.testing import CliRunner

from safer_ray import __version__
from safer_ray.cli import app, main
from safer_ray.terminal import say, warn

runner = CliRunner()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line as the installed script does and return its exit code."""
    monkeypatch.setattr("sys.argv", ["safer-ray", *arguments])
    try:
        main()
    except SystemExit as exc:
        return int(exc.code or 0)
    return 0


@pytest.fixture
def a_run(finished_run: LocalRun, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished_run.run_dir.root, tmp_path / "run"))


def test_a_valid_job_is_said_so_with_its_phases(tmp_path: Path) -> None:
    job = str(write_job(tmp_path))
    result = runner.invoke(app, ["validate", job, "--set", "stages=[evaluate, erpo]", "--set", "erpo.rounds=1"])
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert "valid. 30 prompts, 0 rows skipped." in flat
    assert "phases: evaluate-base (5 prompts), explore-1 (5 prompts), erpo-1, publish-1, evaluate-erpo-1" in flat


def test_skipped_rows_are_named(tmp_path: Path) -> None:
    job = str(write_job(tmp_path))
    with (tmp_path / "prompts.jsonl").open("a") as sink:
        sink.write('{"prompt": ""}\n')
    result = runner.invoke(app, ["validate", job, "--set", "prompts.max_bad_share=0.1"])
    assert result.exit_code == 0
    assert "1 rows skipped" in " ".join(result.output.split())
    assert "prompts.jsonl:31" in result.output.replace("\n", "")


def test_the_schema_is_json_with_help_for_editors() -> None:
    schema = json.loads(runner.invoke(app, ["schema"]).stdout)
    assert schema["$defs"]["SamplerConfig"]["properties"]["temperature"]["description"]
    assert schema["required"] == ["model"]


def test_pairs_are_exported_beside_the_run_unless_told_otherwise(a_run: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["export", str(a_run)])
    assert result.exit_code == 0
    count = pq.read_table(a_run / "pairs.parquet").num_rows
    assert result.stdout.startswith(f"{count} pairs written to")
    only = runner.invoke(app, ["export", str(a_run), "--out", str(tmp_path / "two.parquet"), "--round", "2"])
    assert only.exit_code == 0
    assert 0 < pq.read_table(tmp_path / "two.parquet").num_rows < count


def test_the_report_of_a_run_is_written_again(a_run: Path) -> None:
    assert not (a_run / "report.html").exists()
    result = runner.invoke(app, ["report", str(a_run)])
    assert result.exit_code == 0
    assert "report.html" in result.stdout.replace("\n", "")
    page = (a_run / "report.html").read_text(encoding="utf-8")
    assert "small" in page
    assert "erpo-2" in page


def test_a_run_that_stopped_in_the_middle_has_a_report_too(
    finished_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedRun):
        carry_out(finished_run.prep, tmp_path / "run", stop_after=finished_run.accepted // 4)
    assert run_main(monkeypatch, "report", str(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    job = str(write_job(tmp_path / "job"))
    result = runner.invoke(app, ["run", job, "--run-dir", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0
    assert "resources per node type" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [("eval", {"evaluate-base"}), ("run", {"teach", "evaluate-base", "explore-1", "publish-3"})],
)
def test_a_stage_command_plans_its_stage_alone(tmp_path: Path, command: str, expected: set[str]) -> None:
    job = str(write_job(tmp_path))
    result = runner.invoke(app, [command, job, "--dry-run", "--set", "stages=[evaluate, synth, sft, erpo]"])
    assert result.exit_code == 0
    planned = {name for name in ("teach", "evaluate-base", "explore-1", "publish-3") if f" {name} " in result.stdout}
    assert planned == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["validate", "no_such_job"], "error: job no_such_job: no such file; shipped jobs are "),
        (["validate", "tiny_fake", "--set", "erpo.round=1"], "unknown key erpo.round; did you mean rounds?"),
        (["validate", "tiny_fake", "--set", "rules.pack=[none]"], "error: "),
        (["run", "tiny_fake", "--resume", "--overwrite"], "error: --resume and --overwrite exclude each other"),
        (["sft", "tiny_fake", "--dry-run"], "stages has sft but not synth"),
        (["export", "no_such_run"], "error: run no_such_run: it has no pairs yet; run its erpo stage first"),
        (["report", "no_such_run"], "error: run directory no_such_run: there is none"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_1(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_log_level_that_is_none_is_one_sentence_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFER_RAY_LOG", "chatty")
    assert run_main(monkeypatch, "version") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: SAFER_RAY_LOG=chatty is no log level; set DEBUG, INFO, WARNING or ERROR\n"


def test_a_missing_round_is_exit_code_1(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "export", str(a_run), "--round", "9") == 1
    assert "no pairs of round [9]; it has rounds [1, 2]" in capsys.readouterr().err


def test_an_unknown_option_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "run", "tiny_fake", "--frobnicate") == 2


def test_an_interrupted_run_says_how_to_go_on_and_is_exit_code_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    interrupted = ModuleType("safer_ray.run")
    interrupted.execute = execute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "safer_ray.run", interrupted)  # the real one loads Ray
    job = str(write_job(tmp_path))
    assert run_main(monkeypatch, "run", job, "--run-dir", str(tmp_path / "run")) == 130
    assert "stopped; go on with --resume\n" in capsys.readouterr().err


def test_the_version_is_the_package_s() -> None:
    assert runner.invoke(app, ["version"]).stdout.strip() == __version__


def test_a_line_is_printed_as_it_is_whatever_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    line = "/runs/[red]a folder[/red]/[7]: samplers 2 -> 6; what is missing joins"
    say(line)
    warn(line)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (line + "\n", line + "\n")
