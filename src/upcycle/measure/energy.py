"""The operations of a network that sends spikes, and an estimate of the energy that arithmetic takes.

A layer that spikes enter multiplies nothing: each spike adds one weight for each synapse that it meets. So what such a
network costs on a device that computes with spikes depends on how many there are, and is measured on real samples.

The energies are those of 32-bit floating point in a 45 nm process (Horowitz, "Computing's energy problem", ISSCC 2014):
0.9 pJ an addition and 3.7 pJ a multiplication. Memory, the neurons' own update and everything else are left out, which
on real devices may be most of it: the figure ranks networks, and promises nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upcycle.core.models import Model
from upcycle.core.taps import Call, observed

ADDITION, MULTIPLICATION = 0.9e-12, 3.7e-12
"""Joules of one operation."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Work of the layers of a network for one sample; convolutions and linear layers count.

    Args:
        additions: synaptic operations: one for each spike and synapse that it meets.
        macs: multiply-adds, of layers that other numbers than spikes enter.
    """

    additions: float
    macs: float

    @property
    def joules(self) -> float:
        """The energy of their arithmetic."""
        return self.additions * ADDITION + joules_of(self.macs)


def joules_of(macs: float) -> float:
    """The energy of so many multiply-adds."""
    return macs * (ADDITION + MULTIPLICATION)


def operations(model: Model, samples: Tensor) -> Operations:
    """Count the operations of one forward, for each sample.

    What enters a layer are spikes where it is 0 or 1 throughout. A current that stays the same, such as an image's,
    is computed once, as it is here.

    Args:
        model: a network of layers that are modules.
        samples: real ones, as the network takes them.
    """
    return _counted(observed(model, samples, kind=LAYERS), len(samples))


def _counted(calls: Iterable[Call], n: int) -> Operations:
    additions = macs = 0.0
    for call in calls:
        if isinstance(call.module, LAYERS):
            if bool(((call.input == 0) | (call.input == 1)).all()):
                additions += _met(call.module, call.input)
            else:
                macs += call.output.numel() * call.module.weight[0].numel()
    return Operations(additions=additions / n, macs=macs / n)


@torch.no_grad()
def _met(layer: nn.Module, spikes: Tensor) -> float:
    """The synapses that all spikes meet together: what the layer gives where each of its weights is 1."""
    ones = copy.deepcopy(layer)
    for name, p in ones.named_parameters():
        p.fill_(name == "weight")
    return float(ones(spikes).double().sum())
