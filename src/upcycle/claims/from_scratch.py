"""The setting of claims about architectures: small networks of equal size learn a part of CIFAR-10 from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import nn

from upcycle.claims.settings import by_adamw, by_validation, cifar10, test, train
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.data import Images
from upcycle.distillation import Plain
from upcycle.measure.cost import count

Make = Callable[[], nn.Module]
TRAINING = "CIFAR-10, first 5,000 training images, crop and flip, 8 epochs of AdamW, batches of 64"
"""In words, for the claims."""


@cache
def setting(quick: bool) -> Images:
    """A part of CIFAR-10, with the normalisation of its networks."""
    data = cifar10(500 if quick else 5_000, ("crop", "flip"), resolve("zoo:cifar10_resnet20", pretrained=False))
    return dataclasses.replace(data, test=data.test.subset(torch.arange(500))) if quick else data


def recipe(lr: float, quick: bool) -> Recipe:
    """All arms: eight epochs, one of warm-up, batches of 64; biases and normalisations are not decayed."""
    return by_adamw(lr, 8, quick, batch_size=64, warmup=1.0)


def trained(make: Make, data: Images, seed: int, quick: bool, lr: float) -> nn.Module:
    """Train a network with weights drawn from ``seed``."""
    seed_everything(seed, "student")
    split = data.train
    student = Model(module=make(), input_shape=data.shape, mean=split.mean, std=split.std, classes=data.classes)
    return train(Plain(student=student, recipe=recipe(lr, quick)), data, seed)


def on_validation(arms: Mapping[str, Make], arm: str, lr: float, quick: bool = False) -> float:
    """Give what a learning rate reaches on validation images with seed 100, in per cent: it is chosen by this."""
    data = by_validation(setting(quick))
    return 100 * test(trained(arms[arm], data, 100, quick, lr), data).accuracy


def measured(arms: Mapping[str, Make], seed: int, quick: bool, *, lr: float) -> dict[str, float]:
    """All arms: the same images, order of batches, updates and learning rate; and the size of each."""
    data = setting(quick)
    figures = {f"{arm} (%)": 100 * test(trained(m, data, seed, quick, lr), data).accuracy for arm, m in arms.items()}
    for arm, make in arms.items():
        cost = count(make(), data.shape)
        figures |= {f"{arm}, parameters": float(cost.parameters), f"{arm}, multiply-adds": float(cost.macs)}
    return figures
