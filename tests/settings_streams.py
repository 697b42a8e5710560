"""Tiny streams of nodes and of graphs, and networks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.settings_graphs import TinyGraphNet
from upcycle.core.graphs import GraphTakes, Level, OnGraphs
from upcycle.core.models import Model
from upcycle.data.graphs import GraphSet
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Scenario, Stream

FEATURES, CLASSES = 6, tuple("uvwxyz")


def _ring(n: int, y: Tensor, chance: torch.Generator) -> SimpleNamespace:
    """A ring with chords, whose first node stands alone; features tell classes apart, not too well."""
    there = torch.stack([torch.arange(1, n - 1), torch.arange(2, n)])
    chords = torch.randint(1, n, (2, n), generator=chance)
    there = torch.cat([there, chords[:, chords[0] != chords[1]]], 1)
    x = torch.randn(n, FEATURES, generator=chance) + 1.5 * nn.functional.one_hot(y.expand(n), FEATURES)
    return SimpleNamespace(x=x, edge_index=torch.cat([there, there.flip(0)], 1).unique(dim=1), y=y, num_nodes=n)


def _split(n: int) -> dict[str, Tensor]:
    return {"train": torch.arange(n), "validation": n + torch.arange(50), "test": n + 50 + torch.arange(50)}


def six_classes(level: Level, n: int = 160) -> GraphSet:
    """Six classes of nodes or graphs, ``n`` samples to train on, 50 to validate and 50 to test."""
    chance = torch.Generator().manual_seed(0)
    if level == "node":
        graph: Any = _ring(n + 100, torch.randint(6, (n + 100,), generator=chance), chance)
    else:
        sizes = torch.randint(4, 9, (n + 100,), generator=chance).tolist()
        graph = [_ring(size, torch.tensor([i % 6]), chance) for i, size in enumerate(sizes)]
    return GraphSet.of(graph, split=_split(n), name="six", classes=CLASSES)


def graph_stream(level: Level, scenario: Scenario = "task", tasks: str = "3") -> Callable[[int], Stream]:
    """Their classes, two at a time."""
    return lambda n=160: stream(six_classes(level, n), tasks=tasks, scenario=scenario)


def plain_net(level: Level, seed: int = 100) -> dict[str, Any]:
    """A network that needs no library."""
    torch.manual_seed(seed)
    return {"student": student(TinyGraphNet(level, features=FEATURES, outputs=len(CLASSES)), level)}


def gat(seed: int = 100, p: float = 0.0) -> dict[str, Any]:
    """A small GAT about nodes."""
    from upcycle.zoo.gnn import GAT

    torch.manual_seed(seed)
    return {"student": student(GAT(FEATURES, len(CLASSES), "node", heads=2, width=4, p=p), "node")}


def convolutions(level: Level, seed: int = 100) -> dict[str, Any]:
    """Two GCN layers with BatchNorm, without attention."""
    from upcycle.zoo.gnn import Residual, gcn

    torch.manual_seed(seed)
    return {"student": student(Residual(gcn, 3, 8, FEATURES, len(CLASSES), level, p=0.0), level)}


def student(module: nn.Module, level: Level) -> Model:
    """A network for these data."""
    takes = GraphTakes(FEATURES, nodes=(4, 9), level=level)
    return Model(module=OnGraphs(module), inputs=takes, classes=CLASSES, name="student")


def changed(data: Stream, **fields: Any) -> Stream:
    """A stream whose base and tasks have other fields."""
    make = data.make
    base = cast(Any, dataclasses.replace(data.base, **fields))
    return dataclasses.replace(data, base=base, make=lambda t: dataclasses.replace(make(t), **fields))


class Convolutions(nn.Module):
    """A GCN layer and a linear one; without BatchNorm, behind which a bias has no gradient but rounding."""

    def __init__(self, level: Level) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.conv, self.last, self.level = GCNConv(FEATURES, 8), nn.Linear(8, len(CLASSES)), level

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        h = self.conv(x, edge_index).relu()
        if self.level == "graph":
            h = h.new_zeros(batch_size, h.shape[1]).index_add(0, batch, h)
        return self.last(h)


def one_convolution(level: Level, seed: int = 100) -> dict[str, Any]:
    """A network without attention and without BatchNorm."""
    torch.manual_seed(seed)
    return {"student": student(Convolutions(level), level)}
