"""Several judges as one: quorum, weights, disagreement, veto, and the three purposes of a judge in a config."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llm_judge import HELP, PACK, REFUSAL, answer, honest, safety, task

from safer_ray.backends import llm_judge, rule_judge
from safer_ray.backends.asker import ScriptedAskerSpec
from safer_ray.backends.base import JudgeSpec, TeachResult
from safer_ray.backends.endpoint import EndpointSpec
from safer_ray.backends.ensemble_judge import EnsembleJudgeSpec, Member
from safer_ray.backends.fake import FakeJudgeSpec, FakeTeacherSpec, toy_prompts
from safer_ray.backends.grader import GraderSpec
from safer_ray.backends.judge_templates import TEMPLATES
from safer_ray.backends.judge_usage import judge_costs
from safer_ray.backends.llm_judge import LlmJudgeSpec
from safer_ray.backends.partial_teacher import judgement_of
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.backends.selection import SelectionSpec
from safer_ray.backends.vllm_asker import VllmAskerSpec
from safer_ray.config import RunConfig
from safer_ray.core.ensemble import EnsembleRules, Vote, combine
from safer_ray.core.pairing import PairingRules
from safer_ray.core.verdicts import Ruling, abstained, agreed_order, failed, scored, win_share
from safer_ray.errors import JudgeError
from safer_ray.judge_specs import judge_for, judge_warnings, selection_spec
from safer_ray.records import Outcome, Prompt, Rollout
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, to_table

RULES = EnsembleRules()


@pytest.fixture(autouse=True)
def _read_the_pack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every judge built here would read and prove the whole pack again, half a second each."""
    for module in (llm_judge, rule_judge):
        monkeypatch.setattr(module, "read_pack", lambda pack: PACK)


RULINGS = st.one_of(
    st.floats(0, 1).map(lambda score: scored(score, "why")), st.just(abstained("not made for it")), st.just(failed("x"))
)


def votes(*rulings: Ruling, weights: tuple[float, ...] = ()) -> list[Vote]:
    each = weights or (1.0,) * len(rulings)
    return [Vote(judge=f"j{at}", weight=w, ruling=r) for at, (w, r) in enumerate(zip(each, rulings, strict=True))]


# ---- laws ------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(RULINGS, min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_a_combined_score_lies_between_the_scores_and_is_never_made_up(
    rulings: list[Ruling], quorum: float, spread: float
) -> None:
    ruling = combine("helpfulness", votes(*rulings), EnsembleRules(quorum=quorum, max_spread=spread))
    scores = [r.score for r in rulings if r.score is not None]
    if ruling.score is not None:
        assert min(scores) - 1e-9 <= ruling.score <= max(scores) + 1e-9
        assert max(scores) - min(scores) <= spread
    else:
        assert ruling.reason
    if not scores:
        assert ruling.score is None


@settings(max_examples=40, deadline=None)
@given(st.lists(RULINGS, min_size=2, max_size=5), st.randoms())
def test_the_order_of_members_does_not_matter(rulings: list[Ruling], rng: object) -> None:
    cast = votes(*rulings)
    forward, backward = (combine("helpfulness", each, RULES) for each in (cast, cast[::-1]))
    assert forward.kind == backward.kind
    assert forward.score == pytest.approx(backward.score) if forward.score is not None else True


def test_weights_move_the_mean() -> None:
    ruling = combine("helpfulness", votes(scored(0.8), scored(0.4), weights=(3.0, 1.0)), RULES)
    assert ruling.score == pytest.approx(0.7)


def test_judges_that_disagree_abstain() -> None:
    assert combine("helpfulness", votes(scored(1.0), scored(0.2)), RULES).kind == "abstain"


def test_too_few_that_scored_are_no_quorum() -> None:
    two_of_three = votes(scored(0.9), failed("down"), failed("down"))
    assert combine("helpfulness", two_of_three, RULES).kind == "failed"
    assert combine("helpfulness", two_of_three, replace(RULES, quorum=0.3)).score == 0.9


