"""What a judge that is a model can say of a text: a score, that it abstains, or nothing usable. Never a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from safer_ray.records import Refusal

RulingKind = Literal["score", "abstain", "failed"]
Order = Literal["first", "second", "tie"]
"""Which of two texts is better, by the place they stood in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """One judge on one text and axis. ``refusal`` and ``harmful`` are set by judges that say them.

    ``abstain``: the judge looked and would not say, or is not made for this. ``failed``: it gave no usable answer.
    """

    kind: RulingKind
    score: float | None = None
    reason: str = ""
    rules: tuple[str, ...] = ()
    refusal: Refusal | None = None
    harmful: bool | None = None

    def __post_init__(self) -> None:
        if (self.kind == "score") != (self.score is not None):
            raise ValueError(f"ruling: kind {self.kind} with score {self.score}; a score has one, nothing else has")
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"ruling: score {self.score} is outside [0, 1]")
        if self.kind != "score" and not self.reason:
            raise ValueError(f"ruling: {self.kind} without a reason")

    @property
    def error(self) -> str:
        """What stands in a verdict without a score; "" with one."""
        return "" if self.kind == "score" else f"{self.kind}: {self.reason}"


def abstained(reason: str) -> Ruling:
    """Return a ruling that says nothing, on purpose."""
    return Ruling(kind="abstain", reason=reason)


def failed(reason: str) -> Ruling:
    """Return a ruling that says nothing, against the will of whoever asked."""
    return Ruling(kind="failed", reason=reason)


def scored(score: float, reason: str = "", *, rules: Sequence[str] = (), refusal: Refusal | None = None) -> Ruling:
    """Return a ruling with a score."""
    return Ruling(kind="score", score=score, reason=reason, rules=tuple(rules), refusal=refusal)


def agreed_order(forward: Order | None, swapped: Order | None) -> Order | None:
    """Return which of two texts is better, asked in both orders; None if the orders disagree or one was not answered.

    ``swapped`` is the answer with the texts exchanged: "first" there means the second text.
    """
    back: Mapping[Order, Order] = {"first": "second", "second": "first", "tie": "tie"}
    if forward is None or swapped is None:
        return None
    return forward if back[swapped] == forward else None


def win_share(orders: Sequence[Order | None]) -> float | None:
    """Return the share of comparisons won from the first place, ties half; None if none could be decided."""
    worth: Mapping[Order, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}
    decided = [worth[order] for order in orders if order is not None]
    return sum(decided) / len(decided) if decided else None
