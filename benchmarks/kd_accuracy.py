"""Does speed cost accuracy? Five paired seeds of one short schedule: the defaults against float32 throughout.

Run from the repository's root: `python -m benchmarks.kd_accuracy` (ten minutes). ResNet-56 to ResNet-20, the
first 10,000 training images of CIFAR-10, last epoch, whole test set. Both arms of a pair share initial weights,
order and augmentation. The peak memory is that of this whole process, data sets included.
"""

from __future__ import annotations

import math
import resource
import statistics
import time

import torch

from benchmarks.common import record
from upcycle.claims.settings import cifar10, fresh, short, test
from upcycle.core.models import resolve
from upcycle.core.run import Run
from upcycle.distillation import KD

SEEDS, EPOCHS, N = 5, 4, 10_000
T_QUANTILE = 2.776  # Student's t, 97.5 %, four degrees of freedom


def main() -> None:
    """Train ten students, print and record."""
    torch.set_num_threads(2)
    teacher = resolve("zoo:cifar10_resnet56")
    data = cifar10(N, ("crop", "flip"), teacher)
    arms = {"default": {}, "float32": {"precision": "32-true", "teacher_precision": "32-true"}}
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(SEEDS):
        for name, options in arms.items():
            start = time.perf_counter()
            method = KD(teacher=teacher, student=fresh("zoo:resnet20", data, seed), recipe=short(EPOCHS), cache="off")
            module = method.fit(Run(None, seed=seed, quiet=True, **options), data)
            seconds[name].append(time.perf_counter() - start)
            accuracy[name].append(100 * test(module, data).accuracy)
            print(f"seed {seed} {name}: {accuracy[name][-1]:.2f} % in {seconds[name][-1]:.0f} s", flush=True)
    differences = [a - b for a, b in zip(accuracy["default"], accuracy["float32"], strict=True)]
    mean = statistics.fmean(differences)
    half = T_QUANTILE * statistics.stdev(differences) / math.sqrt(SEEDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"difference {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}; peak {memory:.2f} GB"
    )
    figures = {
        "accuracy": accuracy,
        "seconds": seconds,
        "difference": round(mean, 3),
        "interval": [round(mean - half, 3), round(mean + half, 3)],
        "peak_memory_gb": round(memory, 2),
    }
    record("kd_accuracy", figures, seeds=SEEDS, epochs=EPOCHS, images=N, batch=128, threads=2)


if __name__ == "__main__":
    main()
