"""FactorGCN (Yang, Feng, Song, Wang; arXiv:2010.05421): a graph convolution that takes one kind of edge apart.

Plain tensors: PyTorch Geometric is not needed. N nodes, E edges of the data, M = E + N with the loops that each layer
adds, L factors, widths d_in and d_out = L d.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.zoo.factor_messages import Listed, Messages, mean_of, messages_over, sum_of

FACTORS = 4
"""Of a network that nothing else is said about."""
Level = Literal["graph", "node"]


class Factors(NamedTuple):
    """The factor graphs of one layer, and what is sent through them.

    Args:
        h: the shared projection h' of the nodes, (N, d).
        z: what each node gets in each factor, z_e[i] = Σ_{j→i} E_e[j → i] deg(j)^-1/2 h'_j, in the form of ``over``.
        weight: E_e[j → i] of each edge in each factor, in (0, 1), in the form of ``over``.
        sent: E_e[j → i] deg(j)^-1/2, what a message is multiplied with, in the form of ``over``.
        over: the edges; :meth:`Listed.listed` and :meth:`Listed.nodes` give one form of weights and nodes for all.
    """

    h: Tensor
    z: Tensor
    weight: Tensor
    sent: Tensor
    over: Messages

    @property
    def edge_index(self) -> Int[Tensor, "2 E"]:
        """j and i of each edge but the loops."""
        return self.over.edge_index


class Disentangle(nn.Module):
    """The factor graphs of a layer, and a convolution in each: a soft choice of edges, independent of other factors.

    h' = W h + b, and E_e[j → i] = σ(6 (a_e^l · h'_j + b_e^l + a_e^r · h'_i + b_e^r)).

    There is no softmax, neither over neighbours nor over factors: an edge may belong to several factors or to none.

    Args:
        d_in: features of a node.
        d: width of h'.
        factors: L.
    """

    def __init__(self, d_in: int, d: int, factors: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_in, d)
        self.of_source, self.of_target = nn.Linear(d, factors), nn.Linear(d, factors)

    @property
    def factors(self) -> int:
        """L."""
        return self.of_source.out_features

    def forward(self, x: Float[Tensor, "N d_in"], edges: Int[Tensor, "2 E"] | Messages) -> Factors:
        over = Listed(edges, x.shape[0], x.dtype) if isinstance(edges, Tensor) else edges
        h = self.project(x)
        weight, sent = over.weigh(self.of_source(h), self.of_target(h))
        return Factors(h, over.send(sent, over.spread(h)), weight, sent, over)


class FactorConv(nn.Module):
    """A graph convolution in each of L factor graphs, whose results stand side by side, (N, d_in) to (N, d_out).

    z_e[i] = Σ_{j→i} E_e[j → i] deg(j)^-1/2 h'_j, with :class:`Disentangle`; the result is [z_1 | ... | z_L]. Called
    like a layer of PyTorch Geometric: ``FactorConv(7, 64, 4)(x, edge_index)``; or, by networks of several layers, with
    the edges as :func:`~upcycle.zoo.factor_messages.messages_over` has prepared them for all.

    Departure: the layer adds loops, and their place is in the degree; in the authors' code they are part of the data.

    Args:
        d_in: features of a node.
        d_out: features that come out, a multiple of ``factors``.
        factors: L.

    Raises:
        UserError: ``d_out`` cannot be divided among the factors.
    """

    def __init__(self, d_in: int, d_out: int, factors: int) -> None:
        super().__init__()
        require(factors >= 1, f"A layer has 1 or more factors, not {factors}.")
        require(
            d_out % factors == 0,
            f"{d_out} features cannot be divided among {factors} factors; take a number that divides {d_out}.",
        )
        self.disentangle = Disentangle(d_in, d_out // factors, factors)

    def forward(self, x: Float[Tensor, "N d_in"], edges: Int[Tensor, "2 E"] | Messages) -> Float[Tensor, "N d_out"]:
        found = self.disentangle(x, edges)
        return found.over.nodes(found.z).flatten(1)


def layers_of(network: nn.Module) -> list[Disentangle]:
    """The layers of a network that have factors, in the order in which they were made."""
    return [m for m in network.modules() if isinstance(m, Disentangle)]


@contextlib.contextmanager
def seen_factors(network: nn.Module) -> Iterator[dict[Disentangle, Factors]]:
    """Catch the factor graphs that each layer makes while the block lasts; of several calls the last.

    Args:
        network: any with a :class:`FactorConv` in it.

    Yields:
        an empty dict, which forwards fill.
    """
    seen: dict[Disentangle, Factors] = {}
    handles = [m.register_forward_hook(lambda m, _, out: seen.__setitem__(m, out)) for m in layers_of(network)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class FactorGCN(nn.Module):
    """FactorGCN-L-H in the form that the authors use on synthetic graphs.

    Convolutions of width H, each followed by LeakyReLU (slope 0.2); the mean over a graph's nodes; tanh; a linear
    layer. About nodes, no mean.

    Args:
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are averaged.
        factors: of each layer.
        width: H, a multiple of every number of factors.
    """

    def __init__(
        self, features: int, num_classes: int, level: Level = "graph", factors: Sequence[int] = (4, 2), width: int = 32
    ) -> None:
        super().__init__()
        widths = [features, *[width] * len(factors)]
        self.convs = nn.ModuleList(FactorConv(a, width, L) for a, L in zip(widths, factors, strict=False))
        self.linear = nn.Linear(width, num_classes)
        self.level = level

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int | None = None) -> Tensor:
        matrices = self.training and self.level == "graph"
        edges = messages_over(x, edge_index, batch, batch_size, matrices=matrices)
        for conv in self.convs:
            x = F.leaky_relu(conv(x, edges), 0.2)
        x = mean_of(x, batch, batch_size) if self.level == "graph" else x
        return self.linear(torch.tanh(x))


class DeepFactorGCN(nn.Module):
    """FactorGCN-L-H in the form that the authors use to classify graphs: every layer has a say.

    Convolutions of width H, each followed by BatchNorm and ReLU. The logits are the sum over all layers, with the
    features themselves as the first, of a dropout of a linear layer of the sum over a graph's nodes.

    Args:
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are summed.
        factors: of each layer.
        width: H, a multiple of every number of factors.
        p: dropout of each layer's logits.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        level: Level = "graph",
        factors: Sequence[int] = (4, 4, 2, 2, 1),
        width: int = 64,
        p: float = 0.4,
    ) -> None:
        super().__init__()
        widths = [features, *[width] * len(factors)]
        self.convs = nn.ModuleList(FactorConv(a, width, L) for a, L in zip(widths, factors, strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in factors)
        self.linears = nn.ModuleList(nn.Linear(a, num_classes) for a in widths)
        self.level, self.p = level, p

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int | None = None) -> Tensor:
        x = x.to_dense() if x.layout == torch.sparse_csr else x
        matrices = self.training and self.level == "graph"
        edges = messages_over(x, edge_index, batch, batch_size, matrices=matrices)
        logits = self._logits(0, x, batch, batch_size)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = F.relu(norm(conv(x, edges)))
            logits = logits + self._logits(i, x, batch, batch_size)
        return logits

    def _logits(self, layer: int, x: Tensor, batch: Tensor, batch_size: int | None) -> Tensor:
        x = sum_of(x, batch, batch_size) if self.level == "graph" else x
        return F.dropout(self.linears[layer](x), self.p, self.training)


def make(name: str, features: int, num_classes: int, level: Level, factors: int | None = None) -> nn.Module:
    """A fresh network.

    Args:
        name: ``factorgcn``, with L and L/2 factors in two layers of width 32, or ``factorgcn_5_64``, with L, L, L/2,
            L/2 and L/4 in five layers of width 64; never less than one.
        features: of a node.
        num_classes: logits.
        level: whether it answers about graphs or about nodes.
        factors: L of the first layer; 4 if not given.

    Raises:
        UserError: a number of factors that the width cannot be divided among.
    """
    L = FACTORS if factors is None else factors
    half, quarter = max(L // 2, 1), max(L // 4, 1)
    if name == "factorgcn":
        return FactorGCN(features, num_classes, level, (L, half))
    return DeepFactorGCN(features, num_classes, level, (L, L, half, half, quarter))
