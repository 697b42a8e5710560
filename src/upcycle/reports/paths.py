"""Paths that leave a node, as a fan whose lines are as thick as the paths are heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import HUES, WIDTH

ROW, HEAD, GAP = 21, 24, 16
"""Heights of a path, of a centre's heading, and between two centres."""
START, END = 12.0, 330.0
"""Where the centre stands, and where weights begin."""
THICK = 7.0
"""Of the line of the heaviest path of a centre."""


@dataclass(frozen=True)
class Walk:
    """A path: the names of its nodes, the centre first, the group of each by number, and its weight."""

    nodes: Sequence[str]
    groups: Sequence[int]
    weight: float


@dataclass(frozen=True)
class Centre:
    """A node with the paths that leave it, and what is said of those that are not drawn."""

    label: str
    walks: Sequence[Walk]
    more: str = ""


def fans(centres: Sequence[Centre], *, label: str, groups: Sequence[str] = ()) -> Markup:
    """Centres one below the other, each with its paths from left to right; nodes of a group have one tone.

    Args:
        centres: at least one, with at least one path each.
        label: for those who cannot see it.
        groups: the names of the groups, for those who point at a node.
    """
    parts: list[Markup] = []
    top = 0.0
    for centre in centres:
        parts += _fan(centre, top, groups)
        top += HEAD + ROW * (len(centre.walks) + bool(centre.more)) + GAP
    said = "; ".join(f"{c.label}, {_named(c.walks[0])} first of {len(c.walks)}" for c in centres)
    return svg.drawing(top - GAP, f"{label}. {said}", parts)


def _fan(centre: Centre, top: float, groups: Sequence[str]) -> list[Markup]:
    heaviest = max((walk.weight for walk in centre.walks), default=0.0) or 1.0
    longest = max(len(walk.nodes) for walk in centre.walks)
    step = (END - START) / longest  # the last column has room for a name
    middle = top + HEAD + ROW * len(centre.walks) / 2
    lines, marks = [], [svg.write(0, top + 12, svg.shorten(centre.label, WIDTH), "name", "start", full=centre.label)]
    for row, walk in enumerate(centre.walks):
        y, hint = top + HEAD + ROW * (row + 0.5), _named(walk)
        width, x = max(THICK * walk.weight / heaviest, 0.6), START + step
        bend = (START + x) / 2
        way = f"M{START:.1f} {middle:.1f}C{bend:.1f} {middle:.1f} {bend:.1f} {y:.1f} {x:.1f} {y:.1f}"
        way += f"H{START + step * (len(walk.nodes) - 1):.1f}"
        line = Markup('<path class="rail" stroke-width="{:.2f}" d="{}"><title>{}</title></path>')
        lines.append(line.format(width, way, hint))
        for at, (name, group) in enumerate(zip(walk.nodes[1:], walk.groups[1:], strict=True), 1):
            x = START + step * at
            marks.append(svg.dot(x, y, 5, HUES[group % len(HUES)], f"{name}: {_group(group, groups)}"))
            marks.append(svg.write(x + 9, y + 4, svg.shorten(name, step - 16), "tick tag in", "start", full=name))
        marks.append(svg.write(WIDTH, y + 4, svg.percent(walk.weight), "tick", "end", full=hint))
    group = centre.walks[0].groups[0]
    marks.append(svg.dot(START, middle, 8, HUES[group % len(HUES)], f"{centre.label}: {_group(group, groups)}"))
    if centre.more:
        y = top + HEAD + ROW * (len(centre.walks) + 0.5) + 4
        marks.append(svg.write(WIDTH, y, svg.shorten(centre.more, WIDTH - START), "tick", "end", full=centre.more))
    return lines + marks


def _named(walk: Walk) -> str:
    return f"{' – '.join(walk.nodes)}: {svg.percent(walk.weight)}"


def _group(group: int, groups: Sequence[str]) -> str:
    return groups[group] if group < len(groups) else f"group {group}"
