"""BLIP against plain training and EWC: what is left of five pairs of classes, told the pair."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import torch

from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.digits import first
from upcycle.claims.settings import best, by_validation, fresh, train_and_left
from upcycle.continual.baselines import Finetune
from upcycle.continual.blip import BLIP
from upcycle.continual.oewc import EWC
from upcycle.core.recipe import Recipe
from upcycle.data import load
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

SETS = {"mnist": "MNIST", "fashion_mnist_local": "Fashion-MNIST"}
RECIPE = Recipe(epochs=8, batch_size=64, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")
TASKS = 5
TRIED: dict[str, dict[float, float]] = {
    "EWC": {3_000.0: 98.8, 10_000.0: 98.9, 30_000.0: 98.9},
}
"""λ of EWC and the average accuracy that it gives on validation images of Fashion-MNIST with seed 99, not of the claim;
1, 10, 100 and 1,000 gave less. BLIP's F0 was chosen by both sets among 1e-11 (the paper's), 1e-12, 1e-13 and 1e-14."""
ARMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "BLIP": (BLIP, {"f0": 1e-12}),
    "BLIP, the paper's F0": (BLIP, {"f0": 1e-11}),
    "plain training": (Finetune, {}),
    "EWC": (EWC, {"lam": best(TRIED["EWC"])}),
}


def pairs(name: str, n: int, n_test: int) -> Stream:
    """Two classes at a time; the first ``n`` training and ``n_test`` test images of the whole set."""
    data = load(name)
    data = first(data.normalised(*data.statistics).subset(torch.arange(n)), n_test)
    return stream(data, tasks=str(TASKS), scenario="task")


def on_validation(arm: str, value: float, quick: bool = False) -> float:
    """Give what λ of EWC, or F0 of BLIP, reaches on validation images of Fashion-MNIST with seed 99."""
    data = pairs("fashion_mnist_local", *(1_000, 500) if quick else (20_000, 10_000))
    judged = dataclasses.replace(data, make=lambda t: by_validation(data.make(t)))
    cls, _ = ARMS[arm]
    method = cls(student=fresh("zoo:mlp400", data.base, 99), recipe=RECIPE, **{"lam" if arm == "EWC" else "f0": value})
    scores = train_and_left(method, judged, 99)[1]["scores"]  # type: ignore[arg-type]
    return 100 * float(scores.summary()["average accuracy"])


def share(title: str, t: int) -> str:
    """The name of the arm that has the bits used after task t."""
    return f"{title}: BLIP, bits used after task {t + 1} (%)"


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Three arms on each set: the same network, initial weights, order of images, batches and rate."""
    figures = {}
    for name, title in SETS.items():
        data = pairs(name, *(1_000, 500) if quick else (20_000, 10_000))
        for arm, (cls, options) in ARMS.items():
            method = cls(student=fresh("zoo:mlp400", data.base, seed), recipe=RECIPE, **options)
            net, left = train_and_left(method, data, seed)  # type: ignore[arg-type]
            scores = left["scores"].summary()
            figures[f"{title}: {arm} (%)"] = 100 * scores["average accuracy"]
            figures[f"{title}: {arm}, backward transfer (points)"] = 100 * scores["backward transfer"]
            if arm == "BLIP":
                n = torch.tensor([net.get_parameter(f"1.{key}").numel() for key in ("weight", "bias")]).float()
                used = n @ left["kept"].state["used"] / n.sum()
                figures |= {share(title, t): 100 * float(used[t]) for t in range(TASKS)}
                nonzero = net.get_parameter("1.weight").count_nonzero() / n[0]
                figures[f"{title}: BLIP, weights other than 0 (%)"] = 100 * float(nonzero)
    return figures


def least_growth(title: str) -> Any:
    """The least growth of the bits used from a task to the next, of any seed."""

    def value(measured: Measured) -> float:
        arms = [measured[share(title, t)] for t in range(TASKS)]
        return min(b - a for one, then in pairwise(arms) for a, b in zip(one, then, strict=True))

    return value


def checks(title: str) -> tuple[Check, ...]:
    """What is asked on each set."""
    last = share(title, TASKS - 1)
    return (
        Check(text=f"{title}: BLIP's backward transfer is -0.5 points or better",
              value=lambda m: mean(m, f"{title}: BLIP, backward transfer (points)"), bound=-0.5),
        Check(text=f"{title}: that is 3 points better than with plain training",
              value=gain(f"{title}: BLIP, backward transfer (points)",
                         f"{title}: plain training, backward transfer (points)"), bound=3.0),
        Check(text=f"{title}: BLIP loses no more than 0.5 points to EWC",
              value=gain(f"{title}: BLIP (%)", f"{title}: EWC (%)"), bound=-0.5),
        Check(text=f"{title}: every task takes bits, of every seed", value=least_growth(title), bound=1e-6, exact=True),
        Check(text=f"{title}: bits are left after the last task",
              value=lambda m: 100 - max(m[last]), bound=1e-6, exact=True),
    )  # fmt: skip


CLAIM = Claim(
    method="blip",
    sentence="A network that freezes, weight by weight, as many bits as each task taught it forgets next to nothing "
    "of five tasks, and has bits left for more.",
    published="near-zero forgetting at constant memory overhead (abstract); MNIST-5 with an MLP of 1200 hidden units: "
    "from memory, unchecked, an accuracy above 99 % and a backward transfer of about 0",
    setting="MNIST and Fashion-MNIST (a split of its own), two classes at a time, told the pair; the first 20,000 "
    "training images, about 4,000 a task, and all test images; MLP 784-400-10, 8 epochs a task, batch 64, SGD with a "
    "constant rate of 0.05 in all arms; F0 of BLIP and λ of EWC chosen on validation images. "
    "Backward transfer is the mean over the first four tasks.",
    data=tuple(SETS),
    measure=measure,
    headline=Headline(
        product=("MNIST: BLIP (%)", "Fashion-MNIST: BLIP (%)"),
        baseline=("MNIST: EWC (%)", "Fashion-MNIST: EWC (%)"),
        says="BLIP beside EWC, mean of both sets",
        allowed=0.5,
        reason="half a point is what a change of seed moves either of them",
    ),
    checks=(
        *checks("MNIST"),
        *checks("Fashion-MNIST"),
    ),
)  # fmt: skip
