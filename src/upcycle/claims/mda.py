"""MDA: components that know their classes, classifiers assembled of them, and what one epoch adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from upcycle.assembly.disassembly.component import class_indices, cut_component, find_confident, restrict
from upcycle.assembly.disassembly.routes import find_routes
from upcycle.assembly.mda import MDA
from upcycle.assembly.mdaassembly import MDAAssembly
from upcycle.claims import Check, Claim, Headline, gain, mean
from upcycle.claims.settings import cifar10, test, train
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.data import Images, load
from upcycle.data.images import ImageSplit
from upcycle.data.joining import joined
from upcycle.distillation import Plain
from upcycle.surgery.channels import Channels
from upcycle.surgery.following import follow_channels

BETAS = (0.1, 0.2, 0.4, 0.6)
"""Of convolutions; the second is the default."""
CPU = torch.device("cpu")


class SmallVGG(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling with 32, 64 and 128 channels, then 128 and k linear outputs; 28 x 28."""

    def __init__(self, k: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(128 * 9, 128), nn.ReLU(), nn.Linear(128, k))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def supervised(model: Model, recipe: Recipe) -> Plain:
    """Ordinary training with labels."""
    return Plain(student=model, recipe=recipe)


def source(name: str, seed: int, quick: bool) -> tuple[Model, Images]:
    """A network trained on a set of grey images, normalised by that set's own statistics."""
    data = load(name)
    data = data.normalised(*data.statistics)
    data = _smaller(data, 2000, 500) if quick else _smaller(data, len(data.train), len(data.test))
    seed_everything(seed, name)
    fresh = Model(module=SmallVGG(10), input_shape=(1, 28, 28), mean=data.train.mean, std=data.train.std,
                  classes=data.classes, name=name)  # fmt: skip
    recipe = Recipe(epochs=1 if quick else 3, batch_size=128, optimizer="adam", lr=1e-3, weight_decay=0.0)
    return dataclasses.replace(fresh, module=train(supervised(fresh, recipe), data, seed)), data


def _smaller(data: Images, n: int, tested: int) -> Images:
    return dataclasses.replace(data.subset(torch.arange(n)), test=data.test.subset(torch.arange(tested)),
                               validation=data.validation.subset(torch.arange(500)))  # fmt: skip


# -- baselines: as many channels in every layer, chosen otherwise ----------------------------------------


def as_many(channels: Channels, keep: Tensor, score: Tensor) -> Tensor:
    """A choice of the highest-scored channels, as many as ``keep`` has among those that the same layers make."""
    makers = torch.zeros(channels.n, len(channels.layers), dtype=torch.bool)
    for i, layer in enumerate(channels.layers):
        makers[layer.outputs, i] = True
    kinds = makers.unique(dim=0, return_inverse=True)[1]
    other = torch.zeros_like(keep)
    for kind in kinds.unique():
        ids = (kinds == kind).nonzero().flatten()
        other[ids[score[ids].argsort(descending=True)[: int(keep[ids].sum())]]] = True
    return other


def l1(module: nn.Module, channels: Channels) -> Tensor:
    """The L1 norm of the filters that make each channel."""
    score = torch.zeros(channels.n)
    for layer in channels.layers:
        weight = module.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        score.index_add_(0, layer.outputs, weight.detach().abs().flatten(1).sum(1))
    return score


