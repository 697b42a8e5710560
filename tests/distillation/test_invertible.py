"""Images are inverted out of networks of other people: timm's and torchvision's, of other sizes, and wrapped ones."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from tests.settings import TinyNet
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.distillation import CMI, DeepInversion, FastDFKD, OneStageGAN
from upcycle.distillation.data_free.making import Making

NETWORKS = [
    ("torchvision:shufflenet_v2_x0_5", (3, 64, 64)),
    ("torchvision:resnet18", (3, 32, 32)),
    ("timm:mobilenetv3_small_050", (3, 64, 64)),
    ("timm:resnet10t", (1, 28, 28)),
    ("zoo:resnet8", (1, 28, 28)),
]
METHODS = {
    FastDFKD: {"k": 2, "ngf": 8, "nz": 16, "making": Making(rounds=2, warmup=1, batch=8, kd_steps=2, views=1)},
    CMI: {"g_steps": 2, "ngf": 8, "nz": 16, "n_neg": 8, "bank": 16},
    DeepInversion: {"g_steps": 2},
    OneStageGAN: {"g_steps": 2, "ngf": 8, "nz": 16},
}
OPTIONS = {"making": Making(rounds=2, batch=8, kd_steps=2, views=1), "recipe": Recipe(epochs=2, batch_size=8)}


def trained(model: Model) -> Model:
    """With BatchNorm statistics of something, as a trained network has them."""
    g = torch.Generator().manual_seed(0)
    model.module.train()
    with torch.no_grad():
        for _ in range(3):
            model.module(torch.randn(8, *model.input_shape, generator=g))
    return dataclasses.replace(model, module=model.module.eval())


def network(reference: str, shape: tuple[int, int, int]) -> Model:
    pytest.importorskip(reference.split(":")[0] if not reference.startswith("zoo") else "torch")
    torch.manual_seed(0)
    module = resolve(reference, pretrained=False, num_classes=5, input_shape=shape).module
    c = shape[0]
    return trained(Model(module=module, input_shape=shape, mean=(0.4,) * c, std=(0.3,) * c, classes=tuple("abcde")))


@pytest.mark.parametrize(("reference", "shape"), NETWORKS, ids=[f"{r}-{s[1]}" for r, s in NETWORKS])
def test_networks_of_others(reference: str, shape: tuple[int, int, int]) -> None:
    student = resolve("zoo:resnet8", pretrained=False, num_classes=5, input_shape=shape)
    method = FastDFKD(teacher=network(reference, shape), student=student, **OPTIONS | METHODS[FastDFKD])
    nothing = Images.none(shape, tuple("abcde"), student.mean, student.std)
    method.require(nothing)
    net = method.fit(Run(None, seed=0), nothing)
    assert net(torch.zeros(2, *shape)).shape == (2, 5)


class Wrapped(nn.Module):
    """Answers with a tuple, as some detectors and old scripts do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(images), images


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.card.name)
def test_a_teacher_that_answers_with_a_tuple(method: type) -> None:
    torch.manual_seed(0)
    teacher = resolve(Wrapped(), input_shape=(1, 8, 8), num_classes=10)
    assert len(teacher.classes) == 10
    student = Model(module=TinyNet(8), input_shape=(1, 8, 8), mean=teacher.mean, std=teacher.std,
                    classes=teacher.classes)  # fmt: skip
    nothing = Images.none((1, 8, 8), teacher.classes, teacher.mean, teacher.std)
    made = method(teacher=trained(teacher), student=student, **OPTIONS | METHODS[method])
    made.require(nothing)
    net = made.fit(Run(None, seed=0), nothing)
    assert all(math.isfinite(float(p.detach().abs().sum())) for p in net.parameters())


def test_a_vision_transformer_is_refused_with_what_would_serve() -> None:
    pytest.importorskip("timm")
    module = resolve("timm:vit_tiny_patch16_224", pretrained=False, num_classes=5).module
    teacher = Model(module=module, input_shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, classes=tuple("abcde"))
    student = resolve("zoo:resnet8", pretrained=False, num_classes=5, input_shape=(3, 224, 224))
    for method in METHODS:
        (problem,) = method(teacher=teacher, student=student).check(None)
        assert "no BatchNorm" in problem and "kd" in problem
