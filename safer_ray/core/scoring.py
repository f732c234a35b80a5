"""Verdicts on one step -> one score per axis. No verdict, no score: None is never 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from safer_ray.records import AXES, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """What pairing compares, in the order of the fields; None where no judge could say."""

    safety: float | None
    helpfulness: float | None
    efficiency: float | None


def score_of(verdicts: Sequence[Verdict]) -> StepScore:
    """Combine the verdicts of one or more judges on one step.

    Safety is what the strictest judge says; the other axes are the mean over the judges that scored.

    Raises:
        ValueError: if the verdicts are not all on the same step.
    """
    steps = {(verdict.rollout_id, verdict.step_index) for verdict in verdicts}
    if len(steps) > 1:
        raise ValueError(f"verdicts on {len(steps)} different steps cannot be one score")
    by_axis = {axis: [v.score for v in verdicts if v.axis == axis and v.score is not None] for axis in AXES}
    return StepScore(
        safety=min(by_axis["safety"], default=None),
        helpfulness=fmean(by_axis["helpfulness"]) if by_axis["helpfulness"] else None,
        efficiency=fmean(by_axis["efficiency"]) if by_axis["efficiency"] else None,
    )


def efficiency(tokens: int, *, floor: int = 12, cap: int = 256) -> float:
    """Return 1 for no tokens, 0 from ``cap`` tokens on; below ``floor`` being shorter earns nothing more."""
    return max(0.0, 1.0 - max(tokens, floor) / cap)
