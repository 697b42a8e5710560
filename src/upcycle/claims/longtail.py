"""The long tail: repairs of a classifier whose rare classes go wrong, and samplers, against further training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.nes import net
from upcycle.claims.settings import test, train
from upcycle.core.frequency import Groups, counts_of
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images, load
from upcycle.diagnosis import BAGS, CRT, LWS, NCM, LogitAdjust, SimCal, Tau
from upcycle.diagnosis.errors.frequency import following
from upcycle.diagnosis.long_tail.further import FurtherTraining
from upcycle.distillation import Plain

RATIO = 100
HELD = 50
"""Validation images of each class: what τ is chosen on."""
SAMPLERS = ("class", "sqrt", "progressive")
JOINT, FURTHER = "joint", "further training"
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Setting:
    """A long tail of images, and how it is divided.

    Args:
        data: a long tail; validation images are :data:`HELD` of each class.
        borders: (low, high) of few, medium and many, at which the groups of BAGS end too.
        T: training images below which SimCal's calibrated head answers.
        quick: one epoch of everything.
    """

    data: Images
    borders: tuple[int, int]
    T: int
    quick: bool

    def recipe(self, epochs: int, **more: object) -> Recipe:
        """A recipe of so many epochs."""
        return dataclasses.replace(Recipe(**more), epochs=1 if self.quick else epochs)  # type: ignore[arg-type]

    @property
    def counts(self) -> list[int]:
        """n_j."""
        return counts_of(self.data.train.labels, len(self.data.classes))

    def figures(self, arm: str, module: nn.Module) -> dict[str, float]:
        """The mean recall on test images over all classes, over each group, the three rarest, and on each side of T."""
        recall = [100 * (r or 0.0) for r in test(module, self.data).per_class]
        means = Groups(tuple(self.counts), self.borders).means(recall)
        means["3 rarest"] = _mean(recall, sorted(range(len(recall)), key=self.counts.__getitem__)[:3])
        means["below T"] = _mean(recall, [c for c, n in enumerate(self.counts) if n < self.T])
        means["from T"] = _mean(recall, [c for c, n in enumerate(self.counts) if n >= self.T])
        return {f"{arm}, {group} (%)": value for group, value in means.items() if value is not None}


def _mean(recall: list[float], classes: list[int]) -> float:
    return sum(recall[c] for c in classes) / len(classes)


def drawn(name: str, seed: int, quick: bool) -> Images:
    """A long tail of a named set, its classes in an order that the seed draws; a tenth of it for the miniature."""
    data = load(name)
    data = data.normalised(*data.statistics)
    if quick:
        data = dataclasses.replace(data.subset(torch.arange(5000)), test=data.test.subset(torch.arange(1000)))
    order = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(seed)).tolist()
    held = data.validation
    chosen = torch.cat([(held.labels == c).nonzero()[:HELD, 0] for c in range(len(data.classes))])
    return dataclasses.replace(data.long_tailed(RATIO, seed, order), validation=held.subset(chosen))


def repairs(source: Model, setting: Setting) -> dict[str, Method]:
    """The arms that change the classifier of a trained network, the control first."""
    low, high = setting.borders
    ten = setting.recipe(10, sampler="class")
    twenty = setting.recipe(20, lr=0.01, weight_decay=0.0, sampler="class")
    carded = setting.recipe(20, lr=0.01, weight_decay=1e-4)
    return {
        FURTHER: FurtherTraining(source=source, recipe=dataclasses.replace(ten, sampler="instance")),
        "tau": Tau(source=source, held=HELD),
        "logit adjustment": LogitAdjust(source=source),
        "NCM cl2n": NCM(source=source),
        "NCM raw": NCM(source=source, features="raw"),
        "LWS": LWS(source=source, recipe=dataclasses.replace(ten, weight_decay=0.0)),
        "cRT": CRT(source=source, recipe=ten),
        "BAGS": BAGS(source=source, edges=(low, high), recipe=dataclasses.replace(ten, weight_decay=1e-4)),
        "BAGS as carded": BAGS(source=source, edges=(low, high), recipe=carded),
        "SimCal dual": SimCal(source=source, T=setting.T, recipe=twenty),
        "SimCal calibrated head alone": SimCal(source=source, T=None, recipe=twenty),
    }


def measured(
    setting: Setting, start: Callable[[], Model], joint: Recipe, seed: int, samplers: tuple[str, ...] = SAMPLERS
) -> dict[str, float]:
    """Every arm: one network trained on the long tail and repaired, and the same trained with each sampler.

    Args:
        start: makes the network with its first weights.
        joint: how it is trained.
    """
    source = start()
    source = dataclasses.replace(source, module=train(Plain(student=source, recipe=joint), setting.data, seed))
    figures = setting.figures(JOINT, source.module)
    recall = [figures[f"{JOINT}, all (%)"]] * len(source.classes)
    norms = following(source, recall, setting.counts).norms
    figures["correlation of the rows' norms and log n"] = 0.0 if norms is None else norms
    for arm, method in repairs(source, setting).items():
        figures |= setting.figures(arm, train(method, setting.data, seed))
    for sampler in samplers:
        recipe = dataclasses.replace(joint, sampler=sampler)  # type: ignore[arg-type]
        figures |= setting.figures(
            f"sampler {sampler}", train(Plain(student=start(), recipe=recipe), setting.data, seed)
        )
    return figures


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Fashion-MNIST, a small ConvNet that learns from the long tail."""
    data = drawn("fashion_mnist_local", seed, quick)
    setting = Setting(data, *(((30, 150), 100) if quick else ((300, 1500), 1000)), quick=quick)
    return measured(setting, lambda: net(WIDTHS, data, seed), setting.recipe(6), seed)


