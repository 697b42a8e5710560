"""One step of knowledge distillation, ResNet-56 to ResNet-20 on CIFAR-10, batch 128, all variants side by side.

Run from the repository's root: `python -m benchmarks.kd_step` (a quarter of an hour with `--compile`).
Every figure is the minimum of alternating repetitions; ratios are between minima of the same run. torchdistill
takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.losses import ce_loss, kd_objective
from upcycle.core.models import copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.distillation.kd import teacher_outputs
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate

B = 128
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1000, batch_size=B, lr=0.01)
TEACHER = resolve("zoo:cifar10_resnet56")
DATA = load("cifar10").augmented(("crop", "flip")).normalised(TEACHER.mean, TEACHER.std)
PLAIN = DATA.augmented(())


def student() -> nn.Module:
    """A fresh ResNet-20 in training mode."""
    torch.manual_seed(0)
    return resolve("zoo:resnet20", pretrained=False, num_classes=10, input_shape=(3, 32, 32)).module.train()


def loss_of(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    """KD's objective at its defaults."""
    return kd_objective(z_s, z_t, y, temperature=4.0, w_kd=0.9, w_ce=0.1)


def ours(**options: Any) -> Callable[[], None]:
    """A step of `upcycle distill`: Run's loop around KD's tensor work."""
    run = Run(None, quiet=True, **options)
    net, optimizer = run.setup(student(), RECIPE)
    teacher = run.frozen(TEACHER, DATA.validation)

    def steps():  # type: ignore[no-untyped-def]
        for _ in run.epochs(RECIPE.epochs):
            for batch in run.batches(DATA.train, B, save_within=True):
                RECIPE.schedule_rate(optimizer, run.progress)
                loss = loss_of(net(batch.images), teacher(batch.images), batch.labels)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=loss)
                yield

    return steps().__next__


def cached(use_teacher: bool) -> Callable[[], None]:
    """A step with the teacher's outputs kept, or of the student alone, on images without augmentation."""
    run = Run(None, quiet=True)
    few = PLAIN.subset(torch.arange(2560))
    net, optimizer = run.setup(student(), RECIPE)
    z_t = None
    if use_teacher:
        z_t = teacher_outputs(run, run.frozen(TEACHER, DATA.validation), few.train, cache="on", views=0,
                              augmented=False)  # fmt: skip

    def steps():  # type: ignore[no-untyped-def]
        for epoch in run.epochs(RECIPE.epochs):
            for batch in run.batches(few.train, B, save_within=True):
                RECIPE.schedule_rate(optimizer, run.progress)
                z_s = net(batch.images)
                loss = loss_of(z_s, z_t(batch, epoch), batch.labels) if z_t else ce_loss(z_s, batch.labels)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=loss)
                yield

    return steps().__next__


