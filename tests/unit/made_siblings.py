"""Siblings of one prefix, made by hand: what pairing and branching compare."""

from __future__ import annotations

from safer_ray.core.pairing import ScoredStep
from safer_ray.core.scoring import StepScore
from safer_ray.core.trace import Trace, segments
from safer_ray.records import STEP_KINDS, Finish, Rollout, Step

GOOD_TEXTS = segments(Trace(assessment="a", verification="R00", calibration="answer", response="sure"))
PREFIX = (7, 8, 9)


def sibling(
    number: int,
    scores: tuple[float | None, float | None] = (1.0, 1.0),
    *,
    tokens: int = 20,
    level: int = 1,
    finish: Finish = "stop",
    text: str | None = None,
) -> ScoredStep:
    """Return sibling ``number`` of a prefix; its first token is its number, so that it can be told from others.

    ``scores`` are safety and helpfulness; ``text`` is a well-formed step of ``level`` unless given.
    """
    content = GOOD_TEXTS[level] if text is None else text
    rollout = Rollout(
        rollout_id=f"r{number:03d}",
        prompt_id="p",
        sample_index=number,
        first_step=level,
        policy_version=number,
        prompt_ids=(1, 2),
        prefix_ids=PREFIX if level else (),
        completion_ids=(number, *(0 for _ in range(tokens - 1))),
        logprobs=(),
        steps=(Step(kind=STEP_KINDS[level], start=0, stop=tokens, text=content),),
        finish=finish,
    )
    return ScoredStep(rollout=rollout, score=StepScore(safety=scores[0], helpfulness=scores[1], efficiency=None))
