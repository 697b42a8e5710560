"""The setting that the claims about distillation without data share: Fashion-MNIST, a small teacher, half of it."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upcycle.claims.settings import fresh, short, test
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import read_json
from upcycle.core.taps import Taps
from upcycle.data import load
from upcycle.data.pool_files import load_pool
from upcycle.distillation import CMI, DeepInversion, FastDFKD, OneStageGAN, Plain
from upcycle.distillation.data_free.gallery import similarity
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis

if TYPE_CHECKING:
    from upcycle.data.images import Images

SETTING = (
    "Fashion-MNIST (local split), 28 x 28 grey. Teacher: conv 32-64-128 with BatchNorm, 5 epochs on all labels; "
    "student: half as wide, no data. Batches of 128 images, generator with 32 base channels, SGD with cosine from 0.1, "
    "random crops."
)


@cache
def _data() -> Images:
    return load("fashion_mnist_local").normalised((0.286,), (0.353,))


@cache
def teacher(quick: bool) -> Model:
    """The network that images are made from; trained here once, with seed 0."""
    data = _data()
    data = data.subset(torch.arange(2000)) if quick else data
    model = dataclasses.replace(fresh("zoo:convnet", data, 0), name="convnet of Fashion-MNIST", classes=data.classes)
    method = Plain(student=model, recipe=short(1 if quick else 5))
    module = method.fit(Run(None, seed=0, quiet=True), data)
    return dataclasses.replace(model, module=module)


def nothing(quick: bool) -> Images:
    """No training images; real ones to measure with: 1,000 for the curve, the whole test set for the figures.

    Args:
        quick: 200 and 500 of them.
    """
    data = _data()
    train = dataclasses.replace(data.train.subset(torch.arange(0)), augment=("crop",))
    held = data.validation.subset(torch.arange(200 if quick else 1000))
    test = data.test.subset(torch.arange(500)) if quick else data.test
    return dataclasses.replace(data, train=train, validation=held, test=test)


def student(seed: int) -> Model:
    """A network half as wide as the teacher, with weights drawn from ``seed``."""
    from upcycle.zoo.convnet import ConvNet

    model = fresh("zoo:convnet", _data(), seed)
    return dataclasses.replace(model, module=ConvNet((16, 32, 64), 10, 1), name="half as wide")


def recipe(epochs: int) -> Recipe:
    """The student's, for all methods alike."""
    return Recipe(epochs=epochs, batch_size=128, lr=0.1, weight_decay=1e-4)


@dataclass(kw_only=True, eq=False, repr=False)
class NoiseImages(Method):
    """The baseline: uniform noise, or images of another set, in place of synthesised images, all else alike."""

    teacher: Model | nn.Module
    student: Model | nn.Module
    making: Making = field(default_factory=lambda: Making(rounds=12, batch=128, kd_steps=200, views=0))
    recipe: Recipe = field(default_factory=Recipe)
    others: Tensor | None = None

    card = Card(
        name="noise",
        title="distillation on uniform noise",
        paper="",
        verb="distill",
        needs=Needs(data="none", teacher="predictions"),
        summary="a baseline",
        cost="1x",
        published="",
    )

    def fit(self, run: Run, data: Images) -> nn.Module:
        """Rounds of noise into the pool, and the student's training on it."""
        made, N = Synthesis(run, self, data), self.making.batch
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for i in made.rounds(student, optimizer):
            with made.clock():
                x = torch.rand(N, *made.model.input_shape, generator=run.generator("noise"))
                if self.others is not None:
                    x = self.others[i * N : (i + 1) * N]
            made.append(x[run.mine(N)], torch.full((N,), -1))
        return made.finish(student)


def batch(quick: bool) -> int:
    """How many images a method makes at a time."""
    return 32 if quick else 128


def cmi(seed: int, quick: bool, *, many: bool = False, **options: Any) -> CMI:
    """CMI: 12 batches of 100 steps, 2,400 updates of the student.

    Args:
        many: 40 batches of 30 steps and 2,000 updates: as many images as FastDFKD makes, in as many steps as above.
    """
    rounds, steps, kd = (2, 3, 5) if quick else (40, 30, 50) if many else (12, 100, 200)
    making = Making(rounds=rounds, batch=batch(quick), kd_steps=kd, views=0)
    return CMI(
        teacher=teacher(quick),
        student=student(seed),
        making=making,
        g_steps=steps,
        ngf=32,
        recipe=recipe(rounds),
        **options,
    )


