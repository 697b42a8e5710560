"""Mixing: a mixed batch against timm's and torchvision's, and what SnapMix adds to a training step.

The same batch for all, 128 images of 3 x 32 x 32; targets included. timm's ``Mixup`` and torchvision's ``v2.MixUp`` and
``v2.CutMix`` mix the whole batch with one box or one λ, as ours do. The step is that of a ResNet-20: forward, backward,
SGD. Each figure is the minimum of many rounds, in which all take turns, on one thread. Run from the repository:
``python -m benchmarks.mixing``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import alternate, record
from upcycle.core.batches import Batch
from upcycle.core.losses import ce_loss
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.training.mix import Mixer

BATCH, SIZE, CLASSES, ROUNDS = 128, 32, 10, 40
GATES = {
    "cutmix over timm's": 1.0,
    "cutmix over torchvision's": 1.0,
    "mixup over timm's": 1.0,
    "mixup over torchvision's": 1.0,
    "a step with snapmix over a plain one": 1.4,
    "a step with the map's forward over a plain one": 1.35,
}
"""The most that each ratio may be."""


def images() -> Batch:
    """A batch as splits give it."""
    x = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.arange(BATCH) % CLASSES, torch.arange(BATCH))


def ours(kind: str, batch: Batch, network: torch.nn.Module) -> Callable[[], Batch]:
    """A function that mixes the batch with the next random numbers."""
    # A β at which boxes are as large as those of timm and torchvision at their α of 1.
    mixer = Mixer(Recipe(mix=kind, mix_beta=1.0), network, None, None)  # type: ignore[arg-type]
    samples, labels, number = torch.arange(BATCH), batch.labels, itertools.count()

    def read(index: Tensor) -> Batch:
        raise AssertionError("one process has all partners")

    return lambda: mixer(batch, samples, labels, samples, read, (0, next(number)))


def theirs(batch: Batch) -> dict[str, Callable[[], Any]]:
    """Both libraries' functions; timm's writes over its input, so it gets the same copy again and again."""
    from timm.data.mixup import Mixup
    from torchvision.transforms import v2

    own = batch.images.clone(memory_format=torch.preserve_format)
    timm_cutmix = Mixup(0.0, 1.0, label_smoothing=0.0, num_classes=CLASSES)
    timm_mixup = Mixup(1.0, 0.0, label_smoothing=0.0, num_classes=CLASSES)
    timm_cutmix(own, batch.labels)  # a device other than that of the labels is told at once
    cutmix, mixup = v2.CutMix(num_classes=CLASSES), v2.MixUp(num_classes=CLASSES)
    return {
        "cutmix, timm": lambda: timm_cutmix(own, batch.labels),
        "mixup, timm": lambda: timm_mixup(own, batch.labels),
        "cutmix, torchvision": lambda: cutmix(batch.images, batch.labels),
        "mixup, torchvision": lambda: mixup(batch.images, batch.labels),
    }


def steps(batch: Batch) -> dict[str, Callable[[], Any]]:
    """A plain training step, one on a batch that SnapMix mixed, and one with the forward for the map alone."""

    def network() -> torch.nn.Module:
        module = resolve("zoo:resnet20", pretrained=False, num_classes=CLASSES, input_shape=(3, SIZE, SIZE)).module
        return module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]

    nets = {name: network() for name in ("plain", "snapmix", "map")}
    recipe = Recipe()
    optimizers = {name: recipe.make(net) for name, net in nets.items()}

    def step(name: str, batch: Batch) -> None:
        ce_loss(nets[name](batch.images), batch.labels).backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)

    mix = ours("snapmix", batch, nets["snapmix"])
    mapped = Mixer(Recipe(mix="snapmix"), nets["map"], None, None)
    maps = mapped.looking(batch.images)
    return {
        "a plain step": lambda: step("plain", batch),
        "a step with snapmix": lambda: step("snapmix", mix()),
        "a step with the map's forward": lambda: (maps(batch.images, batch.labels), step("map", batch)),
    }


def main() -> None:
    """Time all, and write the record."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = images()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, CLASSES))
    mixing = {kind: ours(kind, batch, network) for kind in ("cutmix", "mixup")} | theirs(batch)
    best = {name: min(seconds) for name, seconds in alternate(mixing, 10 * ROUNDS).items()}
    best |= {name: min(seconds) for name, seconds in alternate(steps(batch), ROUNDS).items()}
    ratios = {f"{kind} over {peer}'s": best[kind] / best[f"{kind}, {peer}"]
              for kind in ("cutmix", "mixup") for peer in ("timm", "torchvision")}  # fmt: skip
    ratios |= {f"{name} over a plain one": best[name] / best["a plain step"] for name in best if " with " in name}
    failed = [name for name, ratio in ratios.items() if ratio > GATES[name]]
    figures = {
        "milliseconds": {name: round(1e3 * value, 3) for name, value in best.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "gates held": not failed,
    }
    file = record("mixing", figures, batch=BATCH, image=f"3 x {SIZE} x {SIZE}", network="resnet20", rounds=ROUNDS,
                  threads=1)  # fmt: skip
    print(figures, file)
    if failed:
        raise SystemExit("; ".join(f"{name}: {ratios[name]:.2f}, {GATES[name]} is allowed" for name in failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
