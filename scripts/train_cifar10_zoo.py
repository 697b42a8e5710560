"""Train a network of the zoo on CIFAR-10: `zoo:cifar10_NAME` for each NAME in `RECIPES`.

Run from the repository's root: `python scripts/train_cifar10_zoo.py NAME`, with the images and the teacher under
`$UPCYCLE_DATA`, best on an accelerator. Each is distilled from `zoo:cifar10_resnet56` on 45,000 training images; it
goes on where it was stopped. Selection of the epoch: none, the last. The test images are read once, at the end.
`--alone` trains the same network on the labels, with equal updates and views, and keeps its accuracy beside the
weights: what the teacher added. `--smoke` goes the whole way on a few images, and keeps nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

import upcycle
from upcycle.core import store
from upcycle.core.recipe import Recipe
from upcycle.data import Images, load
from upcycle.zoo.published import SHIPPED

# The augmentation repeats after 8 epochs, so that the teacher, which costs as much as a student, is asked no oftener.
VIEWS = 8
FAST = Recipe(epochs=90, batch_size=256, lr=0.1, warmup=3)
ATTENTIVE = Recipe(
    epochs=25, batch_size=128, optimizer="adamw", lr=1e-3, weight_decay=0.05, decayed="matrices", warmup=2
)
RECIPES = {
    "vgg": FAST,
    "mobilenetv2": dataclasses.replace(FAST, epochs=65),
    "densenet": dataclasses.replace(FAST, epochs=42),
    "vit": dataclasses.replace(FAST, epochs=38, optimizer="adamw", lr=1e-3, weight_decay=0.05),
    "wrn40_2": dataclasses.replace(FAST, epochs=28),
    "emo": dataclasses.replace(ATTENTIVE, lr=3e-3),
    "shunted": ATTENTIVE,
    "caformer": dataclasses.replace(ATTENTIVE, lr=2e-3),
    "poolformer": dataclasses.replace(ATTENTIVE, lr=2e-3),
}
STUDENTS = {name: f"{name}_tiny" for name in ("emo", "shunted", "caformer", "poolformer")}
"""Networks of the zoo that are not called as what is trained."""


def main() -> None:
    """Train one network and keep its weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    name, recipe, work = arguments.name, RECIPES[arguments.name], alone if arguments.alone else train
    if not arguments.smoke:
        run = Path("runs") / f"cifar10_{name}{'_alone' if arguments.alone else ''}"
        work(name, "cifar10", recipe, VIEWS, run=run, weights=SHIPPED)
        return
    with tempfile.TemporaryDirectory() as folder:
        recipe = dataclasses.replace(recipe, epochs=1, warmup=0)
        work(name, few(), recipe, views=1, run=Path(folder) / "run", weights=Path(folder))


def train(name: str, data: str | Images, recipe: Recipe, views: int, *, run: Path, weights: Path) -> None:
    """Distil, measure, and write weights with their lineage."""
    result = upcycle.distill(
        teacher="zoo:cifar10_resnet56",
        student=f"zoo:{STUDENTS.get(name, name)}",
        data=data,
        out=run,
        resume=True,
        recipe=recipe,
        views=views,
    )
    model, accuracy = result.student, result.rows[-1]["accuracy"][0]
    store.save_tensors(weights / f"cifar10_{name}.safetensors", model.module.state_dict())
    assert model.lineage is not None  # distill leaves one
    store.write_json(weights / f"cifar10_{name}.lineage.json", {**model.lineage, "name": f"cifar10_{name}"})
    print(f"cifar10_{name}: test accuracy {accuracy:.2%}; licence {model.licence}; mean {model.mean}, std {model.std}")


def alone(name: str, data: str | Images, recipe: Recipe, views: int, *, run: Path, weights: Path) -> None:
    """Train on the labels, measure, and write the accuracy."""
    student = f"zoo:{STUDENTS.get(name, name)}"
    result = upcycle.distill(
        method="plain", student=student, data=data, out=run, resume=True, recipe=recipe, views=views
    )
    accuracy = result.rows[-1]["accuracy"][0]
    known = {"name": f"cifar10_{name}", "epochs": recipe.epochs, "test accuracy alone": accuracy}
    store.write_json(weights / f"cifar10_{name}.alone.json", known)
    print(f"cifar10_{name}: test accuracy alone {accuracy:.2%}")


def few() -> Images:
    """The first images of each split."""
    data = load("cifar10").subset(torch.arange(512))
    measured = {name: getattr(data, name).subset(torch.arange(256)) for name in ("validation", "test")}
    return dataclasses.replace(data, **measured)


if __name__ == "__main__":
    main()
