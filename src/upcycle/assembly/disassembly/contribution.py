"""Contributions of a layer's inputs to its outputs, as Model LEGO (arXiv:2203.13453) defines them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.layers import padded

EPSILON = 1e-5
"""In the denominator of every min-max, as in the official code."""


def contribution_conv(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i u v"],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b o i"]:
    """Contribution of input channel p to the spatial sum of output channel k: Σ_{h,w} (W[k,p] * x[b,p])[h,w], signed.

    With Z of :func:`tap_sums` this is Σ_{u,v} W[k,p,u,v] Z[b,p,u,v], so no map of one pair of channels is ever made.
    Bias is ignored: summed over p, and with h' w' times the bias, it is the spatial sum of the layer's output.

    The relative contribution of arXiv:2203.13453 takes its positive part, after the spatial sum.
    """
    z = tap_sums(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    return torch.einsum("bit,oit->boi", z.flatten(2), weight.flatten(2))


def contribution_linear(x: Float[Tensor, "b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "b o i"]:
    """Contribution of input p to output k of a linear layer: W[k,p] x[b,p], signed; see :func:`contribution_conv`."""
    return x[:, None] * weight


def tap_sums(
    x: Float[Tensor, "b i h w"],
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b i u v"]:
    """Sum the input under tap (u, v) of a kernel of ``size`` over the output positions: Z[b,p,u,v].

    Taps are separable, so it is R x Cᵀ with 0/1 matrices R (u, h) and C (v, w) that say how often a tap sees a row.
    """
    rows, columns = (
        _seen(n, *of).to(x)
        for n, of in zip(x.shape[2:], zip(size, stride, padding, dilation, strict=True), strict=True)
    )
    return rows @ (x @ columns.T)


def _seen(n: int, size: int, stride: int, padding: int, dilation: int) -> Float[Tensor, "u n"]:
    """1 where a tap of a one-dimensional kernel meets one of ``n`` places, 0 elsewhere."""
    count = (n + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    places = torch.arange(count) * stride - padding + dilation * torch.arange(size)[:, None]
    return (places[:, :, None] == torch.arange(n)).sum(1).float()


def summed_contribution(z: Float[Tensor, "b i t"], weight: Float[Tensor, "o i t"]) -> Float[Tensor, "o i"]:
    """Sum positive contributions over samples, S[k,p] = Σ_b relu(Σ_t W[k,p,t] Z[b,p,t]), in chunks of samples.

    A linear layer has one tap, and Z is its input.

    With one tap the samples need not be told apart: relu(W Z) = relu(W) relu(Z) + relu(-W) relu(-Z).
    """
    if z.shape[2] == 1:
        z, w = z[:, :, 0], weight[:, :, 0]
        return w.relu() * z.relu().sum(0) + (-w).relu() * (-z).relu().sum(0)
    w = weight.permute(1, 2, 0)
    total = z.new_zeros(len(w), weight.shape[0])
    for part in z.transpose(0, 1).split(max(2**24 // total.numel(), 1), dim=1):
        total += torch.bmm(part, w).relu_().sum(1)
    return total.T


def relative(s: Float[Tensor, "*k p"]) -> Float[Tensor, "*k p"]:
    """Scale by min-max over the last axis: (s - min) / (max - min + 1e-5)."""
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    return (s - low) / (high - low + EPSILON)


def layer_tap_sums(m: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "b i t"]:
    """Z of :func:`tap_sums` for a layer and its input, in the layer's own padding; of a linear layer the input."""
    if isinstance(m, nn.Linear):
        return x[:, :, None]
    filled = padded(m, x)
    if filled is not None:
        return tap_sums(filled, m.kernel_size, m.stride, (0, 0), m.dilation).flatten(2)  # type: ignore[arg-type]
    return tap_sums(x, m.kernel_size, m.stride, m.padding, m.dilation).flatten(2)  # type: ignore[arg-type]
