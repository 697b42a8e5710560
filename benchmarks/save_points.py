"""Costs of save points in a run whose state is large: their share of its time, and what they hold beside `torch.save`.

Run from the repository's root: `python -m benchmarks.save_points` (about three minutes on an idle machine). A fully
connected network of 25 million weights and its momentum, 200 MB in all, takes small steps for as long as a few save
points need; all of the state changes in each step, which is the worst case.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import record
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.stage import Stages

WIDTH = 5_000  # of a square layer: 25 million weights, 100 MB, and as much momentum


def saving(seconds: float) -> tuple[float, list[float]]:
    """Seconds of a stage that trains for so long, and of each save point in it."""
    found: list[float] = []
    save = Stages.save

    def timed(stages: Stages) -> None:
        begun = time.perf_counter()
        save(stages)
        found.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory() as name:
        run, recipe = Run(Path(name) / "run", quiet=True), Recipe(epochs=1_000_000, lr=1e-3)
        Stages.save = timed  # type: ignore[method-assign]
        try:
            begun = time.perf_counter()
            network, optimizer = run.setup(nn.Linear(WIDTH, WIDTH, bias=False), recipe)
            x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
            for _ in run.epochs(recipe.epochs):
                run.step(network(x).square().mean(), optimizer, recipe)
                if time.perf_counter() - begun > seconds:
                    break
            return time.perf_counter() - begun, found
        finally:
            Stages.save = save  # type: ignore[method-assign]


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="of the run")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(2)
    weights = [torch.randn(WIDTH, WIDTH) for _ in range(2)]
    plain = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(5):
            begun = time.perf_counter()
            torch.save(weights, Path(name) / "plain.pt")
            plain.append(time.perf_counter() - begun)
    whole, each = saving(seconds)
    figures = {
        "state (MB)": round(2 * 4 * WIDTH**2 / 1e6),
        "seconds of the run": round(whole, 1),
        "save points": len(each),
        "seconds of each": [round(s, 3) for s in each],
        "share of the time (%)": round(100 * sum(each) / whole, 2),
        "torch.save of the same tensors (s)": round(min(plain), 3),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(record("save_points", figures, threads=2))


if __name__ == "__main__":
    main()
