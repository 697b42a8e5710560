"""One row a method: the tiny networks, data and options that the promises are tested with.

A method appears in every promise by appearing here, and a test fails for one that does not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images, load
from upcycle.distillation import CMI, KD, VAM, DeepInversion, FastDFKD, NetGraft, OneStageGAN, TfKD


class TinyNet(nn.Module):
    """conv-BN-ReLU twice, pooling, linear; 8x8 grey."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.relu1, self.relu2, self.pool1 = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(self.pool1(x))))
        return self.linear(self.pool(x).flatten(1))


def tiny_net(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return TinyNet(width)


@cache
def _digits() -> Images:
    return load("digits")


def tiny_data(n: int = 160) -> Images:
    """The first ``n`` digits to train on, 50 to validate and 50 to test."""
    data = _digits().normalised((0.3,), (0.4,))
    return dataclasses.replace(
        data, train=data.train.subset(torch.arange(n)), validation=data.validation.subset(torch.arange(50)),
        test=data.test.subset(torch.arange(50)))  # fmt: skip


def tiny_model(name: str, seed: int, width: int = 16) -> Model:
    return Model(module=tiny_net(seed, width), input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,),
                 classes=tuple("0123456789"), name=name)  # fmt: skip


def seen(model: Model) -> Model:
    """``model`` with the BatchNorm statistics of 160 digits, as if it had been trained on them."""
    data = tiny_data()
    module = model.module.train()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # of all that it sees, not a tenth
    with torch.no_grad():
        module(data.train.batch(torch.arange(len(data.train)), device=torch.device("cpu")).images)
    module.eval()
    return model


@dataclass(frozen=True)
class Row:
    """A method's options for the gauntlet, and the command line that runs it."""

    method: type[Method]
    options: dict[str, Any]
    words: tuple[str, ...]
    teacher: bool = True
    student_width: int = 16

    def make(self, seed: int = 0) -> Method:
        roles = {"student": tiny_model("student", 100 + seed, self.student_width)}
        if self.teacher:
            roles["teacher"] = seen(tiny_model("teacher", 7))
        return self.method(**roles, **self.options)


_RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)
_WORDS = ("--recipe.epochs=2", "--recipe.batch_size=64")
_INVERT = {"recipe": _RECIPE, "rounds": 4, "batch": 32, "kd_steps": 4, "capacity": 128}
_GENERATE = {"nz": 16, "ngf": 8}
_INVERT_WORDS = (*_WORDS, "--rounds=3", "--batch=32", "--kd_steps=4")
_GENERATE_WORDS = (*_INVERT_WORDS, "--nz=16", "--ngf=8")

ROWS = {
    "kd": Row(KD, {"recipe": _RECIPE}, _WORDS),
    "kd-views": Row(
        KD, {"recipe": _RECIPE, "views": 2, "cache": "on", "w_ce": 0.0, "w_kd": 1.0}, (*_WORDS, "--views=2")
    ),
    "tfkd": Row(TfKD, {"recipe": _RECIPE, "variant": "self"}, _WORDS, teacher=False),
    "tfkd-reg": Row(TfKD, {"recipe": _RECIPE, "variant": "reg"}, (*_WORDS, "--variant=reg"), teacher=False),
    "netgraft": Row(
        NetGraft,
        {"cuts": ("pool1", "relu2"), "epochs_block": (2,), "epochs_chain": 2, "batch_size": 32},
        ("--shots=4",),
        student_width=8,
    ),
    "vam": Row(VAM, {"recipe": _RECIPE, "block": 8}, (*_WORDS, "--block=8")),
    "fastdfkd": Row(
        FastDFKD,
        {**_INVERT, **_GENERATE, "warmup": 1, "k": 2, "reset": 1},
        (*_GENERATE_WORDS, "--warmup=1", "--k=2"),
    ),
    "fastdfkd-reptile": Row(
        FastDFKD,
        {**_INVERT, **_GENERATE, "warmup": 1, "k": 2, "reuse": "reptile", "views": 2},
        (*_GENERATE_WORDS, "--warmup=1", "--k=2", "--reuse=reptile", "--views=2"),
    ),
    "cmi": Row(
        CMI,
        {**_INVERT, **_GENERATE, "warmup": 1, "g_steps": 3, "n_neg": 16, "bank": 64, "bank_every": 2},
        (*_GENERATE_WORDS, "--warmup=1", "--g_steps=3", "--n_neg=16", "--bank=64"),
    ),
    "deepinversion": Row(
        DeepInversion, {**_INVERT, "warmup": 1, "g_steps": 3}, (*_INVERT_WORDS, "--warmup=1", "--g_steps=3")
    ),
    "onestagegan": Row(OneStageGAN, {**_INVERT, **_GENERATE, "g_steps": 3}, (*_GENERATE_WORDS, "--g_steps=3")),
}
