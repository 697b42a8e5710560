"""Repairs of rare classes: the features of 50,000 images once, and the seconds of each head after that.

CIFAR-10's ResNet-20 on its 45,000 training and 5,000 validation images, of one thread: features by the fast frozen
copy, reading included, beside the forwards of the same frozen network on batches that lie ready; then every method with
its default recipe on these features. Run from the repository: ``python -m benchmarks.long_tail_heads``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import alternate, record
from upcycle.core.guide import frozen_for
from upcycle.core.heads import features
from upcycle.core.method import Method
from upcycle.core.portions import portions
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.diagnosis import BAGS, CRT, LWS, NCM, LogitAdjust, SimCal, Tau
from upcycle.diagnosis.long_tail.further import FurtherTraining

ROUNDS = 2
LEAST, MOST = 0.8, 10.0
"""The gates: of the frozen forward's speed, and seconds of a head."""


class Given(Run):
    """A run whose features are at hand."""

    kept: list[torch.Tensor]

    def stage(self, name: str, fn: Callable[[], Any], like: Any = None) -> Any:
        """Of the features those that fit; any other stage as it is."""
        if name != "features":
            return super().stage(name, fn, like)
        return [next(x for x in self.kept if len(x) == pattern.shape[0]) for pattern in like]


def main() -> None:
    """Time all of it, and write the record."""
    torch.set_num_threads(1)
    source = resolve("zoo:cifar10_resnet20")
    data = load("cifar10").normalised(source.mean, source.std)
    splits, cpu = (data.train, data.validation), torch.device("cpu")
    network = frozen_for(data.train, source, cpu, "auto")
    ready: list[torch.Tensor] = []
    for split in splits:
        for index in portions(network, split):
            ready.append(split.batch(index, device=cpu).inputs)
            network(ready[-1])  # which shows how large the following ones may be
    kept: list[torch.Tensor] = []

    def ours() -> None:
        kept[:] = features(Run(None, quiet=True), source, *splits)

    def forward() -> None:
        for x in ready:
            network(x)

    times = alternate({"features": ours, "frozen forward": forward}, ROUNDS)
    best = {name: min(seconds) for name, seconds in times.items()}
    methods: dict[str, Method] = {
        "tau": Tau(source=source),
        "logitadjust": LogitAdjust(source=source),
        "ncm": NCM(source=source),
        "lws": LWS(source=source),
        "crt": CRT(source=source),
        "bags": BAGS(source=source),
        "simcal": SimCal(source=source, T=None),
        "further training": FurtherTraining(source=source, recipe=CRT(source=source).recipe),
    }
    heads = {}
    for name, method in methods.items():
        run = Given(None, quiet=True)
        run.kept, start = kept, time.perf_counter()
        method.fit(run, data)
        heads[name] = round(time.perf_counter() - start, 2)
        print(name, heads[name], "s")
    share = best["frozen forward"] / best["features"]
    figures = {
        "seconds of 50,000 images": {name: round(value, 2) for name, value in best.items()},
        "share of the frozen forward's speed": round(share, 3),
        "seconds of a head": heads,
        "gates held": share >= LEAST and max(heads.values()) <= MOST,
    }
    file = record(
        "long_tail_heads",
        figures,
        network="cifar10_resnet20",
        images=sum(map(len, splits)),
        rounds=ROUNDS,
        precision=network.precision,
        threads=1,
    )
    print(figures, file)
    if not figures["gates held"]:
        raise SystemExit(
            f"features at {share:.2f} of the frozen forward ({LEAST} asked), heads up to {max(heads.values())} s"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
