"""Does speed cost accuracy? Five paired seeds of one short schedule: the defaults against float32 throughout.

Run from the repository's root: `python -m benchmarks.kd_accuracy SCHEDULE` (an hour). ResNet-56 to ResNet-20, the
first 10,000 training images of CIFAR-10, last epoch. Both arms of a pair share initial weights, order and
augmentation. From fresh weights, rounding alone sends two trainings of one seed to networks a point apart (the number
of threads does it too), so five pairs cannot tell a small loss from none. The last schedule therefore forks: three
epochs in float32 are shared, then each arm trains on by itself. Measured on the test set, and on it together with
15,000 training images that were not trained on: two networks that disagree on a quarter of the images differ by half a
point on 10,000 of them through the draw of the images alone. The peak memory is that of this whole process, data sets
included. Every schedule that was tried stays in the result.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import resource
import statistics
import time
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, record
from upcycle.claims.settings import cifar10, fresh, short, test
from upcycle.claims.verdicts import interval as students
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.distillation import KD

SEEDS, N, MORE = 5, 10_000, 15_000
WARM = Recipe(epochs=3, batch_size=128, lr=0.05, warmup=0.75, schedule="constant")
# Student, what both arms share, and what each does then.
SCHEDULES: dict[str, tuple[str, Recipe | None, Recipe]] = {
    "4 epochs, rate 0.05, fresh": ("zoo:resnet20", None, short(4)),
    "2 epochs, rate 0.01, from its trained weights": ("zoo:cifar10_resnet20", None, short(2, lr=0.01)),
    "4 epochs, rate 0.02, after 3 shared epochs": ("zoo:resnet20", WARM, Recipe(epochs=4, batch_size=128, lr=0.02)),
}
FLOAT32 = {"precision": "32-true", "teacher_precision": "32-true"}


def main() -> None:
    """Train ten students, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("schedule", choices=SCHEDULES)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    reference, shared, recipe = SCHEDULES[arguments.schedule]
    teacher = resolve("zoo:cifar10_resnet56")
    data = cifar10(N, ("crop", "flip"), teacher)
    rest = load("cifar10").normalised(teacher.mean, teacher.std).train
    rest = dataclasses.replace(data, test=rest.subset(torch.arange(N, N + MORE)))
    arms: dict[str, dict[str, Any]] = {"default": {}, "float32": FLOAT32}
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    unseen: dict[str, list[float]] = {name: [] for name in arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(SEEDS):
        start = resolve(reference) if reference.startswith("zoo:cifar10") else fresh(reference, data, seed)
        if shared is not None:
            module, _ = train(KD(teacher=teacher, student=start, recipe=shared, cache="off"), data, seed, FLOAT32)
            start = dataclasses.replace(start, module=module)
        for name, options in arms.items():
            student = dataclasses.replace(start, module=copy.deepcopy(start.module))
            module, took = train(KD(teacher=teacher, student=student, recipe=recipe, cache="off"), data, seed, options)
            seconds[name].append(took)
            right = [test(module, part).accuracy * len(part.test) for part in (data, rest)]
            accuracy[name].append(round(100 * right[0] / len(data.test), 2))
            unseen[name].append(round(100 * sum(right) / (len(data.test) + len(rest.test)), 2))
            print(f"seed {seed} {name}: {accuracy[name][-1]:.2f} %, of 25,000 {unseen[name][-1]:.2f} %, "
                  f"in {seconds[name][-1]:.0f} s", flush=True)  # fmt: skip
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    file = RESULTS / "kd_accuracy.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    figures[arguments.schedule] = {
        **{f"{name} (%)": accuracy[name] for name in arms},
        **{f"{name}, 25,000 unseen images (%)": unseen[name] for name in arms},
        **{f"{name} (s)": seconds[name] for name in arms},
        **interval("difference (points)", accuracy),
        **interval("difference, 25,000 unseen images (points)", unseen),
        "peak memory (GB)": round(memory, 2),
        "threads": arguments.threads,
    }
    print(json.dumps(figures[arguments.schedule], indent=1))
    record("kd_accuracy", figures, seeds=SEEDS, images=N, batch=128)


def train(method: KD, data: Images, seed: int, options: dict[str, Any]) -> tuple[nn.Module, float]:
    """What ``fit`` returns, and the seconds that it took."""
    begin = time.perf_counter()
    module = method.fit(Run(None, seed=seed, quiet=True, **options), data)
    return module, round(time.perf_counter() - begin, 1)


def interval(name: str, arms: dict[str, list[float]]) -> dict[str, float]:
    """Mean of the paired differences, default less float32, and its 95 % interval."""
    differences = [a - b for a, b in zip(arms["default"], arms["float32"], strict=True)]
    low, high = students(differences)
    return {
        name: round(statistics.fmean(differences), 2),
        f"{name}, 95 % interval, from": round(low, 2),
        f"{name}, to": round(high, 2),
    }


if __name__ == "__main__":
    main()
