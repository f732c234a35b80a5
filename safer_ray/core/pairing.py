"""Judged siblings at one prefix -> step pairs.

Preference is lexicographic: safer first; at equal safety the more helpful by a margin; at equal both the
shorter, if it saves at least the share ``length_margin`` of tokens and is not below the token floor.
A step without a score on an axis makes no pair that needs that axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from safer_ray.core.scoring import StepScore
from safer_ray.records import AXES, Axis, Lineage, Rollout, StepPair

_ROUNDING = 1e-9
"""A difference this close to its margin reaches it: 1.0 - 0.8 is less than 0.2 in binary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingRules:
    """Margins; see ``config.PairingConfig`` for the meaning of each."""

    safety_margin: float = 0.2
    helpfulness_margin: float = 0.15
    length_margin: float = 0.2
    token_floor: int = 12
    length_score_floor: float = 0.5
    max_pairs_per_axis: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredStep:
    """A sibling: a rollout of exactly one step, and what the judges made of it."""

    rollout: Rollout
    score: StepScore

    @property
    def tokens(self) -> int:
        """Length of the step in tokens."""
        return len(self.rollout.completion_ids)


@dataclass(frozen=True, slots=True)
class Preference:
    """``chosen`` over ``rejected`` on ``axis`` by ``margin`` > 0."""

    chosen: ScoredStep
    rejected: ScoredStep
    axis: Axis
    margin: float


def prefer(a: ScoredStep, b: ScoredStep, rules: PairingRules) -> Preference | None:
    """Return which of two siblings is preferred, on the first axis that tells them apart, or None."""
    for axis, least in (("safety", rules.safety_margin), ("helpfulness", rules.helpfulness_margin)):
        x, y = getattr(a.score, axis), getattr(b.score, axis)
        if x is None or y is None:
            return None
        gap = abs(x - y)
        if gap > 0 and gap >= least - _ROUNDING:
            return Preference(*((a, b) if x > y else (b, a)), axis, gap)  # type: ignore[arg-type]
    return _shorter(a, b, rules)


def _shorter(a: ScoredStep, b: ScoredStep, rules: PairingRules) -> Preference | None:
    short, long = (a, b) if a.tokens < b.tokens else (b, a)
    saved = 1.0 - short.tokens / long.tokens
    scores = [getattr(step.score, axis) for step in (a, b) for axis in ("safety", "helpfulness")]
    good = all(score is not None and score >= rules.length_score_floor for score in scores)
    whole = a.rollout.finish == b.rollout.finish == "stop"
    enough = saved > 0 and saved >= rules.length_margin - _ROUNDING
    if not good or not whole or not enough or short.tokens < rules.token_floor:
        return None
    return Preference(short, long, "efficiency", saved)


def pair_siblings(
    siblings: Sequence[ScoredStep], rules: PairingRules, lineage: Lineage, prefix_text: str = ""
) -> list[StepPair]:
    """Return the preferred pairs among siblings, widest margins first, at most so many per axis.

    Raises:
        ValueError: if the siblings do not continue one and the same prefix with one step each.
    """
    _check_siblings(siblings)
    found = [p for a, b in combinations(siblings, 2) if (p := prefer(a, b, rules)) is not None]
    found = [p for p in found if p.chosen.rollout.completion_ids != p.rejected.rollout.completion_ids]
    pairs: list[StepPair] = []
    for axis in AXES:
        ranked = sorted(
            (p for p in found if p.axis == axis),
            key=lambda p: (-p.margin, p.chosen.rollout.rollout_id, p.rejected.rollout.rollout_id),
        )
        pairs.extend(_as_record(p, lineage, prefix_text) for p in ranked[: rules.max_pairs_per_axis])
    return pairs


def _check_siblings(siblings: Sequence[ScoredStep]) -> None:
    rollouts = [sibling.rollout for sibling in siblings]
    contexts = {(r.prompt_id, r.prompt_ids, r.prefix_ids, r.first_step) for r in rollouts}
    if len(contexts) > 1:
        raise ValueError(f"siblings of {len(contexts)} different prefixes cannot be paired")
    if any(len(r.steps) != 1 for r in rollouts):
        raise ValueError("a sibling must be exactly one step")


def _as_record(preference: Preference, lineage: Lineage, prefix_text: str) -> StepPair:
    chosen, rejected = preference.chosen.rollout, preference.rejected.rollout
    key = f"{lineage.round}/{preference.axis}/{chosen.rollout_id}/{rejected.rollout_id}"
    return StepPair(
        pair_id=hashlib.sha256(key.encode()).hexdigest()[:16],
        prompt_id=chosen.prompt_id,
        step_index=chosen.first_step,
        step_kind=chosen.steps[0].kind,
        axis=preference.axis,
        prompt_ids=chosen.prompt_ids,
        prefix_ids=chosen.prefix_ids,
        chosen_ids=chosen.completion_ids,
        rejected_ids=rejected.completion_ids,
        chosen_text=chosen.text,
        rejected_text=rejected.text,
        margin=preference.margin,
        policy_version=min(chosen.policy_version, rejected.policy_version),
        lineage=lineage,
        prefix_text=prefix_text,
    )
