"""Shared parts of claims about graphs: networks of the zoo for a set of graphs, and their training."""

from __future__ import annotations

import dataclasses

from upcycle.claims.settings import train
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.data.graphs import GraphSet
from upcycle.distillation import Plain


def fresh_for(reference: str, data: GraphSet, seed: int) -> Model:
    """A network with weights drawn from ``seed``, for these graphs or nodes."""
    seed_everything(seed, "student")
    model = resolve(reference, pretrained=False, num_classes=len(data.classes), takes=data.takes, task=data.task)
    return dataclasses.replace(model, classes=data.classes)


def trained_on(reference: str, data: GraphSet, seed: int, recipe: Recipe, *, balanced: bool = False) -> Model:
    """A fresh network trained on the labels of ``data``."""
    start = fresh_for(reference, data, seed)
    module = train(Plain(student=start, recipe=recipe, balanced=balanced), data, seed)  # type: ignore[arg-type]
    return dataclasses.replace(start, module=module)