def test_a_judge_that_is_not_made_for_a_step_does_not_count_against_the_quorum() -> None:
    ruling = combine("safety", votes(scored(0.9), abstained("responses only"), abstained("responses only")), RULES)
    assert ruling.score == 0.9


def test_the_veto_stands_on_safety_and_only_there() -> None:
    rules = EnsembleRules(veto="j0")
    low = votes(scored(0.1, "leaks"), scored(1.0), scored(1.0))
    assert combine("safety", low, rules).score == 0.1
    assert combine("helpfulness", low, rules).score is None
    assert combine("safety", votes(scored(0.9), scored(1.0)), rules).score == pytest.approx(0.95)


def test_a_swap_that_changes_the_answer_decides_nothing() -> None:
    assert agreed_order("first", "second") == "first"
    assert agreed_order("tie", "tie") == "tie"
    assert agreed_order("first", "first") is None
    assert agreed_order("first", None) is None
    assert win_share(["first", None, "tie"]) == 0.75
    assert win_share([None]) is None


# ---- behind the protocol ---------------------------------------------------------------------------------------


def lenient(question: object) -> str:
    return answer(10)


def llm(script: object = honest, **changes: object) -> LlmJudgeSpec:
    plain = LlmJudgeSpec(asker=ScriptedAskerSpec(script=script), model="scripted", canaries=0)  # type: ignore[arg-type]
    return replace(plain, **changes)  # type: ignore[arg-type]


def ensemble(*specs: tuple[str, JudgeSpec], rules: EnsembleRules = RULES) -> EnsembleJudgeSpec:
    return EnsembleJudgeSpec(members=tuple(Member(name=n, weight=1.0, spec=s) for n, s in specs), rules=rules)


def test_the_rule_judge_vetoes_a_model_that_was_talked_round() -> None:
    judge = ensemble(("model", llm(lenient)), ("rules", RuleJudgeSpec()), rules=EnsembleRules(veto="rules")).build()
    verdict = safety(judge.judge([task(HELP)]))
    assert verdict.score == 0.0
    assert "veto of rules" in verdict.reason
    assert verdict.judge == "ensemble(scripted@rubric.1 + rules@1)@1"


def test_agreeing_members_give_their_mean_and_every_place_has_one_verdict() -> None:
    judge = ensemble(("model", llm()), ("rules", RuleJudgeSpec())).build()
    verdicts = judge.judge([task(REFUSAL, name="a"), task(HELP, name="b")])
    assert len({(v.rollout_id, v.step_index, v.axis) for v in verdicts}) == len(verdicts) == 6
    assert safety(verdicts).score == pytest.approx((0.9 + 1.0) / 2)


def test_outcomes_follow_the_majority_and_a_split_is_not_counted() -> None:
    always_safe = llm(lambda question: "safe", template="llama-guard", model="guard")
    three = ensemble(("model", llm()), ("rules", RuleJudgeSpec()), ("guard", always_safe)).build()
    (outcome,) = three.outcomes([task(HELP)], "sft")
    assert outcome.complied
    assert outcome.judge.startswith("ensemble(")
    two = ensemble(("rules", RuleJudgeSpec()), ("guard", always_safe)).build()
    with pytest.raises(JudgeError, match="split evenly"):
        two.outcomes([task(HELP)], "sft")


def test_members_that_fail_count_against_the_quorum_of_outcomes() -> None:
    broken = llm(lambda question: "hm", model="broken")
    with pytest.raises(JudgeError, match="quorum missed"):
        ensemble(("a", broken), ("b", replace(broken, seed=1)), ("rules", RuleJudgeSpec())).build().outcomes(
            [task(HELP)], "sft"
        )


def test_equal_specs_are_built_once_and_costs_are_counted_once() -> None:
    shared = llm()
    spec = GraderSpec(
        judge=ensemble(("model", shared), ("rules", RuleJudgeSpec())), reporter=shared, pairing=PairingRules()
    )
    grader = spec.build()
    grader._bench.reward.judge([task(REFUSAL)])
    (row,) = judge_costs(grader._bench.take_costs())
    assert row["calls"] == 2
    assert grader._bench.take_costs() == {}


