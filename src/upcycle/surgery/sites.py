"""Where a scale and a shift may go: behind linear-like layers and normalisations, and how they fold into these."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from upcycle.core.errors import require, unknown
from upcycle.core.heads import classifier
from upcycle.core.layers import base_of
from upcycle.core.models import Model
from upcycle.core.undisturbed import undisturbed

Mode = Literal["fused", "weights", "output"]
FUSED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)
_SHIFTED = (nn.Linear, _ConvNd, nn.LayerNorm, nn.GroupNorm, _BatchNorm)
"""Layers whose forward adds a bias as soon as there is one."""


@dataclass(eq=False)
class Site:
    """A layer whose output is scaled and shifted.

    Args:
        name: of the layer in its network.
        module: the layer.
        channels: C of its output.
        axis: of the channels in its output, from the end: it follows from the layer's type, never from sizes.
        weight: the name of the parameter that γ folds into.
        biases: what β folds into: the module, its parameter, and which of the C channels that holds. Empty where the
            layer has no bias.
        mode: how it is computed in training, see :mod:`upcycle.adaptation.adapters.scale_shift`.
        kept: why it cannot be folded; nothing if it can.
    """

    name: str
    module: nn.Module
    channels: int
    axis: int
    weight: str
    biases: tuple[tuple[nn.Module, str, slice], ...]
    mode: Mode = "weights"
    kept: str = ""


def site(network: nn.Module, name: str, *, create: bool = False) -> Site | None:
    """Take the layer ``name`` as a place for a scale and a shift; ``None`` for one of another kind.

    Linear layers, convolutions, and normalisations with a weight for each channel. ``nn.MultiheadAttention`` is its
    projection of queries, keys and values. timm's attentions with ``q_bias`` and ``v_bias`` but no bias of the keys
    take two thirds of the shift: with dot products, softmax does not see the third.

    Args:
        create: also norms without weights, and count a bias that is not there but can be made.
    """
    m, weight, bias = network.get_submodule(name), "weight", "bias"
    if isinstance(m, nn.Linear):
        channels, axis = m.out_features, -1
    elif isinstance(m, _ConvNd):
        channels, axis = m.out_channels, -1 - len(m.kernel_size)
    elif isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None:
        weight, bias, channels, axis = "in_proj_weight", "in_proj_bias", 3 * m.embed_dim, -1
    elif isinstance(m, _NORMS) or "rmsnorm" in type(m).__name__.lower():
        if not (found := _channels(m, create)):
            return None
        channels, axis = found, -1  # the axis is read by nobody: a norm is scaled through its weight
    else:
        return None
    parent = network.get_submodule(name.rpartition(".")[0])
    if name.endswith("qkv") and isinstance(getattr(parent, "q_bias", None), nn.Parameter):
        d = channels // 3
        halves = ((parent, "q_bias", slice(0, d)), (parent, "v_bias", slice(2 * d, channels)))
        return Site(name, m, channels, axis, weight, halves)
    whole = ((m, bias, slice(0, channels)),)
    has_shift = m._parameters.get(bias) is not None or (create and isinstance(m, _SHIFTED))
    return Site(name, m, channels, axis, weight, whole if has_shift else ())


def _channels(norm: nn.Module, create: bool) -> int | None:
    """Of a norm with a weight for each channel, or, to ``create``, with none at all."""
    weight = norm._parameters.get("weight")
    if weight is not None:
        return len(weight) if weight.ndim == 1 else None
    if not create or getattr(norm, "weight", None) is not None:
        return None
    shape = getattr(norm, "normalized_shape", ())
    return getattr(norm, "num_features", None) or getattr(norm, "num_channels", None) or (*shape, None)[0]


def scale_weight(m: nn.Module, weight: Tensor | None, gamma: Float[Tensor, " c"]) -> Tensor:
    """Scale the weight of ``m`` by γ along its output channels; without a weight it is γ."""
    if weight is None:
        return gamma
    if isinstance(m, _ConvTransposeNd):  # (inputs, outputs / groups, ...), the groups along the inputs
        by_group = weight.unflatten(0, (m.groups, -1))
        return (by_group * gamma.view(m.groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)
    return weight * gamma.view(-1, *[1] * (weight.ndim - 1))


def shift_bias(bias: Tensor | None, gamma: Float[Tensor, " c"], beta: Float[Tensor, " c"] | None) -> Tensor | None:
    """Scale and shift a bias to γ b + β, where b or β may be missing."""
    if bias is None:
        return beta
    return gamma * bias if beta is None else torch.addcmul(beta, gamma, bias)


@torch.no_grad()
def fold(where: Site, gamma: Float[Tensor, " c"], beta: Float[Tensor, " c"] | None) -> None:
    """Replace the layer's parameters by γ W and γ b + β, computed in float32 at least; missing ones are made."""
    m, g = where.module, _wide(gamma)

    _set(m, where.weight, scale_weight(m, _parameter(m, where.weight), g), gamma)
    for owner, name, part in where.biases:
        shift = None if beta is None else _wide(beta)[part]
        _set(owner, name, shift_bias(_parameter(owner, name), g[part], shift), gamma)


def _parameter(owner: nn.Module, name: str) -> Tensor | None:
    p = owner._parameters.get(name)
    return None if p is None else _wide(p)


