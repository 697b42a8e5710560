"""Tiny graphs and networks over them, most of which need no library: as inputs of the promises."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.graphs import GraphTakes, Level
from upcycle.core.models import Model
from upcycle.data.graphs import GraphSet, GraphSplit

FEATURES, CLASSES = 5, ("a", "b", "c")


class TinyGraphNet(nn.Module):
    """linear-BN-ReLU, the mean over each node and its neighbours, linear; pooled for answers about graphs."""

    def __init__(self, level: Level, width: int = 8, features: int = FEATURES, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(features, width), nn.BatchNorm1d(width)
        self.last = nn.Linear(width, outputs)
        self.level = level

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        degree = h.new_ones(h.shape[0]).index_add(0, edge_index[1], h.new_ones(edge_index.shape[1]))
        h = h.index_add(0, edge_index[1], h[edge_index[0]]) / degree[:, None]
        if self.level == "graph":
            h = h.new_zeros(batch_size, h.shape[1]).index_add(0, batch, h)
        return self.last(h)


def _ring(n: int, y: Tensor, chance: torch.Generator) -> SimpleNamespace:
    """A ring whose first node stands alone; features of nodes tell classes apart, not too well."""
    ring = torch.stack([torch.arange(1, n - 1), torch.arange(2, n)])
    kinds = y if len(y) > 1 else y.expand(n)
    x = torch.randn(n, FEATURES, generator=chance) + 0.7 * nn.functional.one_hot(kinds, FEATURES)
    return SimpleNamespace(x=x, edge_index=torch.cat([ring, ring.flip(0)], 1), y=y, num_nodes=n)


def _split(n: int) -> dict[str, Tensor]:
    return {"train": torch.arange(n), "validation": n + torch.arange(50), "test": n + 50 + torch.arange(50)}


def tiny_graphs(n: int = 160) -> GraphSet:
    """``n`` graphs of 3 to 9 nodes to train on, 50 to validate and 50 to test."""
    chance = torch.Generator().manual_seed(0)
    sizes = torch.randint(3, 10, (n + 100,), generator=chance).tolist()
    graphs = [_ring(size, torch.tensor([i % 3]), chance) for i, size in enumerate(sizes)]
    return GraphSet.of(graphs, split=_split(n), name="rings", classes=CLASSES)


def tiny_nodes(n: int = 160) -> GraphSet:
    """One graph with ``n`` nodes to train on, 50 to validate and 50 to test."""
    chance = torch.Generator().manual_seed(0)
    graph = _ring(n + 100, torch.randint(3, (n + 100,), generator=chance), chance)
    return GraphSet.of(graph, split=_split(n), name="ring", classes=CLASSES)


def tiny_graph_model(name: str, seed: int, level: Level = "graph", width: int = 8, seen: bool = False) -> Model:
    """A tiny network; ``seen``: with the BatchNorm statistics of the training data."""
    torch.manual_seed(seed)
    module = TinyGraphNet(level, width)
    if seen:
        data = tiny_graphs() if level == "graph" else tiny_nodes()
        module.norm.momentum = None  # of all that it sees, not a tenth
        with torch.no_grad():
            x = data.train.batch(torch.arange(len(data.train)), device=torch.device("cpu")).inputs.x
            module.norm(module.first(x))
        module.norm.momentum = 0.1
        module.eval()
    takes = GraphTakes(FEATURES, nodes=(3, 9), level=level)
    return Model(module=takes.adapted(module), inputs=takes, classes=CLASSES, name=name)


def networks(level: Level, seed: int = 0) -> dict[str, Any]:
    """Teacher and student over the same graphs."""
    return {
        "teacher": tiny_graph_model("teacher", 7, level, seen=True),
        "student": tiny_graph_model("student", 100, level),
    }


def path_networks() -> dict[str, Any]:
    """A GAT with attention of its own, and a student that attends along paths; without dropout, see ``draws``."""
    from upcycle.zoo.gnn import GAT
    from upcycle.zoo.spagan import SPAGAN

    takes, made = tiny_nodes().takes, {}
    for role, seed, kind in (("teacher", 7, GAT), ("student", 100, SPAGAN)):
        torch.manual_seed(seed)
        module = takes.adapted(kind(FEATURES, len(CLASSES), "node", heads=2, width=4, p=0.0))
        made[role] = Model(module=module, inputs=takes, classes=CLASSES, name=role)
    return made


def other_graphs(split: Any) -> Any:
    """A split of which the first graph or node has another first feature."""
    field = "union" if isinstance(split, GraphSplit) else "graph"
    graphs = getattr(split, field)
    x = graphs.x.clone()
    x[0, 0] += 1
    changed = dataclasses.replace(split, **{field: dataclasses.replace(graphs, x=x)})
    if field == "graph":
        changed.placed = {}
    return changed


def spoil_graphs(data: GraphSet) -> None:
    """Make features of several training graphs or nodes NaN, in place."""
    split: Any = data.train
    graphs = split.union if isinstance(split, GraphSplit) else split.graph
    some = torch.isin(graphs.batch, split.ids[17:25]) if isinstance(split, GraphSplit) else split.ids[17:25]
    graphs.x[some] = float("nan")
