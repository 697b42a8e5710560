"""Tiny nodes in two groups, and networks of layers that dense blocks know."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.settings_graphs import CLASSES, FEATURES, tiny_graphs
from upcycle.core.graphs import Graphs, OnGraphs, sorted_by_target
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data.graphs import GraphSet
from upcycle.distillation import Plain

_RECIPE = Recipe(epochs=3, batch_size=0, optimizer="adam", lr=0.01, weight_decay=0.0)


def tiny_groups(n: int = 160) -> GraphSet:
    """``n`` nodes of a graph to train on, 50 to validate and 50 to test, in two groups that differ."""
    chance, total = torch.Generator().manual_seed(0), n + 100
    group = torch.randint(2, (total,), generator=chance)
    x = torch.randn(total, 4, generator=chance) + group[:, None] * torch.tensor([1.0, 0, 0, 0])
    labels = (x[:, 0] + x[:, 1] > 0.5).long()
    there = torch.randint(total, (2, 3 * total), generator=chance)
    there = there[:, there[0] != there[1]]
    edges, _ = sorted_by_target(torch.cat([there, there.flip(0)], 1).unique(dim=1))
    split = dict(zip(("train", "validation", "test"), torch.arange(total).split([n, 50, 50]), strict=True))
    whole = Graphs(x=x, edge_index=edges, batch=torch.zeros(total, dtype=torch.long), n=1)
    return GraphSet.of_nodes("groups", whole, labels, ("no", "yes"), split, columns={"group": group})


def trained(model: Model, data: GraphSet) -> Model:
    """After a few steps on the labels."""
    module = Plain(student=model, recipe=_RECIPE).fit(Run(None, seed=7, quiet=True, precision="32-true"), data)
    return dataclasses.replace(model, module=module)


def group_networks() -> dict[str, Any]:
    """A teacher and a student of the groups, which can be built wider; without dropout, which processes draw apart."""
    data, made = tiny_groups(), []
    for name, seed in (("teacher", 7), ("student", 100)):
        torch.manual_seed(seed)
        model = resolve("pyg:GCN", pretrained=False, num_classes=2, takes=data.takes)
        made.append(dataclasses.replace(model, name=name, classes=data.classes))
    return {"teacher": trained(made[0], data), "student": made[1]}


def layer_network(name: str, seed: int, width: int = 8) -> Model:
    """GCN-3 over whole graphs, without dropout."""
    from upcycle.zoo.gnn import Residual, gcn

    torch.manual_seed(seed)
    takes = tiny_graphs().takes
    module = OnGraphs(Residual(gcn, 3, width, FEATURES, len(CLASSES), "graph", p=0.0))
    return Model(module=module, inputs=takes, classes=CLASSES, name=name)


def layer_networks() -> dict[str, Any]:
    """A teacher that was trained for some steps, and a fresh student."""
    return {"teacher": trained(layer_network("teacher", 7), tiny_graphs()), "student": layer_network("student", 100)}
