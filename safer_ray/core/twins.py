"""Twins: an unsafe prompt and a safe one that differ in little but the harm, told by their ids.

``R09-001-u`` is the unsafe twin under a rule, ``R09-001-s`` its safe near miss. Prompts of other sources may follow the
same rule; a prompt that does not is alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from safer_ray.records import Prompt

UNSAFE, SAFE = "-u", "-s"


def twin_name(prompt_id: str) -> str:
    """Return what the ids of both twins begin with, or the id of a prompt that is alone."""
    return prompt_id[: -len(UNSAFE)] if prompt_id.endswith((UNSAFE, SAFE)) else prompt_id


def mixed(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts in an order fixed by ``seed``, twins side by side.

    Traces that follow each other are learnt in one optimiser step. What twins share then weighs for both sides at once,
    and what is left of the step is what tells them apart.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(twin_name(prompt.prompt_id), []).append(prompt)
    names = list(groups)
    random.Random(seed).shuffle(names)
    return [prompt for name in names for prompt in groups[name]]


__all__ = ["mixed", "twin_name"]
