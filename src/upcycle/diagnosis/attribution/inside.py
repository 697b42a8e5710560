"""Attribution by what happens inside a network: Grad-CAM at a layer, and by Captum LRP and DeepLIFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.frozen import Frozen
from upcycle.core.taps import Taps
from upcycle.diagnosis.attribution.checks import Raw, in_parts, incomplete, like


def gradcam(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int, layer: str = "") -> Raw:
    """relu(Σ_k α_k A_k), α_k the spatial mean of ∂z_c/∂A_k, enlarged to the image (arXiv:1610.02391).

    Args:
        layer: whose output is A, by its name in the network; by default the last with the last convolution's size.
    """
    inner = network.network if isinstance(network, Frozen) else network
    layer = layer or _last_map(inner, network, x[:1])

    def one(x: Tensor, y: Tensor) -> Tensor:
        with Taps(inner, [layer]) as taps:
            z = network(x.clone().requires_grad_())
        a = taps[layer]
        require(
            a.ndim == 4,
            f"Grad-CAM needs a layer that gives maps (b, k, h, w), and '{layer}' gives shape "
            f"{tuple(a.shape)}; name another layer, or take method='integrated_gradients' or 'rise'.",
        )
        g = torch.autograd.grad(z.gather(1, y[:, None]).sum(), a)[0]
        cam = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
        return F.interpolate(cam.float(), x.shape[2:], mode="bilinear")[:, 0]

    return in_parts(one, x, target, chunk), [f"Grad-CAM at layer '{layer}'."]


def _last_map(inner: nn.Module, network: nn.Module, x: Tensor) -> str:
    """The last submodule that gives maps of the size of the last convolution's that is larger than one pixel."""
    seen: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    handles = []
    for name, m in inner.named_modules():
        if name and not list(m.children()):

            def hook(m: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    seen.append((name, m, tuple(output.shape)))

            handles.append(m.register_forward_hook(hook))
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    sizes = [s[2:] for _, m, s in seen if isinstance(m, nn.Conv2d) and len(s) == 4 and s[2] * s[3] > 1]
    tokens = [i for i, (_, _, s) in enumerate(seen) if len(s) == 3]
    maps = [(i, name) for i, (name, _, s) in enumerate(seen) if sizes and len(s) == 4 and s[2:] == sizes[-1]]
    require(
        bool(maps) and not (tokens and tokens[-1] > maps[-1][0]),
        "Grad-CAM finds no map of a convolution behind "
        "the last tokens or vectors of this network; name a layer, or take method='integrated_gradients' or "
        "'rise'.",
    )
    return maps[-1][1]


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
