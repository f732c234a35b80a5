"""Curves for TensorBoard, written while the run goes on: every optimiser step, every evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from safer_ray.core.events import Event, Sealed, Stepped
from safer_ray.core.loop import LoopState
from safer_ray.driver import Observer
from safer_ray.errors import JournalError, boundary

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Scalars(Protocol):
    """What is needed of TensorBoard's writer."""

    def add_scalar(self, tag: str, data: float, step: int, *, wall_time: float | None = None) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Writes whatever is a number: ``PHASE/loss`` by optimiser step, ``evaluate/asr`` by policy version."""

    def __init__(self, scalars: Scalars) -> None:
        self._scalars = scalars

    def observe(self, state: LoopState, event: Event, at: float) -> None:
        """Write what one accepted event tells."""
        match event:
            case Stepped():
                self._write(event.phase, event.facts, event.facts["step"], at)
            case Sealed() if state.by_name[event.phase].phase.kind == "evaluate":
                self._write("evaluate", event.facts, state.by_name[event.phase].phase.version, at)
                self._scalars.flush()

    def close(self) -> None:
        """Write what is held back, and end."""
        self._scalars.close()

    def _write(self, group: str, facts: Mapping[str, Any], step: int, at: float) -> None:
        for name, value in facts.items():
            if isinstance(value, int | float) and name not in ("step", "steps"):
                self._scalars.add_scalar(f"{group}/{name}", float(value), step, wall_time=at)


@contextmanager
def tracked(folder: Path, by: Literal["none", "tensorboard"]) -> Iterator[Observer]:
    """Yield an observer that writes an event file into ``folder``, if anything; a resumed run adds another file.

    Curves are for people: when they cannot be written that is said once, and the run goes on without.
    """
    broken = False

    def attempt(act: Callable[[], Result]) -> Result | None:
        nonlocal broken
        try:
            with boundary(JournalError, f"{folder}: the run goes on without curves"):
                return act()
        except JournalError as exc:
            broken = True
            logger.warning("%s", exc)
            return None

    tracker = None if by == "none" else attempt(lambda: Tracker(_writer(folder)))
    if tracker is None:
        yield lambda state, event, at: None
        return
    try:
        yield lambda state, event, at: None if broken else attempt(partial(tracker.observe, state, event, at))
    finally:
        attempt(tracker.close)


def _writer(folder: Path) -> Scalars:
    from tensorboard.summary import Writer

    writer: Scalars = Writer(str(folder))
    return writer


__all__ = ["Scalars", "Tracker", "tracked"]
