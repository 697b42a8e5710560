"""BootstrapViT: a vision transformer from few images, with a convolutional agent beside it and without."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import get_args

import torch
import torch.nn.functional as F
from torch import nn

from upcycle.claims import Check, Claim, Headline, gain
from upcycle.claims.settings import cifar10, fresh, test, train
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.data import Images
from upcycle.distillation import BootstrapViT, Plain
from upcycle.distillation.bootstrapvit import Mode, generalised_convolution, shared_of


@cache
def setting(quick: bool) -> Images:
    """The first 2,500 training images of CIFAR-10, augmented as in the paper."""
    data = cifar10(250 if quick else 2_500, ("crop", "flip"), resolve("zoo:cifar10_resnet20", pretrained=False))
    return dataclasses.replace(data, test=data.test.subset(torch.arange(500))) if quick else data


def recipe(quick: bool) -> Recipe:
    """That of the paper in twelve epochs, in all arms."""
    return Recipe(epochs=1 if quick else 12, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.05)


def convolution_apart(student: nn.Module) -> float:
    """The largest difference of the shared convolution and F.conv2d with kernel slices W_m, over its largest value."""
    layers = shared_of(student.get_submodule("blocks.0"))
    assert layers is not None
    d, x = layers.out.in_features, torch.randn(4, layers.out.in_features, 8, 8)
    w_v, w_o, width = layers.qkv.weight[2 * d :], layers.out.weight, d // layers.heads
    weight = torch.empty(d, d, 3, 3)
    with torch.no_grad():
        for m in range(layers.heads):
            rows = slice(m * width, (m + 1) * width)
            weight[:, :, m // 3, m % 3] = w_o[:, rows] @ w_v[rows]
        expected = F.conv2d(x, weight, layers.out.bias, padding=1)
        found = generalised_convolution(x, w_v, w_o, layers.out.bias, layers.heads)
    return float((found - expected).abs().max() / expected.abs().max())


def product_apart(made: nn.Module, fresh_one: Model, data: Images) -> float:
    """The largest difference of the logits of a product and of a fresh network that was given its weights."""
    fresh_one.module.load_state_dict(made.state_dict())
    images = data.test.batch(torch.arange(64), device=torch.device("cpu")).images
    with torch.no_grad():
        return float((made(images) - fresh_one.module.eval()(images)).abs().max())


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Alone, and in both modes: the same images, order of batches, updates and first weights."""
    data = setting(quick)

    def student() -> Model:
        return fresh("zoo:vit_plain", data, seed)

    alone = train(Plain(student=student(), recipe=recipe(quick)), data, seed)
    figures, apart = {"alone (%)": 100 * test(alone, data).accuracy}, []
    for mode in get_args(Mode):
        made = train(BootstrapViT(student=student(), mode=mode, recipe=recipe(quick)), data, seed)
        figures[f"{mode} (%)"] = 100 * test(made, data).accuracy
        apart.append(product_apart(made, student(), data))
        if mode == "shared":
            figures["shared convolution against F.conv2d (relative)"] = convolution_apart(made)
    return figures | {"the product without its agent (apart)": max(apart)}


CLAIM = Claim(
    method="bootstrapvit",
    sentence="A vision transformer learns more from few images when a convolutional agent of its size learns beside "
    "it, and needs the agent no longer afterwards.",
    published="CIFAR-10, ViT-S, 240 epochs at 224 x 224: 87.32 alone, 95.14 joint, 93.72 shared; ViT-B 79.24, 95.00, "
    "93.34; CIFAR-100 ViT-S 61.25, 76.19, 75.50 (README of the authors, last epoch).",
    setting="CIFAR-10, first 2,500 training images, crop and flip, at 32 x 32; zoo:vit_plain, patches of 4, width 72, "
    "4 blocks, 9 heads; 12 epochs of AdamW, 1e-3, weight decay 0.05, batches of 64, cosine, in all arms. The agent "
    "reads patches too and does not pool. Measured on the transformer alone. Rate and weights are the paper's.",
    data=("cifar10",),
    measure=measure,
    headline=Headline(
        product="joint (%)",
        baseline="alone (%)",
        says="an agent of its own weights beside the transformer over the transformer alone, as many updates",
    ),
    checks=(
        Check(text="joint gains at least 4 points on alone", value=gain("joint (%)", "alone (%)"), bound=4.0),
        Check(text="shared gains at least 3 points on alone", value=gain("shared (%)", "alone (%)"), bound=3.0),
        Check(
            text="the shared convolution is F.conv2d to 1e-5",
            value=lambda m: -max(m["shared convolution against F.conv2d (relative)"]),
            bound=-1e-5,
            exact=True,
        ),
        Check(
            text="the product answers alike without its agent",
            value=lambda m: -max(m["the product without its agent (apart)"]),
            bound=0.0,
            exact=True,
        ),
    ),
)
