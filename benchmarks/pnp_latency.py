"""The time of a vision transformer whose tokens are polled and pooled, at each ratio, beside its multiply-adds.

Two networks with random weights, since no figure depends on them: the small one for CIFAR-10 (64 tokens of width 96,
four blocks) and ``timm:vit_tiny_patch16_224`` (196 tokens of width 192, twelve blocks), with the block behind the first
of theirs. All ratios take turns in one process, and minima count. What the sampler itself costs shows at ratio 1, where
every token is kept. Run from the repository: ``python -m benchmarks.pnp_latency``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, asked_sizes, record
from upcycle.core.models import Model, copy_of
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.surgery.operate import Cut, operate
from upcycle.surgery.ratio import set_ratio

RATIOS = (1 / 3, 0.5, 0.8, 1.0)
NETWORKS = {"zoo:vit": 4, "timm:vit_tiny_patch16_224": 12}
"""With the number of pooled vectors M: a sixteenth of the tokens."""


def using(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward."""

    def once() -> None:
        with torch.inference_mode():
            network(x)

    return once


def latencies(source: Model, m: int, batch: int, repetitions: int) -> dict[str, Any]:
    """Milliseconds and multiply-adds at each ratio, and both over those of the network without the block."""
    source.module.eval()
    made = operate(source, Cut(at=("blocks.0",), block="pnp", options={"m": m}))
    networks = {"without": source.module}
    for ratio in RATIOS:
        networks[f"{ratio:.2f}"] = copy_of(made.module).eval()
        set_ratio(networks[f"{ratio:.2f}"], ratio)
    x = source.example(batch)
    times = alternate({name: using(network, x) for name, network in networks.items()}, repetitions)
    macs = {name: count(network, source.input_shape).macs for name, network in networks.items()}
    return {
        name: {
            "ms": round(1e3 * min(times[name]), 2),
            "time_over_without": round(min(times[name]) / min(times["without"]), 3),
            "macs": macs[name],
            "macs_over_without": round(macs[name] / macs["without"], 3),
        }
        for name in networks
    }


def main() -> None:
    """Time, print and record."""
    asked = asked_sizes(batch=16, repetitions=30)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = {}
    for reference, m in NETWORKS.items():
        figures[reference] = latencies(resolve(reference, pretrained=False), m, asked.batch, asked.repetitions)
        for name, row in figures[reference].items():
            print(reference, name, *(f"{key}={value}" for key, value in row.items()))
    if not asked.quick:
        settings = {"batch": asked.batch, "repetitions": asked.repetitions, "threads": 1}
        print(record("pnp_latency", figures, **settings, precision="float32"))


if __name__ == "__main__":
    main()
