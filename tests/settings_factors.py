"""Tiny graphs with several labels each, and students with factors."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

from tests.settings_graphs import tiny_graph_model, tiny_graphs
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data.factor_graphs import SIZES, load_factors
from upcycle.data.graphs import GraphSet


@cache
def _factors() -> GraphSet:
    return load_factors("factors:4")


def tiny_factors(n: int = 160) -> GraphSet:
    """The first ``n`` graphs of four hidden relations to train on, 50 to validate and 50 to test."""
    data, parts = _factors(), {}
    for name, size in zip(SIZES, (n, 50, 50), strict=True):
        parts[name] = getattr(data, name).subset(torch.arange(size))
        union = parts[name].union
        parts[name] = dataclasses.replace(parts[name], union=dataclasses.replace(union, x=union.x.clone()))
    return dataclasses.replace(data, **parts)


def factor_model(data: GraphSet, seed: int = 100, name: str = "student", **options: Any) -> Model:
    """A student with factors, without dropout."""
    torch.manual_seed(seed)
    reference = options.pop("reference", "zoo:factorgcn")
    k = len(data.classes)
    model = resolve(reference, pretrained=False, num_classes=k, takes=data.takes, task=data.task, **options)
    return dataclasses.replace(model, name=name, classes=data.classes)


def factor_networks() -> dict[str, Any]:
    """A student of three kinds of rings alone."""
    return {"student": factor_model(tiny_graphs())}


def taught_networks() -> dict[str, Any]:
    """A student of rings, and a teacher of no factors."""
    return {"student": factor_model(tiny_graphs()), "teacher": tiny_graph_model("teacher", 7, "graph", seen=True)}


def label_networks() -> dict[str, Any]:
    """A student of hidden relations."""
    return {"student": factor_model(tiny_factors())}
