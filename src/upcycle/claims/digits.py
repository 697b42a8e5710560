"""What the claims on digits share: the sets at one size, and networks trained on one of them."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

from upcycle.claims.settings import fresh, train
from upcycle.claims.tfkd import LabelSmoothing
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images, load
from upcycle.distillation import Plain

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""All digits are normalised so, whichever set they come from."""


@cache
def digits(name: str, n: int = 0) -> Images:
    """``mnist``, ``usps`` or ``digits`` at 28 x 28, grey, normalised as MNIST; the first ``n`` to train on (0: all)."""
    data = load(name, size=28).normalised(MNIST_MEAN, MNIST_STD)
    return data.subset(torch.arange(min(n, len(data.train)))) if n else data


def first(data: Images, n_test: int) -> Images:
    """With so many validation and test images at most."""
    held = {name: getattr(data, name).subset(torch.arange(min(n_test, len(getattr(data, name)))))
            for name in ("validation", "test")}  # fmt: skip
    return dataclasses.replace(data, **held)


def trained(reference: str, data: Images, seed: int, epochs: int, lr: float = 0.05, smoothing: float = 0.0) -> Model:
    """A fresh network after cross-entropy training on ``data``: what a source model or an oracle is.

    Args:
        smoothing: share of the target that is spread over all classes.
    """
    start, k = fresh(reference, data, seed), len(data.classes)
    recipe = Recipe(epochs=epochs, batch_size=64, lr=lr)
    method: Method = Plain(student=start, recipe=recipe)
    if smoothing:
        method = LabelSmoothing(student=start, epsilon=smoothing * (k - 1) / k, recipe=recipe)
    return dataclasses.replace(start, module=train(method, data, seed), name=f"{start.name} of {data.name}")
