"""Small graphs, each with its nodes on a circle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import HUES, WIDTH

ACROSS = 3
"""Graphs in a row."""
RADIUS = 48


@dataclass(frozen=True)
class Ring:
    """One graph: its label, the group of each node by number, and its edges by the numbers of their nodes."""

    label: str
    nodes: Sequence[int]
    edges: Sequence[tuple[int, int]]


def rings(graphs: Sequence[Ring], *, label: str, groups: Sequence[str] = ()) -> Markup:
    """Graphs with their nodes on circles, one beside the other; nodes of a group have one tone in all of them.

    Args:
        graphs: at least one.
        label: for those who cannot see it.
        groups: the names of the groups, for those who point at a node.
    """
    cell, high = WIDTH / ACROSS, 2 * RADIUS + 40
    parts = []
    for i, graph in enumerate(graphs):
        left, top = cell * (i % ACROSS), high * (i // ACROSS)
        x0, y0 = left + cell / 2, top + RADIUS + 8
        turns = [2 * math.pi * node / max(len(graph.nodes), 1) - math.pi / 2 for node in range(len(graph.nodes))]
        at = [(x0 + RADIUS * math.cos(turn), y0 + RADIUS * math.sin(turn)) for turn in turns]
        lines = "".join(f"M{at[a][0]:.1f} {at[a][1]:.1f}L{at[b][0]:.1f} {at[b][1]:.1f}" for a, b in graph.edges)
        parts.append(Markup('<path class="rail" stroke-width=".6" d="{}"/>').format(lines))
        for node, group in enumerate(graph.nodes):
            named = groups[group] if group < len(groups) else f"group {group}"
            parts.append(svg.dot(*at[node], 3.5, HUES[group % len(HUES)], f"node {node}: {named}"))
        text = f"{graph.label}: {len(graph.nodes)} nodes, {len(graph.edges)} edges"
        parts.append(svg.write(x0, top + high - 14, svg.shorten(graph.label, cell - 8), "tick", "middle", full=text))
    return svg.drawing(high * math.ceil(len(graphs) / ACROSS), label, parts)
