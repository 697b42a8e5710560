"""Messages between the nodes of graphs, in several factor graphs at once: over edges one by one, or over matrices.

N nodes and E edges of n graphs of at most s nodes; M = E + N with a loop at each node; L factors; w numbers a node.
A factor graph is a weight for each edge and loop. In :class:`Listed` it is a column of a table, in :class:`Blocks` a
matrix for each graph. Both have the same words, so that a layer is written once. Both compute what the layers of a
network share when the first one asks for it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOPE = 6.0
"""The factor of scores before the sigmoid, as published."""
FULLEST = 8
"""Entries of matrices for each edge and loop, at most, for which matrices are faster (benchmarks/factor_step.py)."""


class Listed:
    """Edges one by one, then a loop for each node. Weights are (M, L), and what nodes have is (N, L, w).

    Args:
        edge_index: source j and target i of each edge, int64 (2, E).
        nodes: N.
        dtype: of what is sent.
    """

    def __init__(self, edge_index: Int[Tensor, "2 E"], nodes: int, dtype: torch.dtype) -> None:
        self.edge_index, self.N, self.dtype = edge_index, nodes, dtype

    @cached_property
    def scale(self) -> Float[Tensor, " M"]:
        """deg(j)^-1/2 of each edge and loop; see :func:`scales`."""
        return scales(self.edge_index, self.N, self.dtype)

    def weigh(self, of_source: Float[Tensor, "N L"], of_target: Float[Tensor, "N L"]) -> tuple[Tensor, Tensor]:
        """E_e[j → i] = σ(6 (of_source_e[j] + of_target_e[i])), and the same times deg(j)^-1/2; each (M, L)."""
        score = of_source.index_select(0, self.edge_index[0]) + of_target.index_select(0, self.edge_index[1])
        weight = torch.sigmoid(SLOPE * torch.cat([score, of_source + of_target]))
        return weight, weight * self.scale[:, None].to(weight.dtype)

    def spread(self, h: Float[Tensor, "N w"]) -> Float[Tensor, "N 1 w"]:
        """Numbers of nodes that are the same in all factors, as :meth:`send` takes them."""
        return h[:, None]

    def send(self, weight: Tensor, x: Tensor) -> Tensor:
        """See :func:`send`."""
        return send(weight, x, self.edge_index)

    def nodes(self, x: Float[Tensor, "N L w"]) -> Float[Tensor, "N L w"]:
        """Gather the rows of each node, node by node."""
        return x

    def convolved_twice(
        self,
        z: Float[Tensor, "N L d"],
        sent: Float[Tensor, "M L"],
        first: nn.Linear,
        second: nn.Linear,
        batch: Int[Tensor, " N"],
        n: int,
    ) -> Float[Tensor, "n L d"]:
        """The mean over each graph's nodes of two convolutions, of which the sums of the first are taken already.

        A convolution is tanh(Σ_{j→i} sent_e[j → i] (U x_j + c)). Sums over neighbours are linear, so each is taken
        where there are fewer numbers: before U widens them.

        Args:
            z: Σ_{j→i} sent_e[j → i] h_j, of d numbers h for each node.
            sent: what messages are multiplied with.
            first, second: U and c, from d numbers to fewer and back.
            batch: the graph of each node.
            n: graphs.
        """
        E = self.edge_index.shape[1]
        s = sent[E:].index_add(0, self.edge_index[1], sent[:E])[..., None]
        x = torch.tanh(F.linear(z, first.weight) + s * first.bias)
        x = torch.tanh(F.linear(self.send(sent, x), second.weight) + s * second.bias)
        return mean_of(x, batch, n)

    def listed(self, weight: Float[Tensor, "M L"]) -> Float[Tensor, "M L"]:
        """The first of :meth:`weigh`, one edge after another, then of loops."""
        return weight


class Blocks:
    """The edges of small graphs as a matrix for each graph. Weights are (n, L, s, s), and nodes have (n, L, s, w).

    Row i of a matrix is what node i gets, so that the sum over its neighbours is a product of matrices. Entries without
    an edge, and rows and columns beyond a graph's own nodes, are 0.

    Args:
        edge_index: source j and target i of each edge, int64 (2, E); edges lie within graphs.
        first: the first node of each graph, and behind the last one N, int64 (n + 1,).
        size: s.
        nodes: N.
        dtype: of what is sent.
    """

    def __init__(
        self, edge_index: Int[Tensor, "2 E"], first: Int[Tensor, " n1"], size: int, nodes: int, dtype: torch.dtype
    ) -> None:
        self.edge_index, self.first, self.N, self.dtype = edge_index, first, nodes, dtype
        self.shape = len(first) - 1, size
        self.full = nodes == (len(first) - 1) * size  # all graphs have s nodes, and there is no padding

    @cached_property
    def place(self) -> Int[Tensor, " N"]:
        """The row of each node where every graph has s rows."""
        n, size = self.shape
        rows = torch.arange(self.N, device=self.first.device)
        if self.full:
            return rows
        shift = torch.arange(0, n * size, size, device=self.first.device) - self.first[:-1]
        return rows + shift.repeat_interleave(self.first.diff(), output_size=self.N)

    @cached_property
    def entries(self) -> Int[Tensor, " M"]:
        """The places of edges, then of loops, among the entries of all matrices."""
        source, target = (torch.cat([self.place[ends], self.place]) for ends in self.edge_index)
        return target * self.shape[1] + source % self.shape[1]

    @cached_property
    def scale(self) -> Float[Tensor, "n 1 s s"]:
        """deg(j)^-1/2 of each edge and loop, as matrices; see :func:`scales`."""
        n, size = self.shape
        found = scales(self.edge_index, self.N, self.dtype)
        return found.new_zeros(n * size * size).index_add(0, self.entries, found).view(n, 1, size, size)

    def weigh(self, of_source: Float[Tensor, "N L"], of_target: Float[Tensor, "N L"]) -> tuple[Tensor, Tensor]:
        """See :meth:`Listed.weigh`; (n, L, s, s), the first also where there is no edge."""
        scores = SLOPE * self.spread(torch.cat([of_source, of_target], 1))
        source, target = scores[:, 0].transpose(1, 2).contiguous().chunk(2, dim=1)
        weight = torch.sigmoid(source[:, :, None] + target[..., None])
        return weight, weight * self.scale.to(weight.dtype)

    def spread(self, h: Float[Tensor, "N w"]) -> Float[Tensor, "n 1 s w"]:
        """See :meth:`Listed.spread`; zeros where a graph has fewer nodes."""
        n, size = self.shape
        h = h if self.full else h.new_zeros(n * size, h.shape[1]).index_copy(0, self.place, h)
        return h.view(n, 1, size, h.shape[1])

    def send(self, weight: Float[Tensor, "n L s s"], x: Float[Tensor, "n _ s w"]) -> Float[Tensor, "n L s w"]:
        """See :func:`send`: a product of matrices for each graph, or for each graph and factor."""
        n, L, size, _ = weight.shape
        if x.shape[1] == 1:
            return torch.bmm(weight.reshape(n, L * size, size), x[:, 0]).view(n, L, size, x.shape[3])
        return torch.bmm(weight.reshape(n * L, size, size), x.reshape(n * L, size, x.shape[3])).view(x.shape)

    def nodes(self, x: Float[Tensor, "n L s w"]) -> Float[Tensor, "N L w"]:
        """See :meth:`Listed.nodes`."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.full else x.index_select(0, self.place)

    def convolved_twice(
        self,
        z: Float[Tensor, "n L s d"],
        sent: Float[Tensor, "n L s s"],
        first: nn.Linear,
        second: nn.Linear,
        batch: Int[Tensor, " N"],
        n: int,
    ) -> Float[Tensor, "n L d"]:
        """See :meth:`Listed.convolved_twice`; all is 0 in rows beyond a graph's own nodes, as what is sent there is."""
        kind = first.weight.dtype
        with torch.autocast(z.device.type, enabled=False):
            weights = (first.weight, first.bias, second.weight, second.bias)
            total: Tensor = _ConvolvedTwice.apply(z.to(kind), sent.to(kind), *weights)
        return total / self.first.diff()[:, None, None]

    def listed(self, weight: Float[Tensor, "n L s s"]) -> Float[Tensor, "M L"]:
        """See :meth:`Listed.listed`."""
        return weight.transpose(0, 1).flatten(1).index_select(1, self.entries).T


