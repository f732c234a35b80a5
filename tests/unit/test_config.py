"""A job file is taken as written, or refused in one sentence that names file, line, key and the way out."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safer_ray.config import STAGE_ORDER, LoopConfig, RunConfig
from safer_ray.config_file import find_job, load_config, shipped
from safer_ray.core.policies import POLICIES
from safer_ray.errors import ConfigError, SaferRayError

JOBS = sorted(shipped("jobs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    """Return the sentence ``text`` is refused with, the folder left out of it."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {id: m}\nsampler:\n  temprature: 1\n",
         "job.yaml:3: unknown key sampler.temprature; did you mean temperature?"),
        ("model: {id: m}\nsamplers: {}\n", "job.yaml:2: unknown key samplers; did you mean sampler?"),
        ("model:\n  id: m\n  revision_of_the_weights: 1\n", "job.yaml:3: unknown key model.revision_of_the_weights"),
        ("model: {id: m}\nerpo:\n  optim: {lr: 1.0, epoch: 2}\n",
         "job.yaml:3: unknown key erpo.optim.epoch; did you mean epochs?"),
        ("model: {id: m}\nprompts:\n  sources:\n    - path: a\n    - pth: b\n",
         "job.yaml:5: prompts.sources.1.path is missing (and 1 more)"),
    ],
)  # fmt: skip
def test_an_unknown_or_missing_key_is_named_with_its_file_and_line(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(sentence)


def test_where_no_known_key_is_near_all_of_them_are_listed(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, "model: {id: m}\nteacher: {xyzzy: 1}\n")
    assert sentence.startswith("job.yaml:2: unknown key teacher.xyzzy; known keys are answers_per_prompt, base_url")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {id: m}\nsampler:\n  replicas: many\n", ("job.yaml:3: sampler.replicas:", "integer", "given: 'many'")),
        ("model: {id: m}\nsampler:\n  replicas: 0\n", ("job.yaml:3: sampler.replicas:", "greater than", "given: 0")),
        ("model: m\n", ("job.yaml:1: model:", "given: 'm'")),
        ("model: {id: m}\nlearner: {zero_stage: 4}\n", ("job.yaml:2: learner.zero_stage:", "0, 1, 2 or 3", "given: 4")),
        ("model: {id: m}\nname: a/b\n", ("job.yaml:2: name:", "pattern", "given: 'a/b'")),
        ("model: {id: m}\nsft: {optim: {lr: 0}}\n", ("job.yaml:2: sft.optim.lr:", "greater than 0", "given: 0")),
        ("name: x\n", ("job.yaml: model is missing",)),
        ("", ("job.yaml: model is missing",)),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_was_given(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    sentence = refusal(tmp_path, text)
    assert sentence.startswith(parts[0])
    assert [part for part in parts if part not in sentence] == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages: [sft, synth]", "stages must be in the order synth, sft, each at most once"),
        ("stages: [evaluate, evaluate]", "stages must be in the order evaluate, each at most once"),
        ("stages: [sft]", "stages has sft but not synth: add synth, or name existing traces in sft.traces"),
        ("sampler: {kind: fake}", "sampler.kind and learner.kind must both be fake or both be real"),
        ("loop: {max_lag: 1}", "loop.max_lag must be 0 with loop.policy synchronous"),
        ("loop: {policy: one_round_ahead, max_lag: 2}", "loop.max_lag must be 1 with loop.policy one_round_ahead"),
        ("loop: {policy: fully_async, max_lag: 0}", "loop.max_lag 0 lets nothing run ahead"),
        (
            "sampler: {max_model_len: 256}",
            "sampler.max_model_len 256 leaves no room for a prompt: a completion may take",
        ),
        (
            "teacher: {kind: openai, model: m}",
            "teacher.kind is openai, so teacher.base_url and teacher.model must be set",
        ),
    ],
)
def test_a_contradiction_says_which_keys_disagree(tmp_path: Path, text: str, sentence: str) -> None:
    found = refusal(tmp_path, f"model: {{id: m}}\n{text}\n")
    assert found.startswith("job.yaml")
    assert sentence in found
    assert "\n" not in found


def test_what_solves_a_contradiction_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {id: m}\nstages: [sft]\nsft: {traces: old/traces/sft.arrow}\n")
    assert load_config(path).sft.traces == "old/traces/sft.arrow"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {id: m\n", "job.yaml:2: not YAML:"),
        ("model: {id: m}\nname: a\nname: b\n", "job.yaml:3: not YAML: found duplicate key"),
        ("- model\n", "job.yaml: a job file is a mapping of keys, not a"),
    ],
)
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(sentence)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: not UTF-8 text \(byte 9\)"):
        load_config(tmp_path / "latin.yaml")


