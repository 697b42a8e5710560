"""What continual learning costs: the penalty of EWC, a step of replay, squared gradients, and the memory.

Run from the repository's root: `python -m benchmarks.continual` (some minutes); ``--quick`` takes few repetitions and
prints only. The weights and images are random, since no figure depends on them. What is compared runs in turns in one
process, and the minimum of many repetitions is recorded.

- *Penalty*: EWC's and its gradient with 10 past tasks, against the "separate" form of Avalanche: a loop over tasks and
  parameters that builds a graph of Σ_t Σ F_t (θ - θ_t)², times λ/2, and its backward. That package is not a
  dependency, so its formula is written again here. Ours does not depend on the number of tasks.
- *Replay*: the whole step of ER and of DER++ (drawing from the memory, forward, backward, update, offering the batch to
  the memory) against a bare training step of the same network on as many images in one batch; and the same replayed
  images in one forward and backward against two.
- *Squared gradients*: of each example, summed, against a loop over samples.
- *Memory*: of 5,000 CIFAR-10 images with logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.continual.derpp import dark, labelled
from upcycle.continual.weights.fisher import squared_gradients
from upcycle.continual.weights.penalty import ParameterState, pull
from upcycle.core.losses import cross_entropy
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data.buffer import Buffer
from upcycle.data.images import ImageSplit

RECIPE = Recipe(lr=0.03, momentum=0.0, weight_decay=0.0, schedule="constant")
NETWORKS = {"ResNet-20": ("zoo:cifar10_resnet20", (3, 32, 32)), "MLP 784-100-100": ("zoo:mlp100", (1, 28, 28))}
TASKS, MEMORY, BATCH = 10, 5000, 32


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with random weights as a run sets it up, and the shape of its images."""
    reference, shape = NETWORKS[name]
    module = resolve(reference, pretrained=False, num_classes=10, input_shape=shape).module
    return module.to(memory_format=torch.channels_last), shape


def images_of(shape: tuple[int, int, int], n: int) -> tuple[Tensor, Tensor]:
    """Random images (n, c, h, w) and labels (n,)."""
    return torch.randn(n, *shape).to(memory_format=torch.channels_last), torch.randint(10, (n,))


