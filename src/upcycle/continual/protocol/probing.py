"""The worth of a frozen encoder: linear probes, BatchNorm's share in forgetting, flatness of the minimum.

How alike two encoders are is linear CKA: :func:`upcycle.measure.similarity.linear_cka` of their :func:`features`, on
ten times as many images as there are features or more, for with fewer it is biased upwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.errors import UserError, require
from upcycle.core.models import copy_of
from upcycle.core.outputs import called
from upcycle.core.portions import portions
from upcycle.core.seeds import uniform
from upcycle.core.undisturbed import undisturbed
from upcycle.data.images import ImageSplit
from upcycle.data.on_disk import concatenated
from upcycle.data.streams import Stream
from upcycle.training.linear_probe import Probe, linear_probe


def features(encoder: nn.Module, split: ImageSplit) -> Tensor:
    """Compute the features of every sample of ``split`` in evaluation mode, float32 (n, d) on the CPU.

    Float32 from a float64 encoder too: L-BFGS, which fits the probes, stops elsewhere where the last bits differ, as
    they do between one process and several.

    Raises:
        UserError: something that is not finite.
    """
    first = next(encoder.parameters())
    found = []
    with undisturbed(encoder):
        for index in portions(encoder, len(split)):
            images = split.batch(index, device=first.device).images
            found.append(encoder(images.to(first.dtype)).float().cpu())
    x = torch.cat(found)
    require(bool(x.isfinite().all()), "The encoder gives NaN or infinite features.")
    return x


class Probing:
    """The linear probe of an encoder over all classes of a stream, fitted anew when it is asked for after a change.

    Args:
        encoder: as it changes.
        data: whose labelled training images the probe learns from, and whose validation images it is chosen on.
        most: so many of each at most, equally many of each task.
    """

    def __init__(self, encoder: nn.Module, data: Stream, most: int) -> None:
        self.encoder, self.data, self.most = encoder, data, most
        self._probe: Probe | None = None
        self._known = False

    def forget(self) -> None:
        """Fit anew when asked again, since the encoder has changed."""
        self._probe, self._known = None, False

    def fitted(self) -> Probe | None:
        """The probe; ``None`` where training images of fewer than two classes have labels."""
        if not self._known:
            self._probe, self._known = self._fit(), True
        return self._probe

    def answers(self, split: ImageSplit, t: int) -> Tensor:
        """Its logits (n, k) of every image; zeros where there is no probe."""
        probe = self.fitted()
        return (
            torch.zeros(len(split), len(self.data.classes)) if probe is None else probe(features(self.encoder, split))
        )

    def _fit(self) -> Probe | None:
        train, validation = self._labelled
        if train is None or len(train.labels.unique()) < 2:
            return None
        held = None if validation is None else (features(self.encoder, validation), validation.labels)
        return linear_probe(features(self.encoder, train), train.labels, len(self.data.classes), held)

    @cached_property
    def _labelled(self) -> tuple[ImageSplit | None, ImageSplit | None]:
        found: tuple[list[ImageSplit], list[ImageSplit]] = ([], [])
        for t in range(len(self.data)):
            images = self.data.task(t)
            for split, parts in zip((images.train, images.validation), found, strict=True):
                known = (split.labels >= 0).nonzero()[:, 0]
                order = uniform(0, t, known, "probe")[:, 0].argsort(stable=True)
                parts.append(split.subset(known[order[: -(-self.most // len(self.data))]]))
        train, validation = (concatenate(parts) for parts in found)
        return train if len(train) else None, validation if len(validation) else None


def concatenate(splits: Sequence[ImageSplit]) -> ImageSplit:
    """Put the images of several splits into one, in order; normalised and augmented as the last."""
    labels, ids = (torch.cat([getattr(s, name) for s in splits]) for name in ("labels", "ids"))
    return dataclasses.replace(splits[-1], images=concatenated([s.images for s in splits]), labels=labels, ids=ids)


def recalibrate_batchnorm(encoder: nn.Module, split: ImageSplit, batch_size: int = 512) -> nn.Module:
    """Make a copy whose BatchNorm statistics are the means over ``split``, in batches of nearly equal length.

    Statistics follow the last chunk of a stream, which alone looks like forgetting: measure with and without.
    """
    made = copy_of(encoder)
    norms = [m for m in made.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    first = next(made.parameters())
    with undisturbed(made):
        momenta = [m.momentum for m in norms]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the mean of all batches
            m.train()
        for index in torch.arange(len(split)).tensor_split(-(-len(split) // batch_size)):
            made(split.batch(index, device=first.device).images.to(first.dtype))
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
    return made


@torch.no_grad()
def flatness(
    module: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    epsilons: Sequence[float],
    directions: int,
    generator: torch.Generator,
) -> list[float]:
    """Measure how the loss grows around the weights: for each ε the mean of loss(θ + ε d) - loss(θ) over directions d.

    Directions are Gaussian and scaled filter by filter to the norms of the weights (Li et al., NeurIPS 2018,
    arXiv:1712.09913); biases and scales, which have no filters, stay. A flat minimum gives small numbers.

    Args:
        module: unchanged afterwards.
        loss: of the module with changed weights, as it stands in its mode.
        epsilons: lengths, shares of each filter's norm.
        directions: how many d.
        generator: of the directions, on the CPU.
    """
    require(directions >= 1, f"Flatness needs at least one direction, not {directions}.")
    weights = [p for p in module.parameters() if p.dim() > 1]
    if not weights:
        raise UserError(f"{called(module)} has no filters to move.")
    before, here = [p.clone() for p in weights], float(loss(module))
    growth = [0.0] * len(epsilons)
    try:
        for _ in range(directions):
            d = [_filterwise(torch.randn(p.shape, generator=generator).to(p), p) for p in before]
            for i, epsilon in enumerate(epsilons):
                for p, start, step in zip(weights, before, d, strict=True):
                    p.copy_(start + epsilon * step)
                growth[i] += (float(loss(module)) - here) / directions
    finally:
        for p, start in zip(weights, before, strict=True):
            p.copy_(start)
    return growth


def _filterwise(d: Tensor, p: Tensor) -> Tensor:
    """``d`` with each filter (first axis) as long as that of ``p``."""
    axes = tuple(range(1, p.dim()))
    lengths = torch.linalg.vector_norm(d, dim=axes, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)
    return d * (torch.linalg.vector_norm(p, dim=axes, keepdim=True) / lengths)