# overrides


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {id: m}\nerpo: {rounds: 5}\n")
    config = load_config(
        path,
        ["erpo.rounds=3", "erpo.rounds=4", "stages=[evaluate, erpo]", "sft.optim={lr: 0.5}", "model.system_prompt=null",
         "sampler.resources.custom.big=1", "model.id=a=b"],
    )  # fmt: skip
    assert (config.erpo.rounds, config.stages, config.sft.optim.lr) == (4, ("evaluate", "erpo"), 0.5)
    assert (config.model.system_prompt, config.sampler.resources.custom, config.model.id) == (None, {"big": 1.0}, "a=b")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("erpo.rounds", "--set erpo.rounds: write it as a.b=value"),
        ("erpo..rounds=1", "--set erpo..rounds=1: write it as a.b=value"),
        ("=1", "--set =1: write it as a.b=value"),
        ("erpo.rounds=[1", "--set erpo.rounds=[1: the value is not YAML"),
        ("model.id.x=1", "--set model.id.x=1: id is a value, not a section"),
        ("erpo.round=1", "job.yaml:2: unknown key erpo.round; did you mean rounds?"),
        ("judge.kinds=rules", "job.yaml: unknown key judge.kinds"),
        ("erpo.rounds=no", "job.yaml:2: erpo.rounds: Input should be a valid integer"),
    ],
)
def test_an_override_that_cannot_be_taken_is_refused(tmp_path: Path, override: str, sentence: str) -> None:
    found = refusal(tmp_path, "model: {id: m}\nerpo: {beta: 0.1}\n", override)
    assert found.startswith(sentence)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), st.text(max_size=12))
def test_any_text_given_is_a_config_or_one_of_our_sentences(
    tmp_path_factory: pytest.TempPathFactory, text: str, override: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(f"model: {{id: m}}\n{text}", encoding="utf-8")
    for given_ in ([], [override], [f"model.{override}"]):
        with suppress(SaferRayError):
            assert isinstance(load_config(path, given_), RunConfig)


# jobs


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_is_valid_survives_its_dump_and_is_found_from_anywhere(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(path)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    monkeypatch.chdir(tmp_path)
    assert find_job(path.stem) == find_job(f"jobs/{path.name}") == path


def test_the_jobs_the_documents_need_are_shipped() -> None:
    assert {"demo_cpu", "sft", "erpo", "erpo_8gpu", "tiny_fake"} <= {path.stem for path in JOBS}


def test_a_job_that_is_nowhere_is_refused_with_those_there_are() -> None:
    for job in ("demo", "elsewhere/demo_cpu.yaml"):
        with pytest.raises(ConfigError, match=rf"job {job}: no such file; shipped jobs are demo_cpu, erpo, "):
            find_job(job)


# what a config is


def _sections() -> dict[str, dict[str, Any]]:
    schema = RunConfig.model_json_schema()
    return {"RunConfig": schema, **schema["$defs"]}


def test_every_section_and_every_key_is_described_in_the_schema() -> None:
    sections = _sections()
    assert len(sections) > 10
    assert [name for name, section in sections.items() if not section.get("description")] == []
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section["properties"].items()
        if not value.get("description") and "$ref" not in value
    ]
    assert bare == []


def test_the_schema_refuses_unknown_keys() -> None:
    assert {section["additionalProperties"] for section in _sections().values()} == {False}


def test_no_key_holds_a_secret_and_none_reaches_the_dump(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    path = write(tmp_path, "model: {id: m}\nteacher: {kind: openai, base_url: https://llm.example/v1, model: m}\n")
    dump = load_config(path).model_dump_json()
    assert "sk-very-secret" not in dump
    assert json.loads(dump)["teacher"]["key_env"] == "OPENAI_API_KEY"
    keys = {key for section in _sections().values() for key in section["properties"]}
    assert {key for key in keys if re.search("key|secret|password|credential|auth|api", key)} == {"key_env"}
    assert "unknown key teacher.api_key" in refusal(tmp_path, "model: {id: m}\nteacher: {api_key: sk-1}\n")


def test_a_config_cannot_be_changed() -> None:
    config = load_config(find_job("tiny_fake"))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.erpo.beta = 3.0  # type: ignore[misc]


def test_all_stages_run_unless_said_otherwise(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "model: {id: m}\n")).stages == STAGE_ORDER


def test_an_endpoint_with_a_password_in_it_is_refused_without_repeating_the_password(tmp_path: Path) -> None:
    text = "model: {id: m}\nteacher: {kind: openai, model: t, base_url: 'https://me:hunter2@host/v1'}\n"
    sentence = refusal(tmp_path, text)
    assert "key_env" in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize(("policy", "lag"), [("synchronous", 0), ("one_round_ahead", 1), ("fully_async", 2)])
def test_the_lag_follows_from_the_policy_and_is_written_down(tmp_path: Path, policy: str, lag: int) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"model: {{id: m}}\nloop: {{policy: {policy}}}\n")
    assert load_config(job).model_dump()["loop"]["max_lag"] == lag


def test_every_policy_of_the_config_exists() -> None:
    assert set(get_args(LoopConfig.model_fields["policy"].annotation)) == set(POLICIES)


@pytest.mark.parametrize(
    ("elastic", "fault"),
    [
        ("{min: 3, max: 2}", "elastic.min 3 is above elastic.max 2"),
        ("{min: 2, max: 4}", "sampler.replicas 1, the number to begin with, is outside sampler.elastic 2 to 4"),
    ],
)
def test_elastic_bounds_that_contradict_are_refused(tmp_path: Path, elastic: str, fault: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"name: x\nmodel: {{id: fake}}\nsampler: {{elastic: {elastic}}}\n")
    with pytest.raises(ConfigError, match=re.escape(fault)):
        load_config(job)
