"""The baselines of continual learning on known streams, each figure with its protocol.

Run from the repository's root: `python -m benchmarks.continual_baselines [STREAM ...]`; streams that are measured
already stay in the result. Published figures stand beside ours as quotations: only the MNIST streams have the published
network and schedule, and even there the learning rates are those of the authors' configuration files from memory.
Nothing is chosen on test images. Split MNIST is what `upcycle prove derpp` measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.common import RESULTS, record
from upcycle.claims.settings import fresh, train_and_left
from upcycle.continual import ER, EWC, SI, DERpp, Finetune, Joint, LwF
from upcycle.core.recipe import Recipe
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

MNIST = ((0.0,), (1.0,))  # as the published figures have it: pixels in [0, 1]
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615))
NAMES = ("joint", "finetune", "oewc", "si", "lwf", "er", "derpp")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One stream: how a network learns it, and what others report.

    Args:
        title: of its table.
        reference, normalisation, augment, images: of the stream; ``images`` limits those of each task, 0 for all.
        network: a zoo reference, from fresh weights.
        batch, lr: of all methods; ``options`` may replace the rate.
        seeds: how many.
        options: of single methods; a further arm of a method is called by it, a comma, and what it is.
        published: quotations, by method: class-incremental, task-incremental, or domain-incremental.
        source: where these stand.
        band: what is expected of our figures, in words, from the protocols that this table follows.
    """

    title: str
    reference: str
    network: str
    batch: int
    lr: float
    options: dict[str, dict[str, Any]]
    published: dict[str, str]
    source: str
    band: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = MNIST
    augment: tuple[str, ...] = ()
    images: int = 0
    seeds: int = 3


SETTINGS = {
    "permuted-mnist": Setting(
        title="Permuted MNIST, 20 tasks, MLP 784-100-100, 1 epoch, batch 128, memory 200",
        reference="permuted:mnist/20", network="zoo:mlp100", batch=128, lr=0.2,
        options={"oewc": {"lam": 0.7, "lr": 0.1}, "si": {"c": 0.5, "xi": 1.0, "lr": 0.1},
                 "derpp": {"alpha": 1.0, "lr": 0.1}, "oewc, λ = 10": {"lam": 10.0, "lr": 0.1}},
        published={"joint": "94.33", "finetune": "40.70", "oewc": "75.79", "si": "65.86", "er": "72.37",
                   "derpp": "83.58"},
        source="arXiv:2004.07211, from memory, unchecked",
        band="the published figures; λ = 10 was chosen among 0.7, 10 and 30 on validation images, seed 99",
    ),
    "rotated-mnist": Setting(
        title="Rotated MNIST, 20 tasks, MLP 784-100-100, 1 epoch, batch 128, memory 200",
        reference="rotated:mnist/20", network="zoo:mlp100", batch=128, lr=0.2,
        options={"oewc": {"lam": 0.7, "lr": 0.1}, "si": {"c": 1.0, "xi": 1.0, "lr": 0.1},
                 "derpp": {"alpha": 1.0, "lr": 0.1}},
        published={"joint": "95.76", "finetune": "67.66", "oewc": "77.35", "si": "71.91", "er": "85.01",
                   "derpp": "90.43"},
        source="arXiv:2004.07211, from memory, unchecked",
        band="the published figures",
    ),
    "permuted-mnist-small": Setting(
        title="Permuted MNIST, 5 tasks of 10,000 images, MLP 784-100-100, 1 epoch, batch 128, memory 200",
        reference="permuted:mnist/5", network="zoo:mlp100", batch=128, lr=0.2, images=10_000,
        options={"oewc": {"lam": 0.7, "lr": 0.1}, "si": {"c": 0.5, "xi": 1.0, "lr": 0.1},
                 "derpp": {"alpha": 1.0, "lr": 0.1}},
        published={}, source="", band="joint > DER++ ≥ ER > oEWC > fine-tuning",
    ),
    "split-cifar10": Setting(
        title="Split CIFAR-10, 5 tasks of 2,000 images, ResNet-20 from scratch, 1 epoch, batch 32, memory 200 (a small "
        "protocol of our own)",
        reference="splits:cifar10/5", network="zoo:cifar10_resnet20", batch=32, lr=0.03, images=2000,
        normalisation=CIFAR, augment=("crop", "flip"),
        options={"oewc": {"lam": 10.0}, "si": {}, "lwf": {}},
        published={"joint": "92.20 / 98.31", "finetune": "19.62 / 61.02", "oewc": "19.49 / 68.29",
                   "si": "19.48 / 68.05", "lwf": "19.61 / 63.29", "er": "44.79 / 91.19", "derpp": "64.88 / 91.92"},
        source="arXiv:2004.07211 (class / task; ResNet-18, 50 epochs: another protocol, not to be compared)",
        band="none: no published table has this protocol",
    ),
}  # fmt: skip


