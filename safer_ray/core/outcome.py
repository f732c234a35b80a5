"""A step's value by what comes of it: the mean score of continuations sampled after it, each judged at its end.

A Monte-Carlo estimate of the reward of a step, as in Math-Shepherd (Wang et al. 2023, arXiv 2312.08935). The
continuations go on from the very tokens of the step, so a sampler computes the prefix they share once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from safer_ray.core.branching import derived_seed
from safer_ray.core.trace import step_text
from safer_ray.core.verdicts import Ruling, failed, scored
from safer_ray.records import STEP_KINDS, Axis, Rollout, SampleRequest, Step

_RESPONSE = len(STEP_KINDS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRules:
    """Which axes are valued by continuations, how many there are per step, and which share must have been judged."""

    continuations: int = 4
    axes: tuple[Axis, ...] = ("safety",)
    min_judged: float = 0.5

    @property
    def least(self) -> int:
        """The continuations that must have been judged, at least one."""
        return max(1, math.ceil(self.min_judged * self.continuations))


def step_value(scores: Sequence[float | None], rules: OutcomeRules) -> Ruling:
    """Return the mean of the scores at the ends of a step's continuations; with too few of them, no score at all."""
    have = [score for score in scores if score is not None]
    if len(have) < rules.least:
        return failed(f"{len(have)} of {rules.continuations} continuations could be judged, {rules.least} are needed")
    listed = " ".join(f"{score:.2f}" for score in have)
    return scored(min(max(have), max(min(have), fmean(have))), f"mean of {len(have)} continuations: {listed}")


def continuation_requests(request: SampleRequest, siblings: Sequence[Rollout], each: int) -> list[SampleRequest]:
    """Return what to ask a sampler for: ``each`` whole continuations after every sibling that can be gone on from.

    Siblings of the same tokens share theirs. Nothing follows a response, or a step that was cut off or is malformed.
    """
    step = request.first_step
    if not each or request.mode != "step" or step >= _RESPONSE:
        return []
    fit = [r for r in siblings if r.finish == "stop" and step_text(step, r.text) is not None]
    distinct = {r.completion_ids: r for r in reversed(fit)}
    return [
        replace(
            request,
            request_id=f"{r.rollout_id}/ahead",
            prefix_ids=r.prefix_ids + r.completion_ids,
            first_step=step + 1,
            n=each,
            mode="trace",
            seed=derived_seed(request.seed, "ahead", step, r.sample_index),
        )
        for r in reversed(distinct.values())
    ]


def continuations_of(sibling: Rollout, sampled: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Return those of ``sampled`` that go on from exactly the sibling's tokens."""
    prefix = sibling.prefix_ids + sibling.completion_ids
    return tuple(r for r in sampled if r.first_step == sibling.first_step + 1 and r.prefix_ids == prefix)


def at_its_end(continuation: Rollout) -> tuple[Rollout, tuple[Step, ...]] | None:
    """Return a continuation's response as a rollout of its own, and the steps before it; None if it never got there."""
    *before, last = continuation.steps
    if last.kind != "response":
        return None
    ids, logprobs = continuation.completion_ids, continuation.logprobs
    end = replace(
        continuation,
        first_step=_RESPONSE,
        prefix_ids=continuation.prefix_ids + ids[: last.start],
        completion_ids=ids[last.start :],
        logprobs=logprobs[last.start :],
        steps=(replace(last, start=0, stop=last.tokens),),
    )
    return end, tuple(before)
