"""Going on with a run: only what was accepted may have changed, and nothing damaged is taken for whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest
from local_run import LocalRun, StoppedRun, carry_out, prepared, write_job

from safer_ray.config_file import load_config
from safer_ray.core.events import Dropped, Event, Judged, Lost, Published, Reopened, Sealed
from safer_ray.errors import JournalError
from safer_ray.journal import JOURNAL, History
from safer_ray.prepare import prepare
from safer_ray.resume import Change, Past, changes_between, reopened
from safer_ray.run_log import log_to
from safer_ray.rundir import RunDir


@pytest.fixture(scope="module")
def stopped(finished_run: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died while it explored for the second round: one ERPO round is trained."""
    root, judged = tmp_path_factory.mktemp("stopped") / "run", Counter[str]()

    def in_the_second_round(event: Event) -> bool:
        judged[event.phase] += isinstance(event, Judged) and event.final
        return judged["explore-2"] == 3

    with pytest.raises(StoppedRun):
        carry_out(finished_run.prep, root, stop_when=in_the_second_round)
    return root


@pytest.fixture
def again(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def figures(run: LocalRun) -> list[tuple[str, int, float]]:
    """Return stage, step and loss of every optimiser step that counts."""
    return [(row["stage"], row["step"], row["loss"]) for row in run.summary["training"]]


def test_a_resumed_run_gives_the_same_pairs_and_losses_as_an_unbroken_one(finished_run: LocalRun, again: Path) -> None:
    run = carry_out(finished_run.prep, again)
    assert figures(run) == figures(finished_run)
    for number in (1, 2):
        there, here = (each.run_dir.round(number) / "pairs.arrow" for each in (finished_run, run))
        assert there.read_bytes() == here.read_bytes()
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"]) == (0, 0)


@pytest.mark.parametrize("reference", ["fixed", "ema", "previous_round"])
def test_the_reference_policy_survives_a_restart(tmp_path: Path, reference: str) -> None:
    prep = prepared(tmp_path, f"erpo.reference={reference}", "erpo.prompts_per_round=3", "stages=[erpo]")
    whole = carry_out(prep, tmp_path / "whole")
    with pytest.raises(StoppedRun):
        carry_out(prep, tmp_path / "broken", stop_when=lambda event: isinstance(event, Published))
    assert figures(carry_out(prep, tmp_path / "broken")) == figures(whole)


def test_a_disk_that_refuses_a_shard_ends_the_run_and_costs_no_prompt(finished_run: LocalRun, again: Path) -> None:
    explored = again / "shards" / "explore-2"
    kept = explored.rename(again / "aside")
    explored.symlink_to(again / "journal.jsonl")  # whatever is written below it is refused
    with pytest.raises(JournalError, match=r"shard .*: cannot be written \(.*\); free space, then --resume"):
        carry_out(finished_run.prep, again)
    explored.unlink()
    kept.rename(explored)
    run = carry_out(finished_run.prep, again)
    assert figures(run) == figures(finished_run)
    assert not [entry for entry in run.entries if isinstance(entry.event, Lost | Dropped)]


def test_a_log_whose_disk_is_full_is_said_once_and_stops_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("safer_ray.a_part")
    with log_to(Path("/dev/full")):
        for number in range(3):
            logger.warning("line %d", number)
    said = [record.getMessage() for record in caplog.records]
    assert sum("cannot be written" in line for line in said) == 1
    assert sum(line.startswith("line") for line in said) == 3  # other handlers have every line
    assert "Traceback" not in capsys.readouterr().err


def test_every_difference_is_named_with_old_and_new_value(again: Path) -> None:
    config = load_config(again / "config.json", ["erpo.optim.lr=1e-5", "sampler.temperature=0.5"])
    with pytest.raises(JournalError) as refused:
        carry_out(prepare(config), again)
    text = str(refused.value)
    assert "erpo.optim.lr: 1e-06 -> 1e-05" in text
    assert "sampler.temperature: 1.0 -> 0.5" in text
    assert "--accept-change erpo.optim.lr --accept-change sampler.temperature" in text


def test_what_is_accepted_is_journalled_and_need_not_be_accepted_again(again: Path) -> None:
    config = load_config(again / "config.json", ["erpo.optim.lr=1e-5"])
    with pytest.raises(JournalError, match=r"erpo\.optim\.lr"):
        carry_out(prepare(config), again)
    run = carry_out(prepare(config), again, accept=["erpo"])
    history = History(again / JOURNAL)
    assert [change for accepted in history.accepted for change in accepted.changes] == [
        {"name": "erpo.optim.lr", "old": "1e-06", "new": "1e-05"}
    ]
    assert run.summary["finished"]
    carry_out(prepare(config), again)


def test_a_changed_seed_restarts_the_phase_at_work_and_keeps_what_ended(again: Path) -> None:
    before = json.loads((again / "summary.json").read_text())
    config = load_config(again / "config.json", ["seed=5"])
    run = carry_out(prepare(config), again, accept=["seed"])
    (accepted,) = History(again / JOURNAL).accepted
    assert accepted.restarted == ("explore-2",)
    assert run.summary["finished"]
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"]) == (0, 0)
    assert run.summary["evaluations"][: len(before["evaluations"])] == before["evaluations"]


def test_other_prompts_are_named_as_data(again: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path / "other")
    prompts = tmp_path / "other" / "prompts.jsonl"
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(JournalError, match=r"data: 30 prompts, hash \w+ -> 29 prompts, hash \w+"):
        carry_out(prepare(load_config(job)), again)


def test_a_plan_in_which_a_begun_phase_does_something_else_cannot_be_accepted(again: Path) -> None:
    config = load_config(again / "config.json", ["stages=[evaluate, erpo]"])
    with pytest.raises(JournalError, match="phase teach has begun and is another one in the changed plan"):
        carry_out(prepare(config), again, accept=["stages"])


def test_a_final_file_that_changed_is_named(finished_run: LocalRun, again: Path) -> None:
    pairs = RunDir(again).round(1) / "pairs.arrow"
    pairs.write_bytes(pairs.read_bytes()[:-7])
    with pytest.raises(JournalError, match=r"rounds/round-001/pairs.arrow: hash \w+ -> hash \w+"):
        carry_out(finished_run.prep, again)


@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_shard_that_is_gone_or_cut_is_made_again(finished_run: LocalRun, again: Path, fault: str) -> None:
    shard = sorted((again / "shards" / "explore-2").glob("*.arrow"))[0]
    if fault == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    found = reopened(RunDir(again), Past.of(History(again / JOURNAL), ()))
    assert [event.reason.endswith("is gone" if fault == "gone" else "is damaged") for event in found] == [True]
    run = carry_out(finished_run.prep, again)
    assert [type(entry.event) for entry in run.entries].count(Reopened) == 1
    assert figures(run) == figures(finished_run)
    assert run.summary["rounds"] == finished_run.summary["rounds"]
    assert (run.summary["lost_prompts"], run.summary["duplicate_prompts"]) == (0, 0)


@pytest.mark.parametrize("late", [True, False])
def test_a_seal_whose_note_was_lost_holds_whatever_is_left_or_comes_late(
    finished_run: LocalRun, tmp_path: Path, late: bool
) -> None:
    run_dir = RunDir(tmp_path / "run")
    with pytest.raises(StoppedRun):
        carry_out(finished_run.prep, run_dir.root, stop_when=lambda event: isinstance(event, Sealed))
    journal = run_dir.root / JOURNAL
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    assert b'"event":"Sealed"' in last
    journal.write_bytes(b"".join(lines))
    (mark,) = (run_dir.root / "shards").glob(".*.sealed")
    (mark / "00000001-removing-it-was-cut-short.arrow").touch()
    phase = mark.name.removeprefix(".").removesuffix(".sealed")
    if late:
        run_dir.shards(phase).mkdir()
        run_dir.shard(phase, 0).touch()
    run = carry_out(finished_run.prep, run_dir.root)
    assert not [entry for entry in run.entries if isinstance(entry.event, Reopened | Lost | Dropped)]
    assert figures(run) == figures(finished_run)
    assert not run_dir.shards(phase).exists()
    assert not list(mark.iterdir())


def test_a_checkpoint_that_is_damaged_or_of_other_training_is_refused(finished_run: LocalRun, again: Path) -> None:
    manifest = again / "checkpoints" / "erpo-1" / "training_state" / "manifest.json"
    whole = manifest.read_text()
    model = again / "checkpoints" / "erpo-1" / "model.safetensors"
    kept = model.read_bytes()
    model.write_bytes(kept[:-1])
    with pytest.raises(JournalError, match=r"model\.safetensors has"):
        carry_out(finished_run.prep, again)
    model.write_bytes(kept)
    told = json.loads(whole)
    told["includes"] = told["includes"][:-1]
    manifest.write_text(json.dumps(told))
    with pytest.raises(
        JournalError, match=r"it includes the training sft of .*, the journal says sft of .*, erpo-1 of"
    ):
        carry_out(finished_run.prep, again)


def test_a_name_accepts_itself_and_the_section_it_names() -> None:
    change = Change(name="erpo.optim.lr", old="1", new="2")
    assert change.accepted_by(["erpo.optim.lr"])
    assert change.accepted_by(["seed", "erpo"])
    assert not change.accepted_by(["erpo.optim.l", "lr", "sft"])


def test_a_head_of_an_older_version_is_compared_as_far_as_it_tells(finished_run: LocalRun) -> None:
    head = finished_run.prep.head
    old = {key: head[key] for key in ("name", "model", "seed", "rule_pack", "config_hash", "data_hash")}
    assert changes_between(old, head) == []
    assert changes_between({**old, "seed": 9}, head) == [Change(name="seed", old="9", new="0")]
    pack = {**head["rule_pack"], "hash": "0" * 64}
    (change,) = changes_between({**old, "rule_pack": pack}, head)
    assert change.name == "rule_pack"


def test_a_config_that_lacks_a_newer_key_has_its_default(finished_run: LocalRun) -> None:
    head = finished_run.prep.head
    config = json.loads(json.dumps(head["config"]))
    del config["erpo"]["nll_weight"]
    assert changes_between({**head, "config": config}, head) == []
