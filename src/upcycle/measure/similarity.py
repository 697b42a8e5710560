"""How alike two layers are: what they compute on the same inputs, compared without regard to channel order.

Linear CKA (Kornblith, Norouzi, Lee, Hinton; arXiv:1905.00414), its debiased form over minibatches (Nguyen, Raghu,
Kornblith; arXiv:2010.15327), RBF-CKA and linear regression, as Deep Model Reassembly (arXiv:2210.17409) offers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from upcycle.core.errors import require, unknown

Kind = Literal["debiased", "linear", "rbf", "regression"]

ROUNDING = 1e-12
"""Share of a quantity below which float64 arithmetic cannot tell it from zero."""


def linear_cka(
    x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"], form: Literal["features", "gram"] = "features"
) -> Float64[Tensor, ""]:
    """s = ||Y'X||_F² / (||X'X||_F ||Y'Y||_F) of centred columns.

    The Gram form <K, L> / (||K|| ||L||), K = XX' and L = YY', is the same number. It is biased upwards: independent
    Gaussian features reach about sqrt(d1 d2 / ((d1 + n)(d2 + n))).

    Args:
        x: features of n inputs.
        y: other features of the same inputs.
        form: ``features`` costs n d1 d2, ``gram`` n² (d1 + d2).

    Returns:
        a number in [0, 1]; 0 where x or y does not vary.
    """
    x, y = _centred(x), _centred(y)
    xy, xx, yy = (_products([a], [b], form == "gram")[0, 0] for a, b in ((x, y), (x, x), (y, y)))
    return torch.where(xx * yy > 0, xy / (xx * yy).sqrt(), 0.0)


def similarity_map(
    xs: Sequence[Float[Tensor, "_ _"]],
    ys: Sequence[Float[Tensor, "_ _"]] | None = None,
    kind: str = "debiased",
    batch: int | None = None,
) -> Float64[Tensor, "l1 l2"]:
    """Similarity of every layer in ``xs`` with every one in ``ys``; see :class:`Similarity`.

    Args:
        xs: features of the same n inputs, a tensor (n, d) a layer.
        ys: of other layers on those inputs; None for ``xs`` itself.
        kind: a :data:`Kind`.
        batch: inputs a minibatch at most; the batches are of nearly equal length. None for all at once.
    """
    require(batch is None or batch >= 4, f"A minibatch of similarity needs at least 4 inputs, not {batch}.")
    similarity, n = Similarity(kind), _inputs(xs, ys)
    parts = 1 if batch is None else -(-n // batch)
    for start, end in itertools.pairwise(n * i // parts for i in range(parts + 1)):
        similarity.add([x[start:end] for x in xs], None if ys is None else [y[start:end] for y in ys])
    return similarity.map()


class Similarity:
    """Similarity of every layer of one list with every one of another, gathered batch by batch.

    Numerators and denominators are added up over the batches, not their ratios, so features need not be kept.
    K = XX' and L = YY' are the Gram matrices of centred features.

    - ``debiased``: HSIC1(K, L) / sqrt(HSIC1(K, K) HSIC1(L, L)) with, where K~ is K with a zero diagonal,
      HSIC1 = [tr(K~L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n(n-3)).
      Its expectation is free of the batch's length; independent features give 0 ± noise, also below 0.
      Centred features have K1 = 0, so that all corrections follow from the diagonals of K and L.
    - ``linear``: <K, L> / (||K|| ||L||), linear CKA; biased upwards by short batches.
    - ``rbf``: the same with K_ij = exp(-||x_i - x_j||² / (2 m)), centred, where m is the median of the squared
      distances that are not zero. Holds (l1 + l2) n² numbers.
    - ``regression``: R² = ||Q_Y'X||² / ||X||², how much of X is linear in Y; Q_Y spans the columns of Y. Not symmetric:
      row x, column y. An SVD gives Q_Y, since QR invents directions where channels are dead or alike.

    Batches of different length weigh by their pairs of inputs: n(n-3) for ``debiased``, the mean of HSIC1 where lengths
    are equal; n² for the others; ``regression`` by its variance. A layer that does not vary has similarity 0 to all.
    The arithmetic is float64 from the centring on, on the features' device.

    Args:
        kind: one of the four, a :data:`Kind`.
    """

    def __init__(self, kind: str = "debiased") -> None:
        if kind not in get_args(Kind):
            raise unknown("similarity", kind, get_args(Kind))
        self.kind = kind
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, xs: Sequence[Float[Tensor, "_ _"]], ys: Sequence[Float[Tensor, "_ _"]] | None = None) -> None:
        """One batch: the features (n, d) of each layer on the same n inputs; without ``ys``, ``xs`` with itself.

        Raises:
            UserError: fewer than four inputs, lengths that differ, numbers that are not finite, or too few inputs for
                a regression.
        """
        n = _inputs(xs, ys)
        for i, layer in enumerate([*xs, *(ys or ())]):
            require(bool(torch.isfinite(layer).all()), f"The features of layer {i} hold NaN or infinite numbers.")
        x = [_centred(a) for a in xs]
        y = x if ys is None else [_centred(b) for b in ys]
        if self.kind == "regression":
            shared = _products(x, [_basis(b, j) for j, b in enumerate(y)])
            rows, columns = torch.stack([a.square().sum() for a in x]), shared.new_zeros(len(y))
        elif self.kind == "rbf":
            k_x = torch.stack([_rbf(a).flatten() for a in x])
            k_y = k_x if ys is None else torch.stack([_rbf(b).flatten() for b in y])
            shared, rows, columns = k_x @ k_y.T, k_x.square().sum(1), k_y.square().sum(1)
        else:
            shared = _products(x, y)
            rows = shared.diagonal() if ys is None else _norms(x)
            columns = rows if ys is None else _norms(y)
            if self.kind == "debiased":
                k_x, k_y = (torch.stack([a.square().sum(1) for a in side]) for side in (x, y))
                shared = shared - (1 + 2 / (n - 2)) * k_x @ k_y.T
                shared = shared + torch.outer(k_x.sum(1), k_y.sum(1)) / ((n - 1) * (n - 2))
                rows, columns = _debiased_norms(rows, k_x), _debiased_norms(columns, k_y)
        new = [shared, rows, columns]
        if self._sums:
            require(
                self._sums[0].shape == shared.shape,
                f"This batch has {tuple(shared.shape)} layers and those before had {tuple(self._sums[0].shape)}.",
            )
            new = [old + more for old, more in zip(self._sums, new, strict=True)]
        self._sums = new

    def map(self) -> Float64[Tensor, "l1 l2"]:
        """The similarities so far.

        Raises:
            UserError: no batch has come yet.
        """
        require(bool(self._sums), "Similarity has seen no features yet.")
        shared, rows, columns = self._sums
        scale = rows[:, None].expand_as(shared) if self.kind == "regression" else torch.outer(rows, columns).sqrt()
        return torch.where(scale > 0, shared / scale, 0.0)


def _inputs(xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> int:
    """How many inputs the features belong to; all layers must agree."""
    layers = [*xs, *(ys or ())]
    require(len(xs) > 0 and (ys is None or len(ys) > 0), "Similarity needs the features of at least one layer.")
    n = len(layers[0])
    require(n >= 4, f"Similarity needs batches of at least 4 inputs, not {n}.")
    for i, layer in enumerate(layers):
        require(len(layer) == n, f"Layer {i} has features of {len(layer)} inputs where layer 0 has {n}.")
    return n


def _centred(x: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Columns without their means; a column that does not vary becomes exactly zero."""
    x = x.detach().to(torch.float64)
    largest = x.abs().amax(0)
    x = x - x.mean(0)
    return torch.where(x.abs().amax(0) > ROUNDING * largest, x, 0.0)


def _products(
    xs: Sequence[Float64[Tensor, "n _"]], ys: Sequence[Float64[Tensor, "n _"]], gram: bool | None = None
) -> Float64[Tensor, "l1 l2"]:
    """<K_i, L_j> = ||X_i' Y_j||_F² of every pair, by Gram matrices or by features, whichever costs less."""
    n, widths = len(xs[0]), [y.shape[1] for y in ys]
    if gram is None:
        d1, d2 = sum(x.shape[1] for x in xs), sum(widths)
        own = 0 if xs is ys else d2
        gram = n * n * (d1 + own + len(xs) * len(ys)) < n * d1 * d2
    if gram:
        k = torch.stack([(x @ x.T).flatten() for x in xs])
        other = k if xs is ys else torch.stack([(y @ y.T).flatten() for y in ys])
        shared = k @ other.T
    else:
        side = torch.cat(list(ys), dim=1)
        columns = torch.stack([(x.T @ side).square_().sum(0) for x in xs])
        shared = torch.stack([part.sum(1) for part in columns.split(widths, dim=1)], dim=1)
    return (shared + shared.T) / 2 if xs is ys else shared


def _norms(xs: Sequence[Float64[Tensor, "n _"]]) -> Float64[Tensor, " l"]:
    """||K||² of each layer."""
    return torch.stack([_products([x], [x])[0, 0] for x in xs])


def _debiased_norms(norms: Float64[Tensor, " l"], k: Float64[Tensor, "l n"]) -> Float64[Tensor, " l"]:
    """n(n-3) HSIC1(K, K) from ||K||² and the diagonals; zero where it drowns in rounding."""
    n = k.shape[1]
    debiased = norms - (1 + 2 / (n - 2)) * k.square().sum(1) + k.sum(1).square() / ((n - 1) * (n - 2))
    return torch.where(debiased > ROUNDING * norms, debiased, 0.0)


def _rbf(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n n"]:
    """The centred Gaussian kernel of bandwidth² = median squared distance."""
    k = x @ x.T
    squares = k.diagonal()[:, None] + k.diagonal() - 2 * k
    squares = torch.where(squares > ROUNDING * k.diagonal().amax(), squares, 0.0)
    apart = squares[squares > 0]
    if len(apart) == 0:
        return torch.zeros_like(k)
    k = torch.exp(squares / (-2 * apart.median()))
    return k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()


def _basis(y: Float64[Tensor, "n d"], layer: int) -> Float64[Tensor, "n r"]:
    """An orthonormal basis of the columns."""
    u, values, _ = torch.linalg.svd(y, full_matrices=False)
    rank = int((values > ROUNDING * len(y) * values[0]).sum())
    require(
        rank < len(y) - 1,
        f"A regression on layer {layer} needs more than {rank + 1} inputs a batch: on {len(y)}, its {y.shape[1]} "
        "features explain anything.",
    )
    return u[:, :rank]
