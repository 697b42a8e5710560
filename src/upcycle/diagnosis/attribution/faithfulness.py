"""Whether a map tells the truth about a network: deletion, insertion, the pointing game, randomised weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.models import Model
from upcycle.diagnosis.attribution.checks import batch_of, checked, like
from upcycle.diagnosis.attribution.maps import explain
from upcycle.diagnosis.attribution.perturbation import gaussian_blur

BLUR = (11, 5.0)
"""Pixels and standard deviation of the blur that insertion starts from (Petsiuk et al.; arXiv:1806.07421)."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The probability of a class while an image is taken apart or put together.

    Args:
        probability: (b, steps + 1); entry i is after i steps of equally many pixels each.
        auc: (b,), the area under it over the share of changed pixels, in [0, 1].
    """

    probability: Tensor
    auc: Tensor


def deletion(
    model: Model | nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Tensor | int | None = None,
    *,
    steps: int = 100,
    reference: Tensor | float = 0.0,
    chunk: int | None = None,
) -> Curve:
    """p_c while pixels are set to the reference, those with the highest map first; a low area is good.

    Args:
        model: a classifier; it is not changed.
        x: images (b, c, h, w), normalised as it expects.
        maps: (b, h, w), any numbers; only their order counts, equal ones fall in the order of reading.
        target: class of each image; the predicted one by default.
        steps: parts that the pixels are changed in.
        reference: what a deleted pixel becomes: a number or images that broadcast to ``x``; 0 is the mean image.
        chunk: images a forward; by default as many as :func:`~upcycle.diagnosis.attribution.checks.batch_of` says.

    Petsiuk, Das, Saenko, RISE; BMVC 2018; arXiv:1806.07421, section 4.
    """
    network, x, classes, _ = checked(model, x, target, gradients=False)
    return _curve(network, x, like(x, reference), maps, classes, steps, chunk)


def insertion(
    model: Model | nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Tensor | int | None = None,
    *,
    steps: int = 100,
    reference: Tensor | float | None = None,
    chunk: int | None = None,
) -> Curve:
    """p_c while pixels are put back on a blurred image, those with the highest map first; a high area is good.

    Arguments and source as for :func:`deletion`; ``reference`` is the image blurred with 11 pixels and a standard
    deviation of 5 unless given.
    """
    network, x, classes, _ = checked(model, x, target, gradients=False)
    start = gaussian_blur(x, *BLUR) if reference is None else like(x, reference)
    return _curve(network, start, x, maps, classes, steps, chunk)


def pointing_game(
    maps: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], tolerance: float = 15.0
) -> Bool[Tensor, " b"]:
    """Whether the highest point of each map lies on the object, or less than ``tolerance`` pixels from it.

    A constant map points nowhere and misses; of several highest points the first in reading order counts. An image
    without an object always misses. Zhang et al., Excitation Backprop; ECCV 2016; arXiv:1608.00507; the strict
    inequality is TorchRay's.
    """
    h, w = maps.shape[1:]
    peak = maps.flatten(1).argmax(1)
    rows, columns = torch.arange(h, device=maps.device), torch.arange(w, device=maps.device)
    dy = rows[None, :, None] - (peak // w)[:, None, None]
    dx = columns[None, None, :] - (peak % w)[:, None, None]
    distance = (dy**2 + dx**2).double().sqrt()
    near = (distance < tolerance) | (distance == 0)
    varies = maps.flatten(1).amax(1) > maps.flatten(1).amin(1)
    return (near & mask).flatten(1).any(1) & varies


def randomisation_check(
    model: Model | nn.Module,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    method: str = "learned",
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Rank correlation (b,) of each map with that of a network with random weights; near 0 is good.

    A map that stays the same shows the image and not what the network has learnt. In the random network the entries
    of each parameter are shuffled, so that its weights are as large as the trained ones. Adebayo et al., Sanity Checks
    for Saliency Maps; arXiv:1810.03292, who draw the weights anew.

    Args:
        model, x, target, method, options: as for :func:`~upcycle.diagnosis.attribution.explain`; both networks explain
            the class that the trained one predicts, unless ``target`` names another.
        seed: of the shuffling.
    """
    trained = explain(model, x, target, method=method, **options)
    module = copy.deepcopy(model.module if isinstance(model, Model) else model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            order = torch.randperm(p.numel(), generator=generator).to(p.device)
            p.copy_(p.flatten()[order].view_as(p))
    shuffled = explain(module, x, trained.target, method=method, **options)
    return rank_correlation(trained.maps.flatten(1), shuffled.maps.flatten(1))


def rank_correlation(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Spearman's rank correlation of each pair of rows; equal values share a rank; 0 where a row is constant."""
    ranks = []
    for rows in (a, b):
        r = torch.stack([_ranks(row) for row in rows])
        ranks.append(r - r.mean(1, keepdim=True))
    norm = ranks[0].norm(dim=1) * ranks[1].norm(dim=1)
    return torch.where(norm > 0, (ranks[0] * ranks[1]).sum(1) / norm.clamp_min(1e-30), 0.0).float()


def _ranks(row: Tensor) -> Tensor:
    _, which, counts = row.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[which].double()


def _curve(
    network: nn.Module, first: Tensor, last: Tensor, maps: Tensor, target: Tensor, steps: int, chunk: int | None
) -> Curve:
    """p_c on the way from ``first`` to ``last``, pixels in decreasing order of the map."""
    b, _, h, w = first.shape
    require(maps.shape == (b, h, w), f"maps must be of shape {(b, h, w)} like the images, not {tuple(maps.shape)}.")
    require(bool(maps.isfinite().all()), "maps holds NaN or infinite values.")
    require(1 <= steps <= h * w, f"steps must lie between 1 and the {h * w} pixels, not {steps}.")
    order = maps.to(first.device).flatten(1).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(h * w, device=order.device).expand(b, -1))
    changed = (torch.arange(steps + 1, device=order.device) * h * w / steps).round()  # pixels after each step
    size, rows = max(1, (chunk or batch_of(first))), []
    with torch.no_grad():
        for k in range(b):
            parts = []
            for n in changed.split(size):
                mixed = torch.where((place[k] < n[:, None]).view(-1, 1, h, w), last[k], first[k])
                parts.append(network(mixed).double().softmax(1)[:, target[k]])
            rows.append(torch.cat(parts))
    probability = torch.stack(rows)
    auc = torch.trapezoid(probability, dx=1 / steps, dim=1)
    return Curve(probability.float(), auc.float())
