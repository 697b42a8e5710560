"""Mixing: a mixed batch against timm's and torchvision's, and what SnapMix adds to a training step.

The same batch for all, targets included: 128 images of 3 x 32 x 32, and 32 of 3 x 224 x 224. timm's ``Mixup`` and
torchvision's ``v2.MixUp`` and ``v2.CutMix`` mix the whole batch with one box or one λ, as ours do. Boxes differ from
round to round, so their figures are medians. The step is that of a ResNet-20: forward, backward, SGD; its figures are
minima. All take turns, on one thread. Run from the repository: ``python -m benchmarks.mixing``.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.batches import Batch
from upcycle.core.losses import ce_loss
from upcycle.core.memory import keep_freed
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.training.mix import Mixer

SIZES = {32: 128, 224: 32}
"""Images in a batch, by their side."""
CLASSES, ROUNDS = 10, 40
GATES = {
    **{
        f"{kind} over {peer}'s, {side} pixels": 1.0
        for kind in ("cutmix", "mixup")
        for peer in ("timm", "torchvision")
        for side in SIZES
    },
    "a step with snapmix over a plain one": 1.4,
    "a step with the map's forward over a plain one": 1.35,
}
"""The most that each ratio may be."""


def images(side: int) -> Batch:
    """A batch as splits give it."""
    index = torch.arange(SIZES[side])
    x = torch.randn(len(index), 3, side, side).contiguous(memory_format=torch.channels_last)
    return Batch(x, index % CLASSES, index)


def ours(kind: str, batch: Batch, network: nn.Module) -> Callable[[], Batch]:
    """A function that mixes the batch with the next random numbers."""
    # A β at which boxes are as large as those of timm and torchvision at their α of 1.
    mixer = Mixer(Recipe(mix=kind, mix_beta=1.0), network, None, None)  # type: ignore[arg-type]
    samples, labels, number = batch.index, batch.labels, itertools.count()

    def read(index: Tensor) -> Batch:
        raise AssertionError("one process has all partners")

    return lambda: mixer(batch, samples, labels, samples, read, (0, next(number)))


def theirs(batch: Batch) -> dict[str, Callable[[], Any]]:
    """Both libraries' functions; timm's writes over its input, a copy that is its own and mixed again and again."""
    from timm.data.mixup import Mixup
    from torchvision.transforms import v2

    own = batch.images.clone(memory_format=torch.preserve_format)
    timm_cutmix = Mixup(0.0, 1.0, label_smoothing=0.0, num_classes=CLASSES)
    timm_mixup = Mixup(1.0, 0.0, label_smoothing=0.0, num_classes=CLASSES)
    cutmix, mixup = v2.CutMix(num_classes=CLASSES), v2.MixUp(num_classes=CLASSES)
    return {
        "cutmix, timm": lambda: timm_cutmix(own, batch.labels),
        "mixup, timm": lambda: timm_mixup(own, batch.labels),
        "cutmix, torchvision": lambda: cutmix(batch.images, batch.labels),
        "mixup, torchvision": lambda: mixup(batch.images, batch.labels),
    }


def steps(batch: Batch) -> dict[str, Callable[[], Any]]:
    """A plain training step, one on a batch that SnapMix mixed, and one with the forward for the map alone."""

    def network() -> nn.Module:
        module = resolve("zoo:resnet20", pretrained=False, num_classes=CLASSES, input_shape=(3, 32, 32)).module
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
    keep_freed()  # as every run does
    best, ratios = {}, {}
    for side in SIZES:
        batch = images(side)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, CLASSES))
        mixing = {kind: ours(kind, batch, network) for kind in ("cutmix", "mixup")} | theirs(batch)
        found = {name: statistics.median(seconds) for name, seconds in alternate(mixing, 10 * ROUNDS).items()}
        best |= {f"{name}, {side} pixels": seconds for name, seconds in found.items()}
        for kind, peer in itertools.product(("cutmix", "mixup"), ("timm", "torchvision")):
            ratios[f"{kind} over {peer}'s, {side} pixels"] = found[kind] / found[f"{kind}, {peer}"]
    found = {name: min(seconds) for name, seconds in alternate(steps(images(32)), ROUNDS).items()}
    best |= found
    ratios |= {f"{name} over a plain one": found[name] / found["a plain step"] for name in found if " with " in name}
    failed = [name for name, ratio in ratios.items() if ratio > GATES[name]]
    figures = {
        "milliseconds": {name: round(1e3 * value, 3) for name, value in best.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "gates held": not failed,
    }
    batches = ", ".join(f"{n} of 3 x {side} x {side}" for side, n in SIZES.items())
    file = record("mixing", figures, images=batches, network="resnet20", rounds=ROUNDS, threads=1)
    print(figures, file)
    if failed:
        raise SystemExit("; ".join(f"{name}: {ratios[name]:.2f}, {GATES[name]} is allowed" for name in failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
