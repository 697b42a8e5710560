"""Networks that send spikes: how the rest of the package knows them, and what that means for comparing answers."""

from __future__ import annotations

from torch import nn


class Neurons(nn.Module):
    """Neurons that send spikes: each answers 0 or 1, by whether its potential lies above a threshold.

    So rounding may decide a spike, and with it an answer. Whoever asks whether two forwards of such a network are the
    same compares them in float64, or leaves a few samples out.
    """


def sends_spikes(module: nn.Module) -> bool:
    """Whether a network has :class:`Neurons` in it."""
    return any(isinstance(m, Neurons) for m in module.modules())
