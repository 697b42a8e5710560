"""Lines over common axes, and the reliability diagram of classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import WIDTH, number, percent


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, its points and its tone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str = "student"


Bin = tuple[float, float, float]


def line_plot(
    series: Sequence[Series],
    *,
    label: str,
    x: str = "",
    y: str = "",
    show: Callable[[float], str] = number,
    height: int = 230,
    log: bool = False,
    top: float | None = None,
) -> Markup:
    """Lines over a common axis, each point with its own hover text.

    Args:
        series: at least one, with at least one finite point.
        label: what the picture shows, for those who cannot see it.
        x, y: what the axes mean.
        show: how a value of the vertical axis is written.
        log: a logarithmic horizontal axis; all x must be positive.
        top: where the vertical axis ends; lines above it leave the plot.
    """
    points = [(a, b) for s in series for a, b in _finite(s)]
    across = [a for a, _ in points]
    xs = svg.decades(min(across), max(across)) if log else svg.axis_ticks(across, 6, whole=True)
    ys = svg.axis_ticks([b if top is None else min(b, top) for _, b in points], 5)
    left = 12 + 6.4 * max(len(svg.tick_label(show(v))) for v in ys)
    box = svg.Box(left, 20, WIDTH - 14, height - 36, (xs[0], xs[-1]), (ys[0], ys[-1]), log)
    parts = [
        svg.grid(box, xs, ys, show, _whole if log else number),
        svg.write(left - 6, 9, y, "note", "start" if left < 60 else "end", at=2),
    ]
    parts.append(svg.write(box.right, height - 4, x, "note", "end"))
    for one in series:
        found = _finite(one)
        at = [(box.x(a), box.y(b), a, b) for a, b in found if b <= ys[-1]]
        for run in _below(found, ys[-1]):
            path = " ".join(f"{box.x(a):.1f},{box.y(b):.1f}" for a, b in run)
            parts.append(Markup('<polyline class="line tone-{}" points="{}"/>').format(one.tone, path))
        radius = 2.4 if len(found) <= 12 else 1.4
        for px, py, a, b in at:
            hint = f"{one.name}: {show(b)}" + (f" at {x} {number(a)}" if x else f" at {number(a)}")
            parts.append(svg.dot(px, py, radius, f"{one.tone} point", hint))
    return svg.drawing(height, label, parts)


def reliability_diagram(curves: Sequence[tuple[str, str, Sequence[Bin]]], *, label: str) -> Markup:
    """Accuracy against confidence; on the diagonal a network is as often right as it says.

    Args:
        curves: (name, tone, bins) of each network; a bin is (confidence, accuracy, count). The area of a dot
            is the share of samples in its bin.
        label: for those who cannot see it.
    """
    height = 300
    scale = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    box = svg.Box(52, 20, WIDTH - 14, height - 36, (0, 1), (0, 1))
    parts = [svg.grid(box, scale, scale, percent, show_x=percent), svg.write(2, 9, "accuracy", "note", "start")]
    parts.append(svg.write(box.right, height - 4, "confidence", "note", "end"))
    parts.append(
        Markup('<path class="diagonal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
            box.x(0), box.y(0), box.x(1), box.y(1)
        )
    )
    for name, tone, bins in curves:
        total = sum(count for _, _, count in bins) or 1
        at = [(box.x(c), box.y(a), c, a, n) for c, a, n in bins if n > 0]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in at)
        parts.append(Markup('<polyline class="line thin tone-{}" points="{}"/>').format(tone, path))
        for px, py, c, a, n in at:
            hint = f"{name}: {percent(a)} right at {percent(c)} confidence, {n:,.0f} samples"
            parts.append(svg.dot(px, py, 1.8 + 9 * math.sqrt(n / total), f"{tone} bubble", hint))
    return svg.drawing(height, label, parts)


def settled(series: Sequence[Series]) -> float | None:
    """Where a plot may end at the top so that its first values do not flatten all others; ``None`` where none do.

    That is above all values behind the first quarter, where the highest of all is more than twice as high.
    """
    points = [point for one in series for point in _finite(one)]
    start, end = min(a for a, _ in points), max(a for a, _ in points)
    later = [b for a, b in points if a >= start + (end - start) / 4]
    highest = max(b for _, b in points)
    return max(later) if 0 < 2 * max(later) < highest else None


def _below(points: Sequence[tuple[float, float]], top: float) -> list[list[tuple[float, float]]]:
    """The pieces of a line that lie at or below ``top``, each up to where it crosses that."""
    pieces: list[list[tuple[float, float]]] = []
    before: tuple[float, float] | None = None
    for a, b in points:
        if before is not None and (before[1] > top) != (b > top):
            crossing = (before[0] + (a - before[0]) * (top - before[1]) / (b - before[1]), top)
            if b > top:
                pieces[-1].append(crossing)
            else:
                pieces.append([crossing])
        elif before is None and b <= top:
            pieces.append([])
        if b <= top:
            pieces[-1].append((a, b))
        before = (a, b)
    return pieces


def _finite(series: Series) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else number(value)
