"""The settings that several claims share: a part of CIFAR-10, its networks, training and measuring."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from upcycle.claims import Check, mean
from upcycle.core.evaluate import evaluate
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.core.task import Evaluation
from upcycle.data import Images, load


def cifar10(n: int, augment: tuple[str, ...], like: Model) -> Images:
    """CIFAR-10 with its first ``n`` training images, 1,000 validation images and the whole test set."""
    data = load("cifar10").normalised(like.mean, like.std)
    data = data.subset(torch.arange(n)).augmented(augment)
    return dataclasses.replace(data, validation=data.validation.subset(torch.arange(1000)))


def fresh(reference: str, data: Images, seed: int) -> Model:
    """A network with weights drawn from ``seed``, for these data."""
    seed_everything(seed, "student")
    model = resolve(reference, pretrained=False, num_classes=len(data.classes), input_shape=data.shape)
    return dataclasses.replace(model, mean=data.train.mean, std=data.train.std)


def train(method: Method, data: Images, seed: int) -> nn.Module:
    """What ``fit`` returns, nothing written."""
    method.require(data)
    return method.fit(Run(None, seed=seed, quiet=True), data)


def train_and_left(method: Method, data: Images, seed: int) -> tuple[Any, dict[str, Any]]:
    """Train, nothing written: the network, and what is left beside it by name, such as the scores of a stream."""
    method.require(data)
    run = Run(None, seed=seed, quiet=True)
    return method.fit(run, data), run.left


def test(module: nn.Module, data: Images) -> Evaluation:
    """The last epoch on the test set."""
    return evaluate(module, data.test, device=torch.device("cpu"))


def short(epochs: int, lr: float = 0.05) -> Recipe:
    """The recipe of all arms: SGD with Nesterov momentum, cosine, one epoch of warm-up."""
    return Recipe(epochs=epochs, batch_size=128, lr=lr, warmup=min(1.0, epochs / 4))


def by_adamw(lr: float, epochs: int, quick: bool, *, batch_size: int = 128, warmup: float = 0.5) -> Recipe:
    """The recipe of attention and of the blocks around it: AdamW, cosine, and a decay of matrices alone."""
    return Recipe(
        epochs=1 if quick else epochs,
        batch_size=batch_size,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.05,
        decayed="matrices",
        warmup=0.0 if quick else warmup,
    )


# -- what was chosen before the seeds of a claim ------------------------------------------------------------------

BESIDE = 3
"""Seeds that an arm is measured with which decides nothing, where it costs as much as those that do."""


def by_validation(data: Images) -> Images:
    """Give the data with their validation images in place of the test images: what a value is chosen by."""
    return dataclasses.replace(data, test=data.validation)


def best(tried: Mapping[float, float]) -> float:
    """The value with the highest figure on validation images; of equals the first."""
    return max(tried, key=lambda value: tried[value])


def at_edge(tried: Mapping[float, float]) -> bool:
    """Whether the best value is the least or the greatest that was tried, so that a better one may lie beyond."""
    return best(tried) in (min(tried), max(tried))


# -- what operations on a trained network have to show ------------------------------------------------------------

START = "error of the start, of the largest answer"
"""The name of the figure that :func:`same_start` reads."""


def same_start(network: str) -> Check:
    """The check that an operated network starts at the function of the trained one.

    Args:
        network: its name in the check's sentence, as in "the transformer".
    """
    return Check(
        text=f"at the start its answers differ from those of {network} by a millionth of the largest at most",
        value=lambda m: -mean(m, START),
        bound=-1e-6,
        exact=True,
    )
