"""Charts of the report as SVG: they take their colours from the page's style sheet."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

COLOURS = 10
"""Colours of the style sheet, `--series-0` and so on; further series are dashed."""
BINS = 20


class Line(NamedTuple):
    """Points of one method, and perhaps which of them is marked and with what words."""

    x: Sequence[float]
    y: Sequence[float]
    marked: int | None = None
    words: str = ""


def series_style(index: int) -> str:
    """The CSS that a series' marks share."""
    dashes = ("", "6 3", "2 3")[index // COLOURS % 3]
    dash = f";stroke-dasharray:{dashes}" if dashes else ""
    return f"--colour:var(--series-{index % COLOURS}){dash}"


def histogram(values: Sequence[float], index: int) -> Markup:
    """Bars of how many images have which score in [0, 1], and a line at the mean."""
    width, height, floor = 240, 110, 92
    counts, _ = np.histogram(np.clip(values, 0, 1), BINS, (0, 1))
    step = width / BINS
    bars = []
    for position in np.flatnonzero(counts):
        tall = max(80 * counts[position] / counts.max(), 1.5)
        low, high = position / BINS, (position + 1) / BINS
        bars.append(
            f'<rect x="{position * step + 1:.1f}" y="{floor - tall:.1f}" '
            f'width="{step - 2:.1f}" height="{tall:.1f}">'
            f"<title>IoU {low:.2f} to {high:.2f}: {counts[position]} images</title></rect>"
        )
    mean = width * float(np.mean(values)) if len(values) else 0
    labels = "".join(
        f'<text x="{width * tick:.0f}" y="{height - 4}" text-anchor="{anchor}">{tick:g}</text>'
        for tick, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return Markup(
        f'<svg class="chart histogram" viewBox="0 0 {width} {height}" role="img" '
        f'style="{series_style(index)}" aria-label="Histogram of IoU">'
        f'<g class="bars">{"".join(bars)}</g>'
        f'<line class="axis" x1="0" x2="{width}" y1="{floor}" y2="{floor}"/>'
        f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="8" y2="{floor}"/>{labels}</svg>'
    )


def loss_curve(found: Mapping[str, Sequence[float]], index: int, label: str) -> Markup:
    """The mean loss against the epoch within the band of its quartiles, on a scale of its own."""
    width, height, left, floor = 240, 130, 62, 108
    last = max(found["epochs"][-1], 1)
    values = [*found["mean"], *found["low"], *found["high"]]
    bottom, top = min(values), max(values)
    span = (top - bottom) or 1.0

    def points(name: str) -> list[str]:
        return [
            f"{left + (width - left - 8) * epoch / last:.1f},"
            f"{floor - (floor - 10) * (value - bottom) / span:.1f}"
            for epoch, value in zip(found["epochs"], found[name], strict=True)
        ]

    band = " ".join([*points("low"), *reversed(points("high"))])
    labels = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'
        for x, y, anchor, words in (
            *((left - 5, y, "end", f"{v:.3g}") for v, y in ((top, 14), (bottom, floor))),
            (left, height - 6, "start", "0"),
            (width - 8, height - 6, "end", f"epoch {found['epochs'][-1]}"),
        )
    )
    return Markup(
        f'<svg class="chart loss" viewBox="0 0 {width} {height}" role="img" '
        f'style="{series_style(index)}" aria-label="{escape(label)}">'
        f'<polygon class="band" points="{band}"/><polyline points="{" ".join(points("mean"))}"/>'
        f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{floor}" y2="{floor}"/>{labels}</svg>'
    )


def curves(lines: Mapping[str, Line], order: Sequence[str], unit: str, label: str) -> Markup:
    """One line a method, from 0 up; `order` of all methods fixes the colours."""
    width, height, left, bottom = 720, 344, 44, 42
    last = max((max(line.x, default=0) for line in lines.values()), default=0) or 1
    top = max((max(line.y, default=0) for line in lines.values()), default=0)
    ceiling = min(1.0, 0.1 * np.ceil(10 * top + 1e-9)) or 1.0

    def x(value: float) -> float:
        return left + (width - left - 12) * value / last

    def y(value: float) -> float:
        return 10 + (height - bottom - 10) * (1 - value / ceiling)

    parts = []
    for tick in np.arange(0, ceiling + 1e-9, 0.1 if ceiling <= 0.6 else 0.2).tolist():
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
            f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    quarters = {last * quarter / 4 for quarter in range(5)}
    for tick in sorted(quarters if last <= 1 else set(map(round, quarters))):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - 22}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text class="unit" x="{(left + width) / 2:.0f}" y="{height - 5}" '
        f'text-anchor="middle">{escape(unit)}</text>'
    )
    for name, line in lines.items():
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True))
        mark = ""
        if line.marked is not None:
            mark = (
                f'<circle cx="{x(line.x[line.marked]):.1f}" cy="{y(line.y[line.marked]):.1f}" '
                f'r="4"><title>{escape(name)}: {escape(line.words)}</title></circle>'
            )
        parts.append(
            f'<g style="{series_style(order.index(name))}"><polyline points="{points}">'
            f"<title>{escape(name)}</title></polyline>{mark}</g>"
        )
    return Markup(
        f'<svg class="chart curves" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