def over(arm: str, baseline: str = FURTHER) -> Headline:
    """Give what decides of a repair: the mean recall over classes, against what costs as much."""
    beside = "further training of the classifier" if baseline == FURTHER else "the network as it was"
    return Headline(
        product=f"{arm}, all (%)", baseline=f"{baseline}, all (%)", says=f"{arm} over {beside}, mean recall of classes"
    )


def at_least(arm: str, group: str, bound: float, words: str = "") -> Check:
    """A condition on the difference of an arm and the network as it was."""
    rise = f"gains at least {bound:g}" if bound > 0 else f"loses at most {-bound:g}"
    return Check(
        text=f"{words or arm} {rise} points on {group}",
        value=gain(f"{arm}, {group} (%)", f"{JOINT}, {group} (%)"),
        bound=bound,
    )


def correlation(measured: Measured) -> float:
    """The mean correlation of |w_j| and log n_j in the trained network."""
    return mean(measured, "correlation of the rows' norms and log n")


COVERS: dict[str, Headline | None] = {
    "tau": over("tau", JOINT),
    "logitadjust": over("logit adjustment", JOINT),
    "ncm": over("NCM cl2n", JOINT),
    "lws": over("LWS"),
    "crt": over("cRT"),
    "bags": over("BAGS"),
    "simcal": over("SimCal dual"),
}

CLAIM = Claim(
    method="longtail",
    sentence="A network that was trained on classes of very different sizes recognises rare ones once its "
    "classifier alone is rebalanced; further training on images as they come does not do that.",
    published="ImageNet-LT, ResNeXt-50: joint training 44.4, few-shot classes 7.7; cRT 49.6 and 27.4, "
    "τ-normalised 49.4 and 30.7, LWS 49.9 and 30.3, nearest class means 47.3 and 28.1 (README of the "
    "decoupling code). BAGS and SimCal are published for detectors: LVIS, mAP 20.98 → 25.96, AP 18.0 → 22.2.",
    setting="Fashion-MNIST (a split of its own), 5,400 training images of the most frequent class and 54 of "
    "the rarest, in an order that the seed draws; three convolutions of 16, 32 and 64 channels, 6 epochs of "
    "SGD at 0.1, cosine. Every repair on the features of that network: heads 10 epochs at 0.1 on batches in "
    "which classes come equally often, SimCal's 20 at 0.01, BAGS also as its paper has it; τ on 50 validation "
    "images of each class. Beside them the old classifier trained on for 10 epochs, and the network trained "
    "with each sampler. Mean recall on the balanced test set; many: more than 1,500 images, few: fewer than "
    "300; T = 1,000.",
    data=("fashion_mnist_local",),
    measure=measure,
    headline=over("cRT"),
    checks=(
        Check(text="the norms of the rows correlate with log n by at least 0.6", value=correlation, bound=0.6),
        *(at_least(arm, "few", 20.0) for arm in ("cRT", "LWS", "tau")),
        *(at_least(arm, "all", 5.0) for arm in ("cRT", "LWS", "tau", "logit adjustment")),
        at_least("NCM cl2n", "few", 8.0),
        at_least("NCM cl2n", "all", 1.0),
        at_least("BAGS", "3 rarest", 10.0),
        at_least("BAGS", "all", 2.0),
        at_least("SimCal dual", "below T", 10.0),
        at_least("SimCal dual", "from T", -4.0),
    ),
    covers=COVERS,
)
