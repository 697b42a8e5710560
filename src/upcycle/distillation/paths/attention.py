"""The attention of a trained network's first layer over the edges of a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upcycle.core.edge_attention import FirstAttention, attention_layers
from upcycle.core.errors import UserError, require
from upcycle.core.graphs import Graphs
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import own

NAMED = 6
"""So many layers are named in an error."""


def first_attention(model: Model, graphs: Graphs) -> tuple[Tensor, Tensor]:
    """The edges that the first attention layer goes over, its own self-loops among them, and ā of each.

    ā is the mean over heads, of a forward in evaluation mode and float64, so that the number format of a run and most
    machines do not change it. The network is copied.

    Args:
        model: over graphs; a layer of it has to be able to return attention, as ``GATConv`` does.
        graphs: the whole graph.

    Returns:
        int64 (2, E'), source and target; float64 (E',).

    Raises:
        UserError: no such layer, naming those that there are; attention that is negative, infinite or NaN.
    """
    network = copy_of(model.module).cpu().double().eval()
    layers = attention_layers(network)
    if not layers:
        raise UserError(
            f"{model.name} has no attention over edges that paths could follow; it has {_layers(own(network))}. Take a "
            "trained zoo:gat, or another network with GATConv"
        )
    with torch.no_grad(), FirstAttention(network, layers) as first:
        network(graphs.to("cpu").double())
        attention, edge_index = first.attention()
    fine = bool((attention.isfinite() & (attention >= 0)).all())
    require(fine, f"The attention of {model.name} is negative or not finite; are there NaN in its weights?")
    return edge_index, attention.mean(1)


def _layers(network: nn.Module) -> str:
    """The layers of a network over edges by name and class, or all of its layers where there are none."""
    named = [(name, m) for name, m in network.named_modules() if name and not any(m.children())]
    passing = [(name, m) for name, m in network.named_modules() if hasattr(m, "propagate")]
    words = [f"{name} ({type(m).__name__})" for name, m in passing or named]
    return ", ".join(words[:NAMED] + [f"{len(words) - NAMED} more"] * (len(words) > NAMED)) or "no layers"
