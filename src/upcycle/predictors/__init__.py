"""Black boxes: what answers with classes and probabilities and shows nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

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
        """One answer for each image of ``split``, in its order, not augmented; each image is asked for once."""
        ...