def _set(owner: nn.Module, name: str, value: Tensor | None, like: Tensor) -> None:
    """Put ``value`` in place of a parameter, in its number format; a missing one is made in that of ``like``."""
    if value is None:
        return
    old = owner._parameters.get(name)
    asks = old is None or old.requires_grad
    setattr(owner, name, nn.Parameter(value.to(like if old is None else old), requires_grad=asks))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# -- which sites a network has ----------------------------------------


def sites(model: Model, patterns: tuple[str, ...] = (), *, create: bool = False) -> list[Site]:
    """List the sites of a network, in the order of its modules; one batch in evaluation mode shows how each is used.

    Args:
        model: the network; its classifier is never a site.
        patterns: of module names, as in a shell. None: behind every linear-like layer and every normalisation that
            takes part, except layers that feed a BatchNorm directly, since that has one, and sites that cannot be
            folded.
        create: see :func:`site`.

    Raises:
        UserError: a pattern that fits no site, or a network without sites.
    """
    network, head = model.module, classifier(model)
    named = {n: m for n, m in network.named_modules() if n and n != head}
    candidates = {n: s for n in named if (s := site(network, n, create=create)) is not None}
    require(bool(candidates), f"{model.name} has no linear layer, convolution or normalisation but its classifier.")
    for pattern in patterns:
        if not fnmatch.filter(candidates, pattern):
            raise unknown("layer to scale and shift", pattern, candidates)
    used, feeding = _look(model, candidates)
    if patterns:
        return [s for n, s in used.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
    return [s for n, s in used.items() if n not in feeding and not s.kept]


def _look(model: Model, candidates: dict[str, Site]) -> tuple[dict[str, Site], set[str]]:
    """The sites that take part, with their modes, and the names of those whose output a BatchNorm takes as it is."""
    network = model.module
    calls: dict[str, tuple[tuple[Any, ...], Any, int]] = {}  # arguments, output and its version
    into_norm: list[Tensor] = []

    def called(name: str, arguments: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor):
            calls[name] = (arguments, out, out._version)
        if isinstance(candidates[name].module, _BatchNorm):
            into_norm.append(arguments[0])

    hooks = [
        s.module.register_forward_hook(lambda m, i, out, name=name: called(name, i, out))
        for name, s in candidates.items()
    ]
    asked = [(p, p.requires_grad) for p in network.parameters()]
    weights = {n: w for n, s in candidates.items() if (w := s.module._parameters.get(s.weight)) is not None}
    try:
        with undisturbed(network), torch.enable_grad():
            network.requires_grad_(True)
            example = model.example()
            like = next(iter(network.parameters()))
            z = network(example.to(like))
            reached = torch.autograd.grad(z.sum(), [*weights.values(), z], allow_unused=True)[:-1]
    finally:
        for hook in hooks:
            hook.remove()
        for p, flag in asked:
            p.requires_grad_(flag)
    takes_part = {n for n, g in zip(weights, reached, strict=True) if g is not None} | (calls.keys() - weights.keys())
    owners = Counter(id(p) for m in network.modules() for p in m._parameters.values())
    used = {n: s for n, s in candidates.items() if n in takes_part}
    for name, s in used.items():
        _decide(s, calls.get(name), owners)
    normed = {id(x) for x in into_norm}
    linear = {n for n in used if not _is_norm(used[n])}
    return used, {n for n in linear & calls.keys() if id(calls[n][1]) in normed}


def _is_norm(s: Site) -> bool:
    return not isinstance(s.module, nn.Linear | _ConvNd | nn.MultiheadAttention)


def _decide(s: Site, call: tuple[tuple[Any, ...], Any, int] | None, owners: Counter[int]) -> None:
    """Set the mode of a site, and why it cannot be folded."""
    m = s.module
    own = [m._parameters.get(s.weight), *(owner._parameters.get(name) for owner, name, _ in s.biases)]
    norm, elsewhere = _is_norm(s), any(owner is not m for owner, _, _ in s.biases)
    if own[0] is None and not norm:
        s.kept = "its weight is computed from other parameters"
    elif any(p is not None and owners[id(p)] > 1 for p in own):
        s.kept = "its weight is used in another layer too"
    elif not norm and call is not None and base_of(m) not in FUSED and not _is_linear(s, call):
        s.kept = f"{type(m).__name__} does not scale with its weight"
    overwritten = call is not None and call[1]._version > call[2]  # its output cannot be kept
    plain = not isinstance(m, _ConvNd) or (m.padding_mode == "zeros" and not isinstance(m.padding, str))
    if norm or call is None or elsewhere or (overwritten and not s.kept):
        s.mode = "weights"
    else:
        s.mode = "fused" if base_of(m) in FUSED and plain and not s.kept else "output"


@torch.no_grad()
def _is_linear(s: Site, call: tuple[tuple[Any, ...], Any, int]) -> bool:
    """Whether folding does to the layer's output what scaling and shifting does: asked of the layer itself."""
    m, (arguments, _, _) = s.module, call
    weight, bias = m._parameters[s.weight], m._parameters.get("bias")
    assert weight is not None
    gamma = torch.linspace(0.5, 1.5, s.channels).to(weight)
    beta = torch.linspace(-1, 1, s.channels).to(weight)
    folded = {"weight": scale_weight(m, weight, gamma)}
    if bias is not None:
        folded["bias"] = torch.addcmul(beta, gamma, bias)
    y, found = m(*arguments), torch.func.functional_call(m, folded, arguments)
    shape = [-1] + [1] * (-1 - s.axis)
    expected = y * gamma.view(shape) + (0 if bias is None else beta.view(shape))
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
