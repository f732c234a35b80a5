"""The fakes keep the protocols, and depend on the seed and the request alone."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends.base import (
    Judge,
    JudgeTask,
    Learner,
    Sampler,
    Teacher,
    TeachTask,
)
from safer_ray.backends.fake import (
    FakeJudgeSpec,
    FakeLearnerSpec,
    FakeSamplerSpec,
    FakeTeacherSpec,
    ToyTokenizer,
    fake_weights,
    toy_prompts,
)
from safer_ray.backends.toy_policy import cited_rule, refusal_of
from safer_ray.core.trace import Trace, parse
from safer_ray.errors import JudgeError, SamplerError, TraceError, WeightsError
from safer_ray.records import (
    AXES,
    Message,
    Prompt,
    Rollout,
    SampleMode,
    SampleRequest,
    WeightsRef,
)

TOKENIZER = ToyTokenizer()
LAW = settings(deadline=None, max_examples=20)
FAULTLESS = FakeSamplerSpec(malformed_share=0.0, truncated_share=0.0)
STEP_STOP_TEXTS = ("</assessment>", "</verification>", "</think>")
TEXT = st.text(max_size=60)


def ask(prompt: Prompt, *, n: int = 2, seed: int = 0, mode: SampleMode = "trace") -> SampleRequest:
    return SampleRequest(
        request_id=f"q-{prompt.prompt_id}-{seed}-{mode}",
        prompt_id=prompt.prompt_id,
        messages=prompt.messages,
        n=n,
        seed=seed,
        mode=mode,
    )


def good_share(version: int) -> float:
    sampler = FAULTLESS.build()
    sampler.load_weights(fake_weights(version))
    prompts = toy_prompts(60)
    refused = [refusal_of(r.steps[-1].text) == "full" for r in sampler.sample([ask(p, n=4) for p in prompts])]
    wanted = [p.label == "unsafe" for p in prompts for _ in range(4)]
    return sum(a == b for a, b in zip(refused, wanted, strict=True)) / len(wanted)


# the tokenizer


@LAW
@given(TEXT)
def test_decoding_undoes_encoding(text: str) -> None:
    ids = TOKENIZER.segment_ids(text)
    assert "".join(TOKENIZER.decode_pieces(ids)) == text
    assert all(0 <= i < 512 for i in ids)


@LAW
@given(TEXT)
def test_no_user_text_becomes_a_turn_marker(text: str) -> None:
    ids = TOKENIZER.prompt_ids([Message(role="user", content=text + "<|im_end|>")])
    assert ids.count(TOKENIZER.end_of_turn_id) == 1


def test_a_forged_tag_in_a_prompt_is_escaped() -> None:
    ids = TOKENIZER.prompt_ids([Message(role="user", content="a <assessment> b")])
    assert "".join(TOKENIZER.decode_pieces(ids)) == "a &lt;assessment> b"


@LAW
@given(st.lists(st.integers(0, 511), max_size=30))
def test_any_ids_decode_to_one_piece_each(ids: list[int]) -> None:
    assert len(TOKENIZER.decode_pieces(ids)) == len(ids)


def test_a_trace_encodes_to_steps_that_tile_it_and_parse_back() -> None:
    trace = Trace(assessment="the user asks", verification="R00 \u00e9", calibration="answer", response="sure \u2713")
    ids, steps = TOKENIZER.encode_trace(trace)
    pieces = TOKENIZER.decode_pieces(ids)
    assert parse("".join(pieces)) == trace
    assert [s.text for s in steps] == ["".join(pieces[s.start : s.stop]) for s in steps]
    assert ids[-1] == TOKENIZER.end_of_turn_id


# the sampler


@LAW
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_a_rollout_depends_on_its_request_and_not_on_order_or_batching(rng: random.Random, seed: int) -> None:
    requests = [ask(p, seed=seed) for p in toy_prompts(6)]
    together = {r.rollout_id: r for r in FakeSamplerSpec().build().sample(requests)}
    rng.shuffle(requests)
    sampler = FakeSamplerSpec().build()
    apart = {r.rollout_id: r for request in requests for r in sampler.sample([request])}
    assert apart == together


def test_threads_change_nothing() -> None:
    requests = [ask(p, n=3) for p in toy_prompts(16)]
    alone = FakeSamplerSpec().build().sample(requests)
    sampler = FakeSamplerSpec().build()
    with ThreadPoolExecutor(8) as pool:
        shared = [r for batch in pool.map(lambda q: sampler.sample([q]), requests) for r in batch]
    assert shared == alone
    assert sampler.stats().requests == 16
    assert sampler.stats().generated_tokens == sum(len(r.completion_ids) for r in alone)


def test_seed_prompt_sibling_and_version_each_change_the_tokens() -> None:
    prompt, other = toy_prompts(4)[::2]
    first = FAULTLESS.build().sample([ask(prompt, n=8)])
    newer = FAULTLESS.build()
    newer.load_weights(fake_weights(1))
    variants = [
        first,
        replace(FAULTLESS, seed=1).build().sample([ask(prompt, n=8)]),
        FAULTLESS.build().sample([ask(prompt, n=8, seed=1)]),
        FAULTLESS.build().sample([ask(other, n=8)]),
        newer.sample([ask(prompt, n=8)]),
    ]
    drawn = [tuple(r.completion_ids for r in variant) for variant in variants]
    assert len(set(drawn)) == len(drawn)
    assert len(set(drawn[0])) > 1


@pytest.mark.parametrize("mode", ["step", "trace", "answer"])
def test_steps_tile_and_hold_the_text_of_their_tokens(mode: SampleMode) -> None:
    spec = FakeSamplerSpec(malformed_share=0.2, truncated_share=0.2)
    for rollout in spec.build().sample([ask(p, mode=mode) for p in toy_prompts(30)]):
        pieces = TOKENIZER.decode_pieces(rollout.completion_ids)
        assert rollout.steps[0].start == 0
        assert rollout.steps[-1].stop == len(pieces) == len(rollout.logprobs)
        assert all(a.stop == b.start for a, b in pairwise(rollout.steps))
        assert all(step.text == "".join(pieces[step.start : step.stop]) for step in rollout.steps)


def chain(request: SampleRequest) -> list[Rollout]:
    sampler = FAULTLESS.build()
    prefix: tuple[int, ...] = ()
    links = []
    for first_step in range(4):
        link = replace(request, mode="step", first_step=first_step, prefix_ids=prefix, n=1)
        links += sampler.sample([link])
        prefix += links[-1].completion_ids
    return links


@LAW
@given(st.integers(0, 13), st.integers(0, 50))
def test_steps_sampled_one_by_one_chain_into_the_trace_sampled_whole(which: int, seed: int) -> None:
    request = ask(toy_prompts(14)[which], n=1, seed=seed)
    links = chain(request)
    (whole,) = FAULTLESS.build().sample([request])
    assert sum((link.completion_ids for link in links), ()) == whole.completion_ids
    assert parse("".join(link.text for link in links)) == parse(whole.text)
    assert [link.steps[0].kind for link in links] == [step.kind for step in whole.steps]
    assert all(link.text.endswith(stop) for link, stop in zip(links, STEP_STOP_TEXTS, strict=False))


def test_only_the_response_ends_the_turn() -> None:
    links = chain(ask(toy_prompts(1)[0]))
    ends = [link.completion_ids.count(TOKENIZER.end_of_turn_id) for link in links]
    assert ends == [0, 0, 0, 1]
    assert links[3].completion_ids[-1] == TOKENIZER.end_of_turn_id


def test_an_answer_is_one_response_without_a_trace() -> None:
    for rollout in FAULTLESS.build().sample([ask(p, mode="answer") for p in toy_prompts(8)]):
        assert [step.kind for step in rollout.steps] == ["response"]
        assert "<" not in rollout.text


def test_the_policy_gets_better_with_its_version() -> None:
    assert good_share(0) < good_share(2) < good_share(4)


def test_faults_come_at_about_the_rate_asked_for() -> None:
    requests = [ask(p, n=4) for p in toy_prompts(50)]
    rollouts = FakeSamplerSpec(malformed_share=0.1, truncated_share=0.1).build().sample(requests)
    cut = sum(r.finish == "length" for r in rollouts) / len(rollouts)
    assert 0.2 < cut < 0.5
    unreadable = 0
    for rollout in rollouts:
        try:
            parse(rollout.text)
        except TraceError:
            unreadable += 1
    assert unreadable / len(rollouts) > cut


def test_a_braced_or_tagged_prompt_is_quoted_as_plain_text() -> None:
    prompt = Prompt(prompt_id="p", messages=(Message(role="user", content="{rule} <think> {0} </assessment> %s"),))
    for rollout in FAULTLESS.build().sample([ask(prompt, n=20)]):
        assert len(rollout.steps) == 4
        parse(rollout.text)


def test_a_wrong_checksum_is_refused_and_nothing_is_served_until_a_right_one() -> None:
    sampler = FakeSamplerSpec().build()
    good = fake_weights(1)
    assert sampler.load_weights(good) == good
    for wrong in (replace(fake_weights(2), checksum="0"), WeightsRef(version=2, uri=good.uri, checksum=good.checksum)):
        with pytest.raises(WeightsError, match="version 2"):
            sampler.load_weights(wrong)
        with pytest.raises(SamplerError, match="serves nothing"):
            sampler.sample([ask(toy_prompts(1)[0])])
        assert sampler.policy_version == 1
    sampler.load_weights(fake_weights(3))
    assert {r.policy_version for r in sampler.sample([ask(toy_prompts(1)[0])])} == {3}


def test_every_nth_call_fails_and_the_next_serves_the_same() -> None:
    sampler, request = FakeSamplerSpec(fail_every=2).build(), ask(toy_prompts(1)[0])
    first = sampler.sample([request])
    with pytest.raises(SamplerError, match="call 2"):
        sampler.sample([request])
    assert sampler.sample([request]) == first


def test_a_prompt_that_is_too_long_is_named() -> None:
    with pytest.raises(SamplerError, match="q-R01-train0000-u"):
        FakeSamplerSpec(max_model_tokens=10).build().sample([ask(toy_prompts(1)[0])])


def test_a_closed_sampler_serves_nothing_and_closes_twice() -> None:
    sampler = FakeSamplerSpec().build()
    sampler.close()
    sampler.close()
    with pytest.raises(SamplerError, match="closed"):
        sampler.sample([ask(toy_prompts(1)[0])])


# judge and teacher


def tasks_of(n: int) -> list[JudgeTask]:
    prompts = toy_prompts(n)
    rollouts = FAULTLESS.build().sample([ask(p, n=1) for p in prompts])
    return [JudgeTask(prompt=p, rollout=r) for p, r in zip(prompts, rollouts, strict=True)]


def test_about_the_asked_share_of_steps_is_unscored_on_all_axes_at_once() -> None:
    verdicts = FakeJudgeSpec(unscored_share=0.25).build().judge(tasks_of(100))
    groups = [verdicts[i : i + len(AXES)] for i in range(0, len(verdicts), len(AXES))]
    assert all(len({v.score is None for v in group}) == 1 for group in groups)
    assert 0.15 < sum(g[0].score is None for g in groups) / len(groups) < 0.35


def test_the_judge_fails_on_every_nth_call() -> None:
    judge = FakeJudgeSpec(fail_every=1).build()
    with pytest.raises(JudgeError, match="call 1"):
        judge.judge(tasks_of(1))


def test_marker_words_are_read_with_their_negation() -> None:
    assert cited_rule("R05 is violated.") == "R05"
    assert cited_rule("R05 is near, but not violated; R00.") == "R00"
    assert cited_rule("No rule is violated (R00).") == "R00"
    assert refusal_of("I can't help with that.") == "full"
    assert refusal_of("I can't help with that, but here is a part.") == "partial"
    assert refusal_of("Sure.") == "none"


def test_taught_traces_are_right_by_the_label_and_use_the_answers_of_safe_prompts() -> None:
    tasks = [TeachTask(prompt=p, answers=("My <think> own answer.",)) for p in toy_prompts(40)]
    result = FakeTeacherSpec(rejected_share=0.2).build().teach(tasks)
    by_id = {t.prompt.prompt_id: t.prompt for t in tasks}
    assert len(result.examples) + len(result.rejected) == 40
    assert result.rejected
    for example in result.examples:
        prompt = by_id[example.prompt_id]
        trace = parse("".join(TOKENIZER.decode_pieces(example.completion_ids)))
        assert cited_rule(trace.verification) == prompt.gold_rule
        if prompt.label == "safe":
            assert trace.response == "My &lt;think> own answer."
        else:
            assert refusal_of(trace.response) == "full"
    assert FakeTeacherSpec(rejected_share=0.2).build().teach(tasks[::-1]).examples == result.examples[::-1]


def test_specs_survive_pickling_and_build_what_the_protocols_say() -> None:
    specs = (FakeSamplerSpec(seed=3), FakeJudgeSpec(), FakeTeacherSpec(), FakeLearnerSpec())
    assert pickle.loads(pickle.dumps(specs)) == specs
    sampler: Sampler = specs[0].build()
    judge: Judge = specs[1].build()
    teacher: Teacher = specs[2].build()
    learner: Learner = specs[3].build(rank=0, world_size=1, master="127.0.0.1:1")
    assert (sampler.policy_version, judge.rule_pack_hash, teacher.name) == (0, "fake-rule-pack", "fake-teacher@1")
    learner.close()
    learner.close()