Messages = Listed | Blocks


def send(weight: Tensor, x: Tensor, edge_index: Tensor) -> Tensor:
    """Σ_{j→i} weight_e[j → i] x_j for every node i and factor e, all factors in one pass: (N, L, w).

    Args:
        weight: of each edge in each factor, then of each node's loop, (M, L).
        x: w numbers for each node and factor, (N, L, w), or the same for all factors, (N, 1, w).
        edge_index: j and i of each edge but the loops, int64 (2, E).
    """
    E = edge_index.shape[1]
    messages = weight[:E, :, None] * x.index_select(0, edge_index[0])
    return (weight[E:, :, None] * x).index_add(0, edge_index[1], messages)


class _ConvolvedTwice(torch.autograd.Function):
    """Two convolutions over matrices and the sum over the rows, forward and back by few and large products.

    With A a matrix of what messages are multiplied with, s = A 1 and [· ·] side by side:

        X = tanh(U_1 Z + c_1 s), Y = A [X 1], P = tanh([U_2 c_2] Y), and P 1 comes out.

    In memory the numbers of one feature lie side by side, (w, n L size): a product of a narrow matrix with many columns
    is several times as fast as that of many rows with a narrow matrix. The gradient of A is one product as well, since
    that of s is a column beside that of Y.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, sent: Tensor, U_1: Tensor, c_1: Tensor, U_2: Tensor, c_2: Tensor) -> Tensor:
        """Σ over rows of P, (n, L, d), from z (n, L, s, d) and A (n, L, s, s)."""
        n, L, size, d = ctx.shape = z.shape
        A, Z, w = sent.reshape(n * L, size, size), z.reshape(-1, d), len(U_1)
        s = A.view(-1, size) @ A.new_ones(size)
        X_1 = A.new_ones(w + 1, len(Z))
        _tanh_(torch.mm(U_1, Z.T, out=X_1[:w]).addcmul_(c_1[:, None], s))
        Y = torch.bmm(A, X_1.T.view(n * L, size, w + 1)).view(-1, w + 1)
        U = torch.cat([U_2, c_2[:, None]], 1)
        P = _tanh_(U @ Y.T)
        ctx.save_for_backward(Z, A, s, U_1, c_1, X_1, Y, U, P)
        return (P.view(-1, size) @ P.new_ones(size)).view(d, n, L).permute(1, 2, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all that went in."""
        (n, L, size, d), (Z, A, s, U_1, c_1, X_1, Y, U, P) = ctx.shape, ctx.saved_tensors
        w, blocks = len(U_1), n * L
        g = g.permute(2, 0, 1).reshape(d, blocks, 1).expand(d, blocks, size).reshape(d, -1)
        g_P = torch.ops.aten.tanh_backward(g, P)
        g_U, g_Y = (Y.T @ g_P.T).T, U.T @ g_P
        g_X = torch.bmm(g_Y[:w].view(w, blocks, size).transpose(0, 1), A).transpose(0, 1).reshape(w, -1)
        g_Q = torch.ops.aten.tanh_backward(g_X, X_1[:w])
        g_Y[w] += c_1 @ g_Q
        g_A = torch.bmm(g_Y.T.view(blocks, size, w + 1), X_1.view(w + 1, blocks, size).permute(1, 0, 2))
        g_z = (U_1.T @ g_Q).T.view(n, L, size, d)
        return g_z, g_A.view(n, L, size, size), g_Q @ Z, g_Q @ s, g_U[:, :w], g_U[:, w]


