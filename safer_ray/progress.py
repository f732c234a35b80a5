"""Showing how a run goes: bars with rates and time left on a terminal, plain lines in a job's log."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from safer_ray.core.events import Event, Judged, Published, Sealed, Stepped, Trained
from safer_ray.core.loop import LoopState

logger = logging.getLogger("safer_ray.progress")
_LINE_EVERY_S = 15.0


class ProgressView:
    """Observes a run's events; use it as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>12}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._live = console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._spoke = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def observe(self, state: LoopState, event: Event, at: float) -> None:
        """Show one accepted event."""
        progress = state.by_name[event.phase]
        match event:
            case Stepped():
                facts = event.facts
                note = f"loss {facts['loss']:.3f}" + (
                    f" margin {facts['margin']:.3f}" if facts["margin"] is not None else ""
                )
                self._show(event.phase, facts["step"], facts["steps"], "step/s", note, at)
            case Judged() if event.final:
                settled = progress.finished_items + progress.dropped_items
                dropped = f"{progress.dropped_items} dropped" if progress.dropped_items else ""
                self._show(event.phase, settled, progress.phase.items, "prompt/s", dropped, at)
            case Sealed():
                self._say(event.phase, _headline(event), at)
            case Trained():
                self._say(event.phase, f"trained {event.facts['steps']} steps in {event.wall_s:.0f} s", at)
            case Published():
                self._say(event.phase, f"weights version {event.version} serving in {event.wall_s:.2f} s", at)
            case _:
                pass

    def _show(self, phase: str, done: int, total: int, unit: str, note: str, at: float) -> None:
        begun = self._begun.setdefault(phase, at)
        rate = (done - 1) / (at - begun) if done > 1 and at > begun else 0.0
        if self._live:
            if phase not in self._tasks:
                self._tasks[phase] = self._bars.add_task(phase, total=total, rate="", note="")
            shown = f"{rate:.2f} {unit}"
            self._bars.update(self._tasks[phase], completed=done, total=total, rate=shown, note=note)
        elif done == total or time.monotonic() - self._spoke > _LINE_EVERY_S:
            self._spoke = time.monotonic()
            left = f"{(total - done) / rate:.0f}" if rate else "?"
            logger.info("%s %d/%d %.2f %s, %s s left %s", phase, done, total, rate, unit, left, note)

    def _say(self, phase: str, what: str, at: float) -> None:
        if self._live:
            self._bars.console.print(f"[bold]{phase}[/bold]  {what}", highlight=False)
        logger.info("%s: %s", phase, what)


def _headline(event: Sealed) -> str:
    facts = event.facts
    if "asr" in facts:
        shares = (("ASR", "asr"), ("over-refusal", "over_refusal"), ("well-formed", "well_formed"))
        known = [f"{label} {facts[key]:.0%}" for label, key in shares if facts.get(key) is not None]
        if facts.get("well_formed") is None:
            return "no answer could be judged, so nothing is known of this checkpoint"
        return ", ".join([*known, f"reasoning tokens p50 {facts.get('reasoning_tokens_p50')}"])
    if "pairs_by_axis" in facts:
        return "pairs " + (", ".join(f"{axis} {n}" for axis, n in facts["pairs_by_axis"].items()) or "none")
    return ", ".join(f"{name} {value}" for name, value in facts.items())
