"""Mixing: mixup, CutMix and SnapMix, for any loop whose loss takes soft targets.

The functions of tensors stand first and need no run. Each makes of images x (b, c, h, w) and labels y mixed images and
targets T (b, k), for the loss -Σ T log p (:func:`upcycle.core.losses.ce_loss`):

    mixup    x~ = λ x_a + (1 - λ) x_b                       T = λ e_a + (1 - λ) e_b
    cutmix   x~ = x_a, with the box A of x_b in place        T = (1 - |A|/HW) e_a + |A|/HW e_b
    snapmix  x~ = x_a, with the box B of x_b resized into A  T = (1 - Σ_A S_a) e_a + Σ_B S_b e_b

where S is the percent map of an image (:mod:`upcycle.training.percent_maps`). SnapMix's T need not sum to 1.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix", ICCV 2019,
arXiv:1905.04899; Huang, Wang, Tao, "SnapMix", AAAI 2021, arXiv:2012.04846.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.seeds import uniform


class Box(NamedTuple):
    """A part of an image: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the latter of each excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def part(self) -> tuple[slice, slice]:
        """It, as an index of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def size(self) -> tuple[int, int]:
        """Its height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def area(self) -> int:
        """Its pixels."""
        return self.size[0] * self.size[1]


def box(lam: float, centre: tuple[float, float], height: int, width: int) -> Box:
    """CutMix's box: a share 1 - λ of the image, of its proportions, around a pixel, cut at the image's edges.

    Args:
        lam: λ, the share of the image that is kept.
        centre: of the box, from 0 to below 1 of the image's height and width.
        height, width: of the image.
    """
    ratio = (1 - lam) ** 0.5
    edges = []
    for length, place in ((height, centre[0]), (width, centre[1])):
        middle, half = int(length * place), int(length * ratio) // 2
        edges.append((max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = edges
    return Box(top, left, bottom, right)


class Draw(NamedTuple):
    """The random numbers of one batch.

    Args:
        mixes: whether it is mixed at all.
        lam: λ of mixup.
        target: A, the box that is pasted over.
        source: B, the box that SnapMix cuts out.
    """

    mixes: bool
    lam: float
    target: Box
    source: Box


def draw(seed: int, epoch: int, first: int, prob: float, beta: float, height: int, width: int) -> Draw:
    """Draw what a batch is mixed by, from nothing but the arguments; the same for every method of mixing.

    Args:
        seed, epoch: of the run.
        first: id of the first sample of the batch, of that over all processes.
        prob: probability that it is mixed.
        beta: β; both λ are drawn from Beta(β, β), independently.
        height, width: of the images.
    """
    from scipy.special import betaincinv

    u = uniform(seed, epoch, torch.tensor([first]), "mix", 7)[0].tolist()
    lam, other = (float(betaincinv(beta, beta, v)) for v in u[1:3])
    target, source = box(lam, (u[3], u[4]), height, width), box(other, (u[5], u[6]), height, width)
    return Draw(u[0] < prob, lam, target, source)


def partners(seed: int, epoch: int, ids: Int[Tensor, " n"], known: Tensor) -> Int[Tensor, " n"]:
    """A random permutation of the places in a batch that have a label; the others are their own partner.

    Args:
        seed, epoch: of the run.
        ids: of the samples, of those over all processes.
        known: bool (n,), which have a label.
    """
    places = known.nonzero().squeeze(1)
    order = uniform(seed, epoch, ids[places], "mix partner")[:, 0].argsort(stable=True)
    found = torch.arange(len(ids))
    found[places] = places[order]
    return found


def targets(
    y: Int[Tensor, " b"], y_b: Int[Tensor, " b"], rho_a: Tensor, rho_b: Tensor, k: int
) -> Float[Tensor, "b k"]:
    """T = ρ_a e_y + ρ_b e_{y_b}, not normalised; a row of zeros where the label is -1.

    Where both labels are one class it gets ρ_a + ρ_b. The code of SnapMix counts such a pair twice.

    Args:
        y, y_b: labels of the images and of their partners.
        rho_a, rho_b: (b,) or scalar.
        k: the number of classes.
    """
    T = rho_a.new_zeros(len(y), k)
    for label, rho in ((y, rho_a), (y_b, rho_b)):
        T.scatter_add_(1, label.clamp_min(0)[:, None], (rho * (label >= 0))[:, None])
    return T


def paste(x: Tensor, pool: Tensor, rows: Int[Tensor, " b"], target: Box, source: Box, known: Tensor) -> Tensor:
    """A copy of x with the box ``source`` of images ``pool[rows]``, resized (bilinear) to ``target``, pasted there.

    Args:
        x: (b, c, h, w).
        pool: (n, c, h, w), may be x itself.
        rows: of the pool, one for each image of x.
        target, source: where to, where from.
        known: bool (b,), which images are pasted over; asked for where an image that is its own partner would change.
    """
    cut = pool[:, :, *source.part][rows]
    if source != target:
        cut = F.interpolate(cut, target.size, mode="bilinear", align_corners=True)
        cut = torch.where(known[:, None, None, None], cut, x[:, :, *target.part])
    out = x.clone()
    out[:, :, *target.part] = cut
    return out


def mixup(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    lam: float,
    k: int,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """λ x_a + (1 - λ) x_b, and its targets.

    Args:
        x, y: images and labels, -1 for unknown: such an image has to be its own partner.
        pool, labels: images among which the partners are, may be x and y, and their labels.
        rows: of the partners in the pool.
        lam: λ.
        k: the number of classes.
    """
    rho = torch.tensor(lam, dtype=x.dtype, device=x.device)
    return torch.lerp(x, pool[rows], 1 - lam), targets(y, labels[rows], rho, 1 - rho, k)


def cutmix(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    A: Box,
    k: int,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """x_a with the box A of x_b, and targets by area; arguments as of :func:`mixup`."""
    share = torch.tensor(A.area / (x.shape[2] * x.shape[3]), dtype=x.dtype, device=x.device)
    return paste(x, pool, rows, A, A, y >= 0), targets(y, labels[rows], 1 - share, share, k)


def snapmix(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    A: Box,
    B: Box,
    S: Float[Tensor, "b h w"],
    S_pool: Float[Tensor, "n h w"],
    k: int,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """x_a with the box B of x_b resized into A, and targets by class evidence; arguments as of :func:`mixup`.

    Args:
        A, B: the boxes; where one is empty nothing is mixed.
        S: percent maps of x; one that is NaN counts by area.
        S_pool: percent maps of the pool.
    """
    if not A.area or not B.area:
        one = S.new_ones(())
        return x, targets(y, y, one, 0 * one, k)
    share = A.area / (x.shape[2] * x.shape[3])
    rho_a = (1 - S[:, *A.part].sum((1, 2))).nan_to_num(1 - share).clamp(0, 1)
    rho_b = S_pool[:, *B.part].sum((1, 2)).nan_to_num(share).clamp(0, 1)[rows]
    return paste(x, pool, rows, A, B, y >= 0), targets(y, labels[rows], rho_a, rho_b, k)
