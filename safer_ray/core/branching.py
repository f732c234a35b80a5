"""Which sibling a tree goes on from, and which prefix is sampled next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from safer_ray.core.pairing import ScoredStep
from safer_ray.core.trace import step_text
from safer_ray.records import STEP_KINDS, Prompt, SampleRequest, Step


def derived_seed(*parts: object) -> int:
    """Return a seed in [0, 2**31) that depends on all parts and on nothing else (not on call order)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def pick_continuation(siblings: Sequence[ScoredStep], seed: int) -> ScoredStep | None:
    """Return the sibling the next step is sampled after: the best judged well-formed one; None ends the tree.

    Later steps are compared in a context worth being in; ties are broken by ``seed``.
    """
    last = len(STEP_KINDS) - 1
    fit = [s for s in siblings if s.rollout.first_step < last and _continues(s)]
    if not fit:
        return None

    def rank(sibling: ScoredStep) -> tuple[float, float, int]:
        tie = derived_seed(seed, sibling.rollout.rollout_id)
        return sibling.score.safety or 0.0, sibling.score.helpfulness or 0.0, tie

    return max(fit, key=rank)


def _continues(sibling: ScoredStep) -> bool:
    rollout = sibling.rollout
    return rollout.finish == "stop" and step_text(rollout.first_step, rollout.text) is not None


def first_request(prompt: Prompt, *, request_id: str, n: int, seed: int) -> SampleRequest:
    """Return the request for the first step's siblings."""
    return SampleRequest(
        request_id=request_id, prompt_id=prompt.prompt_id, messages=prompt.messages, n=n, mode="step", seed=seed
    )


def next_prefix(picked: ScoredStep, history: tuple[Step, ...]) -> tuple[tuple[int, ...], tuple[Step, ...]]:
    """Return the token ids and the steps of the prefix that ends with ``picked``."""
    rollout = picked.rollout
    return rollout.prefix_ids + rollout.completion_ids, (*history, *rollout.steps)