def made(setting: Setting) -> Stream:
    """The stream of a setting."""
    whole = stream(setting.reference).normalised(*setting.normalisation).augmented(setting.augment)
    make = cache(whole.make)  # the tasks of a domain are asked for by every method and seed
    if not setting.images:
        return dataclasses.replace(whole, make=make)

    def fewer(t: int) -> Any:
        task = make(t)
        n = len(task.train)
        return task.subset(torch.randperm(n, generator=torch.Generator().manual_seed(t))[: setting.images])

    return dataclasses.replace(whole, make=fewer, name=f"{whole.name}, {setting.images:,} images a task",
                               order={**whole.order, "images": setting.images})  # fmt: skip


def methods(name: str, setting: Setting, data: Stream, seed: int) -> Any:
    """A method with its fresh network."""
    kinds = {"joint": Joint, "finetune": Finetune, "oewc": EWC, "si": SI, "lwf": LwF, "er": ER, "derpp": DERpp}
    options = dict(setting.options.get(name, {}))
    recipe = Recipe(epochs=1, batch_size=setting.batch, lr=options.pop("lr", setting.lr), momentum=0.0,
                    weight_decay=0.0, schedule="constant")  # fmt: skip
    return kinds[name.partition(",")[0]](student=fresh(setting.network, data.base, seed), recipe=recipe, **options)


def measure(key: str, arms: list[str]) -> dict[str, Any]:
    """Every method, or some ``arms``, on every seed of one stream."""
    setting = SETTINGS[key]
    data, rows = made(setting), {}
    for name in arms or [*NAMES, *(name for name in setting.options if name not in NAMES)]:
        if name == "lwf" and data.scenario == "domain":
            continue  # it distils the outputs of earlier classes, and here there are none but the present ones
        found: dict[str, list[float]] = {}
        for seed in range(setting.seeds):
            method = methods(name, setting, data, seed)
            scores = train_and_left(method, data, seed)[1]["scores"]
            for scenario in scores.matrices:
                summary = scores.summary(scenario)
                found.setdefault(f"{scenario} (%)", []).append(100 * summary["average accuracy"])
                if "forgetting" in summary:
                    found.setdefault(f"forgetting, {scenario} (points)", []).append(100 * summary["forgetting"])
        rows[name] = found
        print(key, name, {k: f"{statistics.fmean(v):.2f} ± {statistics.stdev(v):.2f}" for k, v in found.items()})
    return {"title": setting.title, "protocol": data.protocol, "seeds": setting.seeds, "published": setting.published,
            "source": setting.source, "band": setting.band, "rows": rows}  # fmt: skip


def main() -> None:
    """Measure the streams that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("streams", nargs="*", choices=[[], *SETTINGS])
    parser.add_argument("--arms", nargs="*", default=[], help="only these, beside those that are measured already")
    arguments = parser.parse_args()
    file = RESULTS / "continual_baselines.json"
    for key in arguments.streams or SETTINGS:
        found = measure(key, arguments.arms)
        figures = json.loads(file.read_text())["figures"] if file.exists() else {}
        if arguments.arms and key in figures:
            found["rows"] = figures[key]["rows"] | found["rows"]
        ordered = {name: ({**figures, key: found})[name] for name in SETTINGS if name in (*figures, key)}
        record("continual_baselines", ordered, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
