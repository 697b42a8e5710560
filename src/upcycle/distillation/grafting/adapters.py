"""1x1 maps between a block's width and another one's, and their merging into the layers that follow."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from upcycle.core.cut import describe
from upcycle.core.errors import UserError, require
from upcycle.core.layers import base_of

TOLERANCE = 1e-5
"""Largest relative error between a student with adapters and the one that they are merged into."""


def adapter(channels: int, to: int, ndim: int) -> nn.Module:
    """s2t or t2s: a bias-free 1x1 convolution (``ndim`` 4) or linear map (2); nothing where widths are equal.

    Kaiming normal over the outgoing connections, as the paper has it. Bias-free, so that merging it into a
    zero-padded convolution is exact up to the border.
    """
    if channels == to:
        return nn.Identity()
    made = nn.Conv2d(channels, to, 1, bias=False) if ndim == 4 else nn.Linear(channels, to, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class WrappedBlock(nn.Module):
    """H_l = s2t_l ∘ h_l ∘ t2s_{l-1}: a student's block that fits where the teacher's block l was."""

    def __init__(self, t2s: nn.Module, h: nn.Module, s2t: nn.Module) -> None:
        super().__init__()
        self.t2s, self.h, self.s2t = t2s, h, s2t

    def forward(self, x: Tensor) -> Tensor:
        return self.s2t(self.h(self.t2s(x)))


_PASSES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
_PASS_CALLS: dict[str, tuple[Any, ...]] = {
    "call_function": (F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten, torch.mean),
    "call_method": ("flatten", "view", "reshape", "mean"),
}


def merge_map(piece: fx.GraphModule, m: Float[Tensor, "c c"]) -> None:
    """Change a block's first layers, in place, so that it does to x what it did to M x (over channels).

    W'[o, i, ...] = Σ_j W[o, j, ...] M[j, i] in every convolution or linear layer that meets the block's
    input, perhaps behind average pooling or flattening, which commute with M. The arithmetic is float64.

    Raises:
        UserError: something else meets the input first.
    """
    for layer in _first_layers(piece):
        with torch.no_grad():
            w = layer.weight
            require(w[0].numel() % len(m) == 0, f"its linear layer does not take {len(m)} channels")
            by_channel = w.double().reshape(len(w), len(m), -1)
            w.copy_(torch.einsum("ojp,ji->oip", by_channel, m.to(by_channel)).reshape(w.shape))


def _first_layers(piece: fx.GraphModule) -> list[nn.Conv2d | nn.Linear]:
    found: dict[str, nn.Conv2d | nn.Linear] = {}
    waiting = [next(iter(piece.graph.nodes))]
    while waiting:
        for user in waiting.pop().users:
            m = piece.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(m, nn.Linear | nn.Conv2d) and _mixes(m):
                found[str(user.target)] = m
            elif isinstance(m, _PASSES) or user.target in _PASS_CALLS.get(user.op, ()):
                waiting.append(user)
            elif (user.op, user.target) != ("call_method", "size"):  # only numbers come of it
                what = "the end of the block" if user.op == "output" else describe(user)
                kind = f" ({type(m).__name__})" if m is not None else ""
                raise UserError(f"its input meets {what}{kind} before any ungrouped convolution or linear layer")
    return list(found.values())


def _mixes(m: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer is linear in its weight and mixes all channels."""
    base = base_of(m, repadded=True)
    return base is nn.Linear or (base is nn.Conv2d and getattr(m, "groups", 1) == 1)


def relative_error(found: Tensor, right: Tensor) -> float:
    """The largest difference over the largest value."""
    return ((found - right).abs().max() / right.abs().max().clamp_min(1e-30)).item()


def unmergeable(piece: fx.GraphModule, x: Tensor) -> str | None:
    """Say why a map of the channels of ``x`` cannot be merged into ``piece``, after trying one on a copy."""
    x, c = x.double(), x.shape[1]
    m = torch.randn(c, c, dtype=torch.float64, device=x.device) / math.sqrt(c)
    trial = copy.deepcopy(piece).double().eval()
    right = trial(torch.einsum("ji,bi...->bj...", m, x))
    try:
        merge_map(trial, m)
    except UserError as error:
        return str(error)
    same = relative_error(trial(x.clone()), right) <= TOLERANCE
    return None if same else "its first layer is also used otherwise"


def merge(blocks: Iterable[fx.GraphModule], wrapped: Mapping[int, WrappedBlock]) -> list[int]:
    """Merge every pair of adapters, M = W_t2s W_s2t, into the block that follows it.

    Args:
        blocks: of the student, in place.
        wrapped: the trained ones by number, from 1, with their adapters.

    Returns:
        the numbers of the blocks after which there were adapters.
    """
    after = []
    for i, piece in enumerate(blocks, 1):
        pair = [wrapped[i].t2s, wrapped[i - 1].s2t] if {i - 1, i} <= {*wrapped} else []
        weights = [m.weight.detach().double().flatten(1) for m in pair if isinstance(m, nn.Conv2d | nn.Linear)]
        if weights:
            merge_map(piece, weights[0] @ weights[1])
            after.append(i - 1)
    return after