def compared(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Milliseconds of each, the minimum."""
    return {name: round(1e3 * min(t), 3) for name, t in alternate(functions, repetitions).items()}


def penalty(name: str, repetitions: int) -> dict[str, Any]:
    """The penalty's gradient, ours against a graph over the tasks."""
    module, _ = network(name)
    named = dict(module.named_parameters())
    past = [{k: (torch.rand_like(p), torch.randn_like(p)) for k, p in named.items()} for _ in range(TASKS)]
    beside = ParameterState(module, "importance", "anchor")
    for i, k in enumerate(named):
        beside["importance"][i].copy_(torch.stack([task[k][0] for task in past]).sum(0))

    def separate() -> None:
        total: Tensor = torch.zeros(())
        for task in past:
            for k, p in module.named_parameters():
                importance, anchor = task[k]
                total = total + (importance * (p - anchor).pow(2)).sum()
        (0.5 * total).backward()

    def ours() -> None:
        pull(beside.parameters, beside["importance"], beside["anchor"], 0.5)

    for p in named.values():
        p.grad = torch.zeros_like(p)
    # The same gradient: with one F̄ = Σ F_t, the anchor Σ F_t θ_t / F̄ makes the two penalties differ by a constant.
    for i, k in enumerate(named):
        weighted = torch.stack([importance * anchor for importance, anchor in (task[k] for task in past)]).sum(0)
        beside["anchor"][i].copy_(weighted / beside["importance"][i])
    separate()
    found = [p.grad.clone() for p in named.values() if p.grad is not None]
    module.zero_grad(set_to_none=False)
    ours()
    again = [p.grad for p in named.values() if p.grad is not None]
    assert all(torch.allclose(a, g, rtol=1e-3, atol=1e-4) for a, g in zip(again, found, strict=True))
    times = compared({"separate": separate, "ours": ours}, repetitions)
    return {"separate_ms": times["separate"], "ms": times["ours"],
            "separate_over_ours": round(times["separate"] / times["ours"], 1)}  # fmt: skip


def replay(repetitions: int) -> dict[str, Any]:
    """Steps of ER and DER++ against bare ones."""
    run, (module, shape) = Run(None, accelerator="cpu", precision="32-true", quiet=True), network("ResNet-20")
    student, optimizer = run.setup(module, RECIPE)
    student.train()
    c, h, w = shape
    n = 2 * MEMORY
    split = ImageSplit(images=torch.randint(256, (n, h, w, c), dtype=torch.uint8), labels=torch.randint(10, (n,)),
                       ids=torch.arange(n), mean=(0.5,) * c, std=(0.25,) * c, augment=("crop", "flip"))  # fmt: skip
    index = torch.arange(BATCH)

    def filled(logits: int) -> Buffer:
        buffer = Buffer(MEMORY, split, logits=logits)
        for part in torch.arange(n).split(1000):
            buffer.put(split.images[part], split.labels[part], part, torch.randn(1000, logits))
        return buffer

    plain, with_logits = filled(0), filled(10)

    def step(loss: Tensor) -> None:
        run.backward(loss, "sum")
        run.update(optimizer)

    def er() -> None:
        images, labels, _ = split.batch(index, device=run.device, view=(0, 0))
        old = plain.draw(run, BATCH)
        images, labels = torch.cat([images, old.images]), torch.cat([labels, old.labels])
        step(cross_entropy(student(images), labels, BATCH + old.total))
        plain.add(run, split, index)

    def apart() -> None:
        images, labels, _ = split.batch(index, device=run.device, view=(0, 0))
        old = plain.draw(run, BATCH)
        loss = cross_entropy(student(images), labels, 2 * BATCH)
        step(loss + cross_entropy(student(old.images), old.labels, 2 * BATCH))
        plain.add(run, split, index)

    def derpp() -> None:
        images, labels, _ = split.batch(index, device=run.device, view=(0, 0))
        z = student(images)
        loss = cross_entropy(z, labels, BATCH)
        for weight, term in ((0.1, dark), (0.5, labelled)):
            old = with_logits.draw(run, BATCH)
            loss = loss + weight * term(student(old.images), old)
        step(loss)
        with_logits.add(run, split, index, z)

    def bare(batches: int) -> Callable[[], None]:
        images, labels = images_of(shape, batches * BATCH)
        own = RECIPE.make(student)

        def once() -> None:
            F.cross_entropy(student(images), labels).backward()
            own.step()
            own.zero_grad(set_to_none=True)

        return once

    times = compared({"er": er, "bare_2": bare(2), "apart": apart, "derpp": derpp, "bare_3": bare(3)}, repetitions)
    return {"er_ms": times["er"], "bare_64_ms": times["bare_2"], "er_over_bare": _ratio(times, "er", "bare_2"),
            "derpp_ms": times["derpp"], "bare_96_ms": times["bare_3"],
            "derpp_over_bare": _ratio(times, "derpp", "bare_3"), "two_passes_ms": times["apart"],
            "two_passes_over_one": _ratio(times, "apart", "er"),
            "memory_mb": round(with_logits.nbytes / 1e6, 1)}  # fmt: skip


def _ratio(times: dict[str, float], a: str, b: str) -> float:
    return round(times[a] / times[b], 3)


def squares(name: str, repetitions: int) -> dict[str, Any]:
    """Squared gradients of 64 images."""
    module, shape = network(name)
    module.eval()
    images, labels = images_of(shape, 64)
    parameters = list(module.parameters())

    def loop() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            grads = torch.autograd.grad(F.cross_entropy(module(image), label), parameters)
            torch._foreach_addcmul_(total, list(grads), list(grads))
        return total

    def ours() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for x, y in zip(images.split(32), labels.split(32), strict=True):  # as EWC does
            found = squared_gradients(module, x, y, lambda z, y: F.cross_entropy(z, y, reduction="none"))
            torch._foreach_add_(total, list(found.values()))
        return total

    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(loop(), ours(), strict=True))
    times = compared({"loop": loop, "ours": ours}, repetitions)
    return {"loop_ms": times["loop"], "ms": times["ours"], "loop_over_ours": round(times["loop"] / times["ours"], 1)}


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three repetitions, printed only")
    arguments = parser.parse_args()
    repetitions = 3 if arguments.quick else arguments.repetitions
    torch.set_num_threads(arguments.threads)
    seed_everything(0, "benchmark")
    figures = {
        "penalty": {name: penalty(name, 4 * repetitions) for name in NETWORKS},
        "replay": replay(repetitions),
        "squared_gradients": {name: squares(name, repetitions) for name in NETWORKS},
    }
    for name, row in figures.items():
        print(name, row)
    if not arguments.quick:
        print(record("continual", figures, threads=arguments.threads, repetitions=repetitions, tasks=TASKS,
                     memory=MEMORY, batch=BATCH, precision="float32"))  # fmt: skip


if __name__ == "__main__":
    main()