def fastdfkd(seed: int, quick: bool, **options: Any) -> FastDFKD:
    """FastDFKD: 40 batches of 5 steps, 1,750 updates of the student after 5 rounds of warm-up."""
    rounds, warmup, kd = (4, 1, 5) if quick else (40, 5, 50)
    making = Making(rounds=rounds, warmup=warmup, batch=batch(quick), kd_steps=kd, views=0)
    return FastDFKD(
        teacher=teacher(quick),
        student=student(seed),
        making=making,
        k=5,
        reset=-1,
        ngf=32,
        bn=10.0,
        oh=0.5,
        adv=0.5,
        recipe=recipe(rounds - warmup),
        **options,
    )


def deepinversion(seed: int, quick: bool, **options: Any) -> DeepInversion:
    """DeepInversion: as many batches, steps and updates as CMI."""
    rounds, steps, kd = (2, 3, 5) if quick else (12, 100, 200)
    making = Making(rounds=rounds, batch=batch(quick), kd_steps=kd, views=0)
    return DeepInversion(
        teacher=teacher(quick), student=student(seed), making=making, g_steps=steps, recipe=recipe(rounds), **options
    )


def onestagegan(seed: int, quick: bool, **options: Any) -> OneStageGAN:
    """OneStageGAN: 12 rounds of 20 steps, as many updates on the pool as CMI."""
    rounds, steps, kd = (2, 3, 5) if quick else (12, 20, 200)
    making = Making(rounds=rounds, batch=batch(quick), kd_steps=kd, views=0)
    return OneStageGAN(
        teacher=teacher(quick),
        student=student(seed),
        making=making,
        g_steps=steps,
        ngf=32,
        recipe=recipe(rounds),
        **options,
    )


def noise(seed: int, quick: bool, others: Tensor | None = None) -> NoiseImages:
    """Noise, or images of another set: as many images and updates as CMI."""
    rounds, kd = (2, 5) if quick else (12, 200)
    making = Making(rounds=rounds, batch=batch(quick), kd_steps=kd, views=0)
    return NoiseImages(
        teacher=teacher(quick), student=student(seed), making=making, recipe=recipe(rounds), others=others
    )


def other_images(seed: int, quick: bool) -> NoiseImages:
    """Images of another set: MNIST digits that the seed draws, as they are."""
    train = load("mnist").train
    number = (2 if quick else 12) * batch(quick)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:number]
    return noise(seed, quick, train.pixels()[chosen].permute(0, 3, 1, 2).float() / 255)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one data-free run.

    Args:
        accuracy: of the student on the test set after the last epoch, in per cent.
        seconds: of synthesis.
        total: of everything.
        images: how many were made.
        similarity: mean cosine of the teacher's penultimate features between images made for the same class.
        curve: (synthesis seconds, all seconds, validation accuracy).
    """

    accuracy: float
    seconds: float
    total: float
    images: int
    similarity: float
    curve: list[tuple[float, float, float]]


def outcome(method: Method, seed: int, quick: bool) -> Outcome:
    """Run a method without data and measure what it left."""
    data = nothing(quick)
    method.require(data)
    with tempfile.TemporaryDirectory() as place:
        module = method.fit(Run(place, seed=seed, save_every=math.inf, quiet=True), data)
        left, pool = read_json(Path(place) / "synthesis.json"), load_pool(Path(place) / "pool").train
    source = teacher(quick)
    split = dataclasses.replace(pool, mean=source.mean, std=source.std)
    with torch.no_grad(), Taps(source.module, ["linear"], kind="input") as taps:
        source.module.eval()(split.batch(torch.arange(len(split)), device=torch.device("cpu")).images)
        same = similarity(taps["linear"], pool.labels, len(source.classes)).diagonal()
    return Outcome(accuracy=100 * test(module, data).accuracy, seconds=left["seconds"], total=left["total_seconds"],
                   images=left["images"], similarity=float(same.nanmean()), curve=left["curve"])  # fmt: skip
