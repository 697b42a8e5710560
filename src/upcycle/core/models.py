"""Model references: from a name to a network and back to files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn


@dataclass(eq=False, kw_only=True)
class Model:
    """A network, and what one must know to use it.

    Args:
        module: maps float images (b, c, h, w), normalised with ``mean`` and ``std``, to logits (b, k).
        input_shape: (c, h, w) of one image.
        mean, std: per channel, of images in [0, 1]; what the network's inputs are normalised with.
        classes: the name of each of the k outputs.
        reference: what :func:`resolve` builds this architecture from, without weights, for example
            ``zoo:cifar10_resnet20``; ``None`` for a bare Python instance, which cannot be rebuilt from files.
        options: keyword arguments of the builder (``num_classes``, ``in_channels``, ``image_size``, ...).
        licence: SPDX identifier of the weights, or ``unknown``.
        lineage: the family tree as JSON data (see :mod:`upcycle.core.lineage`); ``None`` when nothing is known.
        name: how tables and reports call it.
    """

    module: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    reference: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    lineage: dict[str, Any] | None = None
    name: str = "model"

    def example(self, batch: int = 2) -> Tensor:
        """A fixed pseudo-random normalised batch (b, c, h, w) of the right shape, to probe the network with."""
        raise NotImplementedError


def resolve(
    reference: str | Path | nn.Module | Model,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    trust: tuple[str, ...] = (),
) -> Model:
    """A network from a reference."""
    raise NotImplementedError


def check_reference(reference: str) -> None:
    """Raise UserError at once for a reference that cannot resolve (cheap: nothing is built or imported)."""


def load_weights(module: nn.Module, file: str | Path) -> None:
    """Fill ``module`` from a weights file."""


def save(model: Model, directory: Path) -> None:
    """Write ``model`` as data."""


def load(directory: str | Path, *, into: nn.Module | None = None, trust: tuple[str, ...] = ()) -> Model:
    """Read a saved model."""
    raise NotImplementedError


def export(model: Model, path: Path, format: str) -> float:
    """Write the network for deployment and compare both sides on a held batch."""
    raise NotImplementedError
