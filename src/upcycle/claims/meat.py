"""MEAT against a head on frozen features, masks everywhere and fine-tuning: three sets for one transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from upcycle.claims import Check, Claim, Headline, gain, mean
from upcycle.claims.settings import train_and_left
from upcycle.continual import MEAT, Finetune
from upcycle.continual.protocol.scores import Scores, average
from upcycle.continual.weights.attention_masks import Masks, Sites
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.data import Images, ImageSplit, load
from upcycle.data.streams import Stream

SETS = {"fashion_mnist_local": "Fashion-MNIST", "mnist": "MNIST", "usps": "USPS"}
GATES: dict[str, Any] = {"gamma": 3.0, "lr_gates": 0.3}
ARMS: dict[str, tuple[Masks, float]] = {"MEAT": ("meat", 0.03), "everywhere": ("all", 0.03), "head": ("none", 0.1)}
FINETUNE_LR = 0.01
"""Rates and γ were chosen with seed 99, 1,000 images of MNIST or Fashion-MNIST and 500 validation images of each."""


def three_sets(model: Model, n: int, n_test: int) -> Stream:
    """One set after another, as images that ``model`` takes; the first ``n`` training and ``n_test`` other images."""
    sets = [load(name, size=32, channels=3).normalised(model.mean, model.std) for name in SETS]
    classes = tuple(f"{title} {c}" for title, images in zip(SETS.values(), sets, strict=True) for c in images.classes)
    tasks = tuple(tuple(range(10 * t, 10 * t + 10)) for t in range(len(sets)))

    def make(t: int) -> Images:
        def of(split: ImageSplit, most: int) -> ImageSplit:
            first = split.subset(torch.arange(min(most, len(split))))
            return dataclasses.replace(first, labels=first.labels + 10 * t)

        images = sets[t]
        return dataclasses.replace(images, classes=classes, train=of(images.train, n), test=of(images.test, n_test),
                                   validation=of(images.validation, n_test))  # fmt: skip

    return Stream(name="+".join(SETS), scenario="task", classes=classes, tasks=tasks, make=make, base=sets[0],
                  order={"sets": list(SETS)})  # fmt: skip


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Four arms: the same transformer, images, order and epochs."""
    model, epochs = resolve("zoo:cifar10_vit"), 1 if quick else 5
    data = three_sets(model, *(64, 50) if quick else (2_000, 2_000))
    figures: dict[str, float] = {}
    sites: dict[str, Sites] = {}
    for arm, (masks, lr) in ARMS.items():
        recipe = Recipe(epochs=epochs, batch_size=32, optimizer="adamw", lr=lr, weight_decay=0.0)
        method = MEAT(student=model, masks=masks, recipe=recipe, **GATES)
        masked, left = train_and_left(method, data, seed)  # type: ignore[arg-type]
        sites[arm] = masked.sites
        figures |= scored(arm, left["scores"])
    recipe = Recipe(epochs=epochs, batch_size=32, lr=FINETUNE_LR, weight_decay=0.0)
    whole = Finetune(student=model, recipe=recipe)
    _, left = train_and_left(whole, data, seed)  # type: ignore[arg-type]
    figures |= scored("fine-tuning", left["scores"])
    figures["bits of MEAT over those of masks everywhere"] = sites["MEAT"].bits / sites["everywhere"].bits
    bits = 32 * sum(p.numel() for p in model.module.parameters())
    figures["a task over the network, bytes (%)"] = 100 * sites["MEAT"].storage(96, 10) / bits
    return figures


def scored(arm: str, scores: Scores) -> dict[str, float]:
    """The mean accuracy over the tasks at the end, and how far that of any finished task was from when it was new."""
    a = scores.matrices["task"]
    moved = [abs(float(row[j] or 0) - float(a[j][j] or 0)) for j in range(len(a)) for row in a[j:]]
    return {f"{arm} (%)": 100 * average(a), f"{arm}, largest change of a finished task (%)": 100 * max(moved)}


CLAIM = Claim(
    method="meat",
    sentence="A frozen transformer learns sets of another kind by switching weights and tokens off, clearly better "
    "than by a head alone and about as well as with masks in all its layers, and forgets nothing of them.",
    published="4.0 to 6.0 points over CNN counterparts (abstract of arXiv:2203.11684); nothing in this setting.",
    setting="zoo:cifar10_vit (width 96, 4 blocks, 81.38 % on CIFAR-10), then Fashion-MNIST (a split of its own), MNIST "
    "and USPS as three tasks of ten classes, 2,000 training and 2,000 test images each at 32 x 32 in three channels, 5 "
    "epochs of batches of 32; AdamW, head 0.03, gates 0.3, γ = 3; against a head alone (0.1), gates at every linear "
    "layer of the blocks, and fine-tuning of everything. Rates and γ were chosen on validation images.",
    data=tuple(SETS),
    measure=measure,
    headline=Headline(
        product="MEAT (%)",
        baseline="head (%)",
        says="masks over a head alone",
    ),
    checks=(
        Check(text="no finished task changes at all",
              value=lambda m: -max(m["MEAT, largest change of a finished task (%)"]), bound=0.0, exact=True),
        Check(text="masks gain at least 3 points over a head alone", value=gain("MEAT (%)", "head (%)"), bound=3.0),
        Check(text="they stay within 2 points of masks everywhere", value=gain("MEAT (%)", "everywhere (%)"),
              bound=-2.0),
        Check(text="they take at most 2/3 of the bits of masks everywhere",
              value=lambda m: -mean(m, "bits of MEAT over those of masks everywhere"), bound=-0.667, exact=True),
        Check(text="fine-tuning loses at least 5 points of some task",
              value=lambda m: mean(m, "fine-tuning, largest change of a finished task (%)"), bound=5.0),
    ),
)  # fmt: skip
