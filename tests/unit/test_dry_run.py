"""A dry run says what would be started and computed, and starts nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from local_run import LocalRun, prepared, write_job
from rich.console import Console

from safer_ray import dry_run
from safer_ray.backends.model_size import ModelSize
from safer_ray.config_file import load_config
from safer_ray.dry_run import print_plan
from safer_ray.prepare import Preparation
from safer_ray.records import STEP_KINDS
from safer_ray.rundir import RunDir

WIDE = ("3.00", "1,024 tokens (CPU); as fp32, if that is faster")


def printed(prep: Preparation, root: Path) -> str:
    console = Console(file=StringIO(), width=200)
    print_plan(prep, RunDir(root), console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    """Return the cells of the table row that begins with ``name``."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\W*{re.escape(name)}\s", line)]
    return [cell.strip() for cell in re.split("[\u2502\u2503|]", line)[1:-1]]


def test_nothing_is_written(finished_run: LocalRun, tmp_path: Path) -> None:
    text = printed(finished_run.prep, tmp_path / "run")
    assert text.startswith(f"run small in {tmp_path / 'run'}: 30 prompts, seed 0")
    assert list(tmp_path.iterdir()) == []


def test_actors_and_what_they_ask_for_are_listed(finished_run: LocalRun, tmp_path: Path) -> None:
    asked = (
        "sampler.replicas=3", "sampler.tensor_parallel=2",
        "sampler.resources={cpus: 2, gpus: 1, custom: {big: 1}}",
        "learner.ranks=4", "learner.resources={cpus: 8, gpus: 1}", "judge.replicas=2",
    )  # fmt: skip
    prep = replace(finished_run.prep, config=load_config(write_job(tmp_path), asked))
    text = printed(prep, tmp_path / "run")
    assert row(text, "sampler") == ["sampler", "3", "4", "2", "big 1"]
    assert row(text, "learner") == ["learner", "4", "8", "1", "-"]
    assert row(text, "judge") == ["judge", "2", "0", "0", "-"]
    assert row(text, "big") == ["big", "CPU 12, GPU 6, big 6"]
    assert row(text, "any") == ["any", "CPU 32, GPU 4"]


def test_a_run_that_does_not_train_starts_no_learner(tmp_path: Path) -> None:
    text = printed(prepared(tmp_path, "stages=[evaluate]"), tmp_path / "run")
    assert "learner" not in text
    assert row(text, "evaluate-base")[1] == "5"


def test_the_policy_is_named_with_how_old_a_preference_may_be(finished_run: LocalRun, tmp_path: Path) -> None:
    assert "policy synchronous: one phase after the other" in printed(finished_run.prep, tmp_path / "run")
    text = printed(prepared(tmp_path, "loop.policy=fully_async", "loop.max_lag=3"), tmp_path / "run")
    assert "policy fully_async: rounds are explored side by side" in text
    assert "preferences may be 3 versions behind the newest weights" in text


def test_every_phase_is_listed_with_its_prompts_samples_and_tokens(finished_run: LocalRun, tmp_path: Path) -> None:
    prep = finished_run.prep
    text, section = printed(prep, tmp_path / "run"), prep.config.sampler
    for phase in prep.phases:
        cells = row(text, phase.name)
        if phase.kind == "evaluate":
            assert cells[1:] == ["5", "5", f"{5 * section.max_trace_tokens:,}"]
        elif phase.kind == "explore":
            samples = 5 * len(STEP_KINDS) * prep.config.erpo.siblings
            assert cells[1:] == ["5", f"{samples:,}", f"{samples * section.max_step_tokens:,}"]
        elif phase.kind == "teach":
            assert cells[1:] == ["8", "8", f"{8 * section.max_answer_tokens:,}"]
        elif phase.kind in ("sft", "erpo"):
            assert "per optimiser step, 1 epochs" in cells[3]


def test_continuations_that_steps_are_valued_by_are_counted_on_their_own(tmp_path: Path) -> None:
    prep = prepared(tmp_path, "judge.outcome={continuations: 3}", "erpo.rounds=1")
    ahead = 5 * 3 * prep.config.erpo.siblings * 3
    found = row(printed(prep, tmp_path / "run"), "continuations")
    assert found == ["continuations", "-", f"{ahead:,}", f"{ahead * prep.config.sampler.max_trace_tokens:,}"]


def test_a_run_asks_for_no_more_samples_than_the_plan_says(finished_run: LocalRun, tmp_path: Path) -> None:
    text = printed(finished_run.prep, tmp_path / "run")
    for found in finished_run.summary["rounds"]:
        assert 0 < found["rollouts"] <= int(row(text, f"explore-{found['round']}")[2].replace(",", ""))


def test_fakes_need_no_memory_for_a_model(finished_run: LocalRun, tmp_path: Path) -> None:
    assert row(printed(finished_run.prep, tmp_path / "run"), "fakes") == ["fakes", "0", "no model is loaded"]


@pytest.mark.parametrize(
    ("settings", "engine", "rank"),
    [
        # half of 2**30 parameters; a rank: bf16 2, its rest 2, gradient 2, Adam 8 bytes a parameter
        ({}, WIDE, "7.00"),
        ({"sampler.fp32_where_faster": False}, ("2.00", "2,048 tokens (CPU)"), "7.00"),
        ({"model.dtype": "fp32"}, ("3.00", "1,024 tokens (CPU)"), "8.00"),
        # two ranks of ZeRO 2 share gradient, fp32 master and Adam
        ({"learner.zero_stage": 2, "learner.ranks": 2}, WIDE, "4.50"),
    ],
)
def test_memory_is_that_of_what_is_held(
    finished_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object],
    engine: tuple[str, str], rank: str,
) -> None:  # fmt: skip
    size = ModelSize(parameters=2**29, kv_bytes_per_token=2**19)
    monkeypatch.setattr(dry_run, "resolve_model", lambda model: model)
    monkeypatch.setattr(dry_run, "model_size", lambda model, **_: size)
    real = {"sampler.kind": "vllm", "learner.kind": "deepspeed", "sampler.kv_cache_gib": 1.0}
    values = real | {"learner.zero_stage": 0} | settings
    job = write_job(tmp_path)
    config = load_config(job, [f"{name}={value}" for name, value in values.items()])
    text = printed(replace(finished_run.prep, config=config), tmp_path / "run")
    gib, what = row(text, "each engine worker")[1:]
    assert (gib, what.removeprefix("weights, and a cache of ")) == engine
    assert row(text, "each learner rank")[1] == rank