def naive() -> Callable[[], None]:
    """The loop that everybody writes: float32, eager, the teacher under no_grad, batches ready in memory."""
    teacher, net = copy_of(TEACHER.module).eval(), student()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    batch = DATA.train.batch(torch.arange(B), device=CPU, view=(0, 0))
    x, y = batch.images.contiguous(), batch.labels

    def step() -> None:
        with torch.no_grad():
            z_t = teacher(x)
        z_s = net(x)
        kl = F.kl_div(F.log_softmax(z_s / 4, 1), F.softmax(z_t / 4, 1), reduction="batchmean")
        loss = 0.1 * F.cross_entropy(z_s, y) + 0.9 * 16 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def bare() -> Callable[[], None]:
    """A hand-written loop that does the same tensor work as ours, without Run."""
    net = student().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = RECIPE.make(net)
    teacher = Run(None, quiet=True).frozen(TEACHER, DATA.validation)
    order = itertools.cycle(torch.randperm(len(DATA.train)).split(B)[:-1])

    def step() -> None:
        batch = DATA.train.batch(next(order), device=CPU, view=(0, 0))
        with torch.autocast("cpu", torch.bfloat16):
            z_s = net(batch.images)
        loss = loss_of(z_s.float(), teacher(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def parts() -> dict[str, Callable[[], None]]:
    """What a step consists of, each alone."""
    net = student().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = RECIPE.make(net)
    teacher = Run(None, quiet=True).frozen(TEACHER, DATA.validation)
    batch = DATA.train.batch(torch.arange(B), device=CPU, view=(0, 0))
    z_t = teacher(batch.images)
    index = torch.arange(B)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            z_s = net(batch.images)
        loss_of(z_s.float(), z_t, batch.labels).backward()

    def update() -> None:
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        optimizer.step()

    return {
        "part: batch": lambda: DATA.train.batch(index, device=CPU, view=(0, 0)),  # type: ignore[dict-item,return-value]
        "part: teacher": lambda: teacher(batch.images),
        "part: student forward and backward": train,
        "part: optimiser": update,
    }


def torchdistill() -> Callable[[], None] | None:
    """A step of torchdistill's DistillationBox with a plain KD configuration, on the same models."""
    try:
        from torchdistill.core.distillation import DistillationBox
    except ImportError:
        return None
    batch = DATA.train.batch(torch.arange(B), device=CPU, view=(0, 0))
    x, y = batch.images.contiguous(), batch.labels
    loader = {"dataset_id": "cifar", "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
              "kwargs": {"batch_size": B, "num_workers": 0}}  # fmt: skip
    dataset = torch.utils.data.TensorDataset(x, y)
    configuration = {
        "train_data_loader": loader, "val_data_loader": loader, "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False,
                    "frozen_modules": [], "forward_hook": {"input": [], "output": []}},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True,
                    "frozen_modules": [], "forward_hook": {"input": [], "output": []}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": {
            "key": "KDLoss", "kwargs": {"student_module_path": ".", "student_module_io": "output",
                                        "teacher_module_path": ".", "teacher_module_io": "output",
                                        "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}}, "weight": 1.0}}}},
    }  # fmt: skip
    box = DistillationBox(copy_of(TEACHER.module), student(), {"cifar": dataset}, configuration, CPU, [], False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step() -> None:
        loss = box.forward_process(x, y)
        box.post_forward_process(loss)
        loss.item()  # its example script reads the loss each step

    return step


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    arms: dict[str, Callable[[], Any]] = {
        "naive float32": naive(), "upcycle": ours(), "upcycle, float32 student": ours(precision="32-true"),
        "bare loop, same tensor work": bare(), "outputs kept": cached(True), "student alone": cached(False), **parts(),
    }  # fmt: skip
    if peer := torchdistill():
        arms["torchdistill 1.1.5"] = peer
    if arguments.compile:
        arms["upcycle, compiled"] = ours(compile=True)
    times = {name: min(values) for name, values in alternate(arms, arguments.repetitions).items()}
    total = sum(t for name, t in times.items() if name.startswith("part"))
    rates = {str(d).removeprefix("torch."): matmul_rate(d) for d in (torch.float32, torch.bfloat16)}
    macs = count(TEACHER.module, (3, 32, 32)).macs + 3 * count(student(), (3, 32, 32)).macs
    floors = {name: 2 * macs * B / rate for name, rate in rates.items()}
    ratios = {
        "upcycle against naive float32 (times)": times["naive float32"] / times["upcycle"],
        "float32 student against naive float32 (times)": times["naive float32"] / times["upcycle, float32 student"],
        "separate parts over a step": total / times["upcycle"],
        "what Run adds to the bare loop": times["upcycle"] / times["bare loop, same tensor work"] - 1,
        "outputs kept against student alone": times["outputs kept"] / times["student alone"],
        "a step over the bf16 matrix-product floor": times["upcycle"] / floors["bfloat16"],
    }
    for name, seconds in times.items():
        print(f"{name:42s} {1e3 * seconds:8.1f} ms  {math.floor(B / seconds):7,d} images/s")
    for name, value in ratios.items():
        print(f"{name:52s} {value:6.3f}")
    print({name: f"{rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()})
    print(record("kd_step", {"milliseconds": {k: round(1e3 * v, 2) for k, v in times.items()},
                             "images_per_second": {k: round(B / v) for k, v in times.items()},
                             "ratios": {k: round(v, 4) for k, v in ratios.items()},
                             "matmul_gflops": {k: round(v / 1e9) for k, v in rates.items()}},
                 batch=B, threads=2, repetitions=arguments.repetitions))  # fmt: skip


if __name__ == "__main__":
    main()