@dataclasses.dataclass(frozen=True)
class Pruner:
    """Components of one network, and others of the same widths."""

    model: Model
    channels: Channels
    routes: Tensor
    data: Images

    @classmethod
    def sweep(cls, model: Model, data: Images, betas: tuple[float, ...], samples: int = 50) -> dict[float, Pruner]:
        """All routes of a network, for several beta of convolutions."""
        channels = follow_channels(model.module, model.example(2))
        split = data.train.normalised(model.mean, model.std)
        found = find_confident(model.module, split, {c: c for c in range(len(model.classes))}, samples)
        return {b: cls(model, channels, find_routes(model.module, channels, split, found, beta=b), data) for b in betas}

    def accuracies(self, classes: tuple[str, ...], seed: int, without: tuple[str, ...] = ()) -> dict[str, float]:
        """Among these classes, in per cent: the source, its component, and two of the same widths."""
        rows = class_indices(self.model, classes)
        on = self.routes[rows]
        keep = on.any(0)
        draw = torch.rand(self.channels.n, generator=torch.Generator().manual_seed(seed))
        arms: dict[str, Callable[[], nn.Module]] = {
            "source restricted": lambda: restrict(self.model, [self.model.classes[c] for c in rows]).module,
            "component": lambda: self._cut(on, rows),
            "random": lambda: self._cut(as_many(self.channels, keep, draw)[None], rows),
            "L1": lambda: self._cut(as_many(self.channels, keep, l1(self.model.module, self.channels))[None], rows),
        }
        return {name: 100 * evaluate(make(), self.images(rows)).accuracy for name, make in arms.items()
                if name not in without}  # fmt: skip

    def images(self, rows: list[int]) -> ImageSplit:
        """The test images of these classes."""
        names = tuple(self.model.classes[c] for c in rows)
        return self.data.only(names).normalised(self.model.mean, self.model.std).test

    def _cut(self, on: Tensor, rows: list[int]) -> nn.Module:
        return cut_component(self.model.module, self.channels, on, rows, example=self.model.example(4))

    def kept(self) -> dict[str, float]:
        """The share of channels on some route, in per cent: inside residual blocks, and in the sums between them."""
        on = self.routes.any(0)
        inner = torch.cat([x.outputs for x in self.channels.layers if x.name.endswith(".conv1")])
        sums = torch.cat([x.outputs for x in self.channels.layers if x.name.endswith(".conv2")]).unique()
        return {"kept inside blocks": 100 * float(on[inner].float().mean()),
                "kept in the sums": 100 * float(on[sums].float().mean())}  # fmt: skip


def tightest(model: Model, data: Images, classes: tuple[str, ...], seed: int) -> dict[str, float]:
    """The component of the largest alpha whose validation accuracy falls by no more than two points."""
    made = train(MDA(source=model, classes=classes, tolerance=0.02), data, seed)
    channels = follow_channels(model.module, model.example(2))
    keep = torch.zeros(channels.n, dtype=torch.bool)
    for layer in channels.layers:  # as many of each kind of channel, whichever they are
        if not channels.makes_logits(layer):
            keep[layer.outputs[: len(made.get_submodule(layer.name).weight)]] = True  # type: ignore[arg-type]
    rows = class_indices(model, classes)
    pruner = Pruner(model, channels, keep.expand(len(model.classes), -1), data)
    return {**pruner.accuracies(classes, seed, without=("component",)),
            "component": 100 * evaluate(made, pruner.images(rows)).accuracy}  # fmt: skip


def small_networks(seed: int, quick: bool) -> dict[str, float]:
    """Components of two networks, and what is assembled of two of them."""
    left, mnist = source("mnist", seed, quick)
    right, fashion = source("fashion_mnist_local", seed, quick)
    arms: dict[str, list[float]] = {}
    for model, data in ((left, mnist), (right, fashion)):
        for classes in (model.classes[:5], model.classes[5:]):
            for name, value in tightest(model, data, classes, seed).items():
                arms.setdefault(f"{name}, alpha by validation", []).append(value)
        for beta, pruner in Pruner.sweep(model, data, BETAS[1:2] if quick else BETAS).items():
            suffix = "" if beta == BETAS[1] else f", beta {beta}"
            for classes in (model.classes[:5], model.classes[5:]):
                for name, value in pruner.accuracies(classes, seed).items():
                    arms.setdefault(name + suffix, []).append(value)
    figures = {f"{name} (%)": sum(values) / len(values) for name, values in arms.items()}

    everything = MDA(source=left, alpha=-1.0, beta=-1.0, alpha_linear=-1.0, beta_linear=-1.0)
    x = mnist.test.batch(torch.arange(200), device=CPU).images
    with torch.no_grad():
        figures["largest difference with everything kept"] = float(
            (train(everything, mnist, seed)(x) - left.module(x)).abs().max()
        )

    parts = []
    for model, data, classes in ((left, mnist, left.classes[:5]), (right, fashion, right.classes[5:])):
        method = MDA(source=model, classes=classes)
        parts.append(method.product(train(method, data, seed), data))
    both = joined([mnist.only(left.classes[:5]), fashion.only(right.classes[5:])])
    both = both.normalised(left.mean, left.std)
    few = both.few(20 if quick else 200, seed)
    recipe = Recipe(epochs=1, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0)
    whole = {
        "assembled, not scaled": MDAAssembly(parts=tuple(parts), scale=False),
        "assembled": MDAAssembly(parts=tuple(parts)),
        "assembled, one epoch": MDAAssembly(parts=tuple(parts), tune=True, recipe=recipe),
    }
    for name, assembly in whole.items():
        made = train(assembly, few if assembly.tune else both, seed)
        figures[f"{name} (%)"] = 100 * test(made, both).accuracy
    anew = assembly.product(copy_of(made), both)
    seed_everything(seed, "anew")
    for m in anew.module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            m.reset_parameters()
    figures["random weights, one epoch (%)"] = 100 * test(train(supervised(anew, recipe), few, seed), both).accuracy
    return figures


