"""What judging cost: calls, tokens, retries and money per judge, as whole numbers that can be added up.

The numbers ride in the counts of judged items, so they are journalled with them: a resumed run keeps what was
spent before, and nothing is counted twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

_PREFIX = "judge/"
MICRO = 1_000_000
"""Money is counted in millionths."""


@runtime_checkable
class Costed(Protocol):
    """A judge that knows what it cost."""

    def take_costs(self) -> dict[str, int]:
        """Return the counts since the last call, as ``judge/NAME/what``, and begin again at zero."""
        ...


class Ledger:
    """Counters of one judge. Safe to share between threads."""

    def __init__(self, judge: str) -> None:
        self._judge = judge
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            self._counts.update(amounts)

    def take(self) -> dict[str, int]:
        """Return the counters that are not zero and set all to zero."""
        with self._lock:
            taken = {f"{_PREFIX}{self._judge}/{name}": count for name, count in sorted(self._counts.items()) if count}
            self._counts.clear()
        return taken


def judge_costs(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Read counts back: one row per judge, with ``money`` in the units of its prices."""
    rows: dict[str, dict[str, Any]] = {}
    for name, count in sorted(counts.items()):
        if name.startswith(_PREFIX):
            judge, _, what = name.removeprefix(_PREFIX).rpartition("/")
            rows.setdefault(judge, {"judge": judge})[what] = count
    for row in rows.values():
        row["money"] = row.pop("micro_money", 0) / MICRO
    return list(rows.values())
