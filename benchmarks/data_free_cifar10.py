"""CIFAR-10 without a training image: accuracy over seconds, one seed an arm.

Run from the repository's root: `python -m benchmarks.data_free_cifar10 ARM` (an hour each on an idle machine). The
arms of the hour distil ResNet-56 to ResNet-20: `fastdfkd`, and `noise`, which trains on uniform noise as long. The
arms `fast20` and `cmi20` distil a ResNet-20 teacher to a ResNet-8: FastDFKD with 5 steps a batch against CMI with
100, the student's updates alike. `wrn` is the paper's pair, WRN-40-2 to WRN-16-1, with its 220 rounds but WRN_STEPS
updates a round for 400, on an accelerator; its teacher is what `scripts/train_cifar10_zoo.py wrn40_2` made. Curves
are on 1,000 validation images and choose nothing; the last figure is on the whole test set. An arm that is stopped
goes on when it is started again; each adds its figures to the result. `memory` is one round of synthesis and training
on a pool that holds 50,000 images already, for its peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, record
from upcycle.claims.data_free import NoiseImages
from upcycle.claims.settings import fresh, test
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.store import read_json
from upcycle.data import Images, load
from upcycle.distillation import CMI, FastDFKD, fastdfkd
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis

SEED = 0
NOISE_EPOCHS = 85  # 8,500 updates, for the 7,000 and the synthesis of the hour
WRN_STEPS = 100
NAMES = {
    "fastdfkd": "FastDFKD, ResNet-56 to ResNet-20",
    "noise": "noise images, ResNet-56 to ResNet-20",
    "fast20": "FastDFKD, ResNet-20 to ResNet-8",
    "cmi20": "CMI, ResNet-20 to ResNet-8",
    "wrn": "FastDFKD, WRN-40-2 to WRN-16-1",
}
FULL = "peak memory with a pool of 50,000 images (GB, below 3 asked)"
SHORT = Recipe(epochs=30, batch_size=128, lr=0.1, weight_decay=1e-4)


def method(arm: str, data: Images) -> Method:
    """The method of an arm, with its networks."""
    deep = "wrn40_2" if arm == "wrn" else "resnet20" if arm.endswith("20") else "resnet56"
    teacher = resolve(f"zoo:cifar10_{deep}")

    def student(name: str) -> Model:
        return fresh(f"zoo:{name}", data.normalised(teacher.mean, teacher.std), SEED)

    if arm == "wrn":
        making = Making(rounds=220, warmup=20, kd_steps=WRN_STEPS, views=0)
        return FastDFKD(teacher=teacher, student=student("wrn16_1"), making=making,
                        recipe=Recipe(epochs=200, batch_size=256, lr=0.2, weight_decay=1e-4))  # fmt: skip
    hour = FastDFKD(teacher=teacher, student=student("resnet20"))  # its defaults are made for this hour
    if arm == "fastdfkd":
        return hour
    if arm == "memory":
        fastdfkd.Synthesis = Full  # type: ignore[misc,attr-defined]
        making = dataclasses.replace(hour.making, rounds=1, warmup=0, kd_steps=20)
        return FastDFKD(teacher=teacher, student=student("resnet20"), making=making,
                        recipe=dataclasses.replace(hour.recipe, epochs=1))  # fmt: skip
    if arm == "noise":
        longer = dataclasses.replace(hour.recipe, epochs=NOISE_EPOCHS)
        making = dataclasses.replace(hour.making, warmup=0)
        return NoiseImages(teacher=teacher, student=student("resnet20"), making=making, recipe=longer)
    if arm == "fast20":
        making = Making(rounds=40, warmup=10, batch=128, kd_steps=80, views=8)
        return FastDFKD(teacher=teacher, student=student("resnet8"), making=making, recipe=SHORT)
    making = Making(rounds=16, batch=128, kd_steps=150, views=8)
    shorter = dataclasses.replace(SHORT, epochs=16)
    return CMI(teacher=teacher, student=student("resnet8"), making=making, g_steps=100, n_neg=1024, recipe=shorter)


class Full(Synthesis):
    """Holds 50,000 images from the start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for _ in range(50):
            self.pool.append(torch.rand(1000, *self.pool.shape), torch.zeros(1000, dtype=torch.int64))


def main() -> None:
    """One arm: fit, measure, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=("fastdfkd", "noise", "fast20", "cmi20", "wrn", "memory"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    place = arguments.out / f"data-free-cifar10-{arguments.arm}"
    whole = load("cifar10")
    made = method(arguments.arm, whole)
    data = whole.normalised(made.teacher.mean, made.teacher.std)  # type: ignore[attr-defined]
    train = dataclasses.replace(data.train.subset(torch.arange(0)), augment=("crop", "flip"))
    data = dataclasses.replace(data, train=train, validation=data.validation.subset(torch.arange(1000)))
    run = Run(place, seed=SEED, resume=(place / "config.yaml").exists(), save_every=120, quiet=True)
    student = made.fit(run, data)
    run.close()
    left = read_json(place / "synthesis.json")
    paper = arguments.arm == "wrn"  # on another machine, so a result of its own
    result = "data_free_wrn" if paper else "data_free_cifar10"
    file = RESULTS / f"{result}.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {"curves": {}}
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    if arguments.arm == "memory":
        figures[FULL] = memory
        print(FULL, memory)
    else:
        name = NAMES[arguments.arm]
        figures[name] = {
            "accuracy (%)": round(100 * test(student, data).accuracy, 2),
            "synthesis (s)": round(left["seconds"], 1),
            "in all (s)": round(left["total_seconds"], 1),
            "images": left["images"],
            "synthesis an image (ms)": round(1000 * left["seconds"] / left["images"], 2),
            "peak memory (GB)": memory,
            "threads": arguments.threads,
        }
        figures["curves"][name] = [left["curve"]]
        print(figures[name])
    title = "CIFAR-10, the paper's pair on an accelerator" if paper else "CIFAR-10"
    record(result, figures, title=title, seed=SEED)


if __name__ == "__main__":
    main()
