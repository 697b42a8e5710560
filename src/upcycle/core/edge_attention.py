"""Attention over the edges of a graph: that of a network's first message-passing layer, or one that is made up for it.

Layers are PyTorch Geometric's, which is imported by whoever has such a layer.
"""

from __future__ import annotations

import inspect
import sys
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.outputs import called, own
from upcycle.core.undisturbed import undisturbed

SLOPE = 0.2
"""Of the leaky ReLU in attention that is made up, as in a GAT."""
WORD = "return_attention_weights"
"""The argument by which layers of PyTorch Geometric give their attention too."""


def passing_layers(network: nn.Module) -> list[nn.Module]:
    """The message-passing layers of a network (``torch_geometric.nn.MessagePassing``); none where there is no library.

    Args:
        network: any module.
    """
    library = sys.modules.get("torch_geometric.nn")
    return [] if library is None else [m for m in network.modules() if isinstance(m, library.MessagePassing)]


def attention_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that give their attention when they are asked, as ``GATConv`` does."""
    return [m for m in own(network).modules() if _gives_attention(m)]


def _gives_attention(layer: nn.Module) -> bool:
    try:
        return WORD in inspect.signature(layer.forward).parameters
    except (TypeError, ValueError):
        return False


class FirstAttention:
    """The attention that the first message-passing layer pays to each edge, in a forward while the block lasts.

    >>> with FirstAttention(network) as first:  # doctest: +SKIP
    ...     logits = network(graphs)
    ...     e = first.attention()

    Args:
        network: with at least one message-passing layer; the first one that is called counts.
        layers: of which the first counts, in place of all message-passing layers.

    Raises:
        UserError: there is no such layer.
    """

    def __init__(self, network: nn.Module, layers: list[nn.Module] | None = None) -> None:
        self._name, self._layers = called(network), passing_layers(network) if layers is None else layers
        require(
            bool(self._layers),
            f"{self._name} has no layer of message passing (torch_geometric.nn.MessagePassing), so there is no "
            "attention to edges.",
        )
        self._hooks: list[Any] = []
        self._call: tuple[nn.Module, dict[str, Any]] | None = None

    def __enter__(self) -> FirstAttention:
        self._hooks = [layer.register_forward_pre_hook(self._see, with_kwargs=True) for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, layer: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        if self._call is None:
            self._call = layer, inspect.signature(layer.forward).bind(*args, **words).arguments

    def attention(self) -> tuple[Tensor, Tensor]:
        """The attention e that each node pays to its neighbours and itself, and the edges it is of.

        That of a layer that has attention, without its dropout; else :func:`virtual_attention`. Of a node's edges it
        sums to 1 either way.

        Returns:
            (E, heads), with a graph to the weights; and int64 (2, E), source and target.

        Raises:
            UserError: no layer was called, or not with a list of edges.
        """
        require(self._call is not None, f"No layer of message passing was called in the forward of {self._name}.")
        layer, given = self._call  # type: ignore[misc]
        x: Any = given.get("x")
        edge_index: Any = given.get("edge_index")
        require(
            isinstance(edge_index, Tensor) and x is not None,
            f"The first layer of message passing in {self._name} ({called(layer)}) is not called with x and "
            "edge_index.",
        )
        if _gives_attention(layer):
            return _own_attention(layer, given)
        x = x[0] if isinstance(x, tuple) else x
        return virtual_attention(x, _projection(layer, x), edge_index)


def _own_attention(layer: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Ask a layer for its attention: it is called again, without hooks and dropout."""
    dropout = getattr(layer, "dropout", 0.0)
    layer.dropout = 0.0
    try:
        _, (edge_index, e) = layer.forward(**{**given, WORD: True})
    finally:
        layer.dropout = dropout
    return e.view(len(e), -1), edge_index


def virtual_attention(h: Tensor, weight: Tensor | None, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """e_ij = softmax_j LeakyReLU((W h_j)ᵀ tanh(W h_i)), over the neighbours j of each node i and itself.

    Args:
        h: what the nodes bring, (N, d), dense or sparse.
        weight: W, (k, d); ``None`` for h as it is.
        edge_index: int64 (2, E), source j and target i.

    Returns:
        e, (E + N, 1), and its edges, int64 (2, E + N); loops that were there are not there twice.
    """
    from torch_geometric.utils import add_self_loops, remove_self_loops, softmax

    h = h if weight is None else F.linear(h, weight)
    edges, _ = add_self_loops(remove_self_loops(edge_index)[0], num_nodes=len(h))
    source, target = edges
    score = (h[source] * h.tanh()[target]).sum(1, keepdim=True)
    e = softmax(F.leaky_relu(score, SLOPE), target, num_nodes=len(h))
    return e, edges


def _projection(layer: nn.Module, x: Tensor) -> Tensor | None:
    """The weight (k, d) of the first linear map in a layer that takes what its nodes bring; ``None`` without one."""
    weights = (getattr(m, "weight", None) for m in layer.modules() if type(m).__name__ == "Linear")
    return next((w for w in weights if isinstance(w, Tensor) and w.shape[-1:] == x.shape[1:]), None)


def attention_problem(network: nn.Module, example: Any) -> str:
    """Why a network's attention to edges leads to no weight of it; empty where it does.

    Args:
        network: in any mode.
        example: inputs that it takes.
    """
    try:
        with undisturbed(network), torch.enable_grad(), FirstAttention(network) as first:
            network(example)
            e, _ = first.attention()
    except UserError as error:
        return str(error).rstrip(".")
    return "" if e.requires_grad else f"no weight of {called(network)} has a part in the attention to edges"
