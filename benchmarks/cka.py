"""A map of debiased CKA, 27 x 27 residual blocks of a CIFAR-10 ResNet-56: ours, and pair by pair.

Both compare pooled features of 2,000 CIFAR-10 training images in batches of 250, in float64, on the same threads, and
agree to 1e-6. The double loop does what published code for CKA does: for each pair of layers it makes both Gram
matrices and the three estimates of HSIC again. It is written out here, without their other losses: no product of
whole Gram matrices where only the trace is needed, no gradients. The forward passes are before the clock.
Run from the repository: ``python -m benchmarks.cka``.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from benchmarks.common import alternate, record
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.similarity import similarity_map
from upcycle.surgery.blocks import chain, node_features

NETWORK, NODES, IMAGES, BATCH, REPETITIONS = "zoo:cifar10_resnet56", 27, 2000, 250, 3


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """The debiased estimate for two Gram matrices (n, n) with zero diagonals."""
    n, k_1, m_1 = len(k), k.sum(0), m.sum(0)
    cross = k_1.sum() * m_1.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + cross - 2 / (n - 2) * (k_1 @ m_1)) / (n * (n - 3))


def gram(x: Tensor) -> Tensor:
    """Of centred features (n, d), with a zero diagonal."""
    x = x.double() - x.double().mean(0)
    return (x @ x.T).fill_diagonal_(0)


@torch.no_grad()
def pair_by_pair(xs: list[Tensor]) -> Tensor:
    """The map, with all that a pair needs made for that pair."""
    shared, rows, columns = (torch.zeros(len(xs), len(xs), dtype=torch.float64) for _ in range(3))
    for start in range(0, len(xs[0]), BATCH):
        for i, x in enumerate(xs):
            for j, y in enumerate(xs):
                k, m = gram(x[start : start + BATCH]), gram(y[start : start + BATCH])
                shared[i, j] += hsic(k, m)
                rows[i, j] += hsic(k, k)
                columns[i, j] += hsic(m, m)
    return shared / (rows * columns).sqrt()


def main() -> None:
    if not os.environ.get("UPCYCLE_DATA"):
        sys.exit(
            "Skipped: this benchmark needs CIFAR-10 and its networks; set UPCYCLE_DATA to the folder that has them."
        )
    torch.set_num_threads(2)
    split = load("cifar10").train.subset(torch.arange(IMAGES))
    with torch.no_grad():
        batches = list(node_features(chain(resolve(NETWORK)), split, BATCH))
    xs = [torch.cat(parts) for parts in zip(*batches, strict=True)][-NODES:]
    apart = (similarity_map(xs, batch=BATCH) - pair_by_pair(xs)).abs().max().item()
    if apart > 1e-6:
        sys.exit(f"The two maps differ by {apart:.1e}, so their times say nothing.")
    times = alternate({
        "upcycle, one product a batch": lambda: similarity_map(xs, batch=BATCH),
        "pair by pair": lambda: pair_by_pair(xs),
    }, REPETITIONS)  # fmt: skip
    best = {name: min(seconds) for name, seconds in times.items()}
    slowest = max(best.values())
    print(f"{'':32}{'seconds':>10}{'times':>8}")
    for name, seconds in best.items():
        print(f"{name:32}{seconds:10.4f}{slowest / seconds:8.1f}")
    print(f"largest difference {apart:.1e}")
    figures = {
        name: {"seconds": [round(s, 5) for s in times[name]], "times_pair_by_pair": round(slowest / best[name], 1)}
        for name in best
    }
    figures = figures | {"largest_difference": apart}
    path = record("cka", figures, network=NETWORK, nodes=len(xs), images=IMAGES, batch=BATCH, repetitions=REPETITIONS,
                  threads=torch.get_num_threads(), statistic="minimum")  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
