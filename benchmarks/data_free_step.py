"""A step of CMI and one of FastDFKD against their parts, timed side by side.

Run from the repository's root: `python -m benchmarks.data_free_step` (minutes, idle machine). ResNet-56 teacher,
ResNet-20 student, batch 128, generator 64 wide. The parts are what no implementation can leave out: generator forward
and backward, teacher forward and input gradient for each view, student forward and input gradient. A step adds views,
statistics, losses, contrastive head and optimiser to them. CMI's bank holds as many earlier images as it draws, so that
the contrastive term costs what it costs late in a run; an arm of its own has the empty bank of the first round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import alternate, record
from upcycle.claims.settings import fresh
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.distillation import CMI, FastDFKD, cmi
from upcycle.distillation.data_free import synthesis
from upcycle.distillation.data_free.inversion import only_inputs
from upcycle.distillation.data_free.making import Making
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate
from upcycle.zoo.generator import Generator

BATCH, STEPS, REPETITIONS = 128, 10, 7


class FullBank(cmi.Bank):
    """A bank that holds as many features from the start as a step draws."""

    def __init__(self, size: int, c: int) -> None:
        super().__init__(size, c)
        number = min(size, CMI(teacher=None, student=None).n_neg)  # type: ignore[arg-type]
        self.append(*torch.randn(2, number, c, generator=torch.Generator().manual_seed(0)))


def main() -> None:
    """Time, print, record."""
    torch.set_num_threads(2)
    teacher = resolve("zoo:cifar10_resnet56")
    data = load("cifar10").normalised(teacher.mean, teacher.std)
    nothing = data.subset(torch.arange(0))
    nothing.validation = data.validation.subset(torch.arange(0))
    run = Run(None, quiet=True)
    frozen = run.frozen(teacher, None, input_grad=True, keep_bn=True)
    student, _ = run.setup(fresh("zoo:resnet20", data, 0).module)
    generator, _ = run.setup(Generator(teacher.input_shape))
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    z = torch.randn(BATCH, 256, requires_grad=True)

    def generate() -> None:
        generator(z).sum().backward()

    def teach() -> None:
        frozen(x).sum().backward()

    def study() -> None:
        with only_inputs(student):
            student(x).sum().backward()

    def whole(method: str) -> Callable[[], None]:
        def once() -> None:
            student = fresh("zoo:resnet20", data, 0)
            making, recipe = Making(rounds=1, batch=BATCH, kd_steps=1), Recipe(epochs=1, batch_size=BATCH)
            options: dict[str, Any] = {"teacher": teacher, "student": student, "making": making, "recipe": recipe}
            made = FastDFKD(k=STEPS, reset=-1, **options) if method == "fastdfkd" else CMI(g_steps=STEPS, **options)
            bank = cmi.Bank
            cmi.Bank = FullBank if method == "cmi" else bank  # type: ignore[misc]
            try:
                seconds[method].append(_synthesis_seconds(made, nothing) / STEPS)
            finally:
                cmi.Bank = bank  # type: ignore[misc]

        return once

    seconds: dict[str, list[float]] = {"cmi": [], "cmi, empty bank": [], "fastdfkd": []}
    parts = {"generator": generate, "teacher": teach, "student": study}
    times = alternate(parts | {name: whole(name) for name in seconds}, REPETITIONS)
    part = {name: min(times[name]) for name in ("generator", "teacher", "student")}
    step = {name: min(values) for name, values in seconds.items()}
    sums = {
        "cmi": part["generator"] + 2 * part["teacher"] + part["student"],
        "fastdfkd": part["generator"] + part["teacher"] + part["student"],
    }
    macs = {"generator": count(Generator((3, 32, 32)), (256,)).macs, "teacher": count(teacher.module, (3, 32, 32)).macs,
            "student": count(fresh("zoo:resnet20", data, 0).module, (3, 32, 32)).macs}  # fmt: skip
    work = {"cmi": 3 * macs["generator"] + 4 * macs["teacher"] + 2 * macs["student"],
            "fastdfkd": 3 * macs["generator"] + 2 * macs["teacher"] + 2 * macs["student"]}  # fmt: skip
    rate = matmul_rate(torch.bfloat16 if run.precision == "bf16-mixed" else torch.float32)
    figures = {
        **{f"{name} (ms)": round(1000 * value, 1) for name, value in {**part, **step}.items()},
        **{f"parts over {name} step (at least 0.8 asked)": round(sums[name] / step[name], 3) for name in sums},
        **{f"{name} step over its floor": round(step[name] * rate / (2 * BATCH * work[name]), 2) for name in sums},
        "matrix products, same format (GFLOP/s)": round(rate / 1e9, 1),
        "teacher": frozen.precision,
        "run": run.precision,
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    record("data_free_step", figures, batch=BATCH, steps=STEPS, repetitions=REPETITIONS, threads=2)


def _synthesis_seconds(method: CMI | FastDFKD, data: Images) -> float:
    """The seconds that a method itself counts for its images; what it would leave behind is not made."""
    found: list[float] = []
    finish = synthesis.Synthesis.finish
    synthesis.Synthesis.finish = lambda self, student: found.append(self.seconds) or student  # type: ignore[method-assign,func-returns-value,assignment]
    try:
        method.fit(Run(None, quiet=True), data)
    finally:
        synthesis.Synthesis.finish = finish  # type: ignore[method-assign]
    return found[0]


if __name__ == "__main__":
    start = time.time()
    main()
    print(f"{time.time() - start:.0f} s")
