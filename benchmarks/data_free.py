"""Data-free distillation: accuracy over seconds of all methods, on Fashion-MNIST over three seeds.

Run from the repository's root: `python -m benchmarks.data_free` (half an hour). The settings are those of the claims
(`upcycle.claims.data_free`): the same teacher, student, batch size and generator. Seconds of synthesis are all that
making images costs; seconds in all include the student's training. The figures are those of the last epoch on the
whole test set; the curves, on 1,000 validation images, choose nothing.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.common import record
from upcycle.claims import data_free

SEEDS = 3
ARMS = {
    "fastdfkd": data_free.fastdfkd,
    "cmi": data_free.cmi,
    "deepinversion": data_free.deepinversion,
    "onestagegan": data_free.onestagegan,
    "noise": data_free.noise,
}


def main() -> None:
    """Fifteen runs, one after the other."""
    torch.set_num_threads(2)
    teacher = data_free.test(data_free.teacher(quick=False).module, data_free.nothing()).accuracy
    figures: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for name, make in ARMS.items():
        outcomes = [data_free.outcome(make(seed, False), seed, False) for seed in range(SEEDS)]
        figures[name] = {
            "accuracy (%)": [round(o.accuracy, 2) for o in outcomes],
            "synthesis (s)": [round(o.seconds, 1) for o in outcomes],
            "in all (s)": [round(o.total, 1) for o in outcomes],
            "images": outcomes[0].images,
            "synthesis an image (ms)": [round(1000 * o.seconds / o.images, 2) for o in outcomes],
        }
        curves[name] = [o.curve for o in outcomes]
        print(name, figures[name], flush=True)

    def mean(name: str, key: str) -> float:
        return statistics.fmean(figures[name][key])

    behind = mean("cmi", "accuracy (%)") - mean("fastdfkd", "accuracy (%)")
    share = mean("fastdfkd", "synthesis (s)") / mean("cmi", "synthesis (s)")
    per_image = mean("fastdfkd", "synthesis an image (ms)") / mean("cmi", "synthesis an image (ms)")
    summary = {
        "teacher (%)": round(100 * teacher, 2),
        "FastDFKD below CMI (points, at most 3 asked)": round(behind, 2),
        "FastDFKD's synthesis seconds over CMI's (at most 0.2 asked)": round(share, 3),
        "the same for an image": round(per_image, 3),
    }
    print(summary)
    title = "Fashion-MNIST, convolutions 32-64-128 to 16-32-64"
    record("data_free", {**figures, **summary, "curves": curves}, title=title, seeds=SEEDS, threads=2)


if __name__ == "__main__":
    main()
