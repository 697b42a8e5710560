"""Adversarial images: small disturbances that a network answers wrongly, and how often it does.

FGSM (Goodfellow, Shlens, Szegedy, arXiv:1412.6572) and PGD in the maximum norm with restarts (Madry, Makelov, Schmidt,
Tsipras, Vladu, arXiv:1706.06083), from given images, so that any network may be the one that they are made on: made on
another one than the one that is judged, they are a transfer attack. That and restarts tell robustness from gradients
that are merely small.

No dependency: torchattacks (last release 2023) and foolbox (2024) are at rest, and the Adversarial Robustness Toolbox
wraps many frameworks around the same loops.

Images are in [0, 1] and stay there, epsilon is in that unit, and a network's own normalisation is part of what is
attacked (:func:`on_pixels`). Attacks run in evaluation mode and leave weights, gradients, modes and random states as
they were. What is made of an image depends on its place among the images, and not on those beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.models import Model
from upcycle.core.portions import portions
from upcycle.core.seeds import uniform
from upcycle.core.undisturbed import undisturbed

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a network on pixels, images (n, c, h, w) in [0, 1] and labels (n,), the disturbed images."""


class _OnPixels(nn.Module):
    """A network with its normalisation in front."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.module
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def on_pixels(model: Model) -> nn.Module:
    """Give a network that takes images in [0, 1] and normalises them as the model's own are; it shares the weights.

    Raises:
        UserError: the model takes no images, or answers with something else than classes.
    """
    require(model.ordinary, f"{model.name} is no classifier of images, and attacks are made on such alone.")
    made = _OnPixels(model)
    home = next(model.module.parameters(), made.mean)
    return made.to(home.device, home.dtype)


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """x + epsilon sign(dL/dx), clipped to [0, 1], where L is the cross-entropy.

    Args:
        network: see :data:`Attack`.
        images, labels: see :data:`Attack`.
        epsilon: the largest change of a pixel, from 0 to 1.

    Raises:
        UserError: epsilon, images or labels out of range.
    """
    _check(images, labels, epsilon)
    return torch.add(images, ascent_signs(network, images, labels), alpha=epsilon).clamp_(0, 1)


def ascent_signs(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The signs of dL/dx of the cross-entropy, which FGSM at any epsilon needs once.

    Args:
        network: see :data:`Attack`.
        images, labels: see :data:`Attack`.

    Raises:
        UserError: images or labels out of range.
    """
    _check(images, labels)
    signs = torch.empty_like(images)
    with undisturbed(network), _flushed():
        for index in portions(network, len(images)):
            _, gradient = _ascent(network, images[index], labels[index])
            signs[index] = gradient.sign_()
    return signs


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 10,
    step: float | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Projected gradient ascent of the cross-entropy in the maximum norm, from random places near the image.

    Each restart begins anywhere within epsilon; an image that is answered wrongly is done, and of one that never is
    the place with the highest loss among the ends is kept.

    Args:
        network: see :data:`Attack`.
        images, labels: see :data:`Attack`.
        epsilon: the largest change of a pixel, from 0 to 1.
        steps: of each restart.
        step: the change of a pixel in one step; 2.5 epsilon / steps if not given, as Madry et al. have it.
        restarts: how often to begin.
        seed: of the beginnings.

    Raises:
        UserError: epsilon, images, labels, steps or restarts out of range.
    """
    _check(images, labels, epsilon)
    require(steps >= 1 and restarts >= 1, f"steps and restarts must be at least 1, not {steps} and {restarts}.")
    size = 2.5 * epsilon / steps if step is None else step
    require(size >= 0, f"step must not be negative, and it is {size:g}.")
    made, worst = images.clone(), images.new_full((len(images),), -torch.inf)
    left = torch.arange(len(images))
    with undisturbed(network), _flushed():
        for restart in range(restarts):
            if len(left) == 0:
                break
            found = []
            for part in portions(network, len(left)):
                index = left[part]
                x, y = images[index], labels[index]
                low, high = (x - epsilon).clamp_(min=0), (x + epsilon).clamp_(max=1)
                at = torch.lerp(low, high, uniform(seed, restart, index, "pgd", x[0].numel()).view(x.shape).to(x))
                for _ in range(steps):
                    _, gradient = _ascent(network, at, y)
                    at = at.add_(gradient.sign_(), alpha=size).clamp_(low, high)
                z = network(at)
                fooled = z.argmax(1) != y
                loss = F.cross_entropy(z, y, reduction="none").masked_fill_(fooled, torch.inf)
                better = loss > worst[index]
                made[index[better]], worst[index[better]] = at[better], loss[better]
                found.append(index[~fooled])
            left = torch.cat(found)
    return made


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, attack: Attack | None = None) -> float:
    """The share of images that a network answers rightly, disturbed by an attack on this very network or not at all.

    For a transfer attack give images that were disturbed on another network.

    Args:
        network: see :data:`Attack`.
        images, labels: see :data:`Attack`.
        attack: such as ``partial(fgsm, epsilon=0.3)``.
    """
    _check(images, labels)
    shown = images if attack is None else attack(network, images, labels)
    right = 0
    with undisturbed(network), _flushed():
        for index in portions(network, len(shown)):
            right += int((network(shown[index]).argmax(1) == labels[index]).sum())
    return right / len(shown)


def attacks(epsilon: float, *, steps: int = 10, restarts: int = 3, seed: int = 0) -> dict[str, Attack]:
    """FGSM, and PGD with restarts, at one epsilon; by name."""
    return {
        "FGSM": partial(fgsm, epsilon=epsilon),
        "PGD": partial(pgd, epsilon=epsilon, steps=steps, restarts=restarts, seed=seed),
    }


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Take numbers too small for their format as 0 meanwhile.

    Gradients of sure answers are full of them, as are weights that decayed, and a processor takes 30 times as long.
    """
    before = float(torch.tensor(1e-39) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _ascent(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of the summed cross-entropy with respect to the images; to nothing else."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        z = network(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), x)
    return z.detach(), gradient


def _check(images: Tensor, labels: Tensor, epsilon: float = 0.0) -> None:
    require(0 <= epsilon <= 1, f"epsilon must lie between 0 and 1, the range of a pixel, and it is {epsilon:g}.")
    require(len(images) > 0 and len(images) == len(labels), f"{len(images)} images have {len(labels)} labels.")
    low, high = float(images.min()), float(images.max())
    require(
        low >= 0 and high <= 1,
        f"Images to attack must lie in [0, 1], and these lie in [{low:g}, {high:g}]; leave out their normalisation.",
    )
    require(int(labels.min()) >= 0, "Every image to attack needs a label, and some have none.")
