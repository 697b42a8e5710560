"""Architectures of our own, some with trained weights: ``zoo:NAME``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from upcycle.core import store
from upcycle.core.errors import UserError, unknown
from upcycle.core.models import Model
from upcycle.core.weights import load_weights
from upcycle.zoo.convnet import MLP, ConvNet
from upcycle.zoo.resnet import DEPTHS, ResNet

Shape = tuple[int, int, int]
Make = Callable[[Shape, int], nn.Module]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHIPPED = Path(__file__).parent / "weights"
# For networks that nothing was trained with: any data then lie within [-2, 2].
PLAIN = (0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained weights of a zoo network.

    Args:
        mean, std: what its inputs are normalised with.
        classes: names of its outputs.
        licence: of the weights, as their publisher states it.
        origin: where they were published; ``None`` when they come with this package.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    licence: str
    origin: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A zoo network: how it is made from (c, h, w) and a number of classes, and what it was trained as."""

    make: Make
    shape: Shape = (3, 32, 32)
    trained: Trained | None = None


def _resnet(depth: int, projection: bool = False) -> Make:
    return _blocks((depth - 2) // 6, (depth - 2) // 6, (depth - 2) // 6, projection)


def _blocks(first: int, second: int, third: int, projection: bool = False) -> Make:
    return lambda shape, k: ResNet((first, second, third), k, shape[0], projection)


def _convnet(*widths: int) -> Make:
    def make(shape: Shape, k: int) -> nn.Module:
        if min(shape[1:]) < 4:
            raise UserError(f"convnet needs images of at least 4 x 4 pixels, not {shape[1]} x {shape[2]}.")
        return ConvNet((widths[0], widths[1], widths[2]), k, shape[0])

    return make


def _mlp(*widths: int, dropout: float) -> Make:
    return lambda shape, k: MLP(shape[0] * shape[1] * shape[2], widths, k, dropout)


def _entries() -> dict[str, Entry]:
    # Accuracies on the CIFAR-10 test set: 91.73, 92.62, 93.11 and 93.39 % for depths 20, 32, 44 and 56, and
    # 92.62 % for the one with projection shortcuts. The first four were trained with ImageNet's statistics.
    he = Trained(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=CIFAR10,
        licence="BSD-2-Clause",
        origin="https://github.com/akamaster/pytorch_resnet_cifar10",
    )
    chenyaofo = Trained(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        classes=CIFAR10,
        licence="BSD-3-Clause",
        origin="https://github.com/chenyaofo/pytorch-cifar-models",
    )
    digits = Trained(mean=(0.3053,), std=(0.3759,), classes=tuple("0123456789"), licence="Apache-2.0")
    return {
        **{f"cifar10_resnet{depth}": Entry(make=_resnet(depth), trained=he) for depth in (20, 32, 44, 56)},
        "cifar10_resnet20_chenyaofo": Entry(make=_resnet(20, projection=True), trained=chenyaofo),
        "digits_teacher": Entry(make=_convnet(32, 64, 128), shape=(1, 8, 8), trained=digits),
        **{f"resnet{depth}": Entry(make=_resnet(depth)) for depth in DEPTHS},
        "resnet3-1-1": Entry(make=_blocks(3, 1, 1)),
        "resnet20_projection": Entry(make=_resnet(20, projection=True)),
        "convnet": Entry(make=_convnet(32, 64, 128)),
        "convnet_small": Entry(make=_convnet(8, 16, 16)),
        "mlp": Entry(make=_mlp(1200, 1200, dropout=0.5), shape=(1, 28, 28)),
        "mlp_small": Entry(make=_mlp(300, dropout=0.0), shape=(1, 28, 28)),
    }


ENTRIES = _entries()


def names() -> list[str]:
    """The zoo, trained networks first."""
    return list(ENTRIES)


def check(name: str) -> None:
    """Raise UserError for a name that is not in the zoo."""
    if name not in ENTRIES:
        raise unknown("zoo model", name, ENTRIES)


def build(name: str, *, pretrained: bool, num_classes: int | None = None, input_shape: Shape | None = None) -> Model:
    """A network of the zoo.

    Args:
        name: one of :func:`names`.
        pretrained: with trained weights, from this package or from ``$UPCYCLE_DATA/weights``.
        num_classes: outputs of a fresh network; 10 when not given. Trained ones keep theirs.
        input_shape: (c, h, w); the network's own when not given. ResNets and conv nets take any size.

    Raises:
        UserError: unknown name, no trained weights to be had, or channels that those weights don't fit.
    """
    check(name)
    entry = ENTRIES[name]
    shape, trained = input_shape or entry.shape, entry.trained
    if pretrained and trained is None:
        raise UserError(f"zoo:{name} has no trained weights; give --teacher_weights FILE.")
    if pretrained and shape[0] != entry.shape[0]:
        raise UserError(f"zoo:{name} was trained on images with {entry.shape[0]} channels, not {shape[0]}.")
    k = len(trained.classes) if pretrained and trained else num_classes or 10
    mean, std = ((PLAIN[0],) * shape[0], (PLAIN[1],) * shape[0])
    if trained is not None and shape[0] == entry.shape[0]:
        mean, std = trained.mean, trained.std
    model = Model(
        module=entry.make(shape, k),
        input_shape=shape,
        mean=mean,
        std=std,
        classes=tuple(map(str, range(k))),
        reference=f"zoo:{name}",
        options={"num_classes": k, "input_shape": list(shape)},
        name=name,
    )
    if pretrained and trained is not None:
        file = _file(name, trained)
        load_weights(model.module, file)
        model.classes, model.licence = trained.classes, trained.licence
        lineage = file.with_name(f"{name}.lineage.json")
        model.lineage = store.read_json(lineage) if lineage.is_file() else None
    return model


def _file(name: str, trained: Trained) -> Path:
    if trained.origin is None:
        file = SHIPPED / f"{name}.safetensors"
        if not file.is_file():
            raise UserError(f"The weights of zoo:{name} are missing from this installation; install upcycle again.")
        return file
    folder = os.environ.get("UPCYCLE_DATA")
    place = f"{folder or '$UPCYCLE_DATA'}/weights/{name}.safetensors"
    if not folder or not Path(place).is_file():
        raise UserError(
            f"The weights of zoo:{name} are not there: fetch them from {trained.origin} and give the file by "
            f"--teacher_weights FILE, or put it as safetensors at {place}"
            + ("." if folder else ", where the environment variable UPCYCLE_DATA names a folder.")
        )
    return Path(place)
