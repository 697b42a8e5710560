"""Graph networks over the layers of PyTorch Geometric, which must be installed to import this.

GCN-L-H and GIN-L-H are those that GFKD (Deng, Zhang; arXiv:2105.07519) distils: L - 1 convolutions of width H, each
followed by BatchNorm and ReLU, with a residual sum from the second on; the sum over a graph's nodes; one linear layer.
Departure: dropout stands before the linear layer; the authors' code drops out logits, from which a student would then
be distilled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, global_add_pool, global_mean_pool

from upcycle.core.graph_inputs import dropout
from upcycle.core.graphs import Level
from upcycle.zoo.spagan import SPAGAN

Convolution = Callable[[int, int], nn.Module]


class Residual(nn.Module):
    """GCN-L-H or GIN-L-H.

    Takes (x, edge_index, batch) and gives logits of each graph or of each node.

    Args:
        convolution: makes a layer from its widths.
        layers: L, of which the last one is linear.
        width: H.
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are summed.
        p: dropout before the linear layer.
    """

    def __init__(
        self,
        convolution: Convolution,
        layers: int,
        width: int,
        features: int,
        num_classes: int,
        level: Level,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [features, *[width] * (layers - 1)]
        self.convs = nn.ModuleList(convolution(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.convs)
        self.linear = nn.Linear(width, num_classes)
        self.level, self.p = level, p

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int | None = None) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = F.relu(norm(conv(x, edge_index)))
            x = x + h if i else h
        if self.level == "graph":
            x = global_add_pool(x, batch, batch_size)
        return self.linear(F.dropout(x, self.p, self.training))


def gcn(features: int, width: int) -> nn.Module:
    """Graph convolution (Kipf, Welling; arXiv:1609.02907): D^-1/2 (A + I) D^-1/2 x W.

    Args:
        features, width: of a node, before and behind it.
    """
    return GCNConv(features, width)


def gin(features: int, width: int) -> nn.Module:
    """Graph isomorphism layer (Xu et al., arXiv:1810.00826): an MLP of x plus the sum over neighbours; ε stays 0.

    Args:
        features, width: of a node, before and behind it.
    """
    mlp = nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
    return GINConv(mlp)


class GAT(nn.Module):
    """Graph attention (Veličković et al., arXiv:1710.10903) as they use it on citation graphs.

    Two layers, 8 heads of 8 and one of ``num_classes``, ELU between them, and dropout of 0.6 on the inputs of both and
    on attention. Logits of a graph are the mean over its nodes, which is ours, as is the form with one layer of
    attention and a linear one behind it.

    Args:
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are averaged.
        heads, width: of the first layer.
        p: dropout.
        layers: of attention, 2 or 1.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        level: Level,
        heads: int = 8,
        width: int = 8,
        p: float = 0.6,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.conv1 = GATConv(features, width, heads=heads, dropout=p)
        width *= heads
        self.conv2 = GATConv(width, num_classes, dropout=p) if layers == 2 else nn.Linear(width, num_classes)
        self.level, self.p, self.layers = level, p, layers

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int | None = None) -> Tensor:
        x = F.elu(self.conv1(dropout(x, self.p, self.training), edge_index))
        x = dropout(x, self.p, self.training)
        x = self.conv2(x, edge_index) if self.layers == 2 else self.conv2(x)
        return global_mean_pool(x, batch, batch_size) if self.level == "graph" else x


class SAGE(nn.Module):
    """GraphSAGE (Hamilton, Ying, Leskovec; arXiv:1706.02216): two layers of W x + W' mean of neighbours, ReLU between.

    Sparse features become a table: neighbours are averaged before they are multiplied.

    Args:
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are averaged.
        width: of the first layer.
        p: dropout between the layers.
    """

    def __init__(self, features: int, num_classes: int, level: Level, width: int = 64, p: float = 0.5) -> None:
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(features, width), SAGEConv(width, num_classes)
        self.level, self.p = level, p

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int | None = None) -> Tensor:
        x = x.to_dense() if x.layout == torch.sparse_csr else x
        x = F.dropout(F.relu(self.conv1(x, edge_index)), self.p, self.training)
        x = self.conv2(x, edge_index)
        return global_mean_pool(x, batch, batch_size) if self.level == "graph" else x


def make(name: str, features: int, num_classes: int, level: Level) -> nn.Module:
    """A fresh network.

    Args:
        name: one of :data:`upcycle.zoo.GRAPH_NETWORKS`.
        features: of a node.
        num_classes: logits.
        level: whether it answers about graphs or about nodes.
    """
    if name in ("gat", "gat_1"):
        return GAT(features, num_classes, level, layers=1 if name == "gat_1" else 2)
    if name in ("spagan", "spagan_1"):
        return SPAGAN(features, num_classes, level, layers=1 if name == "spagan_1" else 2)
    if name == "sage":
        return SAGE(features, num_classes, level)
    kind, layers, width = name.split("_")
    return Residual({"gcn": gcn, "gin": gin}[kind], int(layers), int(width), features, num_classes, level)
