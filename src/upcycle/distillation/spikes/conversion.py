"""Naive conversion: the weights of an ordinary network in a spiking one, scaled so that rates stand for activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.frozen import fold_batchnorm
from upcycle.core.models import Model, copy_of
from upcycle.core.taps import Call, observed
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.spikes.rates import percentile
from upcycle.zoo.spiking import LIF, Reset, Spiking

LAYERS = (nn.Conv2d, nn.Linear)


@torch.no_grad()
def converted(
    teacher: Model, like: Spiking, images: Tensor, layers: Sequence[str], q: float = 99.9, reset: Reset = "zero"
) -> Spiking:
    """A copy of ``like`` with the weights of ``teacher``, on neurons that do not leak (IF) with threshold 1.

    BatchNorms are folded, and with P_l the q-th percentile of the activations of layer l

        W_l ← W_l P_{l-1} / P_l,  b_l ← b_l / P_l,  P_0 = 1, and P = 1 for the logits.

    Nothing is trained. Scaling by a percentile of the data is that of Rueckauer et al. (Front. Neurosci. 11:682, 2017);
    that the image is a constant current, as theirs too.

    Args:
        teacher: a network of convolutions and linear layers, one behind the other, with ReLUs between.
        like: a spiking network of the same shape.
        images: as the teacher sees them, (b, c, h, w), for the percentiles.
        layers: the teacher's activations, see :func:`upcycle.distillation.spikes.layers.copied`.
        q: the percentile.
        reset: of the neurons; subtract keeps what exceeds the threshold.

    Raises:
        ValueError: layers of other shapes.
    """
    folded = replace(teacher, module=fold_batchnorm(teacher.module)[0])
    theirs: list[Any] = [call.module for call in observed(folded, images, kind=LAYERS) if call.name]
    made: Any = copy_of(like)
    ours: list[Any] = [m for m in made.modules() if isinstance(m, LAYERS)]  # in their order, the readout last
    if [m.weight.shape for m in theirs] != [m.weight.shape for m in ours]:
        raise ValueError(f"{teacher.name} and the spiking network have layers of other shapes")
    with undisturbed(teacher.module):
        seen: list[Call] = observed(teacher, images)
    outputs = {call.name: call.output for call in seen}
    P = [1.0, *(float(percentile(outputs[name], q)) for name in layers), 1.0]
    for i, (source, layer) in enumerate(zip(theirs, ours, strict=True)):
        layer.weight.copy_(source.weight * (P[i] / P[i + 1]))
        layer.bias.copy_(0 if source.bias is None else source.bias / P[i + 1])
    made.neurons = nn.ModuleList(LIF(tau=float("inf"), theta=1.0, reset=reset) for _ in made.neurons)
    return made
