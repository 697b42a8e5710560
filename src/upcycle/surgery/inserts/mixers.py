"""Token mixers of MetaFormer, which stand for the mixer of a trained block: its attention, or its convolution.

Yu et al.: MetaFormer Is Actually What You Need for Vision (arXiv:2111.11418) and MetaFormer Baselines for Vision
(arXiv:2210.13452). What stands around the mixer (normalisation, residual) stays the network's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from upcycle.core.errors import require
from upcycle.surgery.inserts.base import Block, How, Kind, Place, Start
from upcycle.surgery.signals import Signal
from upcycle.zoo.from_timm import import_timm
from upcycle.zoo.metaformer import OnMaps, RandomMixing


def _places(s: Signal) -> int:
    return s.size[0] * s.size[1]


def _metaformer() -> Any:
    return import_timm().models.metaformer


def pool(place: Place, how: How, start: Start, *, size: int = 3) -> nn.Module:
    """Mean over the neighbours minus the value itself, which the block's residual adds back (PoolFormer).

    Args:
        size: the side of the window, an odd number; places outside the map do not count.
    """
    require(size >= 3 and size % 2 == 1, f"size must be an odd number from 3 on, and it is {size}.")
    made: nn.Module = _metaformer().Pooling(size)
    return made


def identity(place: Place, how: How, start: Start) -> nn.Module:
    """No mixing at all (IdentityFormer)."""
    return nn.Identity()


def random(place: Place, how: How, start: Start) -> nn.Module:
    """Means over all places by weights that are drawn once and never trained (RandFormer), for one size of map."""
    return RandomMixing(_places(place.takes))


def sepconv(place: Place, how: How, start: Start, *, expansion: int = 2, kernel: int = 7) -> nn.Module:
    """Widen, filter each channel by itself, narrow: the separable convolution of ConvFormer.

    Args:
        expansion: how much wider it is inside.
        kernel: the side of the filter, an odd number.
    """
    require(expansion >= 1, f"expansion must be at least 1, and it is {expansion}.")
    require(kernel >= 1 and kernel % 2 == 1, f"kernel must be an odd number from 1 on, and it is {kernel}.")
    made: nn.Module = _metaformer().SepConv(
        place.takes.channels, expansion_ratio=expansion, kernel_size=kernel, padding=kernel // 2
    )
    return made


def attention(place: Place, how: How, start: Start, *, head: int = 32) -> nn.Module:
    """Multi-head self-attention without biases, as in stages 3 and 4 of CAFormer.

    Args:
        head: channels of a head, a divisor of the place's.

    Raises:
        UserError: channels that heads of this width do not divide.
    """
    c = place.takes.channels
    require(
        head >= 1 and c % head == 0,
        f"head must divide the {c} channels at {place.name}, and it is {head}.",
    )
    made: nn.Module = _metaformer().Attention(c, head_dim=head)
    return OnMaps(made) if place.takes.layout == "map" else made


def _sepconv_parameters(s: Signal, expansion: int = 2, kernel: int = 7) -> int:
    wide = expansion * s.channels
    return 2 * s.channels * wide + kernel**2 * wide + 2


def _sepconv_macs(s: Signal, expansion: int = 2, kernel: int = 7) -> int:
    wide = expansion * s.channels
    return _places(s) * (2 * s.channels * wide + kernel**2 * wide)


def _attention_macs(s: Signal, head: int = 32) -> int:
    n, c = s.extra + _places(s), s.channels
    return 4 * n * c * c + 2 * n * n * c


EVERY: tuple[Kind, ...] = ("map", "tokens")
"""Class tokens are tokens like others."""
PLACED: tuple[Kind, ...] = ("map", "square")
"""Class tokens have no place, and are left as they are."""


def _mixer(
    name: str, summary: str, kinds: tuple[Kind, ...], make: Any, parameters: Callable[..., int], macs: Any
) -> Block:
    return Block(
        name=name,
        summary=summary,
        paper="Yu et al.; arXiv:2111.11418, arXiv:2210.13452",
        kinds=kinds,
        how="replace",
        make=make,
        parameters=parameters,
        macs=macs,
    )


MIXERS = (
    _mixer(
        "pool",
        "means over neighbours, without weights (PoolFormer)",
        PLACED,
        pool,
        lambda s, size=3: 0,
        lambda s, size=3: 0,
    ),
    _mixer("identity", "no mixing at all (IdentityFormer)", EVERY, identity, lambda s: 0, lambda s: 0),
    _mixer(
        "random",
        "means over all places by drawn weights, for one size (RandFormer)",
        PLACED,
        random,
        lambda s: 0,
        lambda s: s.channels * _places(s) ** 2,
    ),
    _mixer(
        "sepconv",
        "a wide depthwise convolution between two 1x1 ones (ConvFormer)",
        PLACED,
        sepconv,
        _sepconv_parameters,
        _sepconv_macs,
    ),
    _mixer(
        "attention",
        "self-attention of heads of 32 channels (CAFormer)",
        EVERY,
        attention,
        lambda s, head=32: 4 * s.channels**2,
        _attention_macs,
    ),
)
