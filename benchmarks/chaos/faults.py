"""Which faults one broken run gets, and when: a function of its seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill sampler", "kill judge", "kill learner", "kill driver", "kill raylet",
    "delay", "torn journal line", "truncated shard", "full disk",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
FEWEST, MOST = 3, 6
_HARSH: frozenset[Kind] = frozenset({"kill raylet", "full disk"})
"""At most one of each in a run: they stop everything for seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens once the journal holds ``at_line`` lines; ``pick`` in [0, 1) chooses the victim."""

    kind: Kind
    at_line: int
    pick: float


def plan_faults(seed: int, lines: int, possible: tuple[Kind, ...] = KINDS) -> list[Fault]:
    """Return the faults of one run, in order of time. ``lines`` is how long the unbroken run's journal is.

    Points are drawn over the first nine tenths, so that the run is still going when the last one is due.
    """
    rng = random.Random(f"chaos {seed}")
    count = rng.randint(FEWEST, MOST)
    # every kind comes round whatever the seeds are: one is given, the others are drawn
    kinds: list[Kind] = [possible[seed % len(possible)]]
    while len(kinds) < count:
        kind = rng.choice(possible)
        if kind not in _HARSH or kind not in kinds:
            kinds.append(kind)
    rng.shuffle(kinds)
    points = sorted(rng.randint(2, max(3, lines * 9 // 10)) for _ in kinds)
    return [Fault(kind=kind, at_line=at, pick=rng.random()) for kind, at in zip(kinds, points, strict=True)]
