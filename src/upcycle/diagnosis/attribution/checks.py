"""Checks that every explainer shares: images and classes that fit, batches in parts, sentences about a map."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.frozen import Frozen, Precision, frozen
from upcycle.core.models import Model
from upcycle.core.outputs import Around, called
from upcycle.core.undisturbed import undisturbed

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
    gradients: bool = True,
) -> tuple[Frozen, Tensor, Tensor, Tensor]:
    """A frozen copy of the network; images, classes int64 (b,), and p_c (b,).

    Args:
        precision: as for :func:`~upcycle.diagnosis.attribution.explain`.
        average: many answers are averaged, so that ``auto`` may be bf16.
        whole: keep BatchNorms and submodules, for methods that look into the network.
        gradients: it passes gradients to its images; without, it may be made faster.

    Raises:
        UserError: images or targets that do not fit.
    """
    module, title = fitting(model, x)
    x = x.detach().clone()
    if precision == "auto":
        precision = "64-true" if x.dtype == torch.float64 else "auto" if average else "32-true"
    with _taking(x, title):
        # keep_modules, because a traced network would lose a backward that its author wrote (autograd.Function).
        network = frozen(
            module, x[:64], input_grad=gradients, keep_bn=whole, keep_modules=gradients, precision=precision
        )
        with torch.no_grad():
            z = torch.cat([network(part) for part in x.split(batch_of(x))])
    classes = targets(logits(z, len(x), title), target)
    return network, x, classes, probability(z, classes)


def fitting(model: Model | nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """The network of ``model`` and its name, where ``x`` are images that it may take."""
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
    return module, title


def logits(z: Tensor, n: int, title: str) -> Tensor:
    """``z``, if it is what a classifier gives for ``n`` images."""
    require(
        z.ndim == 2 and len(z) == n,
        f"{title} gives shape {tuple(z.shape)} for {n} images; a classifier gives logits (b, k).",
    )
    return z


def probability(z: Float[Tensor, "b k"], classes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """p_c of each image, of its own class."""
    return z.double().softmax(1).gather(1, classes[:, None])[:, 0].float()


@contextlib.contextmanager
def _taking(x: Tensor, title: str) -> Iterator[None]:
    """Say in one sentence that a network does not take such images."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{title} does not take images of shape {tuple(x.shape)}: {one_line(error)}.") from error


class AsItIs(Around):
    """A network itself, for methods that let each image through once; it keeps the logits that it gave.

    A copy, and trials of that copy, would cost several times what such a method does.

    Args:
        title: how errors call the network.
        classes: those to explain, of which it must have all.
    """

    def __init__(self, network: nn.Module, title: str, classes: Tensor | None) -> None:
        super().__init__(network)
        self.title, self.classes = title, classes
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """The logits (b, k), checked."""
        with _taking(images, self.title), torch.autocast(images.device.type, enabled=False):
            z = self.network(images)
        logits(z, len(images), self.title)
        if not self.given and self.classes is not None:
            in_range(self.classes, z.shape[1])
        require(
            bool(z.isfinite().all()),
            f"{self.title} gives NaN or infinite outputs; check its weights and the normalisation of its inputs.",
        )
        self.given.append(z.detach())
        return z


@contextlib.contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within: eval mode, and gradients of the images alone. After: modes, random states and flags as before."""
    asking = [p for p in module.parameters() if p.requires_grad]
    try:
        with undisturbed(module), torch.enable_grad():
            for p in asking:
                p.requires_grad_(False)
            yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def targets(z: Float[Tensor, "b k"], target: Tensor | int | None) -> Int[Tensor, " b"]:
    """The classes to explain, int64 (b,) on the device of the logits ``z``.

    Raises:
        UserError: a class that there is not, or a number of classes that is not that of the images.
    """
    if target is None:
        return z.argmax(1)
    return in_range(class_numbers(target, len(z)).to(z.device), z.shape[1])


def class_numbers(target: Tensor | int, n: int) -> Int[Tensor, " n"]:
    """A class for each of ``n`` images, of one class for all or one an image."""
    found = torch.as_tensor(target)
    require(not found.is_floating_point() and found.dtype != torch.bool, "target must be class numbers, integers.")
    require(
        found.ndim == 0 or found.shape == (n,),
        f"target must be one class or {n}, one an image, not shape {tuple(found.shape)}.",
    )
    return found.long().expand(n).clone()


def in_range(classes: Int[Tensor, " n"], k: int) -> Int[Tensor, " n"]:
    """``classes``, if a network with ``k`` has them all."""
    low, high = (int(bound) for bound in classes.aminmax())
    require(
        0 <= low <= high < k,
        f"target {low if low < 0 else high} is out of range: the network has {k} classes, 0 to {k - 1}.",
    )
    return classes


def like(x: Tensor, value: Tensor | float) -> Tensor:
    """A number or images, as images of the shape of ``x``."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return value.expand_as(x)
    except RuntimeError as error:
        raise UserError(
            f"A reference of shape {tuple(value.shape)} does not fit images of {tuple(x.shape)}."
        ) from error


def in_parts(function: Callable[[Tensor, Any], Tensor], x: Tensor, target: Tensor | None, chunk: int) -> Tensor:
    """Call ``function`` on ``chunk`` images and their classes, if any, at a time, and join what it gives."""
    parts = x.split(chunk)
    classes = [None] * len(parts) if target is None else target.split(chunk)
    return torch.cat([function(a, b) for a, b in zip(parts, classes, strict=True)])


def chosen(z: Float[Tensor, "b k"], target: Int[Tensor, " b"] | None) -> Float[Tensor, " b"]:
    """The logit of each image's class; without classes that of its answer, which is the highest."""
    return z.amax(1) if target is None else z.gather(1, target[:, None])[:, 0]


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
