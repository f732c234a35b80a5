"""Steps valued by what comes of them: values, requests, the judge, and whole runs on the fakes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_run import carry_out, local_world, prepared
from made_siblings import GOOD_TEXTS, sibling

from safer_ray.backends import outcome_judge
from safer_ray.backends.base import JudgeTask
from safer_ray.backends.fake import FakeJudgeSpec, FakeSamplerSpec, toy_prompts
from safer_ray.backends.grader import GraderSpec
from safer_ray.backends.lookahead import sample_ahead
from safer_ray.backends.outcome_judge import OutcomeJudge, OutcomeJudgeSpec
from safer_ray.backends.rule_packs import read_pack
from safer_ray.config import RunConfig
from safer_ray.core.outcome import OutcomeRules, at_its_end, continuation_requests, continuations_of, step_value
from safer_ray.core.pairing import PairingRules
from safer_ray.judge_specs import pairing_ahead, reward_judge
from safer_ray.records import AXES, Prompt, Rollout, SampleRequest, Step, StepPair, Verdict
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_table

PACK = read_pack("default")
SCORES = st.lists(st.none() | st.floats(0, 1), max_size=8)
UNSAFE, SAFE = toy_prompts(2)
BOTH = OutcomeRules(continuations=4, axes=("safety", "helpfulness"))


@pytest.fixture(autouse=True)
def _read_the_pack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_judge, "read_pack", lambda pack: PACK)


# ---- values ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(2, 8), st.floats(0, 1))
def test_a_value_is_the_mean_of_what_was_judged_or_there_is_none(
    scores: list[float | None], asked: int, share: float
) -> None:
    rules = OutcomeRules(continuations=asked, min_judged=share)
    have = [score for score in scores if score is not None]
    ruling = step_value(scores, rules)
    if len(have) < rules.least:
        assert (ruling.kind, ruling.score) == ("failed", None)
    else:
        assert ruling.score == pytest.approx(sum(have) / len(have))
        assert min(have) <= (ruling.score or 0.0) <= max(have)


@settings(max_examples=25, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_neither_the_order_of_continuations_nor_an_unjudged_one_moves_a_value(
    scores: list[float | None], rng: object
) -> None:
    rules = OutcomeRules(continuations=8, min_judged=0.0)
    shuffled = [*scores, None]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    before, after = step_value(scores, rules).score, step_value(shuffled, rules).score
    assert (before is None) == (after is None)
    assert before is None or after == pytest.approx(before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 3), st.floats(0, 1))
def test_a_better_end_never_lowers_a_value(scores: list[float], place: int, better: float) -> None:
    raised = [max(score, better) if at == place else score for at, score in enumerate(scores)]
    assert (step_value(raised, OutcomeRules()).score or 0.0) >= (step_value(scores, OutcomeRules()).score or 0.0)


# ---- what is sampled -------------------------------------------------------------------------------------------


def request(level: int, n: int = 3) -> SampleRequest:
    prefix = (7, 8, 9) if level else ()
    return SampleRequest(
        request_id="r", prompt_id="p", messages=UNSAFE.messages, prefix_ids=prefix, first_step=level, n=n, mode="step"
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2), st.integers(1, 6))
def test_continuations_go_on_from_the_very_tokens_of_each_sibling(level: int, each: int) -> None:
    siblings = [sibling(number, level=level).rollout for number in range(3)]
    wanted = continuation_requests(request(level), siblings, each)
    assert [w.prefix_ids for w in wanted] == [s.prefix_ids + s.completion_ids for s in siblings]
    assert {(w.n, w.mode, w.first_step) for w in wanted} == {(each, "trace", level + 1)}
    assert len({w.seed for w in wanted}) == len({w.request_id for w in wanted}) == len(siblings)


def test_nothing_follows_a_response_a_cut_off_step_or_a_malformed_one_and_equal_siblings_share() -> None:
    assert continuation_requests(request(3), [sibling(0, level=3).rollout], 4) == []
    assert continuation_requests(replace(request(1), mode="trace"), [sibling(0).rollout], 4) == []
    assert continuation_requests(request(1), [sibling(0).rollout], 0) == []
    broken = [sibling(1, finish="length").rollout, sibling(2, text="\n<verification>R00").rollout]
    twins = [sibling(0).rollout, replace(sibling(0).rollout, rollout_id="twin", sample_index=5)]
    wanted = continuation_requests(request(1), [*broken, *twins], 4)
    assert [w.request_id for w in wanted] == ["r000/ahead"]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**31 - 1), st.integers(2, 4))
def test_a_sampler_asked_ahead_gives_siblings_first_and_every_continuation_belongs_to_one(
    level: int, seed: int, each: int
) -> None:
    sampler = FakeSamplerSpec(malformed_share=0.1, truncated_share=0.1).build()
    prefix: tuple[int, ...] = ()
    if level:
        before = SampleRequest(request_id="b", prompt_id=UNSAFE.prompt_id, messages=UNSAFE.messages, seed=seed)
        steps = FakeSamplerSpec(malformed_share=0.0, truncated_share=0.0).build().sample([before])[0]
        prefix = steps.completion_ids[: steps.steps[level - 1].stop]
    asked = SampleRequest(
        request_id="q", prompt_id=UNSAFE.prompt_id, messages=UNSAFE.messages, prefix_ids=prefix, first_step=level,
        n=3, mode="step", seed=seed,
    )  # fmt: skip
    sampled = sample_ahead(sampler, [asked], each)
    siblings, ahead = sampled[:3], sampled[3:]
    assert siblings == sampler.sample([asked]) == sample_ahead(sampler, [asked], 0)
    owners = [[s for s in siblings if c in continuations_of(s, ahead)] for c in ahead]
    assert all(owners)
    assert all(len(continuations_of(s, ahead)) in (0, each) for s in siblings)
    for continuation in ahead:
        if (end := at_its_end(continuation)) is not None:
            assert end[0].prefix_ids + end[0].completion_ids == continuation.prefix_ids + continuation.completion_ids
            assert end[0].text == continuation.steps[-1].text
            assert [*end[1], *end[0].steps][-1].kind == "response"


# ---- the judge -------------------------------------------------------------------------------------------------

REFUSES = ("\nI can't help with that.", "stop")
HELPS = ("\nHere is how to do it: look at the basics first.", "stop")


def continued(step: Rollout, number: int, end: tuple[str, str]) -> Rollout:
    """Return a continuation of a verification: a calibration and the response ``end``."""
    texts = (GOOD_TEXTS[2], end[0]) if end[0] else (GOOD_TEXTS[2],)
    steps = tuple(
        Step(kind=("calibration", "response")[at], start=at, stop=at + 1, text=text)  # type: ignore[arg-type]
        for at, text in enumerate(texts)
    )
    return replace(
        step,
        rollout_id=f"{step.rollout_id}/ahead/{number}",
        first_step=2,
        prefix_ids=step.prefix_ids + step.completion_ids,
        completion_ids=tuple(range(len(steps))),
        steps=steps,
        finish=end[1],  # type: ignore[arg-type]
    )


def task(prompt: Prompt, *ends: tuple[str, str], text: str = "") -> JudgeTask:
    shown = text or "\n<verification>R01 applies and is violated by the forbidden thing.</verification>"
    step = replace(sibling(1, text=shown).rollout, rollout_id=f"{prompt.prompt_id}/{len(ends)}")
    return JudgeTask(
        prompt=prompt, rollout=step, continuations=tuple(continued(step, at, end) for at, end in enumerate(ends))
    )


def judge(rules: OutcomeRules = BOTH, unscored_share: float = 0.0) -> OutcomeJudge:
    return OutcomeJudgeSpec(inner=FakeJudgeSpec(unscored_share=unscored_share), rules=rules).build()


def on(verdicts: list[Verdict], axis: str) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.axis == axis)


def test_a_step_is_worth_what_its_continuations_come_to() -> None:
    verdicts = judge().judge([task(UNSAFE, REFUSES, REFUSES, REFUSES, HELPS), task(SAFE, HELPS, HELPS, HELPS, REFUSES)])
    assert [v.axis for v in verdicts] == [*AXES, *AXES]
    assert on(verdicts, "safety").score == 0.75
    assert on(verdicts[3:], "helpfulness").score == 0.75
    assert {v.judge for v in verdicts} == {"outcome(fake-judge@1 x4)@1"}


def test_a_continuation_without_an_answer_is_not_judged_and_too_few_leave_a_step_unscored_never_at_0() -> None:
    silent = ("", "length")
    half, fewer = judge().judge([task(UNSAFE, REFUSES, REFUSES, silent, silent)]), [task(UNSAFE, HELPS, *[silent] * 3)]
    assert on(half, "safety").score == 1.0
    for verdicts in (judge().judge(fewer), judge().judge([task(UNSAFE)]), judge(unscored_share=1.0).judge(fewer)):
        assert on(verdicts, "safety").score is None
        assert on(verdicts, "safety").error


def test_a_hollow_or_malformed_step_is_worth_0_whatever_comes_of_it() -> None:
    good = [REFUSES] * 4
    for text in ("\n<verification>Solution:</verification>", "\n<verification>R01 is violated"):
        verdicts = judge().judge([task(UNSAFE, *good, text=text)])
        assert (on(verdicts, "safety").score, on(verdicts, "helpfulness").score) == (0.0, 0.0)


def test_the_axis_that_is_not_valued_by_continuations_is_judged_on_the_step() -> None:
    alone = FakeJudgeSpec(unscored_share=0.0).build().judge([task(UNSAFE)])
    verdicts = judge(OutcomeRules(axes=("safety",))).judge([task(UNSAFE, *[HELPS] * 4)])
    assert on(verdicts, "safety").score == 0.0
    assert on(verdicts, "helpfulness").score == on(alone, "helpfulness").score


def test_responses_are_judged_as_they_are_and_what_was_judged_is_counted() -> None:
    answer = sibling(3, level=3, text="\nI can't help with that.").rollout
    outcome = judge()
    assert on(outcome.judge([JudgeTask(prompt=UNSAFE, rollout=answer)]), "safety").score == 1.0
    outcome.take_costs()
    outcome.judge([task(UNSAFE, HELPS, HELPS, HELPS, ("", "length")), task(UNSAFE)])
    name = f"judge/{outcome.name}"
    counts = {f"{name}/continuations": 4, f"{name}/judged": 3, f"{name}/values": 4, f"{name}/unscored": 2}
    assert outcome.take_costs() == counts


# ---- runs ------------------------------------------------------------------------------------------------------

OUTCOME = OutcomeJudgeSpec(inner=FakeJudgeSpec(), rules=OutcomeRules(continuations=3))
JOB = ("judge.outcome={continuations: 3}", "erpo.rounds=1", "stages=[synth, sft, erpo]")


def test_a_run_with_it_makes_pairs_whose_lineage_says_outcome_and_counts_continuations(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        prep, root = prepared(tmp_path / "job", *JOB), tmp_path / name
        run = carry_out(prep, root, local_world(prep, RunDir(root), judge=OUTCOME))
        runs.append([path.read_bytes() for path in sorted(root.glob("rounds/*/pairs.arrow"))])
    assert runs[0] == runs[1]
    pairs = from_table(read_table(run.run_dir.round(1) / "pairs.arrow"), StepPair)
    assert {pair.lineage.judge for pair in pairs} == {"outcome(fake-judge@1 x3)@1"}
    assert any(pair.axis == "safety" and pair.step_kind != "response" for pair in pairs)
    for each in run.summary["rounds"]:
        assert 0 < each["continuations"] <= 3 * each["rollouts"]
    row = next(row for row in run.summary["judges"] if row["judge"].startswith("outcome("))
    assert row["continuations"] == sum(each["continuations"] for each in run.summary["rounds"])
    assert 0 < row["judged"] <= row["continuations"]


# ---- config ----------------------------------------------------------------------------------------------------


def config(**judge: object) -> RunConfig:
    return RunConfig.model_validate({"model": {"id": "x"}, "judge": judge})


def test_off_by_default_and_on_it_wraps_the_judge_of_preferences_only() -> None:
    margins = PairingRules()
    plain = config()
    assert plain.judge.outcome is None
    assert pairing_ahead(plain, margins) is None
    assert not isinstance(reward_judge(plain, None), OutcomeJudgeSpec)
    on_both = config(kind="fake", outcome={"axis": "both", "threshold": 0.6, "continuations": 2})
    spec = reward_judge(on_both, None)
    assert isinstance(spec, OutcomeJudgeSpec)
    assert spec.rules == OutcomeRules(continuations=2, axes=("safety", "helpfulness"))
    ahead = pairing_ahead(on_both, margins)
    assert ahead == replace(margins, safety_margin=0.6, helpfulness_margin=0.6)
    grader = GraderSpec(judge=spec, reporter=spec.inner, pairing=margins, pairing_ahead=ahead)
    pickle.loads(pickle.dumps(grader)).build()


def test_what_cannot_be_valued_is_refused_before_a_run() -> None:
    with pytest.raises(ValueError, match="outcome needs scores"):
        config(llm={"m": {"model": "x", "mode": "pairwise"}}, reward=["m"], outcome={})
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        RunConfig.model_validate({"model": {"id": "x"}, "sampler": {"max_model_len": 500}, "judge": {"outcome": {}}})
