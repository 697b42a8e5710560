"""The attention of a trained network's first layer over the edges of a graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.graphs import Graphs
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import own

WORD = "return_attention_weights"
"""The argument by which layers of PyTorch Geometric give their attention too."""
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
    found: list[tuple[str, Tensor, Tensor]] = []
    for name, layer in own(network).named_modules():
        if _can_return(layer):
            asked = _Asked(name, found)
            layer.register_forward_pre_hook(asked.before, with_kwargs=True)
            layer.register_forward_hook(asked.after)
    with torch.no_grad():
        network(graphs.to("cpu").double())
    if not found:
        raise UserError(
            f"{model.name} has no attention over edges that paths could follow; it has {_layers(own(network))}. Take a "
            "trained zoo:gat, or another network with GATConv"
        )
    name, edge_index, attention = found[0]
    fine = bool((attention.isfinite() & (attention >= 0)).all())
    require(fine, f"The attention of {name} of {model.name} is negative or not finite; are there NaN in the features?")
    return edge_index, attention


class _Asked:
    """Hooks that ask a layer for its attention and keep it, while the network around it gets what it asked for.

    Args:
        name: of the layer.
        found: where attention is added, in the order of the forward.
    """

    def __init__(self, name: str, found: list[tuple[str, Tensor, Tensor]]) -> None:
        self.name, self.found, self.wanted = name, found, False

    def before(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.wanted = kwargs.get(WORD) is not None
        return args, {**kwargs, WORD: True}

    def after(self, layer: nn.Module, args: Any, output: Any) -> Any:
        out, (edge_index, alpha) = output
        self.found.append((self.name, edge_index, alpha.flatten(1).mean(1) if alpha.ndim > 1 else alpha))
        return output if self.wanted else out


def _can_return(layer: nn.Module) -> bool:
    try:
        return WORD in inspect.signature(layer.forward).parameters
    except (TypeError, ValueError):
        return False


def _layers(network: nn.Module) -> str:
    """The layers of a network over edges by name and class, or all of its layers where there are none."""
    named = [(name, m) for name, m in network.named_modules() if name and not any(m.children())]
    passing = [(name, m) for name, m in network.named_modules() if hasattr(m, "propagate")]
    words = [f"{name} ({type(m).__name__})" for name, m in passing or named]
    return ", ".join(words[:NAMED] + [f"{len(words) - NAMED} more"] * (len(words) > NAMED)) or "no layers"
