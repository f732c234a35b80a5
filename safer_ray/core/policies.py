"""Scheduling policies: what is worked on when. A policy is a function of the state that gives actions.

What may begin at all is the same for all of them (``LoopState.startable``); they differ in how much of it they use:

==================  ================================================================  =================
policy              works on                                                          oldest preference
==================  ================================================================  =================
synchronous         one phase after the other                                         0 versions behind
one_round_ahead     and explores the next round while this one trains and publishes   1 version behind
fully_async         and explores any round the lag allows, before this one is sealed  ``max_lag`` behind
==================  ================================================================  =================

Phases at work together share the in-flight limit; the earliest in the plan is served first, so nothing that
holds up the learner waits for what runs ahead of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from safer_ray.core.events import Action, Drop, Judge, Publish, Sample, Seal, Train
from safer_ray.core.loop import Item, LoopState, Progress
from safer_ray.core.plan import Phase

DEATHS_TO_QUARANTINE = 2
"""Workers that had nothing but one item to die of: one may have been killed from outside, two hardly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What no policy may exceed: items open at once over all phases, failures of one item before it is dropped."""

    max_in_flight: int
    max_tries: int


Policy = Callable[[LoopState, Limits], list[Action]]


def synchronous(state: LoopState, limits: Limits) -> list[Action]:
    """One phase after the other; inside a phase, as many items at once as the limit allows."""
    return _work(state, limits, state.unended[:1])


def one_round_ahead(state: LoopState, limits: Limits) -> list[Action]:
    """Whatever may begin, except that a round is explored only once the rounds before it are sealed."""
    phases, exploring = list[Progress](), False
    for progress in state.startable:
        if progress.phase.kind == "explore":
            if exploring:
                continue
            exploring = True
        phases.append(progress)
    return _work(state, limits, phases)


def fully_async(state: LoopState, limits: Limits) -> list[Action]:
    """Whatever may begin: rounds are explored side by side, as far ahead as their oldest version allows."""
    return _work(state, limits, state.startable)


POLICIES: dict[str, Policy] = {
    "synchronous": synchronous,
    "one_round_ahead": one_round_ahead,
    "fully_async": fully_async,
}


def _work(state: LoopState, limits: Limits, phases: Iterable[Progress]) -> list[Action]:
    actions, room = list[Action](), limits.max_in_flight - state.in_flight
    for progress in phases:
        if progress.phase.gathers:
            before = len(progress.open)
            actions += _gather(progress, limits, room)
            room -= len(progress.open) - before
        elif not progress.asked:
            actions.append(_learn(progress.phase))
    return actions


def _learn(phase: Phase) -> Train | Publish:
    return Publish(phase=phase.name, version=phase.version) if phase.kind == "publish" else Train(phase=phase.name)


def _gather(progress: Progress, limits: Limits, room: int) -> list[Action]:
    phase, actions = progress.phase, list[Action]()
    while progress.ready:
        index = progress.ready.popleft()
        item = progress.open.get(index)
        if item is None or item.waiting:
            continue
        if reason := _given_up(progress, index, limits):
            actions.append(Drop(phase=phase.name, item=index, reason=reason))
            continue
        actions.append(_next_action(phase, index, item))
    while room > 0 and progress.cursor < phase.items:
        index = progress.cursor
        progress.cursor += 1
        if not progress.done[index] and index not in progress.open:
            if reason := _given_up(progress, index, limits):  # the run stopped before the drop was journalled
                actions.append(Drop(phase=phase.name, item=index, reason=reason))
                continue
            progress.open[index] = Item()
            actions.append(_next_action(phase, index, progress.open[index]))
            room -= 1
    if progress.settled and not progress.asked:
        actions.append(Seal(phase=phase.name))
    return actions


def _given_up(progress: Progress, index: int, limits: Limits) -> str:
    """Return why an item is not tried again, "" if it is."""
    deaths = progress.deaths.get(index, 0)
    if deaths >= DEATHS_TO_QUARANTINE:
        return f"quarantined after {deaths} workers died of it: {progress.last_reason[index]}"
    return progress.last_reason[index] if progress.tries.get(index, 0) >= limits.max_tries else ""


def _next_action(phase: Phase, index: int, item: Item) -> Action:
    kind = Sample if item.next == "sample" else Judge
    return kind(phase=phase.name, item=index, level=item.level, attempt=item.attempt)
