"""MetaFormer baselines: one residual skeleton whose token mixer is exchangeable.

Yu et al.: MetaFormer Is Actually What You Need for Vision (arXiv:2111.11418) and MetaFormer Baselines for Vision
(arXiv:2210.13452). The skeleton, pooling, separable convolution and attention are timm's; here are what it lacks,
IdentityFormer and RandFormer, and tiny networks for images of 32 x 32. Departures of the tiny ones: the first layer is
a 3x3 convolution that keeps the size, there are three stages, and all share LayerNorm over channels and a linear
head, so that they differ in their mixers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from upcycle.core.errors import require
from upcycle.zoo.from_timm import import_timm

Shape = tuple[int, int, int]
S12 = {"depths": (2, 2, 6, 2), "dims": (64, 128, 320, 512)}
TINY = {"depths": (1, 1, 2), "dims": (24, 48, 96)}


class RandomMixing(nn.Module):
    """Replace each place of a map by a mean of all, with weights that are drawn once: y = R x.

    The rows of R (n, n) are the softmax of uniform numbers in [0, 1). R is state: it is saved, and never trained.

    Args:
        places: n = h w.
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places
        self.random_matrix: Tensor
        self.register_buffer("random_matrix", torch.rand(places, places).softmax(dim=-1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the places.

        Raises:
            UserError: there are more or fewer of them than the mixer was made for.
        """
        return F.linear(_counted(x.flatten(2), self.places), self.random_matrix).unflatten(2, x.shape[2:])


def _counted(x: Tensor, n: int) -> Tensor:
    found = x.shape[2]
    require(found == n, f"Random mixing was made for {n} places, not for {found}: give images of the size it has.")
    return x


fx.wrap("_counted")  # it asks for a size, which a traced forward does not know


class OnMaps(nn.Module):
    """Let a module that works on tokens (b, n, c) work on maps (b, c, h, w).

    Args:
        module: takes and gives tokens.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Give the module's tokens as a map."""
        return self.module(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class MapAttention(OnMaps):
    """Attention of CAFormer on maps, so that a map goes from block to block: timm's stage makes tokens of its map.

    Args:
        dim: channels, a multiple of 32.
    """

    def __init__(self, dim: int, **_: Any) -> None:
        super().__init__(import_timm().models.metaformer.Attention(dim))


def random_mixing(places: int) -> type[nn.Module]:
    """Make the mixer of a stage with so many places, as timm's skeleton wants it: a class."""

    class Mixing(RandomMixing):
        def __init__(self, **_: Any) -> None:
            super().__init__(places)

    return Mixing


def identityformer_s12(shape: Shape, num_classes: int) -> nn.Module:
    """IdentityFormer-S12: no mixer at all, so that tokens meet only in the downsampling between stages."""
    return _s12(shape, num_classes, [nn.Identity] * 4)


def randformer_s12(shape: Shape, num_classes: int) -> nn.Module:
    """RandFormer-S12: random mixing in stages 3 and 4, no mixer before. It takes the size of ``shape`` alone."""
    sizes = _sizes(shape[1:], (7, 4, 2), 4)
    mixers = [random_mixing(h * w) for h, w in sizes[2:]]
    return _s12(shape, num_classes, [nn.Identity, nn.Identity, *mixers])


def _s12(shape: Shape, num_classes: int, mixers: list[Any]) -> nn.Module:
    parts = import_timm().models.metaformer
    made: nn.Module = parts.MetaFormer(
        shape[0], num_classes, token_mixers=mixers, norm_layers=parts.GroupNorm1NoBias, use_mlp_head=False, **S12
    )
    return made


def tiny(*mixers: str) -> Callable[[Shape, int], nn.Module]:
    """Give the maker of a tiny network.

    Args:
        mixers: of the three stages: identity, random, pool, sepconv or attention.
    """
    return lambda shape, num_classes: _tiny(shape, num_classes, mixers)


def _tiny(shape: Shape, num_classes: int, mixers: tuple[str, ...]) -> nn.Module:
    parts = import_timm().models.metaformer
    sizes = _sizes(shape[1:], (3, 1, 1), 3)
    known: dict[str, Any] = {
        "identity": nn.Identity,
        "pool": parts.Pooling,
        "sepconv": parts.SepConv,
        "attention": MapAttention,
    }
    made: nn.Module = parts.MetaFormer(
        shape[0],
        num_classes,
        token_mixers=[
            known[m] if m in known else random_mixing(h * w) for m, (h, w) in zip(mixers, sizes, strict=True)
        ],
        norm_layers=parts.LayerNorm2dNoBias,
        res_scale_init_values=(None, None, 1.0),
        use_mlp_head=False,
        **TINY,
    )
    stem = nn.Conv2d(shape[0], TINY["dims"][0], 3, padding=1)
    nn.init.trunc_normal_(stem.weight, std=0.02)
    assert stem.bias is not None
    nn.init.zeros_(stem.bias)
    made.get_submodule("stem").conv = stem
    return made


def _sizes(size: tuple[int, int], stem: tuple[int, int, int], stages: int) -> list[tuple[int, int]]:
    """The size of the map in each stage; the first layer has (kernel, stride, padding), between stages it halves."""
    kernel, stride, padding = stem
    h, w = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    found = [(h, w)]
    for _ in range(stages - 1):
        h, w = -(-h // 2), -(-w // 2)
        found.append((h, w))
    return found


MAKERS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "identityformer_s12": identityformer_s12,
    "randformer_s12": randformer_s12,
    "identityformer_tiny": tiny("identity", "identity", "identity"),
    "randformer_tiny": tiny("identity", "random", "random"),
    "poolformer_tiny": tiny("pool", "pool", "pool"),
    "convformer_tiny": tiny("sepconv", "sepconv", "sepconv"),
    "caformer_tiny": tiny("sepconv", "sepconv", "attention"),
}
"""By name in the zoo. PoolFormer, ConvFormer and CAFormer of the papers' sizes are ``timm:``."""
