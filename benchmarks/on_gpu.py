"""Distillation on a GPU, ResNet-56 to ResNet-20 on CIFAR-10, batch 512: what each switch gains, in four minutes.

All variants take turns, a batch of steps each; compared are minima. Every one has the teacher as a run makes it.

- *float32*, *tf32*, *bf16*: the number format of the student;
- *cudnn_benchmark*, *compile*: beside bf16;
- *not deterministic*: bf16, with whatever operations torch would take;
- *loading*: batches alone, cropped and flipped, on their way to the GPU.

Run from the repository: ``python -m benchmarks.on_gpu``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.common import record
from upcycle.core.devices import hurry
from upcycle.core.losses import kd_objective
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load

BATCH, STEPS, MINUTES = 512, 20, 3.5
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "32-true"},
    "tf32": {"precision": "32-true", "tf32": True},
    "bf16": {"precision": "bf16-mixed"},
    "bf16, cudnn_benchmark": {"precision": "bf16-mixed", "cudnn_benchmark": True},
    "bf16, compile": {"precision": "bf16-mixed", "compile": True},
    "bf16, not deterministic": {"precision": "bf16-mixed", "deterministic": False},
}


def steps_of(data: Images, **options: Any) -> Iterator[None]:
    """Steps of distillation, for ever."""
    teacher, recipe = resolve("zoo:cifar10_resnet56"), Recipe(epochs=10_000, batch_size=BATCH, lr=0.01)
    run = Run(None, quiet=True, accelerator="cuda", **options)
    net = resolve("zoo:resnet20", pretrained=False, num_classes=10, input_shape=data.shape).module
    student, optimizer = run.setup(net, recipe)
    frozen = run.frozen(teacher, data.validation)
    student.train()
    for _ in run.epochs(recipe.epochs):
        for images, labels, _ in run.batches(data.train, BATCH):
            loss = kd_objective(student(images), frozen(images), labels, temperature=4.0, w_kd=0.9, w_ce=0.1)
            run.step(loss, optimizer, recipe)
            yield


def batches_of(data: Images) -> Iterator[None]:
    """Batches alone, for ever."""
    run = Run(None, quiet=True, accelerator="cuda")
    for _ in run.epochs(10_000):
        for _ in run.batches(data.train, BATCH):
            yield


def main() -> None:
    """Measure, print and record."""
    if not torch.cuda.is_available():
        sys.exit("There is no GPU of CUDA here, and this measures nothing else.")
    teacher = resolve("zoo:cifar10_resnet56")
    data = load("cifar10").augmented(("crop", "flip")).normalised(teacher.mean, teacher.std)
    switches = {
        name: {key: options.get(key, False) for key in ("tf32", "cudnn_benchmark")}
        for name, options in VARIANTS.items()
    }
    made: dict[str, Callable[[], None]] = {"loading": batches_of(data).__next__}
    for name, options in VARIANTS.items():
        own = {key: options[key] for key in ("precision", "compile") if key in options}
        made[name] = steps_of(data, **own).__next__
    found: dict[str, list[float]] = {name: [] for name in made}
    end = time.monotonic() + 60 * MINUTES
    while not found["loading"] or time.monotonic() < end:
        for name, step in made.items():
            hurry(**switches.get(name, {"tf32": False, "cudnn_benchmark": False}))
            torch.use_deterministic_algorithms(VARIANTS.get(name, {}).get("deterministic", True), warn_only=True)
            step()  # the first one sets up and compiles
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            found[name].append((time.perf_counter() - start) / STEPS)
    figures = {"milliseconds": {name: round(1000 * min(times), 3) for name, times in found.items()}}
    print(json.dumps(figures, indent=1))
    record("on_gpu", figures, batch=BATCH, steps=STEPS, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
