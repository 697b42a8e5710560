"""Seconds for a diagnosis of a CIFAR-10 ResNet-56, and for a step of its treatment, against plain passes.

The diagnosis takes 5,000 images, half of training and half of validation. Beside it one forward and one backward over
the same images, which a diagnosis that differentiates the whole network would need at least. A step of treatment stands
beside one of plain training. Run from the repository: ``python -m benchmarks.diagnosis``; ``--quick`` takes few images.
"""

from __future__ import annotations

import dataclasses
import os
import sys

import torch
import torch.nn.functional as F

from benchmarks.common import alternate, record
from upcycle.core.feature_maps import record_layer
from upcycle.core.losses import ce_loss
from upcycle.core.models import copy_of
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.diagnosis.errors.class_channels import class_gradients, rivals
from upcycle.diagnosis.errors.findings import diagnose
from upcycle.diagnosis.model_doctor import channel_loss

IMAGES, BATCH, REPETITIONS, ASKED = 2500, 128, 5, 1.3


def main() -> None:
    if not os.environ.get("UPCYCLE_DATA"):
        sys.exit("Skipped: this benchmark needs CIFAR-10 and its networks; set UPCYCLE_DATA to the folder with them.")
    quick = "--quick" in sys.argv
    n, repetitions = (200, 1) if quick else (IMAGES, REPETITIONS)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    model, device = resolve("zoo:cifar10_resnet56"), torch.device("cpu")
    data = load("cifar10").normalised(model.mean, model.std)
    data = dataclasses.replace(data, train=data.train.subset(torch.arange(n)),
                               validation=data.validation.subset(torch.arange(n)))  # fmt: skip
    found = diagnose(model, data)
    network = copy_of(model.module).train()
    images, y, _ = data.train.batch(torch.arange(BATCH), device=device)

    def passes() -> None:
        for split in (data.train, data.validation):
            for index in torch.arange(len(split)).split(256):
                batch = split.batch(index, device=device)
                network.zero_grad(set_to_none=True)
                F.cross_entropy(network(batch.images), batch.labels).backward()

    def plain() -> None:
        network.zero_grad(set_to_none=True)
        ce_loss(network(images), y).backward()

    def treated() -> None:
        network.zero_grad(set_to_none=True)
        with record_layer(network, found.layer) as seen:
            z = network(images)
        rival = rivals(z, y)
        own, other = (class_gradients(z, seen.f, c, graph=True) for c in (y, rival))
        (ce_loss(z, y) + 0.1 * channel_loss(own, other, y, rival, found.mask)).backward()

    times = alternate({
        "diagnosis": lambda: diagnose(model, data),
        "one forward and backward over its images": passes,
        "step of treatment": treated,
        "step of plain training": plain,
    }, repetitions)  # fmt: skip
    best = {name: min(seconds) for name, seconds in times.items()}
    for name, seconds in best.items():
        print(f"{name:42}{seconds:8.3f} s")
    ratios = {
        "diagnosis over one forward and backward": best["diagnosis"] / best["one forward and backward over its images"],
        "step of treatment over plain": best["step of treatment"] / best["step of plain training"],
    }
    for name, ratio in ratios.items():
        print(f"{name:42}{ratio:8.2f}")
    if quick:
        return
    figures = {
        **{
            name: {"best_seconds": round(best[name], 4), "seconds": [round(s, 4) for s in times[name]]}
            for name in times
        },
        **{name: round(ratio, 3) for name, ratio in ratios.items()},
    }
    path = record("diagnosis", {**figures, "asked_ratio": ASKED}, network="cifar10_resnet56", training_images=n,
                  validation_images=n, batch=BATCH, repetitions=repetitions, threads=torch.get_num_threads(),
                  statistic="minimum")  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
