"""What a layer computes, whatever its class: torch's own function of its own weight and bias, or something else.

Libraries refine torch's layers without harm: timm's ``Linear`` adds a line for TorchScript, and somebody's ``Conv2d`` a
name. Others compute their weight (``ScaledStdConv2d``, weight norm, adapters), so that what is read from it or written
into it is not what the layer does. A class does not say which; the layer does, when it is asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.undisturbed import undisturbed

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-5
"""Largest error of a layer against torch's function, of its largest output; that of half precision is ten times it."""


def base_of(m: nn.Module, *, repadded: bool = False) -> type[nn.Module] | None:
    """The layer of torch that ``m`` is or refines without harm: linear, convolution or BatchNorm; ``None`` otherwise.

    Without harm is a layer that holds only the parameters of its base, and answers as its base does with them. A
    subclass is asked in evaluation mode, on small random inputs and past its hooks; a layer of torch's own class is
    not asked.

    Args:
        repadded: count also a convolution that fills its images with zeros by itself, until there are ceil(n / stride)
            outputs (TensorFlow's "same", as timm's ``Conv2dSame``): what it does to channels is the same.
    """
    base = next((kind for kind in (*LAYERS, *NORMS) if isinstance(m, kind)), None)
    if base is None or not _holds_no_more(m, base):
        return None
    if type(m) is base or _answers(m, base, same=False):
        return base
    return base if repadded and base is nn.Conv2d and _answers(m, base, same=True) else None


def padded(m: nn.Conv2d, x: Tensor) -> Tensor | None:
    """``x`` (b, c, h, w) as the kernel of ``m`` meets it; ``None`` where torch's padding by zeros says it all."""
    if type(m) is not nn.Conv2d and base_of(m) is None and base_of(m, repadded=True) is not None:
        return _same(m, x)
    if isinstance(m.padding, str) or m.padding_mode != "zeros":
        return F.pad(x, m._reversed_padding_repeated_twice, mode=_mode(m))
    return None


def _holds_no_more(m: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a layer has its own weight and bias, and nothing beside them."""
    buffers = {"running_mean", "running_var", "num_batches_tracked"} if base in NORMS else set()
    weight = "weight" in m._parameters and (base in NORMS or m._parameters["weight"] is not None)
    return weight and not m._modules and {*m._parameters} <= {"weight", "bias"} and {*m._buffers} <= buffers


def _answers(m: nn.Module, base: type[nn.Module], *, same: bool) -> bool:
    """Whether a layer answers as torch's function of its parameters does (``same``: on an image that is padded so)."""
    try:
        with undisturbed(m), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(
                _close(m.forward(x), _function(m, base, _same(m, x) if same else x, same)) for x in _inputs(m, base)
            )
    except Exception:  # whatever a stranger's forward does with such an input
        return False


def _inputs(m: Any, base: type[nn.Module]) -> Iterator[Tensor]:
    """Two inputs of different size, of the layer's number format."""
    like = next((t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    dim = 0 if base is nn.Linear else int(base.__name__[-2])
    channels = m.in_features if base is nn.Linear else m.num_features if base in NORMS else m.in_channels
    for more in (0, 1):
        if base in NORMS or base is nn.Linear:
            spatial = [2 + more] * dim
        else:
            sizes = zip(m.kernel_size, m.dilation, m.stride, strict=True)
            spatial = [(k - 1) * d + 1 + s + more for k, d, s in sizes]
        yield torch.randn(2 + more, channels, *spatial, generator=generator).to(like)


def _function(m: Any, base: type[nn.Module], x: Tensor, unpadded: bool) -> Tensor:
    """Torch's function of the layer's parameters; ``unpadded``: ``x`` is filled already."""
    if base is nn.Linear:
        return F.linear(x, m.weight, m.bias)
    if base in NORMS:
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, m.running_mean is None, 0.0, m.eps)
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[len(m.kernel_size) - 1]
    padding = m.padding
    if unpadded:
        padding = 0
    elif m.padding_mode != "zeros":
        x, padding = F.pad(x, m._reversed_padding_repeated_twice, mode=m.padding_mode), 0
    return conv(x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)


def _mode(m: nn.Conv2d) -> str:
    return "constant" if m.padding_mode == "zeros" else m.padding_mode


def _same(m: Any, x: Tensor) -> Tensor:
    """An image filled with zeros, the odd one behind, until a convolution gives ceil(n / stride) places."""
    fill: list[int] = []
    for n, k, d, s in zip(x.shape[:1:-1], m.kernel_size[::-1], m.dilation[::-1], m.stride[::-1], strict=True):
        missing = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        fill += [missing // 2, missing - missing // 2]
    return F.pad(x, fill)


def _close(found: Any, right: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != right.shape:
        return False
    wide = right.dtype in (torch.float32, torch.float64)
    error = (found - right).abs().max().float()
    return bool(error <= TOLERANCE * (1 if wide else 10) * right.abs().max().float().clamp_min(1e-30))
