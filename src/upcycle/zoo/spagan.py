"""SPAGAN: attention of each node over paths that begin at it (Yang, Wang, Song, Yuan, Tao; arXiv:2101.03464).

A path of c nodes stands in a column of an int64 tensor (c, P), its centre in row 0. All paths of a length are one
tensor. Nothing here needs PyTorch Geometric.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.graph_inputs import Graphs, dropout
from upcycle.core.graphs import Level

SLOPE = 0.2
"""Of LeakyReLU where it is negative, as in GAT."""
Paths = tuple[Tensor, ...]
"""Paths of each length, int64 (c, P_c) with the centre in row 0."""


class PathAttention(nn.Module):
    """Attention over paths, in several heads whose answers stand side by side.

    In each head, with h = W x + b and a path p = (i, v_1, ..., v_{c-1}) of c nodes:

        φ(p)  = max over v of h_v, feature by feature; the centre i is left out
        α_p   = softmax over the paths of i with c nodes of LeakyReLU(a_c · [φ(p) ‖ h_i])
        ℓ_i^c = Σ_p dropout(α_p) φ(p)
        β_c   = softmax over c of LeakyReLU(a · [ℓ_i^c ‖ h_i])
        out_i = Σ_c β_c ℓ_i^c

    With edges and self-loops as the only paths it is a layer of GAT. W, a_c and a are drawn as in the authors' code
    (normal, Xavier with gain 1.414); departure: b starts at zero, and theirs is drawn too.

    Args:
        features: of a node.
        width: of a head.
        heads: how many.
        lengths: how many lengths of paths there are.
        p: dropout of attention.
    """

    def __init__(self, features: int, width: int, heads: int, lengths: int, p: float) -> None:
        super().__init__()
        self.heads, self.width, self.p = heads, width, p
        self.weight = nn.Parameter(torch.empty(heads * width, features))
        self.bias = nn.Parameter(torch.empty(heads * width))
        self.of_paths = nn.Parameter(torch.empty(lengths, 2, heads, width))  # the halves of a_c
        self.of_lengths = nn.Parameter(torch.empty(2, heads, width)) if lengths > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        gain = 1.414 * math.sqrt(2)
        nn.init.normal_(self.weight, std=gain / math.sqrt(self.weight.shape[1] + self.width))
        nn.init.zeros_(self.bias)
        for attention in (self.of_paths, self.of_lengths):
            if attention is not None:
                nn.init.normal_(attention, std=gain / math.sqrt(2 * self.width + 1))

    def forward(self, x: Tensor, paths: Paths) -> Tensor:
        """Features of each node, (N, heads * width).

        Args:
            x: (N, d), dense or sparse.
            paths: of each length some, and of each node at least one.
        """
        return self.attend(x, paths)[0]

    def attend(self, x: Tensor, paths: Paths) -> tuple[Tensor, list[Tensor], Tensor]:
        """The result of :meth:`forward`, α of each length (P_c, heads), and β (lengths, N, heads)."""
        h = (F.linear(x, self.weight) + self.bias).view(-1, self.heads, self.width)
        n, alphas, parts = h.shape[0], [], []
        for of_path, of_centre, p in zip(self.of_paths[:, 0], self.of_paths[:, 1], paths, strict=True):
            phi = functools.reduce(torch.maximum, [h.index_select(0, v) for v in p[1:]])
            e = (phi * of_path).sum(-1) + (h * of_centre).sum(-1).index_select(0, p[0])
            alphas.append(softmax(F.leaky_relu(e, SLOPE), p[0], n))
            dropped = F.dropout(alphas[-1], self.p, self.training)
            parts.append(torch.zeros_like(h).index_add(0, p[0], dropped[..., None] * phi))
        ell = torch.stack(parts)
        if self.of_lengths is None:
            beta = ell.new_ones(1, n, self.heads)
        else:
            e = (ell * self.of_lengths[0]).sum(-1) + (h * self.of_lengths[1]).sum(-1)
            beta = F.leaky_relu(e, SLOPE).softmax(0)
        return (beta[..., None] * ell).sum(0).flatten(1), alphas, beta


def softmax(e: Tensor, group: Tensor, n: int) -> Tensor:
    """Softmax over the rows of each group, (P, k).

    Args:
        e: (P, k).
        group: int64 (P,), below ``n``.
        n: the number of groups.
    """
    top = torch.full((n, e.shape[1]), -math.inf, dtype=e.dtype, device=e.device)
    top = top.scatter_reduce(0, group[:, None].expand_as(e), e.detach(), "amax")
    exp = (e - top.index_select(0, group)).exp()
    return exp / torch.zeros_like(top).index_add(0, group, exp).index_select(0, group)


class SPAGAN(nn.Module):
    """A network whose first layer attends along paths of two and three nodes, 8 heads of 8.

    The second layer is attention over edges with one head, or a linear one. Dropout of 0.6 stands on the inputs of both
    and on attention, ELU between them. Without any paths, edges are those of two nodes. To each length the path that
    stays at its centre is added, (i, i) and (i, i, i), so that nodes without edges are answered.

    Departures: no ELU on the logits, which the authors' code has before its log-softmax; logits of a graph are the mean
    over its nodes.

    Args:
        features: of a node.
        num_classes: logits.
        level: whether a graph's nodes are averaged.
        layers: of attention, 2 or 1; behind one there is a linear layer.
        heads, width: of the first layer.
        p: dropout.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        level: Level = "node",
        layers: int = 2,
        heads: int = 8,
        width: int = 8,
        p: float = 0.6,
    ) -> None:
        super().__init__()
        self.level, self.p = level, p
        self.attention = PathAttention(features, width, heads, 2, p)
        self.last = (
            PathAttention(heads * width, num_classes, 1, 1, p) if layers == 2 else nn.Linear(heads * width, num_classes)
        )

    def forward(self, graphs: Graphs, paths: Paths = ()) -> Tensor:
        """Logits (len(graphs), k).

        Args:
            graphs: the whole graph, or several.
            paths: of two nodes, int64 (2, P), and of three, (3, P'), without those that stay at their centre.
        """
        if torch.is_autocast_enabled(graphs.device.type):  # there are no sparse products in bf16
            graphs = graphs.dense()
        h = F.elu(self.attention(dropout(graphs.x, self.p, self.training), _walked(graphs, paths)))
        h = F.dropout(h, self.p, self.training)
        z = self.last(h, _walked(graphs, ())[:1]) if isinstance(self.last, PathAttention) else self.last(h)
        if graphs.at is not None:
            return z[graphs.at]
        sums = z.new_zeros(graphs.n, z.shape[1]).index_add(0, graphs.batch, z)
        counts = z.new_zeros(graphs.n).index_add(0, graphs.batch, torch.ones_like(z[:, 0]))
        return sums / counts[:, None].clamp_min(1)

    def attended(self, graphs: Graphs, paths: Paths = ()) -> list[tuple[Tensor, Tensor]]:
        """Paths of each length with their weights in the first layer, the mean of β α over heads.

        Those of one centre sum to 1 over all lengths.

        Returns:
            for each length the paths (c, P), with those that stay at their centre, and the weights (P,).
        """
        walked = _walked(graphs, paths)
        _, alphas, beta = self.attention.attend(graphs.x, walked)
        return [(p, (b[p[0]] * a).mean(1)) for p, a, b in zip(walked, alphas, beta, strict=True)]


def _walked(graphs: Graphs, paths: Paths) -> Paths:
    """The paths that attention goes over: those given, or edges, and those that stay at their centre."""
    edges = graphs.edge_index
    if not paths:
        apart = edges[:, edges[0] != edges[1]]
        paths = (apart.flip(0), edges.new_empty(3, 0))
    # Not len(x), so that a program of torch.export takes any number of nodes.
    stay = torch.arange(graphs.x.shape[0], device=edges.device)
    return tuple(torch.cat([p, stay.expand(p.shape[0], -1)], 1) for p in paths)
