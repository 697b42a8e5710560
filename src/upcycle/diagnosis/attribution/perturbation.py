"""Attribution by changing the image and watching the answer: occlusion, RISE, extremal perturbation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require


def occlusion(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    *,
    chunk: int,
    window: int = 0,
    stride: int = 0,
    reference: float = 0.0,
) -> tuple[Tensor, list[str]]:
    """z_c(x) - z_c(x with a window covered), averaged over the windows that cover a pixel (arXiv:1311.2901).

    Args:
        window: side of the square; 0 takes an eighth of the image.
        stride: between squares; 0 takes half a window. The last squares may reach over the border.
        reference: what covers; 0 is the mean image.
    """
    b, _, h, w = x.shape
    window = window or max(1, min(h, w) // 8)
    stride = stride or max(1, window // 2)
    require(1 <= stride <= window <= min(h, w), f"window and stride must satisfy 1 <= stride <= window <= {min(h, w)}, "
            f"not {window} and {stride}.")  # fmt: skip
    rows, columns = (range(0, math.ceil((n - window) / stride) * stride + 1, stride) for n in (h, w))
    places = [(slice(top, top + window), slice(left, left + window)) for top in rows for left in columns]
    total, covered = x.new_zeros(b, h, w), x.new_zeros(h, w)
    with torch.no_grad():
        for begin in range(0, b, chunk):
            images, y = x[begin : begin + chunk], target[begin : begin + chunk]
            z = network(images).gather(1, y[:, None])[:, 0]
            size = max(1, chunk // len(images))
            for some in (places[i : i + size] for i in range(0, len(places), size)):
                changed = images.repeat(len(some), 1, 1, 1).view(len(some), *images.shape)
                for one, (row, column) in zip(changed, some, strict=True):
                    one[:, :, row, column] = reference
                z_changed = network(changed.flatten(0, 1)).gather(1, y.repeat(len(some))[:, None])
                for loss, (row, column) in zip(z - z_changed.view(len(some), -1), some, strict=True):
                    total[begin : begin + chunk, row, column] += loss[:, None, None]
        for row, column in places:
            covered[row, column] += 1
    return total / covered, []


def rise(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    *,
    chunk: int,
    masks: int = 4000,
    grid: int = 7,
    keep: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, list[str]]:
    """Σ over random masks M of p_c(x · M) M, over their number and ``keep`` (Petsiuk et al.; arXiv:1806.07421).

    A mask is a grid of zeros and ones, enlarged bilinearly and shifted at random; all images see the same masks.

    Args:
        masks: their number (the paper: 4,000 for VGG-16, 8,000 for ResNet-50).
        grid: cells a side.
        keep: probability of a one.
    """
    require(masks >= 1 and grid >= 1 and 0 < keep < 1, f"masks and grid must be positive and keep lie in (0, 1), not "
            f"{masks}, {grid} and {keep}.")  # fmt: skip
    h, w = x.shape[2:]
    cell = math.ceil(h / grid), math.ceil(w / grid)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, h, w); one by one, so that the chunk changes nothing."""
        made = []
        for _ in range(n):
            coarse = (torch.rand(1, 1, grid, grid, generator=generator) < keep).to(x.dtype)
            top, left = (int(torch.randint(side, (), generator=generator)) for side in cell)
            size = [(grid + 1) * side for side in cell]
            fine = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
            made.append(fine[0, :, top : top + h, left : left + w])
        return torch.stack(made).to(x.device)

    parts = []
    with torch.no_grad():
        for images, y in zip(x.split(chunk), target.split(chunk), strict=True):
            generator, size = torch.Generator().manual_seed(seed), max(1, chunk // len(images))
            total = x.new_zeros(len(images), h, w)
            for begin in range(0, masks, size):
                m = draw(min(size, masks - begin), generator)
                p = network((m[:, None] * images).flatten(0, 1)).softmax(1).to(x.dtype)
                p = p.gather(1, y.repeat(len(m))[:, None]).view(len(m), len(images))
                total += torch.einsum("nb,nhw->bhw", p, m[:, 0])
            parts.append(total / (masks * keep))
    return torch.cat(parts), []


def extremal(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    *,
    chunk: int,
    area: float = 0.1,
    iterations: int = 800,
    lr: float = 0.01,
) -> tuple[Tensor, list[str]]:
    """The smooth mask of a fixed area that best preserves z_c (Fong, Patrick, Vedaldi; ICCV 2019; arXiv:1910.08485).

        maximise  z_c(x perturbed outside m) - w · mean( (sort(m) - t_a)² )

    where the perturbation is a pyramid of eight blurs, and t_a has its last share ``area`` of entries 1, others 0. SGD
    with momentum and dampening 0.9; w starts at 300 and grows by 1.0035 a step; every second step sees the mirrored
    image; the parameters are clamped to [0, 1] after each. TorchRay's numbers for 224 pixels (a grid of step 7,
    upsampling of width 21, blurs up to 20) are scaled with the image. The bump of the upsampling, a Gaussian whose
    standard deviation is half of that width, and the temperature 1/20 of the maximum are our choice.

    Args:
        area: share of the image that the mask keeps.
        iterations, lr: of SGD.
    """
    require(0 < area < 1, f"area must lie in (0, 1), not {area}.")
    require(iterations >= 1 and lr > 0, f"iterations and lr must be positive, not {iterations} and {lr}.")
    h, w = x.shape[2:]
    step = max(1, round(7 * min(h, w) / 224))
    kept = (torch.arange(h * w, device=x.device) >= round((1 - area) * h * w)).to(x.dtype)  # t_a

    def one(x: Tensor, y: Tensor) -> Tensor:
        levels = pyramid(x, 20 * min(h, w) / 224)
        coarse = x.new_ones(len(x), 1, math.ceil(h / step), math.ceil(w / step)).requires_grad_()
        optimizer = torch.optim.SGD([coarse], lr=lr, momentum=0.9, dampening=0.9)
        for i in range(iterations):
            m = upsampled(coarse, step, 3.0 * step)[:, :, :h, :w]
            seen = perturbed(levels, m)
            z = network(seen.flip(3) if i % 2 else seen).gather(1, y[:, None]).sum()
            off = ((m.flatten(1).sort(1).values - kept) ** 2).mean(1).sum()
            (coarse.grad,) = torch.autograd.grad(300 * 1.0035**i * off - z, coarse)
            optimizer.step()
            with torch.no_grad():
                coarse.clamp_(0, 1)
        return upsampled(coarse.detach(), step, 3.0 * step)[:, 0, :h, :w]

    # The pyramid and the windows of the upsampling hold an image some ten times more.
    size = max(1, chunk // 10)
    return torch.cat([one(*part) for part in zip(x.split(size), target.split(size), strict=True)]), []


def pyramid(x: Float[Tensor, "b c h w"], largest: float, levels: int = 8) -> Float[Tensor, "l b c h w"]:
    """The image under Gaussian blurs from the standard deviation ``largest`` (first) to none (last)."""
    sigmas = [largest * (1 - i / (levels - 1)) for i in range(levels - 1)]
    widest = 2 * min(x.shape[2:]) - 1
    blurs = [gaussian_blur(x, min(2 * math.ceil(3 * s) + 1, widest), s) for s in sigmas]
    return torch.stack([*blurs, x])


def perturbed(levels: Float[Tensor, "l b c h w"], m: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    """The image where m = 1, the most blurred one where m = 0, interpolated between the levels nearest to m."""
    at = torch.arange(len(levels), dtype=m.dtype, device=m.device).view(-1, 1, 1, 1, 1)
    return ((1 - ((len(levels) - 1) * m - at).abs()).clamp_min(0) * levels).sum(0)


def upsampled(coarse: Float[Tensor, "b 1 n m"], step: int, sigma: float) -> Float[Tensor, "b 1 hh ww"]:
    """A grid enlarged ``step`` times: at each pixel the smooth maximum over cells of a bump times the cell's value.

    m(u) = Σ_i v_i e^{v_i / T} / Σ_i e^{v_i / T} with v_i = k(u - u_i) · coarse_i and T = 1/20. Only cells nearer than
    1.5 ``sigma`` count, so that memory is that of a window of cells a pixel.
    """
    b, _, n, m = coarse.shape
    radius = math.ceil(1.5 * sigma / step)
    cells = step * torch.arange(-radius, radius + 1, dtype=coarse.dtype, device=coarse.device)
    inside = torch.arange(step, dtype=coarse.dtype, device=coarse.device) - (step - 1) / 2
    bump = (-0.5 * ((inside[:, None] - cells) / (0.5 * sigma)) ** 2).exp()  # (step, window)
    kernel = (bump[:, None, :, None] * bump[None, :, None, :]).reshape(step**2, -1, 1)  # separable
    padded = F.pad(coarse, (radius,) * 4, mode="replicate")
    values = kernel * F.unfold(padded, 2 * radius + 1)[:, None]  # (b, step², window², cells)
    made = (values * (20 * values).softmax(2)).sum(2).view(b, step**2, n, m)
    return F.pixel_shuffle(made, step)


def gaussian_blur(x: Float[Tensor, "b c h w"], size: int, sigma: float) -> Float[Tensor, "b c h w"]:
    """Each map blurred by a Gaussian of ``size`` (odd) pixels; beyond the border the nearest pixel is repeated."""
    reach = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    kernel = (-0.5 * (reach / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    c, half = x.shape[1], size // 2
    x = F.pad(x, (half,) * 4, mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
    return F.conv2d(x, kernel.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
