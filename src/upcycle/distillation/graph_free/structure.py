"""Graphs under way: logits of edges and of features, their samples, and the estimate of a gradient that needs none.

Structure is discrete, and a network that takes a list of edges has no gradient in it. Two forward passes per step
estimate one all the same (augment-REINFORCE-merge; Yin and Zhou, ICLR 2019, arXiv:1807.11143).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.distillation.graph_free.blocks import Places

Features = Literal["one_hot", "real", "degree"]


def antithetic(phi: Float[Tensor, ...], u: Float[Tensor, ...]) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """A¹ = 1[u > σ(-φ)] and A² = 1[u < σ(φ)]: two samples of Bernoulli(σ(φ)) that err to opposite sides.

    Args:
        phi: logits φ of the edges.
        u: uniform numbers in [0, 1), the same for both.
    """
    return (u > torch.sigmoid(-phi)).to(phi), (u < torch.sigmoid(phi)).to(phi)


def structure_gradient(
    first: Float[Tensor, " b"], second: Float[Tensor, " b"], u: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """ĝ = (f(A¹) - f(A²)) (u - 1/2), whose mean over u is d E[f(A)] / dφ for A ~ Bernoulli(σ(φ)).

    Args:
        first: f(A¹) of each graph.
        second: f(A²) of each graph, with A¹ and A² as :func:`antithetic` makes them of the same u.
        u: uniform numbers in [0, 1).
    """
    return (first - second).view(-1, *[1] * (u.dim() - 1)) * (u - 0.5)


def one_hot_entropy(X: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """H = -1/n Σ_nodes Σ_c X log X, which is 0 where every row is one-hot.

    Args:
        X: rows of probabilities.
    """
    return torch.special.entr(X).sum(1).mean()


def degree_features(A: Float[Tensor, "b n n"], places: Places, d: int) -> Float[Tensor, "m d"]:
    """The one-hot number of nodes that each node hears; of ``d`` or more, the last one.

    Args:
        A: edges.
        places: of the nodes.
        d: the number of features.
    """
    degrees = A.sum(2).flatten()[places.rows].long().clamp_max(d - 1)
    return F.one_hot(degrees, d).to(A)


class Made(nn.Module):
    """Graphs that are being made: logits of edges Φ and of features V, and the best state of both so far.

    Args:
        places: of the nodes.
        d: the number of features of a node.
        features: what a row of X is: one-hot, real numbers, or the one-hot degree, which has no V.
        symmetric: an edge goes both ways: Φ[j, k] and Φ[k, j] are one.
        random: the generator that Φ and V are drawn from.
        dtype: of both.
    """

    best_edges: Tensor
    best_features: Tensor
    lowest: Tensor

    def __init__(
        self,
        places: Places,
        d: int,
        features: Features,
        *,
        symmetric: bool,
        random: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.places, self.d, self.kind, self.both_ways = places, d, features, symmetric
        P = self.draw(random).to(dtype)
        self.phi = nn.Parameter(torch.logit(P, eps=1e-6), requires_grad=False)
        V = torch.randn(len(places.rows), d, generator=random).to(dtype)
        self.V = nn.Parameter(V, requires_grad=features != "degree")
        self.register_buffer("best_edges", self.structure())
        self.register_buffer("best_features", self.features(self.best_edges).detach().clone())
        self.register_buffer("lowest", torch.tensor(torch.inf, dtype=dtype))

    def draw(self, random: torch.Generator) -> Float[Tensor, "b n n"]:
        """Uniform numbers in [0, 1) for all pairs of nodes; one for both directions where an edge has no direction."""
        u = torch.rand(self.places.pairs.shape, generator=random)
        return u.triu() + u.triu(1).mT if self.both_ways else u

    def structure(self) -> Float[Tensor, "b n n"]:
        """The most likely edges, A = 1[σ(Φ) ≥ 1/2]; no loops."""
        return (self.phi >= 0).to(self.phi) * self.places.pairs.to(self.phi)

    def samples(self, u: Float[Tensor, "b n n"]) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
        """A¹ and A²; see :func:`antithetic`."""
        pairs = self.places.pairs.to(self.phi)
        first, second = antithetic(self.phi, u.to(self.phi))
        return first * pairs, second * pairs

    def features(self, A: Float[Tensor, "b n n"]) -> Float[Tensor, "m d"]:
        """X: rows of probabilities, real numbers, or what the edges say."""
        if self.kind == "degree":
            return degree_features(A, self.places, self.d)
        return self.V.softmax(1) if self.kind == "one_hot" else self.V

    @torch.no_grad()
    def keep(self, loss: Float[Tensor, ""], A: Float[Tensor, "b n n"], X: Float[Tensor, "m d"]) -> None:
        """Keep edges and features of the same step where their loss is below all before; the device decides."""
        lower = loss < self.lowest
        self.best_edges.copy_(torch.where(lower, A, self.best_edges))
        self.best_features.copy_(torch.where(lower, X, self.best_features))
        self.lowest.copy_(torch.minimum(loss, self.lowest))

    def result(self) -> dict[str, Tensor]:
        """The best graphs: ``x`` (m, d), one-hot where features are, and ``edge_index`` int64 (2, e)."""
        X = self.best_features
        if self.kind == "one_hot":
            X = F.one_hot(X.argmax(1), self.d).to(X)
        return {"x": X.float(), "edge_index": self.places.edges(self.best_edges)}


def balanced(n: int, k: int, random: torch.Generator) -> Int[Tensor, " n"]:
    """Classes of ``n`` graphs in an order that is drawn, each of the ``k`` as often as any other, give or take one."""
    return (torch.arange(n) % k)[torch.randperm(n, generator=random)]
