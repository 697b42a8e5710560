"""Inverting images out of a trained network: statistics to descend to, losses, and views.

A teacher with BatchNorm remembers the mean and variance of each layer's inputs over its training images. Images
whose activations have the same statistics, and which the teacher recognises, can stand in for the lost data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.checks import same_classes
from upcycle.core.taps import Taps
from upcycle.data.augment import padding

if TYPE_CHECKING:
    from upcycle.core.frozen import Frozen
    from upcycle.core.models import Model

# -- what a teacher must have -----------------------------------------------------------------------------------


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of ``network`` that keep running statistics, by name."""
    return {name: m for name, m in network.named_modules()
            if isinstance(m, _BatchNorm) and m.running_mean is not None}  # fmt: skip


def check_teacher(teacher: Model, student: Model) -> list[str]:
    """Problems that keep images from being inverted out of ``teacher``, in words."""
    problems = same_classes(teacher, student)
    every = [m for m in teacher.module.modules() if isinstance(m, _BatchNorm)]
    kept = list(norms(teacher.module).values())
    if not every:
        problems.append(f"{teacher.name} has no BatchNorm layers, whose statistics the images are made from; give "
                        "images of any kind with --data and take kd")  # fmt: skip
    elif not kept:
        problems.append(f"the BatchNorm layers of {teacher.name} keep no running statistics "
                        "(track_running_stats=False)")  # fmt: skip
    elif all(_untouched(m) for m in kept):
        problems.append(f"the BatchNorm statistics of {teacher.name} were never updated: all means are 0 and all "
                        "variances 1. Are these trained weights?")  # fmt: skip
    if min(teacher.input_shape[1:]) < 8:
        problems.append(f"images must have at least 8 x 8 pixels, not {teacher.input_shape[1]} x "
                        f"{teacher.input_shape[2]}")  # fmt: skip
    return problems


def _untouched(m: _BatchNorm) -> bool:
    assert m.running_mean is not None and m.running_var is not None
    return not m.running_mean.any() and bool((m.running_var == 1).all())


