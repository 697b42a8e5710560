"""Does speed cost accuracy? Five paired seeds of one short schedule: the defaults against float32 throughout.

Run from the repository's root: `python -m benchmarks.kd_accuracy SCHEDULE` (minutes). ResNet-56 to ResNet-20, the
first 10,000 training images of CIFAR-10, last epoch, whole test set. Both arms of a pair share initial weights,
order and augmentation. The peak memory is that of this whole process, data sets included. Every schedule that was
tried stays in the result.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time

import torch

from benchmarks.common import RESULTS, record
from upcycle.claims.settings import cifar10, fresh, short, test
from upcycle.core.models import resolve
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation import KD

SEEDS, N = 5, 10_000
T_QUANTILE = 2.776  # Student's t, 97.5 %, four degrees of freedom
SCHEDULES: dict[str, tuple[str, Recipe]] = {
    "4 epochs, rate 0.05, fresh": ("zoo:resnet20", short(4)),
    "2 epochs, rate 0.01, from its trained weights": ("zoo:cifar10_resnet20", short(2, lr=0.01)),
}


def main() -> None:
    """Train ten students, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("schedule", choices=SCHEDULES)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    reference, recipe = SCHEDULES[arguments.schedule]
    teacher = resolve("zoo:cifar10_resnet56")
    data = cifar10(N, ("crop", "flip"), teacher)
    arms = {"default": {}, "float32": {"precision": "32-true", "teacher_precision": "32-true"}}
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(SEEDS):
        for name, options in arms.items():
            start = time.perf_counter()
            trained = reference.startswith("zoo:cifar10")
            student = resolve(reference) if trained else fresh(reference, data, seed)
            method = KD(teacher=teacher, student=student, recipe=recipe, cache="off")
            module = method.fit(Run(None, seed=seed, quiet=True, **options), data)
            seconds[name].append(round(time.perf_counter() - start, 1))
            accuracy[name].append(round(100 * test(module, data).accuracy, 2))
            print(f"seed {seed} {name}: {accuracy[name][-1]:.2f} % in {seconds[name][-1]:.0f} s", flush=True)
    differences = [a - b for a, b in zip(accuracy["default"], accuracy["float32"], strict=True)]
    mean = statistics.fmean(differences)
    half = T_QUANTILE * statistics.stdev(differences) / math.sqrt(SEEDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"difference {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}; peak {memory:.2f} GB"
    )
    file = RESULTS / "kd_accuracy.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    figures[arguments.schedule] = {
        **{f"{name} (%)": accuracy[name] for name in arms},
        **{f"{name} (s)": seconds[name] for name in arms},
        "difference (points)": round(mean, 2),
        "95 % interval, from": round(mean - half, 2),
        "to": round(mean + half, 2),
        "peak memory (GB)": round(memory, 2),
        "threads": arguments.threads,
    }
    record("kd_accuracy", figures, seeds=SEEDS, images=N, batch=128)


if __name__ == "__main__":
    main()
