"""Inputs that are the same for every node: what a network was trained to be given beside its features, kept with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.graphs import Graphs
from upcycle.core.models import Model

REFERENCE = "assembly:constants"


class Constants(nn.Module):
    """A network over graphs that sees constants behind the features of each node, and is given none of them.

    Args:
        network: takes :class:`~upcycle.core.graphs.Graphs` with as many features more as there are constants.
        values: the constants, (c,).
    """

    values: Tensor

    def __init__(self, network: nn.Module, values: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("values", values.detach().clone())

    def forward(self, graphs: Graphs) -> Tensor:
        return self.network(beside(graphs, self.values.expand(len(graphs.batch), -1)))


def beside(graphs: Graphs, more: Tensor) -> Graphs:
    """Graphs with further features behind those of each node, in an ordinary table.

    Args:
        graphs: with d features a node.
        more: (N, c), with gradients where it has them.
    """
    x = graphs.x.to_dense() if graphs.sparse else graphs.x
    return replace(graphs, x=torch.cat([x, more.to(x)], 1))


def rebuild_constants(*, source: dict[str, Any], constants: int, rebuild: Callable[[Any], Model]) -> nn.Module:
    """A network with constants of zeros again; its weights come after.

    Args:
        source: of the network that sees them.
        constants: how many.
    """
    return Constants(rebuild(source).module, torch.zeros(constants))
