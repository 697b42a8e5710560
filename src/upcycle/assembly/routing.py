"""Decision routes of Model LEGO (arXiv:2203.13453): which channels of each layer a class needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.models import copy_of
from upcycle.surgery.channels import Channels

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit

EPSILON = 1e-5
"""Of every min-max; the official code's."""
CHUNK = 64
"""Images in one forward."""
MEMORY = 2**28
"""Bytes of contributions that are held at once, for as many classes as fit."""

Score = Literal["contribution", "gradient"]


# -- contribution ----------------------------------------


def contribution_conv(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i u v"],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b o i"]:
    """What input channel p adds to the spatial sum of output channel k: Σ_{h,w} (W[k,p] * x[b,p])[h,w], signed.

    With Z of :func:`tap_sums` this is Σ_{u,v} W[k,p,u,v] Z[b,p,u,v], so no map of one pair of channels is ever made.
    Bias is ignored: summed over p, and with h' w' times the bias, it is the spatial sum of the layer's output.

    The relative contribution of arXiv:2203.13453 takes its positive part, after the spatial sum.
    """
    z = tap_sums(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    return torch.einsum("bit,oit->boi", z.flatten(2), weight.flatten(2))


def contribution_linear(x: Float[Tensor, "b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "b o i"]:
    """What input p adds to output k of a linear layer: W[k,p] x[b,p], signed; see :func:`contribution_conv`."""
    return x[:, None] * weight


def tap_sums(
    x: Float[Tensor, "b i h w"],
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b i u v"]:
    """Z[b,p,u,v]: the sum over output positions of the input under tap (u, v) of a kernel of ``size``.

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
    """S[k,p] = Σ_b relu(Σ_t W[k,p,t] Z[b,p,t]), in chunks of samples; a linear layer has one tap, and Z is its input.

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


# -- relative contribution ----------------------------------------


def relative(s: Float[Tensor, "*k p"]) -> Float[Tensor, "*k p"]:
    """Min-max over the last axis: (s - min) / (max - min + 1e-5)."""
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    return (s - low) / (high - low + EPSILON)


def _above(s: Float[Tensor, " p"], threshold: float) -> Bool[Tensor, " p"]:
    """Which are large, relatively; the largest ones where none is, for a route must not end."""
    mask = relative(s) > threshold
    return mask if mask.any() else s == s.max()


# -- routes ----------------------------------------


def route(
    channels: Channels, s: Mapping[str, Float[Tensor, "o i"]], target: int, alpha: Mapping[str, float],
    beta: Mapping[str, float],
) -> Bool[Tensor, " n"]:  # fmt: skip
    """The decision route of one class, by backward accumulation from its logit to the first layer.

    A = 1 where the relative contribution exceeds alpha; v[p] = Σ_k m[k] A[k,p] over the wanted outputs k; input p is
    wanted where the min-max of v exceeds beta. A channel with several consumers is wanted when one of them wants it,
    and so is whatever a sum couples to it. Grouped convolutions want what is wanted of them. Where nothing would be
    left, the largest stay.

    Args:
        s: summed contributions of each layer with one group.
        target: the logit of the class.
        alpha, beta: by layer.

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
    """The route of v1 of the paper (FRAT), reconstructed from its abstract: an output channel is critical if its
    gradient score exceeds alpha, relatively; a kernel is kept where it joins two critical channels."""
    wanted = torch.zeros(channels.n, dtype=torch.bool)
    wanted[channels.logits[target]] = True
    for layer in channels.layers:
        if not channels.makes_logits(layer):
            score = g[layer.name] / g[layer.name].max().clamp_min(1e-30)  # slopes of confident answers are tiny
            wanted[layer.outputs[_above(score, alpha[layer.name])]] = True
    return wanted


def routes(
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
    """The decision routes of several classes, from one forward (and backward, for gradients) of each sample.

    Args:
        module: the network; ``channels`` are its own.
        split: images, normalised as it expects.
        samples: for each class, by its logit, positions in ``split``.
        alpha, beta: thresholds of convolutions.
        alpha_linear, beta_linear: of linear layers.
        score: ``contribution`` as in v2 of the paper, or ``gradient`` as in v1, which has no beta.

    Returns:
        a row for each class, in the order of ``samples``: which channel ids are on its route.
    """
    network = copy_of(module).eval().requires_grad_(False).to(device)
    linear = {x.name: isinstance(network.get_submodule(x.name), nn.Linear) for x in channels.layers}
    alphas = {name: alpha_linear if flat else alpha for name, flat in linear.items()}
    betas = {name: beta_linear if flat else beta for name, flat in linear.items()}
    pairs = sum(len(x.inputs) * len(x.outputs) for x in channels.layers if x.groups == 1)
    measure = _Contributions if score == "contribution" else _Gradients
    meter = measure(network, channels)
    found = []
    at_once = max(MEMORY // (4 * pairs), 1)
    for first in range(0, len(samples), at_once):
        group = dict(itertools.islice(samples.items(), first, first + at_once))
        for target, totals in meter(split, group, torch.device(device)).items():
            found.append(route(channels, totals, target, alphas, betas) if score == "contribution" else
                         gradient_route(channels, totals, target, alphas))  # fmt: skip
    return torch.stack(found)


Totals = dict[int, dict[str, Tensor]]


class _Meter:
    """Sums something over the samples of each class while a network runs. The network is the meter's own."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        self.network = network
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.totals: Totals = {}
        self.spans: list[tuple[int, slice]] = []  # class and its place in the batch at hand

    def __call__(self, split: ImageSplit, samples: dict[int, Tensor], device: torch.device) -> Totals:
        self.totals = {target: {} for target in samples}
        for index, self.spans in _chunks(samples):
            self.run(split.batch(index, device=device).images.to(self.dtype))
        return self.totals

    def add(self, name: str, of: Callable[[slice], Tensor]) -> None:
        for target, span in self.spans:
            total, value = self.totals[target].get(name, 0.0), of(span).cpu()
            self.totals[target][name] = total + value

    def run(self, images: Tensor) -> None:
        raise NotImplementedError


class _Contributions(_Meter):
    """S_c[k,p] of every layer with one group; classes share a forward."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        super().__init__(network, channels)
        for layer in channels.layers:
            if layer.groups == 1:
                network.get_submodule(layer.name).register_forward_pre_hook(self._hook(layer.name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(m: nn.Module, args: Any) -> None:
            assert isinstance(m, nn.Conv2d | nn.Linear)
            z, weight = _tap_sums_of(m, args[0]), m.weight.reshape(*m.weight.shape[:2], -1)
            self.add(name, lambda span: summed_contribution(z[span], weight))

        return hook

    @torch.no_grad()
    def run(self, images: Tensor) -> None:
        self.network(images)


class _Gradients(_Meter):
    """g_c[o] = Σ_b Σ_{h,w} relu(d p_c / d F) for the output F of every layer; a backward beside each forward."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        super().__init__(network, channels)
        for layer in channels.layers:
            network.get_submodule(layer.name).register_forward_hook(self._hook(layer.name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def seen(slope: Tensor) -> None:
            by_channel = slope.relu().flatten(2).sum(2) if slope.dim() > 2 else slope.relu()
            self.add(name, lambda span: by_channel[span].sum(0))

        # On the tensor itself, so that an activation in place comes later. The lambda returns nothing.
        return lambda m, args, output: (output.register_hook(seen), None)[1]

    def run(self, images: Tensor) -> None:
        with torch.enable_grad():
            z = self.network(images.requires_grad_())
            targets = torch.cat([torch.full((s.stop - s.start,), c) for c, s in self.spans]).to(z.device)
            z.backward(_softmax_slope(z.detach(), targets))


def _softmax_slope(z: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """d p_y / d z, without the cancellation in 1 - p_y of a confident answer."""
    p = z.double().softmax(1)
    own = F.one_hot(y, z.shape[1]).bool()
    others = p.masked_fill(own, 0.0)
    return (p[own][:, None] * torch.where(own, others.sum(1, keepdim=True), -others)).to(z.dtype)


def _tap_sums_of(m: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "b i t"]:
    if isinstance(m, nn.Linear):
        return x[:, :, None]
    padding = m.padding
    if isinstance(padding, str) or m.padding_mode != "zeros":
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        x, padding = F.pad(x, m._reversed_padding_repeated_twice, mode=mode), (0, 0)
    return tap_sums(x, m.kernel_size, m.stride, padding, m.dilation).flatten(2)  # type: ignore[arg-type]


def _chunks(samples: Mapping[int, Tensor]) -> Iterator[tuple[Tensor, list[tuple[int, slice]]]]:
    """Samples of all classes one after the other, in batches; and where in each batch each class lies."""
    index = torch.cat(list(samples.values()))
    owner = torch.cat([torch.full((len(s),), target) for target, s in samples.items()])
    for part, whose in zip(index.split(CHUNK), owner.split(CHUNK), strict=True):
        targets, counts = whose.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        yield part, [(c, slice(e - n, e)) for c, n, e in
                     zip(targets.tolist(), counts.tolist(), ends, strict=True)]  # fmt: skip


def route_picture(channels: Channels, routes: Bool[Tensor, "k n"], classes: Sequence[str]) -> dict[str, Any]:
    """The picture of decision routes: of each layer, how many output channels serve one class, several, none.

    Args:
        routes: a row for each class.
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
    return {"kind": "routes", "title": "Decision routes", "layers": layers,
            "caption": "Output channels of each layer that serve one class alone, several, or none."}  # fmt: skip
