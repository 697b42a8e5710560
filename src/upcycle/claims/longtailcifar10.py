"""The long tail of CIFAR-10: the repairs of :mod:`upcycle.claims.longtail` on a ResNet-20, which takes far longer."""

from __future__ import annotations

import dataclasses

from upcycle.claims import Claim
from upcycle.claims.longtail import Setting, at_least, drawn, measured, over
from upcycle.claims.settings import fresh


def measure(seed: int, quick: bool) -> dict[str, float]:
    """CIFAR-10, a ResNet-20 that learns from the long tail, cropped and flipped."""
    data = drawn("cifar10", seed, quick).augmented(("crop", "flip"))
    setting = Setting(data, *(((20, 100), 100) if quick else ((200, 1000), 1000)), quick=quick)
    joint = dataclasses.replace(setting.recipe(30), warmup=0.0 if quick else 1.0)
    return measured(setting, lambda: fresh("zoo:resnet20", data, seed), joint, seed, samplers=("class",))


CLAIM = Claim(
    method="longtailcifar10",
    sentence="What `longtail` says of a small network holds for a ResNet-20 and colour images.",
    published="Long-tailed CIFAR-10, ResNeXt-50, 30 + 10 epochs: joint training 40.5, cRT 45.3, τ-normalised 45.0 "
    "(README of a replication by others).",
    setting="CIFAR-10, 4,500 training images of the most frequent class and 45 of the rarest (11,167 in "
    "all), in an order that the seed draws; ResNet-20, 30 epochs of SGD at 0.1, cosine, crop and flip. "
    "Repairs, control and figures as in `longtail`, on features of images without augmentation, and one "
    "sampler; many: more than 1,000 images, few: fewer than 200; T = 1,000.",
    data=("cifar10",),
    measure=measure,
    headline=over("cRT"),
    checks=(
        *(at_least(arm, "few", 8.0) for arm in ("cRT", "LWS", "tau")),
        *(at_least(arm, "all", 1.0) for arm in ("cRT", "LWS", "tau", "logit adjustment", "BAGS")),
        at_least("SimCal dual", "from T", -4.0),
    ),
)
