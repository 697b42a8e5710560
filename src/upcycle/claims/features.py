"""Feature distillation: what layers that learn from the teacher's layers add to its class probabilities."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from upcycle.claims import Check, Claim, Headline
from upcycle.claims.kd import cifar_setting
from upcycle.claims.settings import BESIDE, by_validation, cifar10, fresh, test, train
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.data import Images, load
from upcycle.distillation import KD, Features
from upcycle.zoo.vit import ViT

WIDTH, DEPTH, HEADS = 48, 4, 3
"""Of the student among transformers: half as wide as its teacher."""
ARMS: dict[str, dict[str, Any] | None] = {
    "KD": None,
    "KD + hint": {"loss": "hint"},
    "KD + attention": {"loss": "attention"},
    "KD + relations": {"loss": "relations"},
}
"""The options of each arm beside the recipe; none of kd."""
DECIDE = ("KD", "KD + relations")


@cache
def _transformer() -> Model:
    return resolve("zoo:cifar10_vit")


def convolutions(seed: int, quick: bool) -> tuple[Model, Model, Images, Recipe]:
    """Teacher, student, images and recipe of the pair of convolutional networks."""
    teacher, data, recipe = cifar_setting(quick)
    return teacher, fresh("zoo:resnet20", data, seed), data, recipe


def transformers(seed: int, quick: bool) -> tuple[Model, Model, Images, Recipe]:
    """Teacher, student, images and recipe of the pair of transformers."""
    teacher = _transformer()
    data = cifar10(1000 if quick else 10_000, ("crop", "flip"), teacher)
    seed_everything(seed, "student")
    module = ViT(data.shape, len(data.classes), width=WIDTH, depth=DEPTH, heads=HEADS)
    mean, std = data.train.mean, data.train.std
    student = Model(module=module, input_shape=data.shape, mean=mean, std=std, classes=data.classes, name="vit_48")
    epochs = 3 if quick else 15
    return teacher, student, data, Recipe(epochs=epochs, optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup=1.0)


def digits(seed: int, quick: bool) -> tuple[Model, Model, Images, Recipe]:
    """A pair that takes seconds, by which the default weight was chosen."""
    teacher = resolve("zoo:digits_teacher")
    data = load("digits").normalised(teacher.mean, teacher.std).subset(torch.arange(200))
    recipe = Recipe(epochs=2 if quick else 10, batch_size=32, lr=0.05, warmup=1.0)
    return teacher, fresh("zoo:convnet_small", data, seed), data, recipe


SETTINGS = {"": convolutions, "transformers, ": transformers, "digits, ": digits}


def trained(setting: str, arm: str, seed: int, quick: bool, **options: Any) -> tuple[nn.Module, Images]:
    """One arm: the same images, views, first weights, order and number of updates as all others of its setting.

    Args:
        options: of features, in place of its defaults.
    """
    teacher, student, data, recipe = SETTINGS[setting](seed, quick)
    both: dict[str, Any] = {"teacher": teacher, "student": student, "recipe": recipe}
    own = ARMS[arm]
    method: Method = KD(**both, cache="off") if own is None else Features(**both, **own, **options)
    return train(method, data, seed), data


def on_validation(setting: str, arm: str, seed: int = 99, **options: Any) -> float:
    """Give what an arm reaches on validation images, with a seed that is none of the claim's, to choose options by."""
    network, data = trained(setting, arm, seed, quick=False, **options)
    return 100 * test(network, by_validation(data)).accuracy


def measure(seed: int, quick: bool) -> dict[str, float]:
    """The arms that decide; and the others, with the first seeds."""
    figures: dict[str, float] = {}
    sizes: list[int] = []
    arms = [("", arm) for arm in DECIDE]
    if seed < BESIDE:
        arms += [(setting, arm) for setting in ("", "transformers, ") for arm in ARMS if (setting, arm) not in arms]
    for setting, arm in arms:
        network, data = trained(setting, arm, seed, quick)
        figures[f"{setting}{arm} (%)"] = 100 * test(network, data).accuracy
        sizes.append(sum(p.numel() for p in network.parameters()))
    return figures | {"parameters beyond KD's student": float(sizes[1] - sizes[0])}


CLAIM = Claim(
    method="features",
    sentence="A student whose layer also learns which images a layer of the teacher holds alike becomes better than "
    "one that learns from the teacher's class probabilities and the labels alone.",
    published="CIFAR-100, ResNet-56 to ResNet-20, without KD: hints 69.21, attention 70.55, similarities 69.67, and KD "
    "alone 70.66 (RepDistiller repository; from memory, unchecked but for the last).",
    setting="CIFAR-10, first 10,000 training images, crop and flip, 15 epochs, T = 4, weights 0.9 and 0.1, the same "
    "images, views, first weights and updates in all arms; features with the pair of layers that is chosen and the "
    "default weight, 0.3. ResNet-56 (93.4 %) to ResNet-20, SGD 0.05; and a vision transformer (81.4 %) to one of half "
    f"its width, AdamW 1e-3. The headline's two arms have five seeds, the others the first {BESIDE}. Loss and weight "
    "were chosen on validation images of another pair, small convolutional networks on 200 digits, seeds 97 to 99, "
    "weights 0.3, 1, 3 and 10; on the pairs of the claim none was tried, nor other learning rates.",
    data=("cifar10",),
    measure=measure,
    headline=Headline(
        product="KD + relations (%)",
        baseline="KD (%)",
        says="relations of a layer beside KD over KD alone, ResNet-56 to ResNet-20",
    ),
    checks=(
        Check(
            text="what layers are compared by is no part of the product",
            value=lambda m: -max(map(abs, m["parameters beyond KD's student"])),
            bound=0.0,
            exact=True,
        ),
    ),
)
