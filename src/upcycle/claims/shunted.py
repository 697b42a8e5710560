"""Shunted attention: heads that see keys of two granularities against heads that all see the same."""

from __future__ import annotations

import dataclasses
from functools import partial

from upcycle.claims import Check, Claim, Headline, from_scratch, mean
from upcycle.claims.settings import best
from upcycle.zoo.shunted import SIZES, ShuntedTransformer

TRIED: dict[str, dict[float, float]] = {
    "one rate": {3e-4: 41.1, 1e-3: 49.7, 3e-3: 45.7},
}
"""Learning rates and what they reach on the 1,000 validation images with seed 100, which is outside the claim."""
RATE = best(TRIED["one rate"])
BOTH = dataclasses.replace(SIZES["tiny"], drop_path=0.05)
ONE = dataclasses.replace(BOTH, stages=(dataclasses.replace(BOTH.stages[0], rates=(2,)), BOTH.stages[1]))
ARMS = {"shunted": partial(ShuntedTransformer, BOTH, 10), "one rate": partial(ShuntedTransformer, ONE, 10)}

on_validation = partial(from_scratch.on_validation, ARMS)
measure = partial(from_scratch.measured, ARMS, lr=RATE)


CLAIM = Claim(
    method="shunted",
    sentence="A vision transformer whose heads see keys merged at two rates is better than one whose heads all see "
    "keys merged at one rate, of as many parameters.",
    published="ImageNet-1k, 224 x 224: Shunted-T 79.8, S 82.9, B 84.0 (README of the authors' code). A figure for one "
    "rate at equal size is not at hand.",
    setting=f"{from_scratch.TRAINING}; the tiny Shunted Transformer (8 x 8 and 4 x 4 tokens, widths 64 and 128, two "
    "blocks each, rates 2 and 1 in the first stage, drop path 0.05) against the same with rate 2 for all heads there. "
    "One learning rate for both, the best on validation images for the network with one rate of merging, with a seed "
    "outside the claim.",
    data=("cifar10",),
    measure=measure,
    headline=Headline(
        product="shunted (%)", baseline="one rate (%)", says="two rates of merging over one, at as many parameters"
    ),
    checks=(
        Check(
            text="both have the same number of parameters to 2 %",
            value=lambda m: -abs(mean(m, "shunted, parameters") / mean(m, "one rate, parameters") - 1),
            bound=-0.02,
            exact=True,
        ),
    ),
)