def adam(params: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """Adam with betas (0.5, 0.999): that of generators and of what they start from, in all papers of this family."""
    return torch.optim.Adam(params, lr=lr, betas=(0.5, 0.999), fused=True)


class Best:
    """The tensors that were at hand when the loss was lowest, in a descent of so many steps."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self._lowest: Tensor | None = None

    def keep(self, loss: Float[Tensor, ""], *now: Tensor) -> None:
        """Keep ``now`` where ``loss`` is below all before it; the device decides, without waiting."""
        loss = loss.detach()
        lowest = torch.full_like(loss, torch.inf) if self._lowest is None else self._lowest
        self.kept = [torch.where(loss < lowest, new, old) for new, old in zip(now, self.kept or now, strict=True)]
        self._lowest = torch.minimum(loss, lowest)


# -- the statistics of a batch ----------------------------------------------------------------------------------


class _Pooled(torch.autograd.Function):
    """The mean of (b, c, ...) over all axes but the first two, in float32 or better.

    Its gradient is laid out as x is, since adding one of another layout to that of channels_last crawls.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.like = x.shape, x.stride(), x.dtype
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        return x.mean(tuple(range(2, x.dim())), dtype=wide) if x.dim() > 2 else x.to(wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        shape, stride, dtype = ctx.like
        each = (grads[0] / math.prod(shape[2:])).view(*shape[:2], *[1] * (len(shape) - 2))
        return torch.empty_strided(shape, stride, dtype=dtype, device=each.device).copy_(each)


class _Moments(torch.autograd.Function):
    """Mean and biased variance of (b, c, ...) over all axes but the second, in float32 or better.

    The backward pass is one affine map of x a channel: dL/dx = 2/n dL/dvar (x - mean) + 1/n dL/dmean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.movedim(1, -1).reshape(-1, x.shape[1])  # a view where x is channels_last
        wide = rows if x.dtype == torch.float64 else rows.float()
        mean = wide.mean(0)
        var = (wide - mean if wide is rows else wide.sub_(mean)).square_().mean(0)
        ctx.save_for_backward(x, mean)
        ctx.n = len(rows)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        scale = 2 / ctx.n * grads[1]
        # A BatchNorm with statistics (0, 1) is that map in one pass, in bf16 too, where sums that broadcast crawl.
        neutral = torch.zeros_like(mean), torch.ones_like(mean)
        return F.batch_norm(x, *neutral, scale, grads[0] / ctx.n - scale * mean, eps=1e-30)  # 0 is refused


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of (b, c, ...) over all axes but the second, in float32 or better, with gradients."""
    mean, var = _Moments.apply(x)
    return mean, var


class Statistics:
    """The mean and variance of the inputs of each BatchNorm of a frozen teacher, batch by batch.

    Within ``with`` each forward of the teacher is read; :meth:`read` gives what the last one left. Statistics
    are those of the global batch: on several processes each one's share is gathered.

    Args:
        teacher: frozen with ``input_grad`` and ``keep_bn``.
        gather: joins (b, ...) of all processes; :meth:`upcycle.core.run.Run.gather`.
    """

    def __init__(self, teacher: Frozen, gather: Callable[[Tensor], Tensor]) -> None:
        self.layers = norms(teacher.network)
        self._taps = Taps(teacher.network, self.layers, kind="input")
        self._gather = gather

    def __enter__(self) -> Statistics:
        self._taps.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taps.__exit__(*error)

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """(mean, biased variance) of each layer's input, with gradients to the images."""
        found = []
        for name in self.layers:
            mean, var = moments(self._taps[name])
            means, variances = self._gather(mean[None]), self._gather(var[None])
            mean = means.mean(0)
            found.append((mean, variances.mean(0) + (means - mean).square().mean(0)))
        return found

    def features(self) -> Float[Tensor, "b c"]:
        """The spatial means of all layers' inputs, side by side: c is the sum of their channels."""
        inputs = [self._taps[name] for name in self.layers]
        return torch.cat([_Pooled.apply(x) for x in inputs], 1)

    def running(self) -> list[tuple[Tensor, Tensor]]:
        """(running mean, running variance) of each layer: the statistics of the training images."""
        kept = [(m.running_mean, m.running_var) for m in self.layers.values()]
        return [(mean.float(), var.float()) for mean, var in kept if mean is not None and var is not None]


def bn_loss(batch: list[tuple[Tensor, Tensor]], running: list[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    """L_bn = sum_l ‖mean_run_l - mu_l‖₂ + ‖var_run_l - var_l‖₂ (norms, not squared; CMI, equation 4)."""
    return torch.stack([torch.linalg.vector_norm(target - found) for pair in zip(batch, running, strict=True)
                        for found, target in zip(*pair, strict=True)]).sum()  # fmt: skip


# -- losses on logits -------------------------------------------------------------------------------------------


def decision_adversarial(z_t: Float[Tensor, "b k"], z_s: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """L_adv = -mean_b 1{argmax s_b = argmax t_b} KL(p_t || p_s)_b: push away only where the student still agrees."""
    agree: Bool[Tensor, " b"] = z_t.argmax(1) == z_s.argmax(1)
    divergence = F.kl_div(F.log_softmax(z_s, 1), F.log_softmax(z_t, 1), reduction="none", log_target=True).sum(1)
    return -(agree * divergence).mean()


# -- differentiable views ---------------------------------------------------------------------------------------


def crop_flip(x: Float[Tensor, "b c h w"], random: torch.Generator, mine: Int[Tensor, " b"], n: int) -> Tensor:
    """Each image cropped at random after zero padding of an eighth of its side, and mirrored with probability 1/2.

    Args:
        random: drawn from for all ``n`` images of the global batch.
        mine: which of these ``x`` holds.
    """
    h, w = x.shape[2:]
    top, left = padding(h), padding(w)
    row = torch.randint(2 * top + 1, (n, 1), generator=random)[mine] + torch.arange(h)
    column = torch.randint(2 * left + 1, (n, 1), generator=random)[mine] + torch.arange(w)
    mirrored = torch.rand(n, 1, generator=random)[mine] < 0.5
    column = torch.where(mirrored, column.flip(1), column)
    index = (row[:, :, None] * (w + 2 * left) + column[:, None, :]).flatten(1).to(x.device)
    padded = F.pad(x, (left, left, top, top)).flatten(2)
    return padded.gather(2, index[:, None].expand(-1, x.shape[1], -1)).view_as(x)


def resized_crop(x: Float[Tensor, "b c h w"], random: torch.Generator, mine: Int[Tensor, " b"], n: int) -> Tensor:
    """A box of 25 to 100 % of each image's area and an aspect of 3/4 to 4/3, resized bilinearly; mirrored or not."""
    area, aspect, across, down, side = torch.rand(n, 5, generator=random)[mine].unbind(1)
    area, aspect = 0.25 + 0.75 * area, torch.exp((2 * aspect - 1) * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    theta = torch.zeros(len(mine), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * torch.where(side < 0.5, -1.0, 1.0), height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    grid = F.affine_grid(theta.to(x.device, x.dtype), list(x.shape), align_corners=False)
    # Nothing lies outside a box: at the image's border half a pixel is missing, and zeros would darken it.
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Normalise(nn.Module):
    """Images in [0, 1] to a network's inputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return (x - self.mean.to(x)) / self.std.to(x)

    def inverse(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """A network's inputs to images in [0, 1]."""
        return x * self.std.to(x) + self.mean.to(x)


@contextmanager
def only_inputs(network: nn.Module) -> Iterator[None]:
    """Within, ``network`` is in eval mode and gradients go through it to its inputs, not to its weights."""
    trained = [p for p in network.parameters() if p.requires_grad]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
