"""A tree that lies on its side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import HUES, WIDTH, Piece


def tree(levels: Sequence[str], leaves: Sequence[tuple[str, Sequence[int]]], *, label: str, leaf: str = "") -> Markup:
    """A tree that lies on its side, its root not drawn: nodes of each level below their heading, leaves on the right.

    Args:
        levels: headings, from the root on.
        leaves: (name, number of the node that it hangs on at each level), at least one; they are drawn in the order
            of their paths, so that no two branches cross, a row for each.
        label: for those who cannot see it.
        leaf: the heading of the leaves.
    """
    row, head = 20, 24
    leaves = sorted(leaves, key=lambda named: list(named[1]))
    step = min((WIDTH - 150) / len(levels), 84.0)  # the rest is for the names of the leaves
    end, wide = step * len(levels) + 4, min(26.0, 0.7 * step)
    found: dict[tuple[int, ...], list[int]] = {}  # the rows below each node, by its path
    for i, (_, path) in enumerate(leaves):
        for depth in range(len(levels)):
            found.setdefault(tuple(path[: depth + 1]), []).append(i)
    middle = {path: head + row * (sum(rows) / len(rows) + 0.5) for path, rows in found.items()}
    ends = [path for path in found if len(path) == len(levels)]
    tones = {path: HUES[i % len(HUES)] for i, path in enumerate(ends)}
    parts = [
        svg.write(2 + step * i, 11, svg.shorten(name, step - 4), "note", "start", full=name)
        for i, name in enumerate(levels)
    ]
    parts.append(svg.write(end, 11, svg.shorten(leaf, WIDTH - end), "note", "start", full=leaf))
    edges = [(path[:-1], middle[path], 2 + step * (len(path) - 1)) for path in found if len(path) > 1]
    edges += [(tuple(path), head + row * (i + 0.5), end - 4) for i, (_, path) in enumerate(leaves)]
    for parent, y, x in edges:
        start = 2 + step * (len(parent) - 1) + wide
        bend = (start + x) / 2
        curve = Markup('<path class="rail" d="M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}"/>')
        parts.append(curve.format(start, middle[parent], bend, middle[parent], bend, y, x, y))
    for path, rows in found.items():
        named = ", ".join(leaves[i][0] for i in rows)
        hint = f"{levels[len(path) - 1]}, {path[-1]}: {named}"
        x, number_here, tone = 2 + step * (len(path) - 1), str(path[-1]), tones.get(path)
        parts.append(
            svg.draw_piece(Piece(1, tone or "unused", hint, number_here if tone else ""), x, middle[path] - 8, wide, 17)
        )
        if tone is None:
            parts.append(svg.write(x + wide / 2, middle[path] + 4, number_here, "tick in", "middle", full=hint))
    for i, (name, _) in enumerate(leaves):
        y = head + row * (i + 0.5) + 4
        parts.append(svg.write(end, y, svg.shorten(name, WIDTH - end), "tick", "start", full=name))
    return svg.drawing(head + row * len(leaves) + 4, label, parts)
