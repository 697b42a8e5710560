"""DINE against an HTTP endpoint, twice: the second run finds every answer on the disk and sends nothing.

Run from the repository's root: `python -m benchmarks.dine_cache` (under a minute). The endpoint is the tests' server
on 127.0.0.1 before a LeNet of MNIST; the target is USPS, the student a fresh LeNet. Recorded are the images sent, the
images that the cache knew, and whether both runs end with the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.predictor_server import serve

from benchmarks.common import record
from upcycle.adaptation import DINE
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.claims.digits import digits, trained
from upcycle.claims.settings import fresh, train
from upcycle.core.recipe import Recipe
from upcycle.core.store import tensor_digest
from upcycle.predictors.http import Http


def measure(n: int) -> dict[str, Any]:
    """Both runs on the first ``n`` images of USPS."""
    source, target = trained("zoo:lenet", digits("mnist", 5000), 0, 1), digits("usps", n)
    target = dataclasses.replace(target, validation=target.validation.subset(torch.arange(100)))
    runs = []
    with tempfile.TemporaryDirectory() as folder, serve(source, top=1) as url:
        for _ in range(2):
            box = Http(url, cache=Path(folder))
            method = DINE(
                predictors=(box,),
                student=fresh("zoo:lenet", target, 0),
                bottleneck=Bottleneck(backbone_rate=1.0),
                epochs_tune=1,
                recipe=Recipe(epochs=2, batch_size=64, lr=0.005, weight_decay=1e-3),
            )
            weights = tensor_digest(train(method, target, 0).state_dict())
            runs.append({"queries": box.queries, "cached": box.cached, "weights": weights})
        served = url.images
    return {
        "images": n,
        "different images": len({image.numpy().tobytes() for image in target.train.images}),
        "images that came to the endpoint": served,
        "first run": runs[0],
        "second run": runs[1],
        "same weights": runs[0]["weights"] == runs[1]["weights"],
    }


def main() -> None:
    """Measure, check and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="images of USPS")
    figures = measure(parser.parse_args().n)
    assert figures["first run"]["queries"] == figures["different images"], figures
    assert figures["second run"]["queries"] == 0 and figures["same weights"], figures
    print(record("dine_cache", figures, server="tests/predictor_server.py", seed=0))


if __name__ == "__main__":
    main()
