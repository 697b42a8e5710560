"""Tiny networks of spikes and the ordinary ones that they copy, for the promises."""

from __future__ import annotations

from typing import Any

import torch

from upcycle.core.models import Model
from upcycle.zoo.spiking import Capped, Plan, Spiking, spiking

TINY: Plan = (((4, 1), (8, 2)), (12,))
SHAPE = (1, 8, 8)


def tiny_spiking(seed: int = 100, **options: Any) -> Spiking:
    """Two convolutions and a linear layer, 4 steps."""
    torch.manual_seed(seed)
    return spiking(SHAPE, 10, TINY, **{"time_steps": 4, **options})


def tiny_capped(seed: int = 7) -> Capped:
    """The same with BatchNorm and capped ReLUs."""
    torch.manual_seed(seed)
    return Capped(SHAPE, 10, TINY).eval()


def model(module: torch.nn.Module, name: str) -> Model:
    """A network for digits."""
    return Model(module=module, input_shape=SHAPE, mean=(0.3,), std=(0.4,), classes=tuple("0123456789"), name=name)


def spiking_networks() -> dict[str, Model]:
    """The teacher and the student of a row."""
    from tests.settings import seen

    return {"teacher": seen(model(tiny_capped(), "teacher")), "student": model(tiny_spiking(), "student")}
