"""A training step of FactorGCN: all factors in one pass, against graph convolutions of equal width.

500 graphs of ``factors:4``, two layers of width 32 with 4 and 2 factors, forward, backward and Adam; with
discriminators (λ = 0.2), without them, and with PyTorch Geometric's ``GCNConv`` in place of the layers.
A factor is a choice of edges of its own, so the yardstick is a GCN's step times 1 + factors / 4. Each figure is the
minimum of many rounds, in which all take turns, on one thread.

In training, messages between the nodes of small graphs are products of matrices, and those of others are sent edge by
edge (:mod:`upcycle.zoo.factor_messages`). From where on the latter is faster is measured on rings of s nodes: their
matrices have s / 3 entries for each edge and loop. Run from the repository: ``python -m benchmarks.factor_step``.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import alternate, record
from upcycle.claims.factorgcn import as_gcn
from upcycle.claims.graphs import fresh_for
from upcycle.core.graph_inputs import Graphs, sorted_by_target
from upcycle.core.graphs import OnGraphs
from upcycle.core.memory import keep_freed
from upcycle.core.recipe import Recipe
from upcycle.core.task import MULTILABEL
from upcycle.data import load
from upcycle.distillation.factorgcn import Discriminated
from upcycle.zoo import factor_messages, factorgcn

GRAPHS, FACTORS, ROUNDS = 500, 4, 40
GATE = 1.3
"""Over a GCN's step times 1 + factors / 4, what a step may take."""
CPU = torch.device("cpu")
RING_SIZES, RING_NODES, RING_ROUNDS = (15, 24, 36, 48), 7500, 8


@contextlib.contextmanager
def fullest(entries: float) -> Iterator[None]:
    """Take matrices up to so many entries for each edge and loop, while the block lasts."""
    usual = factor_messages.FULLEST
    factor_messages.FULLEST = entries  # type: ignore[assignment]
    try:
        yield
    finally:
        factor_messages.FULLEST = usual


def rings(size: int) -> Graphs:
    """Rings of so many nodes with random features."""
    n, node = RING_NODES // size, torch.arange(size)
    edges = torch.stack([torch.cat([node, node]), torch.cat([node.roll(1), node.roll(-1)])])
    edge_index, _ = sorted_by_target(torch.cat([edges + g * size for g in range(n)], 1))
    x = torch.rand(n * size, 15, generator=torch.Generator().manual_seed(0))
    return Graphs(x, edge_index, torch.arange(n).repeat_interleave(size), n=n)


def crossing() -> dict[str, float]:
    """Seconds of a pass forward and back on matrices over those on edges, by entries for each edge and loop."""
    found = {}
    for size in RING_SIZES:
        torch.manual_seed(0)
        network, graphs = Discriminated(OnGraphs(factorgcn.make("factorgcn", 15, 2, "graph"))).train(), rings(size)

        def once(entries: float, network: nn.Module = network, graphs: Graphs = graphs) -> None:
            with fullest(entries):
                z, L_d = network(graphs)
            (z.square().mean() + L_d).backward()
            network.zero_grad()

        times = alternate({"matrices": partial(once, math.inf), "edges": partial(once, 0)}, RING_ROUNDS)
        found[f"{size / 3:g}"] = round(min(times["matrices"]) / min(times["edges"]), 2)
    return found


def step_of(network: nn.Module, batch: Any) -> Callable[[], Any]:
    """One step on the same batch; a network that is alone gives no second answer."""
    optimizer = Recipe(optimizer="adam", lr=0.005, weight_decay=5e-5).make(network)
    network.train()

    def step() -> None:
        found = network(batch.inputs)
        z, L_d = found if isinstance(found, tuple) else (found, 0.0)
        (MULTILABEL.loss(z, batch.labels) + 0.2 * L_d).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time all, and write the record."""
    torch.set_num_threads(1)
    keep_freed()  # as every run does
    data = load(f"factors:{FACTORS}")
    batch = data.train.batch(torch.arange(GRAPHS), device=CPU)
    start = [fresh_for("zoo:factorgcn", data, 0) for _ in range(3)]
    networks = {
        "factors": Discriminated(start[0].module),
        "factors, no discriminators": start[1].module,
        "graph convolutions": as_gcn(start[2], 0).module,
    }
    times = alternate({name: step_of(network, batch) for name, network in networks.items()}, ROUNDS)
    best = {name: min(seconds) for name, seconds in times.items()}
    ratio = best["factors"] / (best["graph convolutions"] * (1 + FACTORS / 4))
    figures = {
        "milliseconds": {name: round(1e3 * value, 2) for name, value in best.items()},
        "over a GCN's step times 1 + factors / 4": round(ratio, 3),
        "gate held": ratio <= GATE,
        "matrices over edges, by entries for each edge and loop": crossing(),
    }
    file = record("factor_step", figures, graphs=GRAPHS, nodes=15, factors=FACTORS, width=32, rounds=ROUNDS, threads=1)
    print(figures, file)
    if ratio > GATE:
        raise SystemExit(f"a step takes {ratio:.2f} times what it may be compared with, and {GATE} is allowed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
