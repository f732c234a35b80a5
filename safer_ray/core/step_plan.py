"""The optimiser steps of a stage: which packs each takes, and which rank computes which of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from safer_ray.core.packing import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One optimiser step: per rank the indices of its packs, equally many on every rank; None is an idle turn.

    Equal numbers matter: under ZeRO-3 every forward is a collective, and a rank with fewer would hang the rest.
    """

    ranks: tuple[tuple[int | None, ...], ...]

    @property
    def packs(self) -> tuple[int, ...]:
        """The packs of the step, over all ranks."""
        return tuple(index for rank in self.ranks for index in rank if index is not None)


def balance(lengths: dict[int, int], ranks: int) -> StepPlan:
    """Share packs (index -> tokens) among ranks, longest first to whoever has the least work and a free turn."""
    turns = math.ceil(len(lengths) / ranks)
    shares: list[list[int | None]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(lengths, key=lambda index: (-lengths[index], index)):
        rank = min((r for r in range(ranks) if len(shares[r]) < turns), key=lambda r: (loads[r], r))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return StepPlan(ranks=tuple((*share, *[None] * (turns - len(share))) for share in shares))


def plan_steps(
    packs: Sequence[Pack], *, ranks: int, tokens_per_step: int, epochs: int = 1, seed: int = 0
) -> list[StepPlan]:
    """Return the optimiser steps of a stage: each epoch visits every pack once, in an order drawn from ``seed``.

    Steps hold about ``tokens_per_step`` tokens over all ranks, and about equally many, so that no step is a leftover.
    """
    total = sum(row.tokens for row in packs)
    steps = min(len(packs), max(1, round(total / tokens_per_step)))
    plan = []
    for epoch in range(epochs):
        order = list(range(len(packs)))
        Random(f"{seed} {epoch}").shuffle(order)
        for share in _cut(order, [packs[index].tokens for index in order], steps):
            plan.append(balance({index: packs[index].tokens for index in share}, ranks))
    return plan


def _cut(order: Sequence[int], lengths: Iterable[int], parts: int) -> list[list[int]]:
    """Cut a sequence into ``parts`` non-empty pieces of about equal total length."""
    ends = np.cumsum(list(lengths))
    cuts = [0]
    for part in range(1, parts):
        nearest = int(np.argmin(np.abs(ends - ends[-1] * part / parts))) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(order) - (parts - part)))
    return [list(order[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(order)], strict=True)]
