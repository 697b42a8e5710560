"""Attribution by what happens inside a network: Grad-CAM at a layer, and by Captum LRP and DeepLIFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line
from upcycle.core.feature_maps import FeatureMap, Flow, record_layer
from upcycle.core.frozen import Frozen
from upcycle.core.outputs import Around
from upcycle.diagnosis.attribution.checks import Raw, chosen, in_parts, incomplete, like


def gradcam(network: nn.Module, x: Tensor, target: Tensor | None, *, chunk: int, layer: str = "") -> Raw:
    """relu(Σ_k α_k A_k), α_k the spatial mean of ∂z_c/∂A_k, enlarged to the image (arXiv:1610.02391).

    Tokens of a transformer are folded to the grid of their places; a class token is left out.

    Args:
        layer: whose output is A, by its name in the network; by default the last feature map that all logits pass
            through, see :meth:`~upcycle.core.feature_maps.Flow.maps`.
    """
    inner = network.network if isinstance(network, Around | Frozen) else network
    place, few, cams = FeatureMap(layer), 0, []
    if not layer or not _is_convolution(inner, layer):
        few = min(chunk, 2)  # of these the whole graph is kept, to find the map; of others what follows it
        flow = Flow(network, x[:few], within=inner)
        found = flow.named(layer) if layer else next(flow.maps(), None)
        if found is None:
            raise UserError(_NO_MAP if flow.z.requires_grad else _NO_GRADIENT)
        place, a = found[0], found[1].out
        (g,) = torch.autograd.grad(chosen(flow.z, None if target is None else target[:few]).sum(), a)
        cams.append(_enlarged(place.maps(a.detach()), place.maps(g), x))

    def one(x: Tensor, y: Tensor | None) -> Tensor:
        with record_layer(inner, place, leaf=True) as seen:
            z = network(x)
        (g,) = torch.autograd.grad(chosen(z, y).sum(), seen.f)
        return _enlarged(seen.f.detach(), g, x)

    if len(x) > few:
        cams.append(in_parts(one, x[few:], None if target is None else target[few:], chunk))
    return torch.cat(cams), [f"Grad-CAM at layer '{place.name}'."]


def _is_convolution(network: nn.Module, layer: str) -> bool:
    try:
        return isinstance(network.get_submodule(layer), nn.Conv2d)
    except AttributeError:  # no such name
        return False


def _enlarged(a: Float[Tensor, "b c h w"], g: Float[Tensor, "b c h w"], x: Tensor) -> Float[Tensor, "b hh ww"]:
    cam = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
    return F.interpolate(cam.float(), x.shape[2:], mode="bilinear")[:, 0]


_NO_MAP = (
    "Grad-CAM finds no feature map that all logits of this network pass through; name a layer, or take "
    "method='integrated_gradients' or 'rise'."
)
_NO_GRADIENT = (
    "method='gradcam' needs a gradient from the logits to its layer, and this network passes none; take "
    "method='occlusion' or 'rise'."
)


def lrp(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int) -> Raw:
    """Layerwise relevance propagation, the epsilon rule, by Captum (Bach et al., PLoS ONE 2015)."""
    captum = _captum("lrp")

    class Through(captum.attr._utils.lrp_rules.PropagationRule):  # type: ignore[name-defined]
        """Relevance passes as it is: for modules that only reshape, for which Captum knows no rule."""

        def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...
        def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...
        def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None: ...
        def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def one(x: Tensor, y: Tensor) -> Tensor:
        for m in network.modules():
            if isinstance(m, nn.Flatten | nn.Identity | nn.Unflatten):
                m.rule = Through()  # Captum takes it off after each call
        return captum.attr.LRP(network).attribute(x.clone(), target=y).sum(1)

    with _in_words("lrp"):
        return in_parts(one, x, target, chunk), []


def deeplift(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int, baseline: Tensor | float = 0.0) -> Raw:
    """Differences to a baseline, shared out layer by layer (rescale rule), by Captum (arXiv:1704.02685).

    Captum sees activations only as modules, each used once; a note says where completeness shows that it missed some.
    """
    captum = _captum("deeplift")
    start = like(x, baseline)

    def one(x: Tensor, y: Tensor, first: Tensor) -> Tensor:
        return captum.attr.DeepLift(network).attribute(x.clone(), baselines=first.clone(), target=y).sum(1)

    with _in_words("deeplift"):
        parts = zip(x.split(chunk), target.split(chunk), start.split(chunk), strict=True)
        raw = torch.cat([one(*part) for part in parts])
    return raw, incomplete(network, x, start, target, raw, chunk, "the network uses what Captum does not see")


def _captum(method: str) -> Any:
    try:
        import captum.attr
        import captum.attr._utils.lrp_rules
    except ImportError as error:
        raise UserError(f"method='{method}' needs Captum: pip install 'upcycle[explain]'.") from error
    return captum


@contextmanager
def _in_words(method: str) -> Iterator[None]:
    """Say in one sentence why Captum cannot serve a network."""
    try:
        yield
    except (RuntimeError, TypeError, AssertionError, AttributeError, KeyError) as error:
        raise UserError(
            f"Captum's {method} does not work with this network ({one_line(error)}); take "
            "method='integrated_gradients'."
        ) from error
