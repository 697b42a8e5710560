"""A network at hand, used as if only its answers could be had."""

from __future__ import annotations

import torch

from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.models import Model
from upcycle.data import ImageSplit
from upcycle.predictors.answers import Answers, from_logits, ranked, require_shape


class Local:
    """A network as a black box.

    Images are normalised as the network expects them, whatever the split says.

    Args:
        model: its modes and its place are as before after each use.
        top: how many classes an answer has, from 1 to k; all when ``None``.
        probabilities: ``False`` for labels only: one class an answer, with probability 1.
        device: where it computes; ``None`` leaves it where it is.

    Raises:
        UserError: ``top`` is not from 1 to k, or is more than 1 for labels only.
    """

    def __init__(
        self,
        model: Model,
        top: int | None = None,
        probabilities: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        k = len(model.classes)
        require(top is None or 1 <= top <= k, f"top is from 1 to the {k} classes of {model.name}, not {top}.")
        require(probabilities or top in (None, 1), f"Labels only means one class an answer, and top is {top}.")
        self.name, self.classes = model.name, model.classes
        self.model, self.device, self.reading = model, device, model.reading
        self.top, self.probabilities = top if probabilities else 1, probabilities

    def predict(self, split: ImageSplit) -> Answers:
        """See :class:`upcycle.predictors.Predictor`."""
        model = self.model
        require_shape(split, model.input_shape, model.name)
        z = predict_logits(model.module, split.normalised(model.mean, model.std), self.device)
        answers = ranked(from_logits(z, model.name), self.top)
        return answers if self.probabilities else Answers(answers.classes, torch.ones_like(answers.probabilities))
