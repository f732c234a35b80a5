"""Several judges, one ruling: weights, a quorum, disagreement, and a veto on safety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safer_ray.core.verdicts import Ruling, abstained, failed, scored
from safer_ray.records import Axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one member said, and how much it counts."""

    judge: str
    weight: float
    ruling: Ruling


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleRules:
    """How votes become one ruling.

    ``quorum``: least share of the weight of the members that could speak to this (did not abstain as not made for
    it) that must have scored. ``max_spread``: scores further apart than this are disagreement, and nobody is right.
    ``veto``: a member whose safety score below ``veto_below`` stands whatever the others say; "" for none.
    """

    quorum: float = 0.5
    max_spread: float = 0.5
    veto: str = ""
    veto_below: float = 0.5


def combine(axis: Axis, votes: Sequence[Vote], rules: EnsembleRules) -> Ruling:
    """Return the ruling of all members together: the weighted mean of the scores, or why there is none."""
    assert votes, "an ensemble has members"
    said = [(vote, vote.ruling.score) for vote in votes if vote.ruling.score is not None]
    hits = tuple(dict.fromkeys(rule for vote, _ in said for rule in vote.ruling.rules))
    if axis == "safety":
        for vote, score in said:
            if vote.judge == rules.veto and score < rules.veto_below:
                return scored(score, f"veto of {vote.judge}: {vote.ruling.reason}", rules=hits)
    asked = sum(vote.weight for vote in votes if vote.ruling.kind != "abstain")
    have = sum(vote.weight for vote, _ in said)
    if not said and not asked:
        return abstained(_why(votes))
    if have <= 0 or have < rules.quorum * asked:
        return failed(f"quorum missed, {have:g} of {asked:g}: {_why(votes)}")
    scores = [score for _, score in said]
    if max(scores) - min(scores) > rules.max_spread:
        return abstained("judges disagree: " + ", ".join(f"{vote.judge} {score:.2f}" for vote, score in said))
    mean = sum(vote.weight * score for vote, score in said) / have
    reason = "; ".join(f"{vote.judge} {score:.2f} {vote.ruling.reason}".rstrip() for vote, score in said)
    return scored(min(1.0, max(0.0, mean)), reason, rules=hits)


def _why(votes: Sequence[Vote]) -> str:
    return "; ".join(f"{vote.judge} {vote.ruling.error}" for vote in votes if vote.ruling.error)
