"""Seconds for the decision routes of all ten classes of a CIFAR-10 ResNet-56, from 50 images a class.

Beside it the forward of the same images alone, and its floor: multiply-adds over the rate of a large float32 matrix
product. The search for the surest images is not part of it. Run from the repository: ``python -m
benchmarks.mda_routes``.
"""

from __future__ import annotations

import os
import sys

import torch

from benchmarks.common import alternate, record
from upcycle.assembly.disassembly.meters import CHUNK
from upcycle.assembly.disassembly.routes import find_routes
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate
from upcycle.surgery.following import follow_channels

PER_CLASS, REPETITIONS, ASKED = 50, 5, 30.0


def main() -> None:
    if not os.environ.get("UPCYCLE_DATA"):
        sys.exit("Skipped: this benchmark needs CIFAR-10 and its networks; set UPCYCLE_DATA to the folder with them.")
    torch.set_num_threads(2)
    model = resolve("zoo:cifar10_resnet56")
    data = load("cifar10").few(PER_CLASS, 0).normalised(model.mean, model.std)
    split, device = data.train, torch.device("cpu")
    samples = {c: (split.labels == c).nonzero().flatten() for c in range(10)}
    channels = follow_channels(model.module, model.example(2))

    def forward() -> None:
        with torch.no_grad():
            for index in torch.arange(len(split)).split(CHUNK):
                model.module(split.batch(index, device=device).images)

    times = alternate({
        "routes by contribution": lambda: find_routes(model.module, channels, split, samples),
        "routes by gradient": lambda: find_routes(model.module, channels, split, samples, score="gradient"),
        "forward alone": forward,
        "channels followed": lambda: follow_channels(model.module, model.example(2)),
    }, REPETITIONS)  # fmt: skip
    floor = 2 * count(model.module, model.input_shape).macs * len(split) / matmul_rate()
    best = {name: min(seconds) for name, seconds in times.items()}
    for name, seconds in best.items():
        print(f"{name:26}{seconds:8.2f} s{seconds / floor:8.1f} floors")
    print(f"{'floor of the forward':26}{floor:8.2f} s; asked for: routes below {ASKED:.0f} s")
    figures = {
        name: {
            "best_seconds": round(best[name], 3),
            "times_floor": round(best[name] / floor, 2),
            "seconds": [round(s, 3) for s in times[name]],
        }
        for name in times
    }
    path = record("mda_routes", {**figures, "floor_seconds": round(floor, 3), "asked_seconds": ASKED},
                  network="cifar10_resnet56", images=len(split), repetitions=REPETITIONS,
                  threads=torch.get_num_threads(), statistic="minimum")  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
