"""Made graphs as a set that students learn from, and what a run leaves of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from upcycle.core import lineage, store
from upcycle.core.graphs import Graphs
from upcycle.data.graph_pool import save_graph_pool, tensors_of
from upcycle.data.graphs import GraphSplit
from upcycle.data.pool_files import parent_node

if TYPE_CHECKING:
    from upcycle.core.method import Card
    from upcycle.core.models import Model
    from upcycle.core.run import Run

DRAWN = 9
"""So many graphs are drawn in the report."""


def joined(parts: Sequence[Graphs], labels: Int[Tensor, " n"]) -> GraphSplit:
    """Batches of graphs as one set to train on, on the CPU.

    Args:
        parts: with features and edges, none of edges.
        labels: the class that each graph was made for.
    """
    nodes = [len(part.batch) for part in parts]
    before = torch.tensor([0, *nodes]).cumsum(0).tolist()
    first = torch.tensor([0, *(part.n for part in parts)]).cumsum(0).tolist()
    union = Graphs(
        x=torch.cat([part.x.cpu() for part in parts]),
        edge_index=torch.cat([part.edge_index.cpu() + b for part, b in zip(parts, before, strict=False)], 1),
        batch=torch.cat([part.batch.cpu() + f for part, f in zip(parts, first, strict=False)]),
        n=first[-1],
    )
    return GraphSplit(union=union, labels=labels, ids=torch.arange(union.n))


def leave(run: Run, card: Card, teacher: Model, pool: GraphSplit) -> None:
    """Leave the graphs with their family tree, and draw some of them."""
    if run.directory is None or run.rank > 0:
        return
    graphs, labels = pool.union, pool.labels
    name = f"graphs from {teacher.name}"
    tree = lineage.child(
        [parent_node(teacher)],
        name=name,
        digest=store.tensor_digest(tensors_of(graphs, labels)),
        verb=card.verb,
        method=card.name,
        config={},
    )
    note = f"Made from {teacher.name} by {card.name} ({card.paper}), without any data."
    folder = run.directory / "pool"
    save_graph_pool(graphs, labels, folder, classes=teacher.classes, name=name, lineage=tree, note=note)
    run.picture("graphs", picture(graphs, labels, teacher.classes))


def picture(graphs: Graphs, labels: Int[Tensor, " n"], classes: tuple[str, ...]) -> dict[str, object]:
    """Some graphs of each class, for the report."""
    order = torch.arange(graphs.n)[labels.argsort(stable=True)]
    shown = order[torch.linspace(0, graphs.n - 1, min(DRAWN, graphs.n)).long()]
    items = []
    for i in shown.tolist():
        one = graphs[torch.tensor([i])]
        kinds = one.x.argmax(1) if one.x.shape[1] > 1 else torch.zeros(len(one.x), dtype=torch.int64)
        items.append(
            {"label": f"{classes[int(labels[i])]}", "nodes": kinds.tolist(), "edges": one.edge_index.T.tolist()}
        )
    return {
        "kind": "graphs",
        "title": "Graphs that were made",
        "caption": "Each was made for the class below it. A node's tone is its largest feature.",
        "groups": [f"feature {k}" for k in range(graphs.x.shape[1])],
        "items": items,
    }
