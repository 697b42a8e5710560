"""One iteration of GAN training, one-stage against two-stage: MNIST 32x32, DCGAN of width 32, GroupNorm D, batch 64.

Run from the repository's root: `python -m benchmarks.one_stage_gan` (about two minutes on two cores).
All arms take turns in one process; the minimum and the median of their iterations are recorded. An iteration has
its images ready; it draws noise, and updates both networks once.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import alternate, record
from upcycle.claims.onestagegan import LR_D_ONE, LR_D_TWO, B, batches, dcgan, mnist, step_one_stage, step_two_stage
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate
from upcycle.training import NON_SATURATING, SATURATING

WIDTH = 32
ONE = "one stage"


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=300, help="of each arm")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    x = next(batches(mnist(False).train, 1, torch.Generator().manual_seed(0)))

    def arm(step: Callable[..., None], lr_d: float, **options: Any) -> Callable[[], None]:
        return functools.partial(step, dcgan(WIDTH, lr_d), x, **options)

    arms = {
        ONE: arm(step_one_stage, LR_D_ONE, pair=NON_SATURATING),
        "one stage, symmetric losses": arm(step_one_stage, LR_D_ONE, pair=SATURATING),
        "two stages": arm(step_two_stage, LR_D_TWO),
        "two stages, D's weights spared in G's": arm(step_two_stage, LR_D_TWO, spare_d=True),
        "two stages, the same fakes": arm(step_two_stage, LR_D_TWO, fresh=False),
    }
    times = alternate(arms, arguments.iterations)
    figures = {name: {"minimum_ms": round(1e3 * min(t), 2), "median_ms": round(1e3 * statistics.median(t), 2),
                      "minimum_ratio": round(min(t) / min(times[ONE]), 3),
                      "median_ratio": round(statistics.median(t) / statistics.median(times[ONE]), 3)}
               for name, t in times.items()}  # fmt: skip
    gan = dcgan(WIDTH, LR_D_ONE)
    g = count(gan.g, (100,)).macs / count(gan.d, (1, 32, 32)).macs
    # In forward passes of D on a batch; a backward pass costs two, one without weight gradients.
    counted = {ONE: 6 + 3 * g, "one stage, symmetric losses": 6 + 3 * g, "two stages": 9 + 4 * g,
               "two stages, D's weights spared in G's": 8 + 4 * g, "two stages, the same fakes": 9 + 3 * g}  # fmt: skip
    for name, row in figures.items():
        row["counted_ratio"] = round(counted[name] / counted[ONE], 3)
        print(f"{name:40s} {row['minimum_ms']:8.1f} ms (median {row['median_ms']:.1f})  "
              f"{row['minimum_ratio']:5.2f} times, {row['counted_ratio']:.2f} by count")  # fmt: skip
    print(record("one_stage_gan", {"arms": figures, "generator_over_discriminator_macs": round(g, 3),
                                   "matmul_gflops": round(matmul_rate(torch.float32) / 1e9)},
                 batch=B, width=WIDTH, threads=2, iterations=arguments.iterations))  # fmt: skip


if __name__ == "__main__":
    main()
