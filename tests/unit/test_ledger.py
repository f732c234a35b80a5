"""The ledger counts every prompt from the journal alone, and agrees with the loop's own state."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.core.events import Dropped, Event, Judged, Lost, Reopened, Sealed, Stepped, Trained
from safer_ray.core.ledger import Ledger, ledger_of
from safer_ray.core.loop import apply, fold
from safer_ray.core.plan import PlanSizes, make_plan

LAW = settings(max_examples=60, deadline=None)
PLAN = make_plan(("synth", "sft", "erpo"), PlanSizes(teach=3, explore=4, evaluate=0, rounds=1))


def judged(item: int, phase: str = "explore-1", **counts: int) -> Judged:
    return Judged(phase=phase, item=item, level=0, attempt=0, final=True, counts=counts)


def ledger(*events: Event) -> Ledger:
    return ledger_of(PLAN, [(event, float(number)) for number, event in enumerate(events)])


items = st.integers(0, 3)
ends: st.SearchStrategy[Event] = st.one_of(
    st.builds(judged, items, steps=st.integers(0, 3), unscored=st.integers(0, 3), pairs_safety=st.integers(0, 2)),
    st.builds(Dropped, phase=st.just("explore-1"), item=items, reason=st.sampled_from(["too long", "hung"])),
    st.builds(Lost, phase=st.just("explore-1"), item=items, attempt=st.integers(0, 1), reason=st.just("gone")),
    st.builds(Reopened, phase=st.just("explore-1"), item=items, reason=st.just("shard is gone")),
)


@LAW
@given(st.lists(ends, max_size=12))
def test_what_the_loop_accepted_is_counted_as_the_loop_counts_it(events: list[Event]) -> None:
    state, accepted = fold(PLAN, []), []
    for event in events:
        if apply(state, event):
            accepted.append(event)
    entry, progress = ledger(*accepted).phases["explore-1"], state.by_name["explore-1"]
    assert (entry.judged, entry.dropped.total()) == (progress.finished_items, progress.dropped_items)
    assert entry.duplicates == 0
    if not any(isinstance(event, Reopened) for event in accepted):
        assert +entry.counts == +Counter(progress.counts)


@LAW
@given(st.lists(ends, max_size=12))
def test_every_prompt_is_in_exactly_one_state(events: list[Event]) -> None:
    found = ledger(*events)
    states = [found.state_of("explore-1", item)[0] for item in range(4)]
    entry = found.phases["explore-1"]
    open_states = ("waiting", "asked again")
    assert sum(state in open_states for state in states) == 4 - entry.judged - entry.dropped.total()
    assert states.count("dropped") == entry.dropped.total()


def test_a_prompt_goes_from_waiting_to_trained() -> None:
    pair = judged(1, steps=4, pairs_safety=1)
    sealed = Sealed(phase="explore-1", facts={}, wall_s=0.0)
    trained = Trained(phase="erpo-1", facts={"steps": 2}, wall_s=0.0)
    history: list[tuple[Event, str]] = [
        (Lost(phase="explore-1", item=1, attempt=0, reason="sampler died"), "asked again"),
        (pair, "paired"),
        (sealed, "paired"),
        (trained, "trained"),
    ]
    found = Ledger(PLAN)
    assert found.state_of("explore-1", 1) == ("waiting", "")
    for event, state in history:
        found.note(event, 0.0)
        assert found.state_of("explore-1", 1)[0] == state
    assert found.state_of("explore-1", 0)[0] == "waiting"
    assert found.phases["explore-1"].lost_items == 3


def test_a_prompt_no_judge_could_score_is_unscored_and_a_trace_not_written_is_rejected() -> None:
    found = ledger(judged(0, steps=4, unscored=4), judged(0, "teach", **{"rejected: empty": 1}), judged(1, steps=4))
    assert found.state_of("explore-1", 0) == ("unscored", "")
    assert found.state_of("teach", 0) == ("rejected", "")
    assert found.state_of("explore-1", 1) == ("judged", "")


def test_events_that_fit_no_phase_or_item_are_counted_apart() -> None:
    found = ledger(judged(99), judged(0, "explore-9"), Stepped(phase="erpo-1", facts={"step": 3, "steps": 7}))
    assert (found.unknown, found.events) == (2, 3)
    assert (found.phases["erpo-1"].step, found.phases["erpo-1"].steps) == (3, 7)
