"""Data-free distillation: accuracy over seconds of all methods, on Fashion-MNIST, one seed.

Run from the repository's root: `python -m benchmarks.data_free` (a quarter of an hour). The settings are those of the
claims (`upcycle.claims.data_free`), which measure three seeds: the same teacher, student, batch size and generator.
Seconds of synthesis are all that making images costs; seconds in all include the student's training. The figures are
those of the last epoch on the whole test set; the curves, on 1,000 validation images, choose nothing.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from benchmarks.common import record
from upcycle.claims import data_free

SEED = 0
ARMS = {
    "fastdfkd": data_free.fastdfkd,
    "cmi": data_free.cmi,
    "deepinversion": data_free.deepinversion,
    "onestagegan": data_free.onestagegan,
    "noise": data_free.noise,
}


def main() -> None:
    """Five runs, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    teacher = data_free.test(data_free.teacher(quick=False).module, data_free.nothing()).accuracy
    figures: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for name, make in ARMS.items():
        found = data_free.outcome(make(SEED, False), SEED, False)
        figures[name] = {
            "accuracy (%)": round(found.accuracy, 2),
            "synthesis (s)": round(found.seconds, 1),
            "in all (s)": round(found.total, 1),
            "images": found.images,
            "synthesis an image (ms)": round(1000 * found.seconds / found.images, 2),
            "similarity within a class": None if math.isnan(found.similarity) else round(found.similarity, 3),
        }
        curves[name] = [found.curve]
        print(name, figures[name], flush=True)
    figures |= {"teacher (%)": round(100 * teacher, 2), "curves": curves}
    record("data_free", figures, title="Fashion-MNIST, a small conv net to half of it", seed=SEED, threads=threads)


if __name__ == "__main__":
    main()
