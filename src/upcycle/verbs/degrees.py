"""Errors of a network over graphs by class and degree: the neighbours of a node, or of a graph's nodes on average."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upcycle.core.models import Model
from upcycle.core.task import Evaluation
from upcycle.data.graphs import GraphSet
from upcycle.measure.units import counted, times

PARTS = 4
"""Into so many parts of equal size the samples are divided by their degree."""
SURE = 0.05
"""A calibration error above which it is spoken of."""


def by_degree(degree: Float[Tensor, " n"]) -> tuple[list[str], list[Tensor]]:
    """Divide samples by degree into up to :data:`PARTS` parts: the name of each, and its samples, bool (n,)."""
    cuts = torch.quantile(degree.double(), torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)[1:-1]).unique()
    part = torch.bucketize(degree.double(), cuts)
    members = [part == i for i in range(len(cuts) + 1)]
    members = [m for m in members if m.any()]
    names = []
    for m in members:
        low, high = (f"{value:.3g}" for value in (float(degree[m].min()), float(degree[m].max())))
        names.append(low if low == high else f"{low} to {high}")
    return names, members


def by_class_and_degree(data: GraphSet, logits: Float[Tensor, "n k"]) -> dict[str, Any]:
    """The picture of the shares that are right, by class and degree, with all classes in the last row.

    Args:
        logits: of the test samples.
    """
    labels = data.test.labels
    names, parts = by_degree(data.test.degrees())
    right = logits.argmax(1) == labels
    groups = [*(labels == k for k in range(len(data.classes))), labels >= 0]

    def share(which: Tensor) -> float:
        return float(right[which].double().mean()) if which.any() else float("nan")

    what = "neighbours of a node" if data.noun == "nodes" else "neighbours that a node of a graph has on average"
    return {
        "kind": "heatmap",
        "title": "Right answers by class and degree",
        "caption": f"Columns: {what}, in parts of about equal size. Empty where there is no test sample.",
        "digits": 2,
        "rows": [*data.classes, "all classes"],
        "columns": names,
        "values": [[share(group & part) for part in parts] for group in groups],
    }


def sentence(net: Model, data: GraphSet, measured: Evaluation, picture: dict[str, Any]) -> str:
    """Say what stands out: the weakest class, the most frequent error, what the degree changes, and false confidence.

    Args:
        picture: see :func:`by_class_and_degree`.
    """
    noun = data.noun
    tested = counted(measured.count, f"test {noun.removesuffix('s')}")
    text = f"{net.name} is right on {measured.accuracy:.1%} of the {tested} of {data.name}"
    recall = {name: r for name, r in zip(data.classes, measured.per_class, strict=True) if r is not None}
    worst = min(recall, key=lambda name: recall[name])
    text += f", least often on '{worst}' ({recall[worst]:.1%})."
    counts = torch.tensor(measured.confusion).fill_diagonal_(0)
    if int(counts.max()):
        a, b = divmod(int(counts.argmax()), len(data.classes))
        text += f" Its most frequent error is '{data.classes[a]}' taken for '{data.classes[b]}' "
        text += f"({times(int(counts[a, b]))})."
    names, shares = picture["columns"], picture["values"][-1]
    if len(names) > 1:
        having = "with" if noun == "nodes" else "whose nodes have"
        text += f" Of the {noun} {having} the fewest neighbours ({names[0]}) {shares[0]:.1%} are right, of "
        text += f"those {having} the most ({names[-1]}) {shares[-1]:.1%}."
    bins = measured.confidence
    sure = sum(c * n for c, n in zip(bins["confidence"], bins["count"], strict=True)) / measured.count
    if measured.ece > SURE:
        surer = "surer" if sure > measured.accuracy else "less sure"
        text += f" It is {surer} than it is right: its mean confidence is {sure:.1%}."
    return text
