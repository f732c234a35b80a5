"""Scaling is a function of queue, rate and time; a replica's life is a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.replicas import COUNTED, MOVES, ReplicaState, moved, surplus
from safer_ray.core.scaling import ElasticRule, PoolLoad, RateMeter, wanted_replicas

counts = st.integers(min_value=0, max_value=50)
seconds = st.floats(min_value=0.0, max_value=1000.0)


@st.composite
def rules(draw: st.DrawFn) -> ElasticRule:
    least, more = draw(st.integers(0, 8)), draw(st.integers(0, 20))
    return ElasticRule(
        target_queue_s=draw(st.floats(0.1, 100.0)),
        least=least,
        most=max(1, least + more),
        cool_down_s=draw(st.floats(1.0, 100.0)),
    )


loads = st.builds(
    PoolLoad,
    wanted=counts,
    serving=counts,
    outstanding=counts,
    answers_per_s=st.floats(0.0, 20.0),
    steady_s=seconds,
    idle_s=seconds,
)


@settings(max_examples=50, deadline=None)
@given(rule=rules(), load=loads)
def test_the_number_wanted_never_leaves_its_bounds(rule: ElasticRule, load: PoolLoad) -> None:
    assert rule.least <= wanted_replicas(rule, load) <= rule.most


@settings(max_examples=50, deadline=None)
@given(rule=rules(), load=loads, share=st.floats(0.0, 0.99))
def test_within_a_cool_down_nothing_changes_but_what_the_bounds_ask(
    rule: ElasticRule, load: PoolLoad, share: float
) -> None:
    load = replace(load, steady_s=share * rule.cool_down_s, wanted=max(load.wanted, 1))
    assert wanted_replicas(rule, load) == min(max(load.wanted, rule.least), rule.most)


@settings(max_examples=50, deadline=None)
@given(rule=rules(), load=loads)
def test_an_idle_pool_drains_to_its_least(rule: ElasticRule, load: PoolLoad) -> None:
    quiet = replace(load, outstanding=0, idle_s=rule.cool_down_s, steady_s=rule.cool_down_s)
    assert wanted_replicas(rule, quiet) == rule.least


@settings(max_examples=50, deadline=None)
@given(rule=rules(), load=loads, more=st.integers(1, 30))
def test_more_work_never_wants_fewer_replicas(rule: ElasticRule, load: PoolLoad, more: int) -> None:
    busy = replace(load, outstanding=max(1, load.outstanding))
    assert wanted_replicas(rule, replace(busy, outstanding=busy.outstanding + more)) >= wanted_replicas(rule, busy)


@settings(max_examples=50, deadline=None)
@given(rule=rules(), load=loads)
def test_work_is_never_left_without_a_replica(rule: ElasticRule, load: PoolLoad) -> None:
    assert wanted_replicas(rule, replace(load, outstanding=max(1, load.outstanding))) >= 1


@settings(max_examples=50, deadline=None)
@given(rule=rules(), outstanding=counts, rate=st.floats(0.1, 10.0))
def test_under_a_steady_load_the_number_settles_instead_of_swinging(
    rule: ElasticRule, outstanding: int, rate: float
) -> None:
    wanted, seen = rule.least, []
    for _ in range(6):
        load = PoolLoad(
            wanted=wanted,
            serving=wanted,
            outstanding=outstanding,
            answers_per_s=rate,
            steady_s=rule.cool_down_s,
            idle_s=0.0,
        )
        wanted = wanted_replicas(rule, load)
        seen.append(wanted)
    assert len(set(seen[2:])) == 1


def test_a_queue_twice_too_long_wants_twice_the_replicas() -> None:
    rule = ElasticRule(target_queue_s=10.0, least=0, most=8, cool_down_s=30.0)
    load = PoolLoad(wanted=2, serving=2, outstanding=80, answers_per_s=2.0, steady_s=60.0, idle_s=0.0)
    assert wanted_replicas(rule, load) == 4
    assert wanted_replicas(rule, replace(load, serving=1)) == 2, "one of them only joins: its work is not known yet"
    assert wanted_replicas(rule, replace(load, wanted=4, serving=4, outstanding=45)) == 4, "less, but not half"
    assert wanted_replicas(rule, replace(load, wanted=4, serving=4, outstanding=20)) == 2


def test_an_empty_pool_asks_for_all_at_once_when_the_rate_is_known_and_for_one_to_learn_it() -> None:
    rule = ElasticRule(target_queue_s=10.0, least=0, most=3, cool_down_s=30.0)
    empty = PoolLoad(wanted=0, serving=0, outstanding=40, answers_per_s=2.0, steady_s=0.0, idle_s=0.0)
    assert wanted_replicas(rule, empty) == 2
    assert wanted_replicas(rule, replace(empty, outstanding=400)) == 3
    assert wanted_replicas(rule, replace(empty, answers_per_s=0.0)) == 1


# ---- the life of a replica ----


def test_every_state_leads_to_the_end_and_nothing_leads_back_from_it() -> None:
    reached = {state: {state} | set(MOVES[state]) for state in ReplicaState}
    for _ in ReplicaState:
        reached = {state: after.union(*(reached[each] for each in after)) for state, after in reached.items()}
    assert all(ReplicaState.GONE in after for after in reached.values())
    assert MOVES[ReplicaState.GONE] == frozenset()


def test_only_confirmed_weights_lead_to_service() -> None:
    before = {state for state in ReplicaState if ReplicaState.SERVING in MOVES[state]}
    assert before == {ReplicaState.REFITTING}


def test_a_replica_that_is_leaving_or_lost_never_comes_back() -> None:
    for state in (ReplicaState.DRAINING, ReplicaState.DEAD, ReplicaState.GONE):
        assert not MOVES[state] & COUNTED


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(ReplicaState), st.sampled_from(ReplicaState))
def test_a_move_outside_the_table_is_refused_with_both_states(state: ReplicaState, to: ReplicaState) -> None:
    if to in MOVES[state]:
        assert moved(state, to) is to
    else:
        with pytest.raises(ValueError, match=f"from {state} to {to}"):
            moved(state, to)


pools = st.lists(st.tuples(st.sampled_from(ReplicaState), st.integers(0, 9)), max_size=12)


@settings(max_examples=50, deadline=None)
@given(pool=pools, wanted=st.integers(0, 12))
def test_draining_the_surplus_leaves_as_many_as_are_wanted_and_takes_the_cheapest(
    pool: list[tuple[ReplicaState, int]], wanted: int
) -> None:
    states = {f"sampler-{number}": each for number, each in enumerate(pool)}
    taken = surplus(states, wanted)
    counted = {name for name, (state, _) in states.items() if state in COUNTED}
    assert set(taken) <= counted
    assert len(counted) - len(taken) == min(wanted, len(counted))
    kept = counted - set(taken)
    if any(states[name][0] is ReplicaState.SERVING for name in taken):
        assert all(states[name][0] is ReplicaState.SERVING for name in kept)
        busiest = max(states[name][1] for name in taken if states[name][0] is ReplicaState.SERVING)
        assert all(states[name][1] >= busiest for name in kept)


def test_the_rate_counts_the_last_minute_and_only_replicas_with_work() -> None:
    meter = RateMeter(window_s=60.0)
    for second in range(0, 201, 10):
        busy = 2 if second <= 100 else 4
        meter.note(float(second), answered=busy * second, busy=busy)
    assert meter.answers_per_busy_s == pytest.approx(1.0, rel=0.01)
    assert meter.answers_per_s == pytest.approx(4.0, rel=0.01)
    assert RateMeter().answers_per_s == RateMeter().answers_per_busy_s == 0.0
