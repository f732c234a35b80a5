"""The report's plots: matplotlib drawings as inline SVG that takes its colours from the page.

Every colour drawn is a stand-in that becomes a CSS variable, so one drawing serves light, dark and print.
The same data give the same bytes: no date, salted ids, text kept as text. Lengths are in points.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safer_ray.core.metrics import Evaluation, percentile

INK, MUTED, GRID, BASE, SFT, ERPO = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BASE: "base", SFT: "sft", ERPO: "erpo"}
_STYLE: Any = {
    "svg.fonttype": "none",
    # Names of checkpoints and stages are data: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "figure.dpi": 72,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
_MOST_POINTS = 400
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing, what it is called and what to know when reading it."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One optimiser step of one stage, with whatever was measured at it."""

    stage: str
    loss: float | None
    margin: float | None
    accuracy: float | None
    chosen_logp: float | None


def colour_of(checkpoint: str) -> str:
    """Return the stand-in colour of a checkpoint's family."""
    return {"base": BASE, "sft": SFT}.get(checkpoint.split("-")[0], ERPO)


def _figure(
    width: float, height: float, *, left: float = 46, right: float = 14, top: float = 14, bottom: float = 40
) -> tuple[Figure, Axes]:
    """Return a figure and its axes; all lengths, margins included, in points."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    area = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(area, facecolor="none")


def _svg(figure: Figure, label: str) -> str:
    """Return the drawing as an inline element that scales, without ids nothing refers to."""
    sink, unsaid = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Ids are hashes of what they name: the label keeps those of drawings with equal axes apart on one page.
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(sink, format="svg", metadata=unsaid, transparent=True)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var(--{variable})")
    text = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", _inherit_family, text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None, "matplotlib always writes a viewBox"
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {box[0]} role="img" aria-label="{label}">', text, count=1).strip()


def _inherit_family(found: re.Match[str]) -> str:
    size = re.search(r"([\d.]+)px", found[0])
    return f"font-size: {size[1]}px" if size else "font-family: inherit"


def _overlap(a: _Box, b: _Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(at: tuple[float, float], size: tuple[float, float], taken: Sequence[_Box], frame: _Box) -> tuple[_Box, str]:
    """Return the free spot nearest to a point for a label of ``size``, with its text anchor."""
    (x, y), (width, height) = at, size
    tries: list[tuple[float, _Box, str]] = []
    for rank, gap in enumerate((9.0, 17.0, 30.0, 46.0)):
        diagonal = gap * 0.7
        for order, (left, bottom, anchor) in enumerate(
            (
                (x + diagonal, y + diagonal - 3, "left"),
                (x + gap, y - height / 2, "left"),
                (x - diagonal - width, y + diagonal - 3, "right"),
                (x + diagonal, y - diagonal - height + 3, "left"),
                (x - gap - width, y - height / 2, "right"),
                (x - width / 2, y + gap, "center"),
                (x - width / 2, y - gap - height, "center"),
            )
        ):
            box = (left, bottom, left + width, bottom + height)
            outside = width * height - _overlap(box, frame)
            cost = 3 * outside + sum(_overlap(box, other) for other in taken) + 25 * rank + order
            tries.append((cost, box, anchor))
    _, box, anchor = min(tries, key=lambda item: item[0])
    return box, anchor


def _label_points(axes: Axes, points: Sequence[tuple[float, float]], evaluations: Sequence[Evaluation]) -> None:
    pixels = [tuple(axes.transData.transform(point)) for point in points]
    frame = axes.get_window_extent()
    bounds = (frame.x0, frame.y0, frame.x1, frame.y1)
    taken: list[_Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in pixels]
    for (x, y), item in zip(pixels, evaluations, strict=True):
        (left, right), (low, high) = item.over_refusal_ci or (0, 0), item.asr_ci or (0, 0)
        corners = axes.transData.transform([(100 * left, 100 * low), (100 * right, 100 * high)])
        taken += [(corners[0][0], y - 1, corners[1][0], y + 1), (x - 1, corners[0][1], x + 1, corners[1][1])]
    for (x0, y0), (x1, y1) in pairwise(pixels):
        # The arrow as a string of small boxes, so that labels keep off it.
        steps = [(x0 + (x1 - x0) * k / 12, y0 + (y1 - y0) * k / 12) for k in range(1, 12)]
        taken += [(x - 3, y - 3, x + 3, y + 3) for x, y in steps]
    for (x, y), evaluation in zip(pixels, evaluations, strict=True):
        tokens = evaluation.reasoning_tokens_p50
        detail = f"{tokens:.0f} tokens" if tokens else "no reasoning"
        width = 6.2 * max(len(evaluation.checkpoint), len(detail))
        box, anchor = _place((x, y), (width, 25), taken, bounds)
        taken.append(box)
        at = {"left": box[0], "right": box[2], "center": (box[0] + box[2]) / 2}[anchor]
        base = axes.transData.inverted().transform((at, box[1]))
        head = axes.transData.inverted().transform((at, box[1] + 13))
        axes.text(head[0], head[1], evaluation.checkpoint, ha=anchor, va="bottom", color=INK, weight="bold", size=11)
        axes.text(base[0], base[1], detail, ha=anchor, va="bottom", color=MUTED, size=9.5)


def trade_off(evaluations: Sequence[Evaluation]) -> Plot | None:
    """Draw ASR against over-refusal, one point per checkpoint that has both, in the order given."""
    shown = [item for item in evaluations if item.asr_ci and item.over_refusal_ci]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(410, 350, bottom=44)
        points = []
        for item in shown:
            x, y, colour = 100 * (item.over_refusal or 0.0), 100 * (item.asr or 0.0), colour_of(item.checkpoint)
            points.append((x, y))
            axes.plot([100 * v for v in item.over_refusal_ci or ()], [y, y], color=colour, lw=1.6, alpha=0.55)
            axes.plot([x, x], [100 * v for v in item.asr_ci or ()], color=colour, lw=1.6, alpha=0.55)
            axes.scatter([x], [y], s=30 + 0.7 * (item.reasoning_tokens_p50 or 0), color=colour, zorder=3, linewidths=0)
        tops = [
            max(100 * ci[1] for ci in (getattr(item, name) for item in shown)) for name in ("over_refusal_ci", "asr_ci")
        ]
        axes.set_xlim(-2, min(102, max(22, tops[0] * 1.12)))
        axes.set_ylim(-2, min(104, max(22, tops[1] * 1.12)))
        for start, end in pairwise(points):
            style = {"arrowstyle": "-|>", "color": MUTED, "lw": 1.1, "shrinkA": 8, "shrinkB": 8, "mutation_scale": 10}
            axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=2)
        _label_points(axes, points, shown)
        axes.set_xlabel("over-refusal, % of safe prompts refused", labelpad=6)
        axes.set_ylabel("ASR, % of unsafe prompts complied with", labelpad=4)
        svg = _svg(figure, "ASR against over-refusal, one point per checkpoint")
    caption = (
        "Bottom left is best: neither obeying harmful requests nor refusing harmless ones. Crosses are 95 % intervals; "
        "the figure under each name is the median number of reasoning tokens, and the dot's area grows with it."
    )
    return Plot(title="Safety, helpfulness and cost together", caption=caption, svg=svg)


def reasoning_tokens(tokens_by_checkpoint: Mapping[str, Sequence[int]]) -> Plot | None:
    """Draw how many tokens each checkpoint reasons before it answers, one row per checkpoint."""
    rows = {name: values for name, values in tokens_by_checkpoint.items() if values}
    most = max((max(values) for values in rows.values()), default=0)
    if most == 0:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(410, max(350, 62 + 52 * len(rows)), left=62, right=70)
        edges = [most * k / 36 for k in range(37)]
        for level, (name, values) in enumerate(reversed(rows.items())):
            colour = colour_of(name)
            counts = [0] * 36
            for value in values:
                counts[min(35, int(36 * value / most))] += 1
            tops = [level + 0.72 * count / max(counts) for count in counts]
            axes.stairs(tops, edges, baseline=level, fill=True, color=colour, alpha=0.45, linewidth=0)
            median, p95 = percentile(values, 50) or 0.0, percentile(values, 95) or 0.0
            axes.plot([median, median], [level, level + 0.78], color=colour, lw=2)
            axes.plot([p95, p95], [level, level + 0.3], color=colour, lw=2)
            note = f"{median:.0f} / {p95:.0f}" if p95 else "none"
            axes.text(most * 1.06, level + 0.25, note, color=INK, size=10.5, va="center", clip_on=False)
        axes.text(most * 1.06, len(rows) - 0.02, "p50 / p95", color=MUTED, size=9.5, va="center")
        axes.set_yticks([level + 0.25 for level in range(len(rows))], list(reversed(rows)))
        for tick in axes.get_yticklabels():
            tick.set_color(INK)
        axes.set_ylim(-0.05, len(rows))
        axes.set_xlim(-0.02 * most, most * 1.02)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("reasoning tokens per test prompt", labelpad=6)
        svg = _svg(figure, "Reasoning tokens per test prompt, by checkpoint")
    caption = "Bars count test prompts. The tall mark is the median (p50), the short one the 95th percentile."
    return Plot(title="How much it thinks before it answers", caption=caption, svg=svg)


def _bucketed(values: Sequence[float], start: float) -> tuple[list[float], list[float]]:
    """Return at most about ``_MOST_POINTS`` (position, mean) points of a series that begins at ``start``."""
    width = max(1, -(-len(values) // _MOST_POINTS))
    groups = [values[at : at + width] for at in range(0, len(values), width)]
    return [start + width * k + (len(g) - 1) / 2 for k, g in enumerate(groups)], [sum(g) / len(g) for g in groups]


def _rolling(values: Sequence[float]) -> list[float]:
    reach = len(values) // 16
    windows = [values[max(0, at - reach) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _curve(points: Sequence[CurvePoint], field: str, title: str, caption: str) -> Plot | None:
    """Draw one quantity over the optimiser steps of consecutive stages."""
    stages = [(name, list(group)) for name, group in groupby(points, key=lambda point: point.stage)]
    series = [(name, [v for v in (getattr(p, field) for p in group) if v is not None]) for name, group in stages]
    series = [(name, values) for name, values in series if values]
    if not series:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(310, 205, top=24)
        start = 1
        for index, (name, values) in enumerate(series):
            xs, ys = _bucketed(values, start)
            colour = colour_of(name)
            axes.plot(xs, ys, color=colour, lw=1, alpha=0.4)
            axes.plot(xs, _rolling(ys), color=colour, lw=2.2)
            if len(series) > 1:
                mark = {"x": start, "y": 1.04, "s": name, "transform": axes.get_xaxis_transform()}
                axes.text(**mark, color=MUTED, size=9.5, ha="left")
                if index:
                    axes.axvline(start - 0.5, color=MUTED, lw=0.8, ls=(0, (2, 3)))
            start += len(values)
        axes.set_xlabel("optimiser step", labelpad=5)
        svg = _svg(figure, f"{title} over optimiser steps")
    return Plot(title=title, caption=caption, svg=svg)


def training_curves(points: Sequence[CurvePoint]) -> list[Plot]:
    """Draw what was measured while training: SFT steps apart from the preference steps."""
    preference = [point for point in points if point.margin is not None or point.accuracy is not None]
    imitation = [point for point in points if point.margin is None and point.accuracy is None]
    drawn = (
        _curve(imitation, "loss", "SFT loss", "Mean negative log-likelihood of a trace token, in nats."),
        _curve(preference, "loss", "ERPO loss", "Preference loss with its likelihood term, in nats."),
        _curve(
            preference, "margin", "Margin", "How much further than the reference the policy prefers the chosen step."
        ),
        _curve(
            preference, "accuracy", "Accuracy", "Share of pairs whose chosen step the policy prefers; chance is 0.5."
        ),
        _curve(preference, "chosen_logp", "Chosen log-probability", "Of the chosen step, in nats. A collapse warns."),
    )
    return [plot for plot in drawn if plot is not None]
