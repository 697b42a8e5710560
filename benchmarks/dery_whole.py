"""A whole search of DeRy over ten trained networks of CIFAR-10, K = 4, without tuning: seconds of each stage.

The similarity of all blocks of the ten networks comes first (2,000 images); what is asked for is that all behind it,
partition, tables, exact search and training-free scores of the candidates, takes less than a minute.
Run from the repository: ``python -m benchmarks.dery_whole``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import record
from upcycle.assembly import DeRy
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.measure.cost import count

ZOO = tuple(f"zoo:cifar10_{name}" for name in (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet20_chenyaofo", "resnet20_robust_pgd", "vgg", "mobilenetv2",
    "densenet", "vit"))  # fmt: skip
K, PARAMS, MACS = 4, 5e5, 6e7


class Timed(Run):
    """Keeps the seconds of each stage."""

    def stage(self, name: str, fn: Callable[[], Any], like: Any = None) -> Any:
        """See :meth:`upcycle.core.run.Run.stage`."""
        start = time.perf_counter()
        made = super().stage(name, fn, like)
        self.seconds = {**getattr(self, "seconds", {}), name: time.perf_counter() - start}
        return made


def main() -> None:
    torch.set_num_threads(2)
    zoo = [resolve(reference) for reference in ZOO]
    data = load("cifar10").normalised(zoo[0].mean, zoo[0].std)
    method = DeRy(zoo=zoo, blocks=K, params=PARAMS, flops=MACS, tune="none")
    run = Timed(None, seed=0, quiet=True)
    start = time.perf_counter()
    cost = count(method.fit(run, data), data.shape)
    whole = time.perf_counter() - start
    assert cost.parameters <= PARAMS and cost.macs <= MACS
    seconds = {**run.seconds, "behind the features": whole - run.seconds["features"]}
    for name, value in seconds.items():
        print(f"{name:24}{value:10.2f} s")
    figures = {f"{name} (s)": round(value, 2) for name, value in seconds.items()}
    path = record("dery_whole", figures | {"parameters": cost.parameters, "multiply-adds": cost.macs}, zoo=list(ZOO),
                  blocks=K, params=PARAMS, flops=MACS, threads=torch.get_num_threads())  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
