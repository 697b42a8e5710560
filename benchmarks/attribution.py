"""Integrated gradients, 50 steps, ours against Captum's: the same network, images and classes, all in turns.

Run from the repository's root: `python -m benchmarks.attribution` (about three minutes on two cores). Captum runs with
its default, which puts all steps of all images into one batch, and with the best of several ``internal_batch_size``;
once with weights that require gradients, as users have them, and once with frozen ones. Ours is the whole call of
`explain`, with the copy that it makes and the checks of that copy. The minimum of many repetitions is recorded.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
from collections.abc import Callable
from typing import Any

import captum
import captum.attr
import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.frozen import Precision, fast_bf16
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.diagnosis.attribution import explain
from upcycle.diagnosis.attribution.faithfulness import rank_correlation

STEPS = 50
SIZES = (25, 50, 100, 200)


def by_captum(network: nn.Module, x: Tensor, y: Tensor, size: int | None) -> Tensor:
    """(b, h, w)."""
    return captum.attr.IntegratedGradients(network).attribute(
        x, target=y, n_steps=STEPS, internal_batch_size=size
    ).sum(1)  # fmt: skip


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="zoo:cifar10_resnet20")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="weights drawn anew, when no trained ones are at hand")
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seed_everything(0, "benchmark")
    model = resolve(arguments.network, pretrained=not arguments.fresh)
    network = model.module.eval().requires_grad_(True)
    frozen = copy.deepcopy(network).requires_grad_(False)
    x = model.example(arguments.images)
    with torch.no_grad():
        y = network(x).argmax(1)

    def ours(precision: Precision) -> Tensor:
        return explain(network, x, y, method="integrated_gradients", steps=STEPS, precision=precision).signed

    own: dict[str, Precision] = {"ours, float32": "32-true", "ours, bf16": "bf16"}
    arms: dict[str, Callable[[], Any]] = {"captum, default": functools.partial(by_captum, network, x, y, None)}
    for size in SIZES:
        arms[f"captum, internal_batch_size={size}"] = functools.partial(by_captum, network, x, y, size)
        arms[f"captum, internal_batch_size={size}, frozen"] = functools.partial(by_captum, frozen, x, y, size)
    arms |= {name: functools.partial(ours, precision) for name, precision in own.items()}
    times = alternate(arms, arguments.repetitions)
    tuned = min(min(t) for name, t in times.items() if "size" in name and "frozen" not in name)
    tuned_frozen = min(min(t) for name, t in times.items() if "frozen" in name)
    reference = by_captum(network, x, y, 100)
    figures: dict[str, Any] = {
        name: {"minimum_ms": round(1e3 * min(t), 1), "median_ms": round(1e3 * statistics.median(t), 1),
               "tuned_captum_over_it": round(tuned / min(t), 2),
               "tuned_captum_frozen_over_it": round(tuned_frozen / min(t), 2)}
        for name, t in times.items()
    }  # fmt: skip
    for name, precision in own.items():
        found = ours(precision)
        figures[name]["largest_error"] = float((found - reference).abs().max() / reference.abs().max())
        figures[name]["least_rank_correlation"] = float(rank_correlation(found.flatten(1), reference.flatten(1)).min())
    for name, row in figures.items():
        print(f"{name:42s} {row['minimum_ms']:8.1f} ms (median {row['median_ms']:.1f}); tuned Captum takes "
              f"{row['tuned_captum_over_it']:.2f} times that, {row['tuned_captum_frozen_over_it']:.2f} frozen"
              + (f"; rank correlation {row['least_rank_correlation']:.4f}" if "ours" in name else ""))  # fmt: skip
    if not arguments.dry:
        print(record("attribution", {**figures, "fast_bf16": fast_bf16()}, network=arguments.network,
                     images=arguments.images, steps=STEPS, threads=arguments.threads, captum=captum.__version__,
                     trained=not arguments.fresh, repetitions=arguments.repetitions))  # fmt: skip


if __name__ == "__main__":
    main()
