"""What a black box is, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data import ImageSplit


@dataclass(frozen=True)
class Answers:
    """What was said of n images.

    Args:
        classes: int64 (n, t), positions in the predictor's ``classes``, the most probable first.
        probabilities: float32 (n, t). With all classes (t = k) rows sum to 1; of a predictor that gives a label and
            no probability, t = 1 and all are 1.
    """

    classes: Tensor
    probabilities: Tensor


@runtime_checkable
class Predictor(Protocol):
    """Answers questions about images. Local models, ONNX files and HTTP endpoints implement it."""

    name: str
    classes: tuple[str, ...]
    """The names of the k classes."""

    def predict(self, split: ImageSplit) -> Answers:
        """One answer for each image of ``split``, in its order, not augmented; each image is asked for once.

        Raises:
            UserError: no images, images that the predictor does not take, or no good answer.
        """
        ...


def ranked(p: Float[Tensor, "n k"], top: int | None = None) -> Answers:
    """Probabilities of all classes as answers, the most probable class first; of equal ones the first.

    Args:
        p: rows that sum to 1.
        top: how many classes an answer has; all when ``None``.
    """
    probabilities, classes = p.sort(dim=1, descending=True, stable=True)
    return Answers(classes[:, :top].clone(), probabilities[:, :top].float())


def from_logits(z: Float[Tensor, "n k"], name: str) -> Float[Tensor, "n k"]:
    """softmax(z) in float64.

    Raises:
        UserError: NaN or infinite logits, laid to ``name``.
    """
    broken = int((~z.isfinite()).any(1).sum())
    require(broken == 0, f"{name} gives NaN or infinite outputs for {broken} of {len(z)} images; check its weights.")
    return torch.softmax(z.double(), dim=1)


def require_shape(split: ImageSplit, expected: tuple[int | None, ...], name: str) -> None:
    """Raise :class:`UserError` unless there are images, of the shape (c, h, w) expected; ``None`` fits any size."""
    require(len(split) > 0, f"There is no image to ask {name} about: the split is empty.")
    if any(want not in (None, got) for want, got in zip(expected, split.shape, strict=True)):
        wanted, found = (" x ".join("any" if n is None else str(n) for n in s) for s in (expected, split.shape))
        raise UserError(f"{name} takes images of {wanted} (channels, height, width), and these are {found}; load the "
                        "data with that size and those channels.")  # fmt: skip
