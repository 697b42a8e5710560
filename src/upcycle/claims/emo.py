"""EMO: attention inside inverted residuals against a wider network of as many parameters without it."""

from __future__ import annotations

import dataclasses
from functools import partial

from upcycle.claims import Check, Claim, Headline, from_scratch, mean
from upcycle.claims.settings import best
from upcycle.zoo.emo import EMO, SIZES

TRIED: dict[str, dict[float, float]] = {
    "attention off": {1e-3: 53.2, 3e-3: 55.6, 1e-2: 52.3},
}
"""Learning rates and what they reach on the 1,000 validation images with seed 100, which is outside the claim."""
RATE = best(TRIED["attention off"])
WIDTHS = (24, 44, 71)
"""Without attention, so that both have as many parameters."""
TINY = SIZES["tiny"]
OFF = dataclasses.replace(
    TINY,
    stages=tuple(dataclasses.replace(stage, head=0, width=c) for stage, c in zip(TINY.stages, WIDTHS, strict=True)),
)
ARMS = {"EMO": partial(EMO, TINY, 10), "attention off": partial(EMO, OFF, 10)}

on_validation = partial(from_scratch.on_validation, ARMS)
measure = partial(from_scratch.measured, ARMS, lr=RATE)


CLAIM = Claim(
    method="emo",
    sentence="Attention in windows, inside the expansion of inverted residuals, makes a better small network than "
    "wider inverted residuals of as many parameters.",
    published="ImageNet-1k, 224 x 224: EMO-1M 71.5, 2M 75.1, 5M 78.4, 6M 79.0 (README and logs of the authors' code). "
    "A figure for the same network without attention at equal parameters is not at hand.",
    setting=f"{from_scratch.TRAINING}; the tiny EMO (stem of stride 1, depths 1, 2, 3, widths 24, 40, 64, windows of "
    "4 x 4 in stages 2 and 3) against the same without attention and with widths 24, 44, 71. One learning rate for "
    "both, the best on validation images for the network without attention, with a seed outside the claim.",
    data=("cifar10",),
    measure=measure,
    headline=Headline(
        product="EMO (%)",
        baseline="attention off (%)",
        says="attention inside inverted residuals over wider ones of as many parameters",
    ),
    checks=(
        Check(
            text="both have the same number of parameters to 1 %",
            value=lambda m: -abs(mean(m, "EMO, parameters") / mean(m, "attention off, parameters") - 1),
            bound=-0.01,
            exact=True,
        ),
    ),
)
