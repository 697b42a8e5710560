"""Attribution by the gradient of a logit by the pixels: of one image, of noisy copies, along a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.diagnosis.attribution.checks import Raw, chosen, in_parts, incomplete, like
from upcycle.diagnosis.attribution.learned_rule import Rule, gated


def gradient(
    network: nn.Module, x: Float[Tensor, "b c h w"], target: Int[Tensor, " b"] | None
) -> Float[Tensor, "b c h w"]:
    """∂z_c/∂x of each image, by default of its highest logit."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(chosen(network(leaf), target).sum(), leaf)[0]


def guided_gradient(
    network: nn.Module, x: Float[Tensor, "b c h w"], target: Int[Tensor, " b"] | None
) -> Float[Tensor, "b c h w"]:
    """∂z_c/∂x where each activation lets only positive signals back: R · 1[R > 0] · 1[u > 0] at a ReLU."""
    with Rule(lambda i, activation, u: _Positive.apply(gated(activation, u, 1.0))):
        return gradient(network, x, target)


class _Positive(torch.autograd.Function):
    """The identity; backward, what is negative becomes nought."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Tensor:
        return r.clamp_min(0)


def saliency(network: nn.Module, x: Tensor, target: Tensor | None, *, chunk: int) -> Raw:
    """The largest |∂z_c/∂x| over the colours (Simonyan et al.; arXiv:1312.6034)."""
    return in_parts(lambda x, y: gradient(network, x, y).abs().amax(1), x, target, chunk), []


def gradient_x_input(network: nn.Module, x: Tensor, target: Tensor | None, *, chunk: int) -> Raw:
    """x · ∂z_c/∂x, summed over the colours."""
    return in_parts(lambda x, y: (x * gradient(network, x, y)).sum(1), x, target, chunk), []


def guided_backprop(network: nn.Module, x: Tensor, target: Tensor | None, *, chunk: int) -> Raw:
    """The gradient with only positive signals let back through activations (Springenberg et al.; arXiv:1412.6806)."""
    note = "Guided backprop hardly depends on the class or on upper weights; see randomisation_check."
    return in_parts(lambda x, y: guided_gradient(network, x, y).abs().amax(1), x, target, chunk), [note]


def smoothgrad(
    network: nn.Module, x: Tensor, target: Tensor, *, chunk: int, samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Raw:
    """The gradient averaged over noisy copies, its largest magnitude over the colours (arXiv:1706.03825).

    Args:
        samples: noisy copies; each uses the same noise for all images.
        noise: its standard deviation over the range of the image's values.
    """
    require(samples >= 1 and noise >= 0, f"samples must be positive and noise not negative: {samples}, {noise}.")
    weights = torch.full((samples,), 1 / samples, dtype=x.dtype, device=x.device)

    def one(x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        spread = noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)

        def points(steps: range) -> Tensor:
            # One draw a copy, so that the chunk changes nothing.
            drawn = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype) for _ in steps]
            return x + spread * torch.stack(drawn)[:, None].to(x.device)

        return _averaged(network, y, points, weights, chunk).abs().amax(1)

    return in_parts(one, x, target, chunk), []


def integrated_gradients(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    chunk: int,
    steps: int = 50,
    baseline: Tensor | float = 0.0,
) -> Raw:
    """(x - x') ∫ ∂z_c/∂x along the line from a baseline x', summed over the colours (arXiv:1703.01365).

    The integral is a Gauss-Legendre sum. A note says where the map misses completeness, Σ = z_c(x) - z_c(x'), by
    more than 5 %.

    Args:
        steps: points on the line.
        baseline: x', a number or images that broadcast to ``x``; 0 is the mean image.
    """
    require(steps >= 1, f"steps must be at least 1, not {steps}.")
    start = like(x, baseline)
    places, weights = (torch.from_numpy(v / 2).to(x.device, x.dtype) for v in np.polynomial.legendre.leggauss(steps))
    parts = []
    for images, y, first in zip(x.split(chunk), target.split(chunk), start.split(chunk), strict=True):

        def points(steps: range, images: Tensor = images, first: Tensor = first) -> Tensor:
            t = 0.5 + places[steps.start : steps.stop].view(-1, 1, 1, 1, 1)
            return first + t * (images - first)

        parts.append(((images - first) * _averaged(network, y, points, weights, chunk)).sum(1))
    raw = torch.cat(parts)
    return raw, incomplete(network, x, start, target, raw, chunk, "raise steps")


def _averaged(
    network: nn.Module, target: Tensor, points: Callable[[range], Tensor], weights: Tensor, chunk: int
) -> Tensor:
    """Σ_i weights[i] ∂z_c/∂x at points(i), (b, c, h, w); ``points`` gives (steps, b, c, h, w), in order.

    The steps are cut in parts of equal size, so that no small one is left over.
    """
    n, b = len(weights), len(target)
    size = math.ceil(n / math.ceil(n / max(1, chunk // b)))
    total: Tensor | None = None
    for begin in range(0, n, size):
        steps = range(begin, min(begin + size, n))
        at = points(steps)
        g = gradient(network, at.flatten(0, 1), target.repeat(len(steps))).view_as(at)
        part = torch.tensordot(weights[steps.start : steps.stop], g, 1)
        total = part if total is None else total + part
    assert total is not None
    return total
