"""Laws of the loop: under any policy, whatever order events come in, nothing is lost and nothing happens twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unreliable_world import LEVELS, LIMITS, STAGES, UnreliableWorld, carry_on

from safer_ray.core.events import (
    Action,
    Drop,
    Dropped,
    Event,
    Judged,
    Lost,
    Sample,
    Sampled,
    from_json,
    is_durable,
    to_json,
)
from safer_ray.core.loop import LoopState, admitted, apply, awaited, fold, submitted
from safer_ray.core.plan import Phase, PlanSizes, make_plan
from safer_ray.core.policies import POLICIES, Policy, synchronous

LAGS = {"synchronous": 0, "one_round_ahead": 1, "fully_async": 3}


@st.composite
def runs(draw: st.DrawFn) -> tuple[Policy, tuple[Phase, ...], UnreliableWorld]:
    """A policy, a plan it may follow, and a world that reorders, delays, repeats and loses."""
    name = draw(st.sampled_from(sorted(POLICIES)))
    few = st.integers(0, 5)
    sizes = PlanSizes(teach=draw(few), explore=draw(few), evaluate=draw(few), rounds=draw(st.integers(1, 3)))
    lag = draw(st.integers(1, LAGS[name])) if name == "fully_async" else LAGS[name]
    stages = draw(st.sampled_from((STAGES, ("evaluate", "erpo"), ("synth", "sft", "erpo"), ("evaluate",))))
    plan = make_plan(stages, sizes, evaluate_each=draw(st.booleans()), max_lag=lag)
    return POLICIES[name], plan, UnreliableWorld(draw(st.integers(0, 10**6)), plan, lag)


Run = tuple[Policy, tuple[Phase, ...], UnreliableWorld]


@given(runs())
@settings(max_examples=30, deadline=None)
def test_every_run_ends_with_every_item_finished_or_dropped_once(run: Run) -> None:
    policy, plan, world = run
    state, events = LoopState.of(plan), list[Event]()
    carry_on(policy, state, events, world)
    assert state.current is None
    assert state.lost_items == 0
    settled = [(e.phase, e.item) for e in events if isinstance(e, Dropped) or (isinstance(e, Judged) and e.final)]
    assert sorted(settled) == sorted((phase.name, item) for phase in plan for item in range(phase.items))
    for progress in state.phases:
        assert progress.finished_items == progress.done.count(1)
        assert progress.dropped_items == progress.done.count(2)
        assert progress.settled


@given(runs())
@settings(max_examples=30, deadline=None)
def test_nothing_older_than_the_lag_is_trained_and_every_checkpoint_is_evaluated_from_its_own_version(run: Run) -> None:
    policy, plan, world = run
    carry_on(policy, LoopState.of(plan), [], world)
    trained = [phase.name for phase in plan if phase.kind == "erpo"]
    assert [name for name, _ in world.lags] == trained
    for _, lags in world.lags:
        assert all(0 <= lag <= world.max_lag for lag in lags)
    for phase in plan:
        if phase.kind in ("evaluate", "teach"):
            assert {v for item in range(phase.items) for v in world.versions(phase.name, item)} <= {phase.version}


@given(runs())
@settings(max_examples=20, deadline=None)
def test_where_nothing_fails_nothing_is_dropped_and_no_sample_is_thrown_away(run: Run) -> None:
    policy, plan, world = run
    world.faults = False
    state = LoopState.of(plan)
    carry_on(policy, state, [], world)
    assert [(p.dropped_items, p.stale_samples) for p in state.phases] == [(0, 0)] * len(plan)
    assert state.ignored == 0


@given(runs())
@settings(max_examples=20, deadline=None)
def test_refolding_the_durable_events_gives_the_same_state(run: Run) -> None:
    policy, plan, world = run
    state, events = LoopState.of(plan), list[Event]()
    carry_on(policy, state, events, world)
    again = fold(plan, (from_json(to_json(event)) for event in events if is_durable(event)))
    assert durable_part(again) == durable_part(state)


@given(runs(), st.integers(0, 150), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=30, deadline=None)
def test_a_run_resumed_from_any_prefix_of_its_journal_finishes_without_doing_anything_twice(
    run: Run, cut: int, resumed_with: str
) -> None:
    """A run may also go on under another policy: what it takes stands in the plan."""
    _, plan, world = run
    _, events = LoopState.of(plan), list[Event]()
    live = LoopState.of(plan)
    carry_on(run[0], live, events, world, stop_after=cut)
    state = fold(plan, [event for event in events if is_durable(event)])
    assert durable_part(state) == durable_part(live)
    before = {p.phase.name: bytes(p.done) for p in state.phases}
    carry_on(POLICIES[resumed_with], state, [], world.restarted(state))
    assert state.current is None
    assert state.lost_items == 0
    for progress in state.phases:
        kept = before[progress.phase.name]
        assert all(not old or old == new for old, new in zip(kept, progress.done, strict=True))
    assert all(0 <= lag <= world.max_lag for _, lags in world.lags for lag in lags)


def durable_part(state: LoopState) -> list[object]:
    """Return what a resumed run knows: everything but what is in flight."""
    phases = [
        (bytes(p.done), p.finished_items, p.dropped_items, p.ended, p.counts, p.tries, p.deaths, p.stale_samples)
        for p in state.phases
    ]
    return [phases, [p.phase.name for p in state.unended], state.policy_version]


@pytest.mark.parametrize(("name", "ahead"), [("synchronous", 0), ("one_round_ahead", 1), ("fully_async", 2)])
def test_how_far_ahead_of_the_training_round_each_policy_explores(name: str, ahead: int) -> None:
    sizes = PlanSizes(teach=1, explore=3, evaluate=2, rounds=4)
    plan = make_plan(STAGES, sizes, max_lag=LAGS[name] if name != "fully_async" else 2)
    world = UnreliableWorld(0, plan, 2, faults=False)
    seen = set[int]()

    def look(state: LoopState) -> None:
        rounds = [p.phase.round for p in state.unended if p.phase.kind == "explore" and (p.open or p.finished_items)]
        training = next((p.phase.round for p in state.unended if p.phase.kind == "erpo"), 9)
        seen.update(number - training for number in rounds)

    carry_on(POLICIES[name], LoopState.of(plan), [], world, look=look)
    assert max(seen) == ahead


def test_a_stale_sample_is_thrown_away_counted_and_asked_for_again() -> None:
    plan = make_plan(("erpo",), PlanSizes(teach=0, explore=1, evaluate=0, rounds=1))
    state = fold([Phase(**{**_fields(plan[0]), "version": 3, "oldest": 2})], [])
    state.policy_version = 3
    (action,) = synchronous(state, LIMITS)
    assert isinstance(action, Sample)
    submitted(state, action)
    old = Sampled(phase="explore-1", item=0, level=0, attempt=0, policy_version=1)
    assert not apply(state, old)
    lost = admitted(state, old)
    assert lost == Lost(
        phase="explore-1",
        item=0,
        attempt=0,
        reason="stale: sampled from policy version 1, but explore-1 takes versions 2-3",
        stale=True,
    )
    assert apply(state, lost)
    assert synchronous(state, LIMITS) == [Sample(phase="explore-1", item=0, level=0, attempt=1)]
    assert (state.phases[0].stale_samples, state.phases[0].tries) == (1, {0: 1})


def _fields(phase: Phase) -> dict[str, object]:
    return {name: getattr(phase, name) for name in Phase.__dataclass_fields__}


def one_item() -> LoopState:
    return LoopState.of(make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0)))


def lose(state: LoopState, attempt: int) -> None:
    (action,) = synchronous(state, LIMITS)
    assert action == Sample(phase="evaluate-base", item=0, level=0, attempt=attempt)
    submitted(state, action)
    reason = f"failure {attempt} of prompt R01-001-u"
    assert apply(state, Lost(phase=action.phase, item=0, attempt=attempt, reason=reason))


def test_an_item_that_fails_too_often_is_dropped_with_its_last_reason() -> None:
    state = one_item()
    for attempt in range(LIMITS.max_tries):
        lose(state, attempt)
    assert synchronous(state, LIMITS) == [Drop(phase="evaluate-base", item=0, reason="failure 2 of prompt R01-001-u")]


def test_what_is_waited_for_is_said_per_phase_with_who_is_waited_for() -> None:
    plan = make_plan(STAGES, PlanSizes(teach=0, explore=LEVELS, evaluate=2, rounds=2), max_lag=1)
    state = LoopState.of(plan)
    assert awaited(state) == "nothing was asked for"
    world = UnreliableWorld(0, plan, 1, faults=False)
    said = set[str]()
    carry_on(POLICIES["one_round_ahead"], state, [], world, look=lambda state: said.add(awaited(state)))
    assert "evaluate-base waits with 2 prompts for a sampler; teach waits for the driver's own sealing" in said
    assert any("erpo-1 waits for the learner; explore-2 waits with" in sentence for sentence in said)


def lose_worker(state: LoopState, attempt: int, *, alone: bool, blameless: bool = False) -> list[Action]:
    """Submit what the policy asks for, answer that the worker died, and return what it asks for next."""
    for action in synchronous(state, LIMITS):
        submitted(state, action)
    reason = f"sampler-{attempt} died"
    lost = Lost(
        phase="evaluate-base",
        item=0,
        attempt=attempt,
        reason=reason,
        killed_worker=True,
        alone=alone,
        blameless=blameless,
    )
    apply(state, from_json(to_json(lost)))
    return synchronous(state, LIMITS)


def test_an_item_that_kills_two_workers_is_quarantined_and_bystanders_never_are() -> None:
    plan = make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0))
    state = LoopState.of(plan)
    for attempt in range(LIMITS.max_tries + 2):
        (again,) = lose_worker(state, attempt, alone=False)
        assert again == Sample(phase="evaluate-base", item=0, level=0, attempt=attempt + 1)
    state = LoopState.of(plan)
    assert isinstance(lose_worker(state, 0, alone=True)[0], Sample)
    reason = "quarantined after 2 workers died of it: sampler-1 died"
    assert lose_worker(state, 1, alone=True) == [Drop(phase="evaluate-base", item=0, reason=reason)]


def test_one_worker_that_died_of_an_item_alone_proves_nothing_however_many_died_in_company() -> None:
    """Judges killed from outside, three in a row with the same prompt, once made a run lose it."""
    state = LoopState.of(make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0)))
    for attempt, alone in enumerate((False, False, True, False)):
        assert isinstance(lose_worker(state, attempt, alone=alone)[0], Sample)
    assert isinstance(lose_worker(state, 4, alone=True)[0], Drop)


def test_nodes_that_are_lost_say_nothing_against_the_item_that_was_alone_on_them() -> None:
    state = LoopState.of(make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0)))
    for attempt in range(LIMITS.max_tries + 2):
        (again,) = lose_worker(state, attempt, alone=True, blameless=True)
        assert isinstance(again, Sample)
    (again,) = lose_worker(state, LIMITS.max_tries + 2, alone=True)
    assert isinstance(again, Sample), "the first worker that died of it by itself"
    assert isinstance(lose_worker(state, LIMITS.max_tries + 3, alone=True)[0], Drop)


def test_an_item_given_up_just_before_the_run_stopped_is_dropped_when_it_is_resumed() -> None:
    plan = make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0))
    lost = [Lost(phase="evaluate-base", item=0, attempt=attempt, reason="gone") for attempt in range(LIMITS.max_tries)]
    assert synchronous(fold(plan, lost), LIMITS) == [Drop(phase="evaluate-base", item=0, reason="gone")]


def test_the_plan_evaluates_every_checkpoint_after_it_was_published() -> None:
    names = [phase.name for phase in make_plan(STAGES, PlanSizes(teach=1, explore=1, evaluate=1, rounds=2))]
    assert names == [
        "evaluate-base", "teach", "sft", "publish-1", "evaluate-sft",
        "explore-1", "erpo-1", "publish-2", "evaluate-erpo-1",
        "explore-2", "erpo-2", "publish-3", "evaluate-erpo-2",
    ]  # fmt: skip


def test_only_the_ends_are_evaluated_when_asked_so() -> None:
    plan = make_plan(STAGES, PlanSizes(teach=1, explore=1, evaluate=1, rounds=2), evaluate_each=False)
    assert [phase.checkpoint for phase in plan if phase.kind == "evaluate"] == ["base", "erpo-2"]


def test_no_lag_reaches_back_to_before_sft() -> None:
    sizes = PlanSizes(teach=1, explore=1, evaluate=1, rounds=4)
    for stages, oldest in ((STAGES, [1, 1, 1, 2]), (("erpo",), [0, 0, 0, 1])):
        explored = [phase for phase in make_plan(stages, sizes, max_lag=2) if phase.kind == "explore"]
        assert [phase.oldest for phase in explored] == oldest
