"""The pictures of a reassembly for the report: the partition, the similarity of two networks, the candidates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from upcycle.assembly.reassembly.partition import Partition
from upcycle.assembly.reassembly.zoo import Choice, Mix
from upcycle.measure.cost import count
from upcycle.surgery.blocks import Chain


def blocks_in_words(chains: Sequence[Chain], blocks: Sequence[Choice]) -> str:
    """Name the blocks of a network one after the other."""
    return ", then ".join(f"{chains[n].model.name} {_label(chains[n], first, last)}" for n, first, last in blocks)


def partition_picture(chains: Sequence[Chain], made: Partition) -> dict[str, Any]:
    """Draw the networks cut into blocks, a colour for each set."""
    networks = []
    for own, cuts, sets in zip(chains, made.cuts, made.sets, strict=True):
        spans = zip(itertools.pairwise(cuts), sets, strict=True)
        blocks = [
            {"label": _label(own, first, end - 1), "width": (end - first) / len(own), "set": group + 1}
            for (first, end), group in spans
        ]
        networks.append({"name": own.model.name, "blocks": blocks})
    return {
        "kind": "blocks",
        "title": "Networks cut into blocks",
        "caption": "Blocks of one colour do alike work and can stand for each other.",
        "networks": networks,
    }


def similarity_picture(
    chains: Sequence[Chain], similarity: Tensor, made: Partition, blocks: Sequence[Choice]
) -> dict[str, Any]:
    """Draw how alike the nodes of two networks are: of the first two in ``blocks``, or of the zoo.

    Args:
        chains: the zoo.
        similarity: of all its nodes, (L, L).
        made: its partition.
        blocks: the network that was chosen.
    """
    one, two = [*dict.fromkeys(n for n, _, _ in blocks), *range(len(chains))][:2]
    starts = list(itertools.accumulate([0, *(len(c) for c in chains)]))
    inside = similarity[starts[one] : starts[one + 1], starts[two] : starts[two + 1]]
    names = [c.model.name for c in chains]
    return {
        "kind": "map",
        "title": f"Similarity of {names[one]} and {names[two]}",
        "caption": "Of the outputs of their nodes, on the probe; lines are block boundaries.",
        "rows": [node.name for node in chains[one].nodes],
        "columns": [node.name for node in chains[two].nodes],
        "values": [[round(v, 4) for v in row] for row in inside.tolist()],
        "x": names[two],
        "y": names[one],
        "row_breaks": list(made.cuts[one][1:-1]),
        "column_breaks": list(made.cuts[two][1:-1]),
        "low": 0,
        "high": 1,
    }


def candidate_pictures(
    chains: Sequence[Chain], mixes: Sequence[Mix], best: int, scores: Sequence[float], zoo_scores: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Draw the candidates and the zoo, score over parameters and over multiply-adds.

    Args:
        chains: the zoo.
        mixes: the candidates.
        best: which of them was taken.
        scores: of the candidates, without training.
        zoo_scores: of the networks of the zoo, likewise.

    Returns:
        the two pictures by name.
    """
    costs = [count(c.model.module, c.model.input_shape) for c in chains]
    members = [c.model.name for c in chains]
    found = [f"candidate {i + 1}" + (" (chosen)" if i == best else "") for i in range(len(mixes))]
    pictures = {}
    for name, words, zoo, sizes in (
        ("params", "parameters", [c.parameters for c in costs], [m.params for m in mixes]),
        ("macs", "multiply-adds", [c.macs for c in costs], [m.macs for m in mixes]),
    ):
        points = [*_points("reassembled", found, sizes, scores), *_points("zoo", members, zoo, zoo_scores)]
        for p in points:
            p["front"] = not any(_beats(q, p) for q in points)
        pictures[f"candidates-{name}"] = {
            "kind": "scatter",
            "title": f"Candidates by {words}",
            "caption": "Before any training. The score grows with size, so compare networks of like size.",
            "x": words,
            "y": "training-free score (NASWOT)",
            "log": False,
            "items": points,
        }
    return pictures


def _points(group: str, names: Sequence[str], sizes: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Points of those networks whose score is finite."""
    rows = zip(names, sizes, scores, strict=True)
    return [{"name": name, "x": x, "y": y, "group": group} for name, x, y in rows if math.isfinite(y)]


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a network is no larger and scores no worse than another, and is not its equal."""
    better = one["x"] <= other["x"] and one["y"] >= other["y"]
    return better and (one["x"], one["y"]) != (other["x"], other["y"])


def _label(own: Chain, first: int, last: int) -> str:
    a, b = own.nodes[first].name, own.nodes[last].name
    return a if a == b else f"{a} to {b}"
