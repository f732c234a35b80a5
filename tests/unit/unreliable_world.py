"""A world that keeps its promises in the worst order: late, twice, from weights that missed a publication."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

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
)
from safer_ray.core.loop import LoopState, admitted, apply, submitted
from safer_ray.core.plan import Phase
from safer_ray.core.policies import Limits, Policy

STAGES = ("evaluate", "synth", "sft", "erpo")
LIMITS = Limits(max_in_flight=4, max_tries=3)
LEVELS = 3


class UnreliableWorld:
    """Answers in any order: some answers twice, some only after their loss was reported, some from old weights.

    Without ``faults`` it only reorders. It keeps its own books - which versions an item that was not given up was
    sampled from - so that a law can be checked against what happened, not against what the loop believes.
    """

    def __init__(self, seed: int, plan: Sequence[Phase], max_lag: int, *, faults: bool = True) -> None:
        self.random = random.Random(seed)
        self.plan = {phase.name: phase for phase in plan}
        self.max_lag = max_lag
        self.faults = faults
        self.pending: list[Event] = []
        self.served = 0
        self.learner = 0
        self.lags: list[tuple[str, list[int]]] = []
        """Per training round, in order: how far behind the learner each level of each item was."""
        self._sampled: dict[tuple[str, int], list[int]] = {}
        self._kept: dict[tuple[str, int], list[int]] = {}
        self._done: set[str] = set()

    def restarted(self, state: LoopState) -> UnreliableWorld:
        """Return the world of a resumed run: nothing is in flight, finished items lie on disk."""
        world = UnreliableWorld(self.random.randrange(10**6), list(self.plan.values()), self.max_lag)
        world.served = state.policy_version
        ended = [p.phase for p in state.phases if p.ended]
        world.learner = max((phase.version for phase in ended if phase.kind in ("sft", "erpo")), default=0)
        world.lags, world._kept = self.lags, self._kept
        return world

    def versions(self, phase: str, item: int) -> list[int]:
        """Return the versions a finished item was sampled from; none if it was dropped."""
        return self._kept.get((phase, item), [])

    def submit(self, action: Action) -> None:
        answers = [self._answer(action)]
        if isinstance(action, Sample | Judge) and self._happens(0.15):
            killed, alone = self._happens(0.3), self._happens(0.5)
            lost = Lost(
                phase=action.phase,
                item=action.item,
                attempt=action.attempt,
                reason="deadline",
                killed_worker=killed,
                alone=killed and alone,
            )
            # The answer is lost for good, or comes after all, late.
            answers = [lost] if self._happens(0.5) else [lost, *answers]
        if self._happens(0.2):
            answers.append(answers[-1])
        self.pending += answers

    def next_event(self) -> Event:
        assert self.pending, "nothing is in flight, so nothing will ever come"
        event = self.pending.pop(self.random.randrange(len(self.pending)))
        if isinstance(event, Published):
            self.served = max(self.served, event.version)
        return event

    def _happens(self, chance: float) -> bool:
        return self.faults and self.random.random() < chance

    def _answer(self, action: Action) -> Event:
        match action:
            case Sample():
                return self._sample(action)
            case Judge():
                return self._judge(action)
            case Drop():
                return Dropped(phase=action.phase, item=action.item, reason=action.reason)
            case Seal():
                return Sealed(phase=action.phase, facts={}, wall_s=0.0)
            case Train():
                return self._train(action)
            case Publish():
                assert action.version == self.learner == self.served + 1, "one version after the other"
                return Published(phase=action.phase, version=action.version, checksum="c", nbytes=1, wall_s=0.0)

    def _sample(self, action: Sample) -> Sampled:
        # One sampler in ten has missed what was published last; another has it before anybody heard of it.
        version = max(0, self.served - 1) if self._happens(0.1) else self.served
        key = (action.phase, action.item)
        self._sampled[key] = [*(self._sampled.get(key, []) if action.level else []), version]
        return Sampled(
            phase=action.phase, item=action.item, level=action.level, attempt=action.attempt, policy_version=version
        )

    def _judge(self, action: Judge) -> Judged:
        final = action.level + 1 == LEVELS
        key = (action.phase, action.item)
        if final:
            self._kept[key] = self._sampled[key]
        return Judged(phase=action.phase, item=action.item, level=action.level, attempt=action.attempt, final=final)

    def _train(self, action: Train) -> Trained:
        phase = self.plan[action.phase]
        assert phase.version == self.learner + 1, "the learner trains one stage after the other"
        if phase.kind == "erpo":
            explored = self.plan[f"explore-{phase.round}"]
            versions = [v for item in range(explored.items) for v in self.versions(explored.name, item)]
            self.lags.append((phase.name, [self.learner - version for version in versions]))
        self.learner = phase.version
        return Trained(phase=action.phase, facts={}, wall_s=0.0)


def carry_on(
    policy: Policy,
    state: LoopState,
    events: list[Event],
    world: UnreliableWorld,
    stop_after: int | None = None,
    look: Callable[[LoopState], None] = lambda state: None,
) -> None:
    """Drive as the driver does, and append what was accepted to ``events``."""
    while state.current is not None and (stop_after is None or len(events) < stop_after):
        for action in policy(state, LIMITS):
            submitted(state, action)
            world.submit(action)
        assert state.in_flight <= LIMITS.max_in_flight
        look(state)
        event = admitted(state, world.next_event())
        if apply(state, event):
            events.append(event)