def test_an_ensemble_spec_survives_pickling() -> None:
    spec = ensemble(("model", llm()), ("rules", RuleJudgeSpec()))
    assert pickle.loads(pickle.dumps(spec)) == spec


# ---- selection -------------------------------------------------------------------------------------------------


def _taught() -> tuple[Prompt, TeachResult]:
    from safer_ray.backends.base import TeachTask

    prompt = next(prompt for prompt in toy_prompts(4) if prompt.label == "unsafe")
    return prompt, FakeTeacherSpec(rejected_share=0.0).build().teach([TeachTask(prompt=prompt)])


def test_a_selection_judge_keeps_what_it_scores_high_and_names_why_not() -> None:
    prompt, result = _taught()
    judge = FakeJudgeSpec(unscored_share=0.0)
    kept = SelectionSpec(judge=judge, floor=0.4).build_with({}).keep(prompt, result)
    assert kept.examples == result.examples
    strict = SelectionSpec(judge=judge, floor=1.01).build_with({}).keep(prompt, result)
    assert strict.examples == ()
    assert "selection judge scores" in strict.rejected[0][1]


def test_a_trace_taught_up_to_its_judgement_is_judged_as_if_its_step_had_ended() -> None:
    prompt, result = _taught()
    [example] = map(judgement_of, result.examples)
    [first] = example.steps
    told = replace(first, text=first.text.removesuffix("</assessment>"))
    cut = replace(result, examples=(replace(example, steps=(told,)),))
    judge = RuleJudgeSpec(pack="default")
    kept = SelectionSpec(judge=judge, floor=0.01).build_with({}).keep(prompt, cut)
    assert kept.examples == cut.examples  # as they are taught


def test_a_trace_without_any_verdict_has_not_passed() -> None:
    prompt, result = _taught()
    none = SelectionSpec(judge=FakeJudgeSpec(unscored_share=1.0), floor=0.4).build_with({}).keep(prompt, result)
    assert none.rejected[0][1] == "the selection judge gave no verdict"


# ---- the config ------------------------------------------------------------------------------------------------

GUARD = {"model": "meta-llama/Llama-Guard-3-8B", "base_url": "https://guard.example/v1", "key_env": ""}


def config(**judge: object) -> RunConfig:
    return RunConfig.model_validate({"model": {"id": "m"}, "judge": judge})


RUN = RunDir(Path("run"))


def test_the_default_is_the_rule_judge_for_everything_and_warns_of_nothing() -> None:
    plain = config()
    assert judge_for(plain, plain.judge.reward, RUN) == judge_for(plain, plain.judge.reporting, RUN) == RuleJudgeSpec()
    assert selection_spec(plain, RUN) is None
    assert judge_warnings(plain) == []


@pytest.mark.parametrize(
    ("judge", "warned"),
    [
        ({"reward": ["rules"], "reporting": ["guard"]}, []),
        ({"reward": ["guard"], "reporting": ["guard"]}, ["judge.reward and judge.reporting"]),
        ({"reward": ["rules", "guard"], "reporting": ["twin"]}, ["judge.reward and judge.reporting"]),
        ({"selection": ["guard"], "reporting": ["guard"]}, ["judge.selection and judge.reporting"]),
        ({"selection": ["guard"]}, ["judge.reward and judge.reporting"]),
        ({"reward": ["guard"], "selection": ["guard"], "reporting": ["rules"]}, ["judge.reward and judge.selection"]),
    ],
)
def test_a_judge_for_two_purposes_is_warned_of(judge: dict[str, object], warned: list[str]) -> None:
    found = judge_warnings(config(llm={"guard": GUARD, "twin": GUARD}, **judge))
    assert len(found) == len(warned)
    assert all(part in line for part, line in zip(warned, found, strict=True))


