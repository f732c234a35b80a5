"""The status of a run from its directory alone: going on, stopped, ended, or of an older version."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from pathlib import Path

import pytest
from local_run import LocalRun, StoppedRun, carry_out
from typer.testing import CliRunner

from safer_ray.cli import app
from safer_ray.core.loop import Item, LoopState
from safer_ray.errors import JournalError
from safer_ray.journal import JOURNAL, Journal
from safer_ray.rundir import RunDir
from safer_ray.status import read_status
from safer_ray.status_file import StatusWriter, snapshot, write_status

runner = CliRunner()
POOL = {
    "role": "sampler", "wanted": 1, "waiting": 0, "in_flight": 2, "answers_per_s": 1.5, "restarts": 0,
    "replicas": [{"name": "sampler-1", "role": "sampler", "state": "SERVING", "policy_version": 2, "in_flight": 2,
                  "answered": 9, "node": "ab12"}],
}  # fmt: skip


@pytest.fixture
def a_run(finished_run: LocalRun, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished_run.run_dir.root, tmp_path / "run"))


@pytest.fixture
def stopped(finished_run: LocalRun, tmp_path: Path) -> Path:
    """A run that died in the middle."""
    with pytest.raises(StoppedRun):
        carry_out(finished_run.prep, tmp_path / "run", stop_after=finished_run.accepted // 2)
    return tmp_path / "run"


def test_a_finished_run_accounts_for_every_prompt_of_every_round(finished_run: LocalRun, a_run: Path) -> None:
    found = read_status(RunDir(a_run))
    assert (found.facts["state"], found.facts["writer"], found.facts["status_age_s"]) == ("finished", None, None)
    for row in found.facts["phases"]:
        asked = finished_run.prep.by_phase[row["phase"]]
        if row["kind"] in ("teach", "explore", "evaluate"):
            assert row["asked"] == row["sampled"] == row["judged"] + sum(row["dropped"].values()) == len(asked)
        assert (row["duplicates"], row["never_ended"], row["state"]) == (0, 0, "ended")
    rounds = [row for row in found.facts["phases"] if row["kind"] == "explore"]
    for row, counted in zip(rounds, finished_run.summary["rounds"], strict=True):
        assert row["pairs"] == counted["pairs_by_axis"]
        assert row["trained"] == sum(row["pairs"].values()) > 0
    lines = found.prompts(["explore-1"])
    assert [line.prompt_id for line in lines] == [p.prompt_id for p in finished_run.prep.by_phase["explore-1"]]
    assert {line.state for line in lines} <= {"trained", "judged", "unscored"}


def test_a_run_that_died_says_so_and_what_is_left(stopped: Path) -> None:
    found = read_status(RunDir(stopped))
    assert found.facts["state"] == "stopped"
    states = [row["state"] for row in found.facts["phases"]]
    assert states.count("ended") == states.index("running" if "running" in states else "waiting")


def test_a_run_that_goes_on_shows_its_writer_its_queues_and_its_workers(stopped: Path, finished_run: LocalRun) -> None:
    before = read_status(RunDir(stopped)).facts
    phase = next(row["phase"] for row in before["phases"] if row["state"] != "ended" and row["items"])
    state = LoopState.of(finished_run.prep.phases)
    state.by_name[phase].open.update({3: Item(waiting=True), 4: Item(next="judge", waiting=True), 2: Item()})
    write_status(snapshot(state, [POOL], time.time() - 5.0), RunDir(stopped).status)
    journal, *_ = Journal.resume(stopped)
    found = read_status(RunDir(stopped))
    journal.close()
    assert found.facts["state"] == "running"
    assert found.facts["writer"].endswith(f"pid {os.getpid()}")
    assert 5.0 <= found.facts["status_age_s"] < 60.0
    row = next(row for row in found.facts["phases"] if row["phase"] == phase)
    assert row["queues"] == {"sampling": 1, "judging": 1, "ready": 1}
    assert row["in_flight"] == 3
    assert found.facts["live"]["pools"] == [POOL]
    assert read_status(RunDir(stopped)).facts["state"] == "stopped"


def test_a_journal_torn_while_it_is_read_costs_its_last_line_only(a_run: Path) -> None:
    whole = read_status(RunDir(a_run)).facts["journal"]
    with (a_run / JOURNAL).open("ab") as sink:
        sink.write(b"0badc0de {half")
    torn = read_status(RunDir(a_run)).facts["journal"]
    assert torn["torn_bytes"] == 14
    assert torn["events"] == whole["events"]


def test_a_run_of_an_older_version_is_read_by_its_config_and_prompts(a_run: Path) -> None:
    lines = (a_run / JOURNAL).read_bytes().splitlines(keepends=True)
    row = json.loads(lines[0][9:])
    for name in ("phases", "config"):
        del row["head"][name]
    body = json.dumps(row).encode()
    (a_run / JOURNAL).write_bytes(b"%08x %s\n" % (zlib.crc32(body), body) + b"".join(lines[1:]))
    assert read_status(RunDir(a_run)).facts["state"] == "finished"
    (a_run / "prompts.arrow").unlink()
    with pytest.raises(JournalError, match="its plan cannot be told"):
        read_status(RunDir(a_run))


def test_the_command_prints_lines_or_one_object(a_run: Path) -> None:
    text = runner.invoke(app, ["status", str(a_run)]).stdout
    assert "run small: finished" in text
    assert any(line.startswith("explore-1\tended\t5/5\t5\t5") for line in text.splitlines())
    facts = json.loads(runner.invoke(app, ["status", str(a_run), "--json", "--prompts", "--phase", "teach"]).stdout)
    assert facts["state"] == "finished"
    assert {line["phase"] for line in facts["prompts"]} == {"teach"}
    listed = runner.invoke(app, ["status", str(a_run), "--prompts", "--state", "trained"]).stdout.splitlines()
    assert listed[0].split("\t") == ["phase", "item", "prompt", "state", "reason"]
    assert {line.split("\t")[3] for line in listed[1:]} == {"trained"}


def test_the_status_is_written_again_and_again_and_a_last_time(tmp_path: Path, finished_run: LocalRun) -> None:
    state, path = LoopState.of(finished_run.prep.phases), tmp_path / "status.json"
    writer = StatusWriter(state, path, lambda: [POOL], every_s=0.01)
    while not path.exists():
        time.sleep(0.001)
    state.policy_version = 7
    writer.close()
    assert json.loads(path.read_text())["policy_version"] == 7
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]
