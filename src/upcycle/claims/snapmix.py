"""SnapMix: mixtures whose labels follow the evidence of a class, against CutMix's areas and against no mixing."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

from upcycle.claims import Check, Claim, Headline, gain
from upcycle.claims.settings import fresh, test, train
from upcycle.core.losses import Terms
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images, load
from upcycle.distillation import KD, Plain

CLASSES = (0, 2, 3, 4, 6)
"""T-shirt, pullover, dress, coat and shirt: the classes of Fashion-MNIST that are told apart by details."""
MIXED: dict[str, dict[str, Any]] = {
    "none": {},
    "CutMix": {"mix": "cutmix", "mix_beta": 1.0},
    "SnapMix": {"mix": "snapmix"},
    "SnapMix, half of the batches": {"mix": "snapmix", "mix_prob": 0.5},
}
"""What the recipe of each arm has beside the rest: β is 1 in CutMix's paper; SnapMix's paper mixes half of the batches
where it trains from scratch, and all of them, as ``--recipe.mix snapmix`` does, where it tunes."""


@cache
def whole() -> Images:
    """The five classes, normalised, augmented as in the paper."""
    data = load("fashion_mnist_local")
    data = data.only(tuple(data.classes[i] for i in CLASSES))
    return data.normalised(*data.statistics).augmented(("crop", "flip"))


def drawn(seed: int, quick: bool) -> Images:
    """200 images of each class, drawn by the seed."""
    data = whole().few(20 if quick else 200, seed)
    if not quick:
        return data
    return dataclasses.replace(data, test=data.test.subset(torch.arange(200)))


def recipe(quick: bool, **mixed: Any) -> Recipe:
    """The recipe of all arms."""
    return Recipe(epochs=2 if quick else 40, batch_size=32, lr=0.05, warmup=1.0, **mixed)


def measure(seed: int, quick: bool) -> dict[str, float]:
    """All arms: the same images, order of batches, updates and first weights."""
    data, networks, figures = drawn(seed, quick), {}, {}
    for name, mixed in MIXED.items():
        arm = Plain(student=fresh("zoo:resnet8", data, seed), recipe=recipe(quick, **mixed))
        networks[name] = train(arm, data, seed)
        figures[f"{name} (%)"] = 100 * test(networks[name], data).accuracy
    # The network without mixing shows where the evidence is; nothing else of it is learned from.
    teacher = Model(
        module=networks["none"],
        input_shape=data.shape,
        mean=data.train.mean,
        std=data.train.std,
        classes=data.classes,
        name="trained without mixing",
    )
    made = KD(
        teacher=teacher,
        student=fresh("zoo:resnet8", data, seed),
        terms=Terms(w_kd=0.0, w_ce=1.0),
        recipe=recipe(quick, mix="snapmix", mix_map="teacher"),
    )
    return figures | {"SnapMix, the teacher's map (%)": 100 * test(train(made, data, seed), data).accuracy}


CLAIM = Claim(
    method="snapmix",
    sentence="Mixing a part of one training image into another, with labels weighed by the evidence of each class that "
    "went and came, makes a classifier of few images that look alike better.",
    published="CUB, ResNet-50: 85.49 without, 87.75 with SnapMix; from scratch, ResNet-18: 64.98 and 70.31; the best "
    "epoch on test images (repository of the authors).",
    setting="The five upper-body classes of Fashion-MNIST (a split of its own), 200 images each, drawn by the seed; "
    "all their test images; ResNet-8 from scratch, 40 epochs of SGD, batches of 32, crop and flip, in all arms. "
    "CutMix with β 1, SnapMix with the recipe's defaults: β 5, every batch, the map of the network in training. The "
    "teacher of the last arm is the network that was trained without mixing, and only its map is used. Five seeds.",
    data=("fashion_mnist_local",),
    measure=measure,
    headline=Headline(product="SnapMix (%)", baseline="none (%)", says="SnapMix over the same training without mixing"),
    checks=(
        Check(text="it gains at least 1 point on none", value=gain("SnapMix (%)", "none (%)"), bound=1.0),
        Check(text="it loses at most 0.3 points to CutMix", value=gain("SnapMix (%)", "CutMix (%)"), bound=-0.3),
    ),
)
