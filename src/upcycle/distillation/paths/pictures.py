"""Chosen nodes of a graph for the report: the paths that they attend along, and the attention on their edges."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

SHOWN = 10
"""So many paths of a node are drawn."""
STAYS = "itself"
"""The path that stays at its centre."""

Walk = tuple[tuple[int, ...], float]
"""The nodes of a path, the centre first, and its weight."""


def walks_of(node: int, paths: Int[Tensor, "c p"], weights: Float[Tensor, " p"]) -> list[Walk]:
    """The paths of one centre with their weights.

    Args:
        node: the centre.
        paths: of many centres, which stand in the first row.
        weights: of each.
    """
    own = (paths[0] == node).nonzero()[:, 0]
    return [(tuple(p), w) for p, w in zip(paths[:, own].T.tolist(), weights[own].tolist(), strict=True)]


def picture(
    title: str, caption: str, walks: dict[int, list[Walk]], decided: Int[Tensor, " n"], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Paths of some nodes, the heaviest first, those that stay at the node as one.

    Args:
        title, caption: of the picture.
        walks: by node, its paths.
        decided: the class that is decided for each node of the graph, which gives it its tone.
        classes: their names.
    """
    items = []
    for node, found in walks.items():
        there: dict[tuple[int, ...], float] = {}
        for path, weight in found:
            path = path if len(set(path)) > 1 else path[:1] * 2
            there[path] = there.get(path, 0.0) + weight
        ordered = sorted(there.items(), key=lambda one: (-one[1], one[0]))
        drawn, rest = ordered[:SHOWN], ordered[SHOWN:]
        paths = [
            {
                "nodes": [str(v) if v != node or at == 0 else STAYS for at, v in enumerate(path)],
                "groups": [int(decided[v]) for v in path],
                "weight": round(weight, 5),
            }
            for path, weight in drawn
        ]
        item: dict[str, Any] = {"label": f"node {node}: {classes[int(decided[node])]}", "paths": paths}
        if rest:
            item["more"] = f"{len(rest)} more, {100 * sum(weight for _, weight in rest):.0f} % together"
        items.append(item)
    return {"kind": "paths", "title": title, "caption": caption, "groups": list(classes), "items": items}
