"""Points in a plane, with names beside them where these cover nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import WIDTH, number


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot; ``front`` says whether no other point is better in both ways."""

    name: str
    x: float
    y: float
    tone: str = "hue0"
    front: bool = False
    hint: str = ""


def scatter_plot(
    points: Sequence[Point],
    *,
    label: str,
    x: str,
    y: str,
    show_x: Callable[[float], str] = number,
    show_y: Callable[[float], str] = number,
    log: bool = False,
    height: int = 320,
    most: int = 12,
) -> Markup:
    """Points in a plane with a line along the front, and names where there is room for them.

    Args:
        points: at least one, all finite.
        label: for those who cannot see it.
        x, y: what the axes mean.
        show_x, show_y: how values are written.
        log: a logarithmic horizontal axis; all x must be positive.
        most: how many names are written at most, those of the front first, then in the order of ``points``; all
            are shown on hover.
    """
    across = [p.x for p in points]
    xs = svg.decades(min(across), max(across)) if log else svg.axis_ticks(across, 6)
    ys = svg.axis_ticks([p.y for p in points], 5)
    left = 12 + 6.4 * max(len(svg.tick_label(show_y(v))) for v in ys)
    box = svg.Box(left, 38, WIDTH - 14, height - 36, (xs[0], xs[-1]), (ys[0], ys[-1]), log)
    front = sorted((box.x(p.x), box.y(p.y)) for p in points if p.front)
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in front)
    parts = [
        svg.grid(box, xs, ys, show_y, show_x),
        svg.write(left - 6, 9, y, "note", "start", at=2),
        svg.write(box.right, height - 4, x, "note", "end"),
    ]
    if len(front) > 1:
        parts.append(Markup('<polyline class="front" points="{}"/>').format(path))
    parts += [svg.dot(box.x(p.x), box.y(p.y), 4.4, p.tone, p.hint or p.name) for p in points]
    return svg.drawing(height, label, parts + _names(points, box, front, most))


_Area = tuple[float, float, float, float]  # left, top, right, bottom


def _names(points: Sequence[Point], box: svg.Box, front: Sequence[tuple[float, float]], most: int) -> list[Markup]:
    """The names of points beside them, where they cover no point, no other name, and nothing of the front."""
    at = [(box.x(p.x), box.y(p.y)) for p in points]
    taken: list[_Area] = [(a - 5, b - 5, a + 5, b + 5) for a, b in at]
    steps = [i / 40 for i in range(41)]
    line = [(a + t * (c - a), b + t * (d - b)) for (a, b), (c, d) in pairwise(front) for t in steps]
    parts: list[Markup] = []
    for i in sorted(range(len(points)), key=lambda i: not points[i].front)[:most]:
        text, (px, py) = svg.shorten(points[i].name, 150), at[i]
        wide = 6.3 * len(text)
        places = [
            (px + shift, py + down, anchor, px + shift - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor])
            for shift, down, anchor in (
                *((8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle")),
                *((6, -8, "start"), (-6, -8, "end"), (6, 15, "start"), (-6, 15, "end")),
            )
        ]
        for tx, ty, anchor, start in places:
            area = (start, ty - 10, start + wide, ty + 3)
            inside = area[0] >= box.left and area[1] >= 14 and area[2] <= WIDTH and area[3] <= box.bottom - 1
            crossed = any(area[0] < a < area[2] and area[1] < b < area[3] for a, b in line)
            if inside and not crossed and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                parts.append(svg.write(tx, ty, text, "tick in tag", anchor, full=points[i].name))
                break
    return parts


def _overlap(a: _Area, b: _Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
