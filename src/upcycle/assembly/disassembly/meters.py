"""Sums over the samples of each class while a network runs: contributions of inputs, slopes of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.assembly.disassembly.contribution import layer_tap_sums, summed_contribution
from upcycle.surgery.channels import Channels

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit


CHUNK = 64
"""Images in one forward."""


Totals = dict[int, dict[str, Tensor]]
"""Sums by class, by its logit, and by the name of a layer."""


class Meter:
    """A sum over the samples of each class, taken by hooks while a network runs.

    Args:
        network: the meter's own, on the device of the samples; its hooks stay.
        channels: those of the network.
    """

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        self.network = network
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.totals: Totals = {}
        self.spans: list[tuple[int, slice]] = []  # class and its place in the batch at hand

    def __call__(self, split: ImageSplit, samples: dict[int, Tensor], device: torch.device) -> Totals:
        """Run over all samples, positions in ``split`` by class, and return their sums."""
        self.totals = {target: {} for target in samples}
        for index, self.spans in _chunks(samples):
            self.run(split.batch(index, device=device).images.to(self.dtype))
        return self.totals

    def add(self, name: str, of: Callable[[slice], Tensor]) -> None:
        """Add to the sums of layer ``name`` what ``of`` gives for each class' samples of the batch at hand."""
        for target, span in self.spans:
            total, value = self.totals[target].get(name, 0.0), of(span).cpu()
            self.totals[target][name] = total + value

    def run(self, images: Tensor) -> None:
        """Run the network on a batch, so that its hooks add to the sums."""
        raise NotImplementedError


class ContributionMeter(Meter):
    """S_c[k,p], the summed contributions of every layer with one group; classes share a forward."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        super().__init__(network, channels)
        for layer in channels.layers:
            if layer.groups == 1:
                network.get_submodule(layer.name).register_forward_pre_hook(self._hook(layer.name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(m: nn.Module, args: Any) -> None:
            assert isinstance(m, nn.Conv2d | nn.Linear)
            z, weight = layer_tap_sums(m, args[0]), m.weight.reshape(*m.weight.shape[:2], -1)
            self.add(name, lambda span: summed_contribution(z[span], weight))

        return hook

    @torch.no_grad()
    def run(self, images: Tensor) -> None:
        self.network(images)


class GradientMeter(Meter):
    """Slopes g_c[o] = Σ_b Σ_{h,w} relu(d p_c / d F) for the output F of every layer; a backward beside each forward."""

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


def _chunks(samples: Mapping[int, Tensor]) -> Iterator[tuple[Tensor, list[tuple[int, slice]]]]:
    """Samples of all classes one after the other, in batches; and where in each batch each class lies."""
    index = torch.cat(list(samples.values()))
    owner = torch.cat([torch.full((len(s),), target) for target, s in samples.items()])
    for part, whose in zip(index.split(CHUNK), owner.split(CHUNK), strict=True):
        targets, counts = whose.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        spans = zip(targets.tolist(), counts.tolist(), ends, strict=True)
        yield part, [(target, slice(end - n, end)) for target, n, end in spans]