def _tanh_(x: Tensor) -> Tensor:
    """The hyperbolic tangent in place, as 2 σ(2 x) - 1: the same to rounding, in less than half the time."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


def scales(edge_index: Int[Tensor, "2 E"], nodes: int, dtype: torch.dtype) -> Float[Tensor, " M"]:
    """deg(j)^-1/2 of the source of each edge, and then of each node's loop.

    The degree counts edges into a node, its loop among them, so no node has none. Loops of the data are left out (their
    scale is 0), so that each node has one.

    Args:
        edge_index: source and target of each edge.
        nodes: N.
        dtype: of the numbers.
    """
    real = (edge_index[0] != edge_index[1]).to(dtype)
    own = real.new_ones(nodes).index_add(0, edge_index[1], real).rsqrt()
    return torch.cat([own.index_select(0, edge_index[0]) * real, own])


def sum_of(x: Float[Tensor, "N ..."], batch: Int[Tensor, " N"], n: int | None = None) -> Float[Tensor, "n ..."]:
    """The sum over the nodes of each graph.

    Args:
        x: anything of each node.
        batch: the graph of each node.
        n: the number of graphs; as many as ``batch`` names if not given.
    """
    n = int(batch.max()) + 1 if n is None else n
    return x.new_zeros(n, *x.shape[1:]).index_add(0, batch, x)


def mean_of(x: Float[Tensor, "N ..."], batch: Int[Tensor, " N"], n: int | None = None) -> Float[Tensor, "n ..."]:
    """The mean over the nodes of each graph; see :func:`sum_of`."""
    counts = sum_of(x.new_ones(x.shape[0]), batch, n)
    return sum_of(x, batch, n) / counts.view(-1, *[1] * (x.ndim - 1))


def messages_over(
    x: Tensor, edge_index: Tensor, batch: Tensor, n: int | None = None, *, matrices: bool = True
) -> Messages:
    """The form in which the messages of a batch are sent: matrices where the graphs are small and much alike in size.

    Args:
        x: features of the nodes, N rows; dense, or sparse in CSR layout.
        edge_index: source and target of each edge.
        batch: the graph of each node, ascending, (N,).
        n: graphs; as many as ``batch`` names if not given.
        matrices: whether these may be chosen. Then the form depends on the numbers of the batch, which neither exports
            nor counts of multiply-adds can follow, so networks ask for it in training alone.
    """
    N, E = x.shape[0], edge_index.shape[1]
    if not matrices or not N:
        return Listed(edge_index, N, x.dtype)
    graphs = torch.arange((int(batch[-1]) + 1 if n is None else n) + 1, device=batch.device)
    first = torch.searchsorted(batch, graphs)
    size = int(first.diff().max())
    if (len(first) - 1) * size**2 > FULLEST * (E + N):
        return Listed(edge_index, N, x.dtype)
    return Blocks(edge_index, first, size, N, x.dtype)
