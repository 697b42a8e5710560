"""Decision routes of Model LEGO (arXiv:2203.13453): which channels of each layer a class needs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.assembly.disassembly.contribution import relative
from upcycle.assembly.disassembly.meters import ContributionMeter, GradientMeter, Meter
from upcycle.core.models import copy_of
from upcycle.surgery.channels import Channels

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit

MEMORY = 2**28
"""Bytes of contributions that are held at once, for as many classes as fit."""

Score = Literal["contribution", "gradient"]


def _above(s: Float[Tensor, " p"], threshold: float) -> Bool[Tensor, " p"]:
    """Mark what is relatively large; the largest ones where nothing is, for a route must not end."""
    mask = relative(s) > threshold
    return mask if mask.any() else s == s.max()


def contribution_route(
    channels: Channels,
    s: Mapping[str, Float[Tensor, "o i"]],
    target: int,
    alpha: Mapping[str, float],
    beta: Mapping[str, float],
) -> Bool[Tensor, " n"]:
    """Decision route of one class, by backward accumulation from its logit to the first layer.

    A = 1 where the relative contribution exceeds alpha; v[p] = Σ_k m[k] A[k,p] over the wanted outputs k; input p is
    wanted where the min-max of v exceeds beta. A channel with several consumers is wanted when one of them wants it,
    and so is whatever a sum couples to it. Grouped convolutions want what is wanted of them. Where nothing would be
    left, the largest stay.

    Args:
        channels: those of the network.
        s: summed contributions of each layer with one group, by its name.
        target: the logit of the class.
        alpha: threshold of relative contributions, by layer.
        beta: threshold of accumulated votes, by layer.

    Returns:
        for each channel id, whether it is on the route.
    """
    wanted = torch.zeros(channels.n, dtype=torch.bool)
    wanted[channels.logits[target]] = True
    for layer in reversed(channels.layers):
        if layer.name not in s:
            continue
        score = s[layer.name]
        if not wanted[layer.outputs].any():
            wanted[layer.outputs[score.sum(1).argmax()]] = True
        a = relative(score) > alpha[layer.name]
        v = (wanted[layer.outputs, None] & a).sum(0).float()
        wanted[layer.inputs[_above(v, beta[layer.name])]] = True
    return wanted


def gradient_route(
    channels: Channels, g: Mapping[str, Float[Tensor, " o"]], target: int, alpha: Mapping[str, float]
) -> Bool[Tensor, " n"]:
    """Route of v1 of the paper (FRAT), reconstructed from its abstract.

    An output channel is critical if its gradient score exceeds alpha, relatively; a kernel is kept where it joins two
    critical channels.

    Args:
        channels: those of the network.
        g: summed slopes of each layer's outputs, by its name.
        target: the logit of the class.
        alpha: threshold of relative scores, by layer.
    """
    wanted = torch.zeros(channels.n, dtype=torch.bool)
    wanted[channels.logits[target]] = True
    for layer in channels.layers:
        if not channels.makes_logits(layer):
            score = g[layer.name] / g[layer.name].max().clamp_min(1e-30)  # slopes of confident answers are tiny
            wanted[layer.outputs[_above(score, alpha[layer.name])]] = True
    return wanted


def find_routes(
    module: nn.Module,
    channels: Channels,
    split: ImageSplit,
    samples: Mapping[int, Int[Tensor, " s"]],
    *,
    alpha: float = 0.3,
    beta: float = 0.2,
    alpha_linear: float = 0.4,
    beta_linear: float = 0.3,
    score: Score = "contribution",
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "k n"]:
    """Find the decision routes of several classes, from one forward (and backward, for gradients) of each sample.

    Args:
        module: the network; unchanged.
        channels: those of the network.
        split: images, normalised as the network expects.
        samples: for each class, by its logit, positions in ``split``.
        alpha: threshold of relative contributions to the outputs of convolutions.
        beta: threshold of accumulated votes for the inputs of convolutions.
        alpha_linear: the same as ``alpha`` for linear layers.
        beta_linear: the same as ``beta`` for linear layers.
        score: ``contribution`` as in v2 of the paper, or ``gradient`` as in v1, which has no beta.
        device: where the samples run.

    Returns:
        a row for each class, in the order of ``samples``: which channel ids are on its route.
    """
    network = copy_of(module).eval().requires_grad_(False).to(device)
    linear = {x.name: isinstance(network.get_submodule(x.name), nn.Linear) for x in channels.layers}
    alphas = {name: alpha_linear if flat else alpha for name, flat in linear.items()}
    betas = {name: beta_linear if flat else beta for name, flat in linear.items()}
    pairs = sum(len(x.inputs) * len(x.outputs) for x in channels.layers if x.groups == 1)
    meter: Meter = (ContributionMeter if score == "contribution" else GradientMeter)(network, channels)
    found = []
    at_once = max(MEMORY // (4 * pairs), 1)
    for first in range(0, len(samples), at_once):
        group = dict(itertools.islice(samples.items(), first, first + at_once))
        for target, totals in meter(split, group, torch.device(device)).items():
            if score == "contribution":
                found.append(contribution_route(channels, totals, target, alphas, betas))
            else:
                found.append(gradient_route(channels, totals, target, alphas))
    return torch.stack(found)


def route_picture(channels: Channels, routes: Bool[Tensor, "k n"], classes: Sequence[str]) -> dict[str, Any]:
    """Draw decision routes: how many output channels of each layer serve one class, several, none.

    Args:
        channels: those of the network.
        routes: a row for each class, the channel ids on its route.
        classes: their names.
    """
    layers = []
    for layer in channels.layers:
        if not channels.makes_logits(layer):
            on = routes[:, layer.outputs]
            users = on.sum(0)
            counts = {f"only {name}": int((row & (users == 1)).sum()) for name, row in zip(classes, on, strict=True)}
            counts |= {"shared": int((users > 1).sum()), "unused": int((users == 0).sum())}
            groups = [{"label": label, "count": count} for label, count in counts.items() if count]
            layers.append({"name": layer.name, "groups": groups})
    return {
        "kind": "routes",
        "title": "Decision routes",
        "layers": layers,
        "caption": "Output channels of each layer that serve one class alone, several, or none.",
    }