@cache
def _residual(depth: int, quick: bool) -> dict[float, Pruner]:
    model = resolve(f"zoo:cifar10_resnet{depth}")
    data = _smaller(cifar10(5000, (), model), 300 if quick else 5000, 200 if quick else 2000)
    return Pruner.sweep(model, data, BETAS[1:2] if quick else BETAS, samples=5 if quick else 50)


@cache
def _unseeded(depth: int, beta: float, quick: bool) -> dict[str, float]:
    """What no seed changes: published weights, their routes, and L1 norms."""
    pruner = _residual(depth, quick)[beta]
    return {**pruner.kept(), **pruner.accuracies((), 0, without=("random",))}


def residual_networks(seed: int, quick: bool) -> dict[str, float]:
    """Published ResNets, all ten classes, over a sweep of beta."""
    figures: dict[str, float] = {}
    for depth in (20,) if quick else (20, 56):
        for beta, pruner in _residual(depth, quick).items():
            drawn = pruner.accuracies((), seed, without=("source restricted", "component", "L1"))
            found = {**_unseeded(depth, beta, quick), **drawn}
            figures |= {f"ResNet-{depth}, beta {beta}, {name} (%)": value for name, value in found.items()}
    return figures


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Both parts."""
    return {**small_networks(seed, quick), **residual_networks(seed, quick)}


CLAIM = Claim(
    method="mda",
    covers={
        "mdaassembly": Headline(
            product="assembled, one epoch (%)",
            baseline="random weights, one epoch (%)",
            says="a classifier of two parts over random weights of its architecture, after one epoch",
        )
    },
    sentence="The part of a network that knows some classes can be cut out, and such parts make a classifier without "
    "training.",
    published="v1: an assembled classifier is close to the source without fine-tuning and above it after one epoch; "
    "v2: components match or surpass the baseline (both from abstracts; no table at hand).",
    setting="(1) Two nets, convolutions 32-64-128 with BatchNorm, 128 linear, on MNIST and fashion_mnist_local, 3 "
    "epochs each; components of classes 0-4 and of 5-9, 50 images a class, beta 0.2 / 0.3, accuracy among those "
    "classes, mean of the four. Alpha is the published 0.3 / 0.4, and the largest of 31 at which accuracy on "
    "validation images falls by no more than two points. Baselines: the source restricted alike, and as many channels "
    "in every layer chosen at random or by the L1 norm of their filters. (2) MNIST 0-4 and Fashion 5-9 assembled, ten "
    "joint classes, without training; one epoch on 2,000 joint images against the same architecture from random "
    "weights. (3) Reported only: the components over beta; published CIFAR-10 ResNet-20 and -56, all classes, first "
    "5,000 training and 2,000 test images, likewise.",
    data=("mnist", "fashion_mnist_local", "cifar10"),
    measure=measure,
    headline=Headline(
        product="component, alpha by validation (%)",
        baseline="L1, alpha by validation (%)",
        says="components over as many channels chosen by their L1 norm",
    ),
    checks=(
        Check(text="components stay within 3 points of the source restricted to their classes, alpha by validation",
              value=gain("component, alpha by validation (%)", "source restricted, alpha by validation (%)"),
              bound=-3.0),
        Check(text="they beat as many random channels by 10 points",
              value=gain("component, alpha by validation (%)", "random, alpha by validation (%)"), bound=10.0),
        Check(text="they are no worse than as many channels by L1 norm",
              value=gain("component, alpha by validation (%)", "L1, alpha by validation (%)"), bound=0.0),
        Check(text="with the published thresholds, too, components stay within 3 points",
              value=gain("component (%)", "source restricted (%)"), bound=-3.0),
        Check(text="with everything kept a component is the source to 1e-5",
              value=lambda m: -max(m["largest difference with everything kept"]), bound=-1e-5, exact=True),
        Check(text="the assembled network gets 60 % of the joint classes right without training",
              value=lambda m: mean(m, "assembled (%)"), bound=60.0),
        Check(text="after one epoch it beats random weights of its architecture by 10 points",
              value=gain("assembled, one epoch (%)", "random weights, one epoch (%)"), bound=10.0),
    ),
)  # fmt: skip
