"""Probing traces: what is measured of texts, and what a policy that uses or ignores its traces looks like."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_run import write_job
from typer.testing import CliRunner

from safer_ray.backends.fake import FakeSamplerSpec, ToyTokenizer, toy_prompts
from safer_ray.backends.trace_probe import audit_traces
from safer_ray.cli import app
from safer_ray.core.trace import response_of
from safer_ray.core.trace_audit import distinct_n, effect, is_used, mutual_information, recover_categories, self_bleu
from safer_ray.records import Rollout, SampleRequest, Step

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=40)
RULES = [f"R{number:02d}" for number in range(1, 15)]


@settings(max_examples=50)
@given(labels)
def test_information_is_symmetric_and_never_more_than_there_is_to_know(pairs: list[tuple[str, str]]) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    shared = mutual_information(left, right)
    assert -1e-9 <= shared <= min(mutual_information(left, left), mutual_information(right, right)) + 1e-9
    assert math.isclose(shared, mutual_information(right, left), abs_tol=1e-9)


def test_two_equal_classes_hold_one_bit() -> None:
    assert math.isclose(mutual_information("aabb", "xxyy"), 1.0)
    assert math.isclose(mutual_information("aabb", "xyxy"), 0.0, abs_tol=1e-12)


def test_one_template_for_all_is_seen_in_every_figure() -> None:
    same = [f"The prompt asks something, number {number % 2}." for number in range(20)]
    words = [
        "apple",
        "bridge",
        "candle",
        "desert",
        "engine",
        "forest",
        "garden",
        "harbour",
        "island",
        "jacket",
        "kettle",
        "lamp",
    ]
    own = [" ".join(words[(at * step) % 12] for at in range(6)) for step in range(1, 12)]
    assert (self_bleu(same) or 0) > 0.9 > 0.5 > (self_bleu(own) or 0)
    assert (distinct_n(same, 2) or 1) < 0.1 < 0.3 < (distinct_n(own, 2) or 0)
    assert self_bleu(["alone"]) is None
    assert distinct_n([], 2) is None


def test_the_category_is_recovered_where_texts_tell_it_and_only_there() -> None:
    topics = {"R01": "knife fight", "R09": "password server", "R10": "bank invoice"}
    telling = [f"It is about a {topics[rule]} of case {n}" for n in range(10) for rule in topics]
    silent = [f"The request is case {n % 3}" for n in range(10) for _ in topics]
    rules = [rule for _ in range(10) for rule in topics]
    found, nothing = recover_categories(telling, rules), recover_categories(silent, rules)
    assert found is not None
    assert nothing is not None
    assert found.right.share == 1.0
    assert math.isclose(found.information, found.entropy)
    assert (nothing.right.share or 0) < 0.6
    assert nothing.information < 0.5
    assert recover_categories(["a"], ["R01"]) is None


def test_a_use_is_claimed_only_where_intervals_part() -> None:
    before = [(True, "no")] * 30
    same, turned = effect("own", before, before), effect("swap", before, [(False, "yes")] * 30)
    assert is_used(same, turned) is True
    assert is_used(same, effect("swap", before, [(False, "yes"), *before[1:]])) is False
    assert is_used(same, effect("swap", [], [])) is None
    assert (turned.reworded.share, same.reworded.share) == (1.0, 0.0)
    assert "30 of 30 answers turned" in turned.text
    assert "no case" in effect("swap", [], []).text


class Deaf:
    """A policy that writes traces and answers by the prompt alone."""

    name = "deaf@1"

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self._own: dict[str, str] = {}

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        rollouts = self._inner.sample(requests)  # type: ignore[attr-defined]
        return [self._deafened(request, rollout) for request, rollout in zip(requests, rollouts, strict=True)]

    def _deafened(self, request: SampleRequest, rollout: Rollout) -> Rollout:
        if not request.prefix_ids:
            self._own[request.prompt_id] = response_of(rollout.text)
            return rollout
        text = "</think>\n" * (request.first_step < 3) + self._own[request.prompt_id]
        ids = rollout.completion_ids
        step = Step(kind="response", start=0, stop=len(ids), text=text)
        return Rollout(**{name: getattr(rollout, name) for name in rollout.__slots__} | {"steps": (step,)})


def test_a_policy_that_follows_its_traces_is_told_from_one_that_ignores_them() -> None:
    prompts = toy_prompts(80)
    sampler = FakeSamplerSpec(quality=0.95).build()
    follows = audit_traces(sampler, ToyTokenizer(), prompts, RULES)
    assert follows.prompts == 80
    assert 0 < follows.unread < 20
    assert follows.used is True
    assert (follows.swap.turned.share or 0) > 0.6
    assert follows.diversity is not None
    deaf = audit_traces(Deaf(sampler), ToyTokenizer(), prompts, RULES)  # type: ignore[arg-type]
    assert deaf.used is False
    assert (deaf.swap.turned.right, deaf.swap.reworded.right, deaf.truncate.reworded.right) == (0, 0, 0)
    assert deaf.swap.turned.n > 20


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    arguments = ["audit", "traces", "fake", "--job", str(job), "--prompts", "4", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "answers depend on traces:" in result.stdout
    found = json.loads((tmp_path / "o" / "traces.json").read_text())
    assert found["traces"]["prompts"] == 4
    assert found["n_unsafe"] == 2


def test_a_job_without_test_prompts_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    rows = (tmp_path / "prompts.jsonl").read_text().replace('"test"', '"train"')
    (tmp_path / "prompts.jsonl").write_text(rows)
    result = CliRunner().invoke(app, ["audit", "traces", "fake", "--job", str(job)])
    assert result.exit_code == 1
    with pytest.raises(Exception, match="no labelled test prompts"):
        raise result.exception or AssertionError