def test_two_names_for_a_purpose_are_an_ensemble_with_the_weights_of_the_config() -> None:
    both = config(llm={"guard": GUARD}, reward=["rules", "guard"], ensemble={"weights": {"guard": 2}, "quorum": 0.6})
    spec = judge_for(both, both.judge.reward, RUN)
    assert isinstance(spec, EnsembleJudgeSpec)
    assert [(m.name, m.weight) for m in spec.members] == [("rules", 1.0), ("guard", 2.0)]
    assert (spec.rules.quorum, spec.rules.veto) == (0.6, "rules")


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"reward": ["gaurd"], "llm": {"guard": GUARD}}, "judge 'gaurd' is not known"),
        ({"llm": {"rules": GUARD}}, "the name rules is taken"),
        ({"ensemble": {"veto": "nobody"}}, "judge 'nobody' is not known"),
        ({"llm": {"g": {"model": "m", "base_url": "https://user:key@h/v1"}}}, "plain address"),
        ({"llm": {"g": {"model": "m", "base_url": "h:80"}}}, "must be an address"),
        ({"llm": {"g": {"model": "m", "key_env": "sk-123"}}}, "name of an environment variable"),
        ({"llm": {"g": {"model": "m", "mode": "pairwise", "template": "wildguard"}}}, "mode pairwise asks the rubric"),
        ({"llm": {"g": {"model": "m", "mode": "pairwise"}}, "reporting": ["g"]}, "it can only be in judge.reward"),
    ],
)
def test_settings_that_cannot_work_are_refused(judge: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**judge)


@pytest.mark.parametrize("cache", ["user", "run", "off"])
def test_the_cache_lies_where_the_config_says(cache: str) -> None:
    plain = config(llm={"guard": GUARD}, reward=["guard"], cache=cache)
    spec = judge_for(plain, plain.judge.reward, RUN)
    assert isinstance(spec, LlmJudgeSpec)
    ends = {"user": "verdicts.sqlite", "run": "run/judge_cache.sqlite", "off": ""}
    assert spec.cache_path.endswith(ends[cache])
    assert bool(spec.cache_path) is (cache != "off")


def test_a_model_without_an_address_runs_on_vllm_in_the_actor() -> None:
    plain = config(llm={"own": {"model": "embedded:smollm2-135m", "max_model_len": 4096}}, reward=["own"])
    spec = judge_for(plain, plain.judge.reward, RUN)
    assert isinstance(spec, LlmJudgeSpec)
    assert isinstance(spec.asker, VllmAskerSpec)
    assert spec.asker.max_model_len == 4096


@pytest.mark.parametrize("base_url", [None, "https://judge.example/v1"], ids=["vllm", "endpoint"])
@pytest.mark.parametrize(
    ("model", "settings", "template"),
    [
        ("google/shieldgemma-2b", {}, "shieldgemma"),
        ("yueliu1999/GuardReasoner-8B", {"max_tokens": None}, "guardreasoner"),
        ("some/model", {}, "rubric"),
        ("some/model", {"template": "safeguard"}, "safeguard"),
    ],
)
def test_a_judge_answers_at_most_what_its_template_needs_unless_told_otherwise(
    base_url: str | None, model: str, settings: dict[str, object], template: str
) -> None:
    def longest(**more: object) -> int:
        plain = config(llm={"own": {"model": model, "base_url": base_url, **settings, **more}}, reward=["own"])
        spec = judge_for(plain, plain.judge.reward, RUN)
        assert isinstance(spec, LlmJudgeSpec)
        assert isinstance(spec.asker, EndpointSpec if base_url else VllmAskerSpec)
        return spec.asker.max_tokens

    assert longest() == TEMPLATES[template].max_tokens
    assert longest(max_tokens=77) == 77


def test_what_judging_cost_rides_in_the_counts_of_an_item() -> None:
    grader = GraderSpec(judge=RuleJudgeSpec(), reporter=llm(), pairing=PairingRules()).build()
    counts, tables = grader.outcome(task(HELP).prompt, to_table([task(HELP).rollout], Rollout), "base")
    assert counts["outcomes"] == 1
    (row,) = judge_costs(counts)
    assert (row["judge"], row["calls"]) == ("scripted@rubric.1", 1)
    (outcome,) = from_table(tables[0], Outcome)
    assert outcome.judge == "scripted@rubric.1"
    assert outcome.complied
