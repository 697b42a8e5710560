"""Ingredients of training that serve several verbs and stand on their own in a training loop of yours."""

from upcycle.training.esam import Sharp, perturbation, sharpest
from upcycle.training.simultaneous import (
    HINGE,
    LSGAN,
    NON_SATURATING,
    PAIRS,
    SATURATING,
    WGAN,
    OneStage,
    Pair,
    one_stage,
    ratio,
    scale_backward,
)

__all__ = [
    "HINGE",
    "LSGAN",
    "NON_SATURATING",
    "PAIRS",
    "SATURATING",
    "WGAN",
    "OneStage",
    "Pair",
    "Sharp",
    "one_stage",
    "perturbation",
    "ratio",
    "scale_backward",
    "sharpest",
]
