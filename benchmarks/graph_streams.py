"""TWP on Cora against a plain loop over layers of PyTorch Geometric: seconds of a seed, and what both come to.

Three tasks of two classes, a GAT of 8 heads of 8, 200 epochs a task. The plain loop is TWP as one writes it for this
graph: the dense table that PyG's reader gives, a penalty in the loss with an anchor for each task, importance by two
gradients. The authors' code needs DGL, which is no longer made for current versions of torch. Both run in turn, on one
thread. Run from the repository: ``python -m benchmarks.graph_streams``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import alternate, record
from benchmarks.graphs import Plain
from upcycle.claims.graphs import fresh_for
from upcycle.claims.settings import train_and_left
from upcycle.claims.twp import drawn, recipe
from upcycle.continual import TWP
from upcycle.core.seeds import seed_everything
from upcycle.data.streams import Stream

SEED, EPOCHS, ROUNDS, LAMBDA, SECONDS = 100, 200, 2, 1e4, 20.0
"""Outside of the claim's seeds; the last is what a seed of a method may take, reported."""


def ours(data: Stream, epochs: int, found: dict[str, float]) -> Callable[[], None]:
    """A seed of TWP, from a fresh network to its scores."""

    def run() -> None:
        student = fresh_for("zoo:gat", data.base, SEED)  # type: ignore[arg-type]
        left = train_and_left(TWP(student=student, recipe=recipe(epochs)), data, SEED)[1]  # type: ignore[arg-type]
        found["upcycle (%)"] = 100 * left["scores"].summary()["average accuracy"]

    return run


def theirs(data: Stream, epochs: int, found: dict[str, float]) -> Callable[[], None]:
    """The same as a loop over PyTorch Geometric's layers."""
    split: Any = data.base.train
    x, edge_index = split.graph.x.to_dense(), split.graph.edge_index

    def run() -> None:
        seed_everything(SEED, "student")
        net = Plain(x.shape[1], len(data.classes))
        weights = list(net.parameters())
        adam = torch.optim.Adam(weights, lr=0.005, weight_decay=5e-4)
        kept: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        for t, columns in enumerate(data.tasks):
            task: Any = data.task(t)
            at, first = task.train.ids, columns[0]
            y = task.train.labels - first

            def loss_of(at: torch.Tensor, y: torch.Tensor, columns: tuple[int, ...]) -> torch.Tensor:
                return F.cross_entropy(net(x, edge_index)[at][:, list(columns)], y)

            for _ in range(epochs):
                net.train()
                loss = loss_of(at, y, columns)
                for importance, anchor in kept:
                    for i, w, a in zip(importance, weights, anchor, strict=True):
                        loss = loss + (i * (w - a).square()).sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
            g_l = torch.autograd.grad(loss_of(at, y, columns), weights)
            net.conv1.dropout = 0.0
            _, (_, e) = net.conv1(F.dropout(x, 0.6), edge_index, return_attention_weights=True)
            net.conv1.dropout = 0.6
            g_s = torch.autograd.grad(e.norm(), weights, allow_unused=True)
            both = [l_.square() + (0 if s is None else s.square()) for l_, s in zip(g_l, g_s, strict=True)]
            kept.append(([LAMBDA * i for i in both], [w.detach().clone() for w in weights]))
        net.eval()
        with torch.no_grad():
            z = net(x, edge_index)
        right = []
        for t, columns in enumerate(data.tasks):
            test: Any = data.task(t).test
            answers = z[test.ids][:, list(columns)].argmax(1) + columns[0]
            right.append(float((answers == test.labels).double().mean()))
        found["plain loop (%)"] = 100 * sum(right) / len(right)

    return run


def main() -> None:
    """Time both, and write the record."""
    torch.set_num_threads(1)
    data, found = drawn(SEED), dict[str, float]()
    times = alternate(
        {"upcycle": ours(data, EPOCHS, found), "plain loop": theirs(data, EPOCHS, found)},
        ROUNDS,
    )
    best = {name: min(seconds) for name, seconds in times.items()}
    figures = {
        "seconds": {name: round(value, 2) for name, value in best.items()},
        "share of the time": round(best["upcycle"] / best["plain loop"], 3),
        "average accuracy": {name: round(value, 1) for name, value in found.items()},
        "within the seconds": best["upcycle"] <= SECONDS,
    }
    file = record("graph_streams", figures, data="cora", tasks=3, epochs=EPOCHS, network="GAT 8 x 8", threads=1)
    print(figures, file)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
