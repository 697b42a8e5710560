"""Descriptions of the inputs of networks, which are stored with a network and compared with data."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from upcycle.core.errors import require, unknown


class Takes(Protocol):
    """A description of what a network takes. Written to ``architecture.json``, asked for examples, compared with data.

    A frozen dataclass, so that two that say the same are equal.

    Attributes:
        kind: its key in :data:`KINDS`.
    """

    kind: ClassVar[str]

    @property
    def noun(self) -> str:
        """The name of the samples, in the plural: images, graphs, nodes."""
        ...

    def example(self, n: int) -> Any:
        """Fixed pseudo-random inputs (:class:`upcycle.core.batches.Inputs`) of n samples, to probe a network with."""
        ...

    def check(self) -> None:
        """Raise :class:`UserError` where the description itself is wrong."""
        ...

    def adapted(self, module: nn.Module) -> nn.Module:
        """A network whose forward takes one inputs object: ``module`` itself where it does already."""
        ...

    def problems(self, data: Takes) -> list[str]:
        """Why such data do not fit a network that takes this, in words; an empty list where they do."""
        ...

    def plain(self) -> dict[str, Any]:
        """Its fields as JSON data: :func:`takes_of` makes the same of it again."""
        ...

    def __str__(self) -> str:
        """In words: ``3 x 32 x 32 images``, ``graphs with 7 features a node``."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Images as networks take them: float (b, c, h, w), normalised.

    Args:
        shape: (c, h, w) of one image.
        mean, std: per channel, of images in [0, 1]; what they are normalised with.
    """

    kind: ClassVar[str] = "images"
    noun: ClassVar[str] = "images"

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def example(self, n: int) -> Tensor:
        """A fixed pseudo-random normalised batch (n, c, h, w)."""
        images = torch.rand(n, *self.shape, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std

    def check(self) -> None:
        """Raise :class:`UserError` for sizes that are none, or a normalisation that does not fit the channels."""
        shape = self.shape
        require(
            len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape),
            f"input_shape must be three positive numbers (channels, height, width), not {shape}.",
        )
        for what, values in (("mean", self.mean), ("std", self.std)):
            require(
                len(values) == shape[0] and all(map(math.isfinite, values)),
                f"{what} must have one number for each of the {shape[0]} channels, not {values}.",
            )
        require(min(self.std) > 0, f"std must be positive, not {self.std}.")

    def adapted(self, module: nn.Module) -> nn.Module:
        """The network itself: every network of images takes one tensor."""
        return module

    def problems(self, data: Takes) -> list[str]:
        """Another kind, other channels, or another size."""
        if not isinstance(data, Pictures):
            return [f"it takes {self}, and not {data}"]
        if data.shape[0] != self.shape[0]:
            return [f"it takes {self.shape[0]} input channels, and the images have {data.shape[0]}"]
        if data.shape[1:] != self.shape[1:]:
            own, theirs = (f"{h} x {w}" for _, h, w in (self.shape, data.shape))
            return [f"it takes images of {own} pixels, and these have {theirs}"]
        return []

    def plain(self) -> dict[str, Any]:
        """Shape, mean and std as lists."""
        return {"shape": list(self.shape), "mean": list(self.mean), "std": list(self.std)}

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} images"


KINDS = {"images": "upcycle.core.takes:Pictures", "graphs": "upcycle.core.graphs:GraphTakes"}
"""The home of each kind's description; imported when it is asked for."""


def described(takes: Takes) -> dict[str, Any]:
    """A description as JSON data, its kind among it."""
    return {"kind": takes.kind, **takes.plain()}


def takes_of(record: dict[str, Any]) -> Takes:
    """The inverse of :func:`described`; the description is checked.

    Raises:
        UserError: no such kind, or a description that is wrong.
        TypeError: fields that the kind does not have.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise unknown("kind of inputs", str(kind), KINDS)
    module, _, name = KINDS[kind].partition(":")
    found = cast(Takes, getattr(importlib.import_module(module), name)(**fields))
    found.check()
    return found
