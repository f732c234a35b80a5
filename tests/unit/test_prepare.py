"""Who works on what, known before anything starts: shares of the prompts, the plan, and what identifies a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from local_run import BANNED, LocalRun, prepared, write_job

from safer_ray.config_file import find_job, load_config
from safer_ray.errors import ConfigError
from safer_ray.prepare import Preparation, prepare
from safer_ray.records import NO_RULE
from safer_ray.rundir import RunDir
from safer_ray.specs import fleet_of


def ids(prep: Preparation, phase: str) -> list[str]:
    return [prompt.prompt_id for prompt in prep.by_phase[phase]]


def test_test_prompts_are_only_evaluated_and_train_prompts_never(finished_run: LocalRun) -> None:
    prep = finished_run.prep
    for phase in prep.phases:
        splits = {prompt.split for prompt in prep.by_phase[phase.name]}
        assert splits == ({"test"} if phase.kind == "evaluate" else {"train"} if phase.gathers else set())


def test_every_evaluation_asks_the_same_prompts(finished_run: LocalRun) -> None:
    prep = finished_run.prep
    asked = [ids(prep, phase.name) for phase in prep.phases if phase.kind == "evaluate"]
    assert len(asked) == 4
    assert asked == [asked[0]] * 4


def test_the_banned_category_is_only_in_the_phase_that_needs_no_samples_of_it(finished_run: LocalRun) -> None:
    prep = finished_run.prep
    holding = {name for name, prompts in prep.by_phase.items() if BANNED in {prompt.category for prompt in prompts}}
    assert holding == {"teach"}


def test_what_the_rule_pack_never_samples_stays_so_whatever_the_job_says(tmp_path: Path) -> None:
    prep = prepared(tmp_path, "prompts.never_sample=[R09]")
    sampled = {p.category for phase in prep.phases if phase.kind != "teach" for p in prep.by_phase[phase.name]}
    assert sampled == {"R00", "R01"}
    assert set(prep.config.prompts.never_sample) == {BANNED, "R09"}  # what workers go by


def test_rounds_take_prompts_no_trace_was_written_for_first_and_differ(tmp_path: Path) -> None:
    prep = prepared(tmp_path, "sft.max_prompts=4", "erpo.prompts_per_round=5")
    taught, first, second = (set(ids(prep, name)) for name in ("teach", "explore-1", "explore-2"))
    assert (len(taught), len(first), len(second)) == (4, 5, 5)
    assert not first & taught
    assert not first & second


def test_rounds_of_the_demo_set_near_misses_against_unsafe_prompts_although_sft_could_use_them_all() -> None:
    prep = prepare(load_config(find_job("demo_cpu"), []))
    assert len(prep.by_phase["teach"]) == prep.config.sft.max_prompts
    for phase in ("explore-1", "explore-2"):
        safe = [prompt for prompt in prep.by_phase[phase] if prompt.label == "safe"]
        near = [prompt for prompt in safe if prompt.category != NO_RULE]
        assert len(near) >= 0.75 * len(safe) > 0


def test_every_round_is_half_unsafe_as_far_as_they_last(tmp_path: Path) -> None:
    prep = prepared(tmp_path, "sft.max_prompts=4", "erpo.prompts_per_round=2", "erpo.rounds=3")
    fresh = {prompt.prompt_id for prompt in prep.prompts.prompts if prompt.split != "test"} - set(ids(prep, "teach"))
    unsafe = {p.prompt_id for p in prep.prompts.prompts if p.label == "unsafe" and p.category != BANNED} & fresh
    assert len(unsafe) >= 3
    for name in ("explore-1", "explore-2", "explore-3"):
        assert len(unsafe & set(ids(prep, name))) == 1


def test_a_short_pool_is_gone_through_again(tmp_path: Path) -> None:
    prep = prepared(tmp_path, "erpo.prompts_per_round=0", "erpo.rounds=3")
    rounds = [sorted(ids(prep, f"explore-{number}")) for number in (1, 2, 3)]
    assert len(rounds[0]) == len(set(rounds[0])) == 19
    assert rounds == [rounds[0]] * 3


def test_how_fast_a_run_goes_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    first = prepared(tmp_path).head
    faster = ("loop.max_in_flight=2", "sampler.replicas=5", "judge.replicas=3", "cluster.object_store_mib=99")
    assert prepared(tmp_path, *faster).head["config_hash"] == first["config_hash"]
    assert prepared(tmp_path, "sampler.temperature=0.5").head["config_hash"] != first["config_hash"]


def test_a_changed_prompt_is_a_changed_run(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    before = prepare(load_config(job)).head
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("What is 1 + 1?", "What is 1 + 2?"))
    after = prepare(load_config(job)).head
    assert after["data_hash"] != before["data_hash"]
    assert after["config_hash"] == before["config_hash"]


def test_a_category_the_rule_pack_lacks_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    with (tmp_path / "prompts.jsonl").open("a") as sink:
        sink.write(json.dumps({"prompt": "Hm?", "category": "R77", "label": "unsafe"}) + "\n")
    with pytest.raises(ConfigError, match=r"categories R77, which rule pack .* does not have; add the rules or map"):
        prepare(load_config(job))


def test_a_phase_without_prompts_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"phase evaluate-base: there are no prompts for it; check prompts.sources"):
        prepared(tmp_path, f"prompts.sources=[{{path: {json.dumps(str(tmp_path / 'prompts.jsonl'))}, split: train}}]")


def test_a_sampler_takes_no_more_calls_at_once_than_prompts_may_be_in_flight(tmp_path: Path) -> None:
    """Each call has a thread, started with its actor: many samplers on a node must not use up its threads."""
    config = load_config(write_job(tmp_path), ["loop.max_in_flight=7", "sampler.threads=3"])
    fleet = fleet_of(config, RunDir(tmp_path / "run"), model="fake", resume_from=None)
    assert (fleet.sampler_crew.calls, fleet.sampler_crew.threads) == (7, 3)
    assert (fleet.grader_crew.calls, fleet.grader_crew.threads) == (1, 1)
