"""The plan of a run: its phases in order.

evaluate-base, teach, sft, publish-1, evaluate-sft, explore-1, erpo-1, publish-2, evaluate-erpo-1, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

PhaseKind = Literal["evaluate", "teach", "explore", "sft", "erpo", "publish"]
GATHER: frozenset[str] = frozenset({"evaluate", "teach", "explore"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One line of the plan.

    ``items`` prompts are worked on (0 outside gather phases); ``version`` is the policy version the phase
    samples from at best - what the learner has when it trains on them - or the one it trains or publishes;
    ``oldest`` is the oldest version it may sample from, or train on the samples of; ``checkpoint`` names the
    weights it evaluates or trains.
    """

    name: str
    kind: PhaseKind
    items: int = 0
    round: int = 0
    version: int = 0
    oldest: int = 0
    checkpoint: str = ""

    @property
    def gathers(self) -> bool:
        """Whether the phase works on prompts."""
        return self.kind in GATHER

    def takes(self, version: int) -> bool:
        """Whether samples of that policy version may be used here."""
        return self.oldest <= version <= self.version

    def feeds(self, other: Phase) -> bool:
        """Whether ``other`` trains on what this phase gathers."""
        pairs = self.kind == "explore" and other.kind == "erpo" and self.round == other.round
        return pairs or (self.kind == "teach" and other.kind == "sft")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSizes:
    """How many prompts each gather phase works on, and how many ERPO rounds there are."""

    teach: int
    explore: int
    evaluate: int
    rounds: int


def make_plan(
    stages: Sequence[str], sizes: PlanSizes, *, evaluate_each: bool = True, max_lag: int = 0
) -> tuple[Phase, ...]:
    """Return the phases of a run of ``stages`` (see ``config.STAGE_ORDER``).

    ``evaluate_each`` evaluates after every checkpoint; otherwise only the first and the last are. Exploring may
    sample from weights ``max_lag`` versions behind the learner's, but never from before SFT: such a policy writes
    no steps. Everything else samples from exactly its version.
    """
    phases: list[Phase] = []
    if "synth" in stages:
        phases.append(Phase(name="teach", kind="teach", items=sizes.teach, checkpoint="base"))
    rounds = range(1, sizes.rounds + 1) if "erpo" in stages else range(0)
    trainings = [(0, "sft")] * ("sft" in stages) + [(number, f"erpo-{number}") for number in rounds]
    evaluations = [(0, _evaluation("base", 0, sizes))]
    for version, (number, name) in enumerate(trainings, start=1):
        oldest = 0
        if number:
            oldest = max(int("sft" in stages), version - 1 - max_lag)
            gather = Phase(name=f"explore-{number}", kind="explore", items=sizes.explore, round=number)
            phases.append(replace(gather, version=version - 1, oldest=oldest))
        kind: PhaseKind = "erpo" if number else "sft"
        phases.append(Phase(name=name, kind=kind, round=number, version=version, oldest=oldest, checkpoint=name))
        phases.append(Phase(name=f"publish-{version}", kind="publish", version=version, checkpoint=name))
        evaluations.append((len(phases), _evaluation(name, version, sizes)))
    if "evaluate" not in stages:
        return tuple(phases)
    if not evaluate_each:
        evaluations = [evaluations[0], *evaluations[1:][-1:]]
    for position, phase in reversed(evaluations):
        phases.insert(position, phase)
    return tuple(phases)


def _evaluation(checkpoint: str, version: int, sizes: PlanSizes) -> Phase:
    phase = Phase(name=f"evaluate-{checkpoint}", kind="evaluate", items=sizes.evaluate, checkpoint=checkpoint)
    return replace(phase, version=version, oldest=version)
