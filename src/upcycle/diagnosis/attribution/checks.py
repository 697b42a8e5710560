"""Checks that every explainer shares: images and classes that fit, batches in parts, sentences about a map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.frozen import Frozen, Precision, frozen
from upcycle.core.models import Model
from upcycle.core.outputs import called

Raw = tuple[Tensor, list[str]]
"""An explainer's answer: the raw map (b, h, w), and sentences about it."""


PIXELS = 2**18
"""Pixels a forward and backward by default: 83 images of 56 x 56, 5 of 224 x 224."""


def batch_of(x: Tensor) -> int:
    """How many images of this size go through a network at a time: :data:`PIXELS` over theirs, and at least one."""
    return max(1, PIXELS // (x.shape[-1] * x.shape[-2]))


def checked(
    model: Model | nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    *,
    precision: Precision = "auto",
    average: bool = False,
    whole: bool = False,
) -> tuple[Frozen, Tensor, Tensor, Tensor]:
    """A frozen copy of the network that passes gradients to its images; images, classes int64 (b,), and p_c (b,).

    Args:
        precision: as for :func:`~upcycle.diagnosis.attribution.explain`.
        average: many answers are averaged, so that ``auto`` may be bf16.
        whole: keep BatchNorms and submodules, for methods that look into the network.

    Raises:
        UserError: images or targets that do not fit.
    """
    module = model.module if isinstance(model, Model) else model
    title = model.name if isinstance(model, Model) else called(module)
    require(
        x.ndim == 4 and x.is_floating_point() and x.numel() > 0,
        f"x must be float images (b, c, h, w), not {x.dtype} of shape {tuple(x.shape)}; one image is x[None].",
    )
    require(bool(x.isfinite().all()), "x holds NaN or infinite pixels.")
    if isinstance(model, Model):
        require(
            x.shape[1] == model.input_shape[0],
            f"{title} takes {model.input_shape[0]} input channels, and x has {x.shape[1]}.",
        )
    x = x.detach().clone()
    if precision == "auto":
        precision = "64-true" if x.dtype == torch.float64 else "auto" if average else "32-true"
    try:
        # keep_modules, because a traced network would lose a backward that its author wrote (autograd.Function).
        network = frozen(module, x[:64], input_grad=True, keep_bn=whole, keep_modules=True, precision=precision)
        with torch.no_grad():
            z = torch.cat([network(part) for part in x.split(batch_of(x))])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{title} does not take images of shape {tuple(x.shape)}: {one_line(error)}.") from error
    require(
        z.ndim == 2 and len(z) == len(x),
        f"{title} gives shape {tuple(z.shape)} for {len(x)} images; a classifier gives logits (b, k).",
    )
    classes = targets(z, target)
    return network, x, classes, z.double().softmax(1).gather(1, classes[:, None])[:, 0].float()


def targets(z: Float[Tensor, "b k"], target: Tensor | int | None) -> Int[Tensor, " b"]:
    """The classes to explain, int64 (b,) on the device of the logits ``z``.

    Raises:
        UserError: a class that there is not, or a number of classes that is not that of the images.
    """
    if target is None:
        return z.argmax(1)
    found = torch.as_tensor(target, device=z.device)
    require(not found.is_floating_point() and found.dtype != torch.bool, "target must be class numbers, integers.")
    require(
        found.ndim == 0 or found.shape == (len(z),),
        f"target must be one class or {len(z)}, one an image, not shape {tuple(found.shape)}.",
    )
    outside = found[(found < 0) | (found >= z.shape[1])]
    require(
        outside.numel() == 0,
        f"target {outside.flatten()[:1].tolist()} is out of range: the network has "
        f"{z.shape[1]} classes, 0 to {z.shape[1] - 1}.",
    )
    return found.long().expand(len(z)).clone()


def like(x: Tensor, value: Tensor | float) -> Tensor:
    """A number or images, as images of the shape of ``x``."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return value.expand_as(x)
    except RuntimeError as error:
        raise UserError(
            f"A reference of shape {tuple(value.shape)} does not fit images of {tuple(x.shape)}."
        ) from error


def in_parts(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor, chunk: int) -> Tensor:
    """Call ``function`` on ``chunk`` images and their classes at a time, and join what it gives."""
    return torch.cat([function(a, b) for a, b in zip(x.split(chunk), target.split(chunk), strict=True)])


def incomplete(
    network: nn.Module, x: Tensor, start: Tensor, target: Tensor, raw: Tensor, chunk: int, cure: str
) -> list[str]:
    """A sentence for the images whose map does not sum to z_c(x) - z_c(x') within 5 %."""

    def z(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x).gather(1, y[:, None])[:, 0]

    difference = in_parts(z, x, target, chunk) - in_parts(z, start, target, chunk)
    gap = (raw.flatten(1).sum(1) - difference).abs() > 0.05 * difference.abs().clamp_min(1e-3)
    return sentences(gap, f"the contributions miss the difference of the logits by more than 5 %; {cure}")


def sentences(which: Tensor, text: str) -> list[str]:
    """``text`` about the images that ``which`` (b,) marks, by their numbers; none for none."""
    numbers = which.nonzero().flatten().tolist()
    if not numbers:
        return []
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return [f"Image{'s' if len(numbers) > 1 else ''} {shown}: {text}."]
