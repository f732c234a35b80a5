"""Laws of the loop: whatever order events come in, nothing is lost and nothing happens twice."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.events import (
    Action,
    Drop,
    Dropped,
    Event,
    Judge,
    Judged,
    Lost,
    Publish,
    Published,
    Sample,
    Sampled,
    Seal,
    Sealed,
    Train,
    Trained,
    from_json,
    is_durable,
    to_json,
)
from safer_ray.core.loop import Limits, LoopState, apply, fold, submitted, synchronous
from safer_ray.core.plan import PlanSizes, make_plan

STAGES = ("evaluate", "synth", "sft", "erpo")
LIMITS = Limits(max_in_flight=4, max_tries=3)


class UnreliableWorld:
    """Answers actions out of order, sometimes twice, sometimes with a loss."""

    def __init__(self, seed: int, levels: int = 3) -> None:
        self.random = random.Random(seed)
        self.levels = levels
        self.pending: list[Event] = []
        self.in_flight_peak = 0

    def submit(self, action: Action) -> None:
        answer = self._answer(action)
        self.pending.append(answer)
        if self.random.random() < 0.2:
            self.pending.append(answer)

    def next_event(self) -> Event:
        return self.pending.pop(self.random.randrange(len(self.pending)))

    def _answer(self, action: Action) -> Event:
        match action:
            case Sample() | Judge() if self.random.random() < 0.15:
                return Lost(phase=action.phase, item=action.item, attempt=action.attempt, reason="gone")
            case Sample():
                return Sampled(
                    phase=action.phase, item=action.item, level=action.level, attempt=action.attempt, policy_version=0
                )
            case Judge():
                final = action.level + 1 == self.levels
                return Judged(
                    phase=action.phase, item=action.item, level=action.level, attempt=action.attempt, final=final
                )
            case Drop():
                return Dropped(phase=action.phase, item=action.item, reason=action.reason)
            case Seal():
                return Sealed(phase=action.phase, facts={}, wall_s=0.0)
            case Train():
                return Trained(phase=action.phase, facts={}, wall_s=0.0)
            case Publish():
                return Published(phase=action.phase, version=action.version, checksum="c", nbytes=1, wall_s=0.0)


def run_to_the_end(sizes: PlanSizes, seed: int, stop_after: int | None = None) -> tuple[LoopState, list[Event]]:
    state, events = LoopState.of(make_plan(STAGES, sizes)), list[Event]()
    continue_run(state, events, UnreliableWorld(seed), stop_after)
    return state, events


def continue_run(state: LoopState, events: list[Event], world: UnreliableWorld, stop_after: int | None = None) -> None:
    while state.current is not None and (stop_after is None or len(events) < stop_after):
        for action in synchronous(state, LIMITS):
            submitted(state, action)
            world.submit(action)
        assert len(state.current.open if state.current else ()) <= LIMITS.max_in_flight
        event = world.next_event()
        if apply(state, event):
            events.append(event)


sizes_strategy = st.builds(
    PlanSizes,
    teach=st.integers(0, 9),
    explore=st.integers(0, 9),
    evaluate=st.integers(0, 9),
    rounds=st.integers(1, 3),
)


@given(sizes_strategy, st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_every_run_ends_with_every_item_finished_or_dropped_once(sizes: PlanSizes, seed: int) -> None:
    state, events = run_to_the_end(sizes, seed)
    assert state.lost_items == 0
    settled = [(e.phase, e.item) for e in events if isinstance(e, Dropped) or (isinstance(e, Judged) and e.final)]
    assert len(settled) == len(set(settled))
    for progress in state.phases:
        assert progress.finished_items == progress.done.count(1)
        assert progress.dropped_items == progress.done.count(2)
        assert progress.settled


@given(sizes_strategy, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_refolding_the_events_gives_the_same_items_done(sizes: PlanSizes, seed: int) -> None:
    state, events = run_to_the_end(sizes, seed)
    again = fold(make_plan(STAGES, sizes), (from_json(to_json(event)) for event in events if is_durable(event)))
    assert [p.done for p in again.phases] == [p.done for p in state.phases]
    assert again.current is None


@given(sizes_strategy, st.integers(0, 10**6), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_run_resumed_from_its_durable_events_finishes_without_doing_anything_twice(
    sizes: PlanSizes, seed: int, cut: int
) -> None:
    _, events = run_to_the_end(sizes, seed, stop_after=cut)
    durable = [event for event in events if is_durable(event)]
    state = fold(make_plan(STAGES, sizes), durable)
    before = {p.phase.name: bytes(p.done) for p in state.phases}
    continue_run(state, list[Event](), UnreliableWorld(seed + 1))
    assert state.lost_items == 0
    for progress in state.phases:
        kept = before[progress.phase.name]
        assert all(not old or old == new for old, new in zip(kept, progress.done, strict=True))


def test_an_item_that_fails_too_often_is_dropped_with_its_last_reason() -> None:
    state = LoopState.of(make_plan(("evaluate",), PlanSizes(teach=0, explore=0, evaluate=1, rounds=0)))
    for attempt in range(LIMITS.max_tries):
        (action,) = synchronous(state, LIMITS)
        submitted(state, action)
        apply(state, Lost(phase=action.phase, item=0, attempt=attempt, reason=f"failure {attempt}"))
    assert synchronous(state, LIMITS) == [Drop(phase="evaluate-base", item=0, reason="failure 2")]


def lose_worker(state: LoopState, attempt: int, *, alone: bool) -> list[Action]:
    """Submit what the policy asks for, answer that the worker died, and return what it asks for next."""
    for action in synchronous(state, LIMITS):
        submitted(state, action)
    reason = f"sampler-{attempt} died"
    lost = Lost(phase="evaluate-base", item=0, attempt=attempt, reason=reason, killed_worker=True, alone=alone)
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
