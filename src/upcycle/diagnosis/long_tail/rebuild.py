"""Networks whose classifier was repaired, built again from what was recorded: the references ``diagnosis:OPERATION``.

Each takes the record of the source, the name of its classifier, and ``rebuild``, which builds the source; weights come
after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from upcycle.core.models import Model
from upcycle.diagnosis.long_tail.heads import Dual, Grouped, Normalised, layers

LARGEST = 2**16
"""Width of a hidden layer, at most."""


def _source(source: dict[str, Any], layer: str, rebuild: Callable[[dict[str, Any]], Model]) -> tuple[Model, nn.Linear]:
    model = rebuild(source)
    old = model.module.get_submodule(layer)
    if not isinstance(old, nn.Linear):
        raise ValueError(f"{layer} is no linear layer")
    return model, old


def rebuild_normalised(*, source: dict[str, Any], layer: str, rebuild: Callable[[dict[str, Any]], Model]) -> nn.Module:
    """Nearest class means of normalised features (ncm)."""
    model, old = _source(source, layer, rebuild)
    linear = nn.Linear(old.in_features, old.out_features)
    model.module.set_submodule(layer, Normalised(linear, torch.zeros(old.in_features)))
    return model.module


def rebuild_grouped(
    *,
    source: dict[str, Any],
    layer: str,
    groups: list[list[int]],
    background: int | None,
    rebuild: Callable[[dict[str, Any]], Model],
) -> nn.Module:
    """A softmax for each group of classes (bags)."""
    model, old = _source(source, layer, rebuild)
    made = Grouped(old.in_features, groups, background)
    if len(made.place) != old.out_features:
        raise ValueError(f"groups of {len(made.place)} classes, and the source has {old.out_features}")
    model.module.set_submodule(layer, made)
    return model.module


def rebuild_dual(
    *,
    source: dict[str, Any],
    layer: str,
    hidden: int,
    rare: list[int],
    rebuild: Callable[[dict[str, Any]], Model],
) -> nn.Module:
    """A second classifier for rare classes (simcal)."""
    model, old = _source(source, layer, rebuild)
    k = old.out_features
    if not 0 <= int(hidden) <= LARGEST or not all(0 <= int(c) < k for c in rare):
        raise ValueError(f"a hidden layer of {hidden}, or one of the classes {rare} of {k}")
    used = torch.zeros(k, dtype=torch.bool)
    used[[int(c) for c in rare]] = True
    model.module.set_submodule(layer, Dual(old, layers(old.in_features, int(hidden), k), used))
    return model.module


OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "normalised": rebuild_normalised,
    "grouped": rebuild_grouped,
    "dual": rebuild_dual,
}
