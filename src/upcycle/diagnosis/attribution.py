"""Which pixels made a network say a class: one interface to gradient, perturbation and learned-rule methods."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.frozen import Frozen, Precision, frozen
from upcycle.core.models import Model
from upcycle.core.taps import Taps
from upcycle.diagnosis.learned_rule import Rule, gated, learned
from upcycle.diagnosis.perturbation import extremal, occlusion, rise

Raw = tuple[Tensor, list[str]]
"""What a method returns: the raw map (b, h, w), and sentences about it."""

PIXELS = 2**18
"""Pixels a forward and backward by default: 83 images of 56 x 56, 5 of 224 x 224."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """Heat maps, and what they are about.

    Args:
        maps: (b, h, w), float32 in [0, 1]: what speaks for the class, over its highest value; the order of pixels is
            that of ``signed``.
        target: (b,), the class explained.
        probability: (b,), p_c of each image.
        method: the name in :data:`METHODS`.
        signed: (b, h, w), float32, the raw map; contributions sum over the colours, and negative ones speak against.
        notes: sentences that a reader of the map should know.
    """

    maps: Tensor
    target: Tensor
    probability: Tensor
    method: str
    signed: Tensor
    notes: tuple[str, ...] = ()


def explain(
    model: Model | nn.Module,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    method: str = "learned",
    chunk: int | None = None,
    precision: Precision = "auto",
    **options: Any,
) -> Attribution:
    """Heat maps of the pixels that made a classifier give a class.

    Everything runs on a frozen copy: weights, buffers, modes, hooks and gradients of ``model`` stay as they are. It
    works within ``torch.no_grad()`` and on whatever device ``x`` is.

    Args:
        model: a classifier; maps images to logits (b, k).
        x: images (b, c, h, w), normalised as the classifier expects.
        target: class of each image, or one for all; the predicted one by default.
        method: one of :data:`METHODS`.
        chunk: images a forward and backward; memory grows with it, and not with steps, samples or masks. By default
            :func:`batch_of`.
        precision: as for :func:`~upcycle.core.frozen.frozen`. ``auto`` is bf16 where that is fast and methods average
            over many passes (integrated_gradients, smoothgrad, rise), otherwise float32; float64 for float64 images.
        options: of the method, see its function.

    Raises:
        UserError: an unknown method or option, images or targets that do not fit, a network without the derivatives
            that the method needs, a library that is not installed.
    """
    if method not in METHODS:
        raise unknown("attribution method", method, METHODS)
    function = METHODS[method]
    known = [n for n in inspect.signature(function).parameters if n not in ("network", "x", "target", "chunk")]
    for name in options:
        if name not in known:
            raise unknown(f"option of {method}", name, known)
    # A caller's no_grad or inference_mode must not reach the gradients here, nor a tensor made in the latter.
    with torch.inference_mode(False), torch.enable_grad():
        network, x, target, p = checked(
            model, x, target, precision=precision, average=method in _AVERAGING, whole=method in _WHOLE
        )
        if method not in _FORWARD_ONLY:
            _require_gradient(network, x[:1], method)
        require(chunk is None or chunk >= 1, f"chunk must be at least 1, not {chunk}.")
        signed, notes = function(network, x, target, chunk=chunk or batch_of(x), **options)
    signed = signed.detach().float()
    positive = signed.clamp_min(0)
    top = positive.flatten(1).amax(1)
    silent = signed.flatten(1).abs().amax(1) == 0
    maps = torch.where(top[:, None, None] > 0, positive / top[:, None, None], positive)
    notes = [
        *notes,
        *_sentence(silent, "the attribution is zero everywhere: the logit does not react to these pixels"),
        *_sentence((top == 0) & ~silent, "no pixel speaks for the class, all against it; read the signed map"),
        *_sentence(p > 1 - 1e-6, "the class has probability one to rounding, so that methods which look at "
                   "probabilities (learned, rise) see little change"),
    ]  # fmt: skip
    return Attribution(maps=maps, target=target, probability=p, method=method, signed=signed, notes=tuple(notes))


def batch_of(x: Tensor) -> int:
    """How many images of this size go through a network at a time: :data:`PIXELS` over theirs, and at least one."""
    return max(1, PIXELS // (x.shape[-1] * x.shape[-2]))


def checked(
    model: Model | nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    *,
    precision: Precision = "auto",
    average: bool = False,
    whole: bool = False,
) -> tuple[Frozen, Tensor, Tensor, Tensor]:
    """A frozen copy of the network that passes gradients to its images; images, classes int64 (b,), and p_c (b,).

    Args:
        precision: as for :func:`explain`.
        average: many answers are averaged, so that ``auto`` may be bf16.
        whole: keep BatchNorms and submodules, for methods that look into the network.

    Raises:
        UserError: images or targets that do not fit.
    """
    module = model.module if isinstance(model, Model) else model
    title = model.name if isinstance(model, Model) else type(module).__name__
    require(x.ndim == 4 and x.is_floating_point() and x.numel() > 0, "x must be float images (b, c, h, w), not "
            f"{x.dtype} of shape {tuple(x.shape)}; one image is x[None].")  # fmt: skip
    require(bool(x.isfinite().all()), "x holds NaN or infinite pixels.")
    if isinstance(model, Model):
        require(x.shape[1] == model.input_shape[0],
                f"{title} takes {model.input_shape[0]} input channels, and x has {x.shape[1]}.")  # fmt: skip
    x = x.detach().clone()
    if precision == "auto":
        precision = "64-true" if x.dtype == torch.float64 else "auto" if average else "32-true"
    try:
        # keep_modules, because a traced network would lose a backward that its author wrote (autograd.Function).
        network = frozen(module, x[:64], input_grad=True, keep_bn=whole, keep_modules=True, precision=precision)
        with torch.no_grad():
            z = torch.cat([network(part) for part in x.split(batch_of(x))])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{title} does not take images of shape {tuple(x.shape)}: {one_line(error)}.") from error
    require(z.ndim == 2 and len(z) == len(x),
            f"{title} gives shape {tuple(z.shape)} for {len(x)} images; a classifier gives logits (b, k).")  # fmt: skip
    classes = targets(z, target)
    return network, x, classes, z.double().softmax(1).gather(1, classes[:, None])[:, 0].float()


def targets(z: Float[Tensor, "b k"], target: Tensor | int | None) -> Int[Tensor, " b"]:
    """The classes to explain, int64 (b,) on the device of the logits ``z``.

    Raises:
        UserError: a class that there is not, or a number of classes that is not that of the images.
    """
    if target is None:
        return z.argmax(1)
    found = torch.as_tensor(target, device=z.device)
    require(not found.is_floating_point() and found.dtype != torch.bool, "target must be class numbers, integers.")
    require(found.ndim == 0 or found.shape == (len(z),),
            f"target must be one class or {len(z)}, one an image, not shape {tuple(found.shape)}.")  # fmt: skip
    outside = found[(found < 0) | (found >= z.shape[1])]
    require(outside.numel() == 0, f"target {outside.flatten()[:1].tolist()} is out of range: the network has "
            f"{z.shape[1]} classes, 0 to {z.shape[1] - 1}.")  # fmt: skip
    return found.long().expand(len(z)).clone()


# -- gradients ----------------------------------------


def gradient(network: nn.Module, x: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """∂z_c/∂x of each image."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(network(leaf).gather(1, target[:, None]).sum(), leaf)[0]


def guided_gradient(
    network: nn.Module, x: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """∂z_c/∂x where each activation lets only positive signals back: R · 1[R > 0] · 1[u > 0] at a ReLU."""
    with Rule(lambda i, activation, u: _Positive.apply(gated(activation, u, 1.0))):
        return gradient(network, x, target)


class _Positive(torch.autograd.Function):
    """The identity; backward, what is negative becomes nought."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Tensor:
        return r.clamp_min(0)


def saliency(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int) -> Raw:
    """The largest |∂z_c/∂x| over the colours (Simonyan et al.; arXiv:1312.6034)."""
    return _split(lambda x, y: gradient(network, x, y).abs().amax(1), x, target, chunk), []


def gradient_x_input(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int) -> Raw:
    """x · ∂z_c/∂x, summed over the colours."""
    return _split(lambda x, y: (x * gradient(network, x, y)).sum(1), x, target, chunk), []


def guided_backprop(network: nn.Module, x: Tensor, target: Tensor, *, chunk: int) -> Raw:
    """The gradient with only positive signals let back through activations (Springenberg et al.; arXiv:1412.6806)."""
    note = "Guided backprop hardly depends on the class or on upper weights; see randomisation_check."
    return _split(lambda x, y: guided_gradient(network, x, y).abs().amax(1), x, target, chunk), [note]


def smoothgrad(
    network: nn.Module, x: Tensor, target: Tensor, *, chunk: int, samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Raw:
    """The gradient averaged over noisy copies, its largest magnitude over the colours (arXiv:1706.03825).

    Args:
        samples: noisy copies; each uses the same noise for all images.
        noise: its standard deviation over the range of the image's values.
    """
    require(samples >= 1 and noise >= 0, f"samples must be positive and noise not negative: {samples}, {noise}.")
    weights = torch.full((samples,), 1 / samples, dtype=x.dtype, device=x.device)

    def one(x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        spread = noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)

        def points(steps: range) -> Tensor:
            # One draw a copy, so that the chunk changes nothing.
            drawn = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype) for _ in steps]
            return x + spread * torch.stack(drawn)[:, None].to(x.device)

        return _averaged(network, y, points, weights, chunk).abs().amax(1)

    return _split(one, x, target, chunk), []


def integrated_gradients(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    chunk: int,
    steps: int = 50,
    baseline: Tensor | float = 0.0,
) -> Raw:
    """(x - x') ∫ ∂z_c/∂x along the line from a baseline x', summed over the colours (arXiv:1703.01365).

    The integral is a Gauss-Legendre sum. A note says where the map misses completeness, Σ = z_c(x) - z_c(x'), by
    more than 5 %.

    Args:
        steps: points on the line.
        baseline: x', a number or images that broadcast to ``x``; 0 is the mean image.
    """
    require(steps >= 1, f"steps must be at least 1, not {steps}.")
    start = like(x, baseline)
    places, weights = (torch.from_numpy(v / 2).to(x.device, x.dtype) for v in np.polynomial.legendre.leggauss(steps))
    parts = []
    for images, y, first in zip(x.split(chunk), target.split(chunk), start.split(chunk), strict=True):

        def points(steps: range, images: Tensor = images, first: Tensor = first) -> Tensor:
            t = 0.5 + places[steps.start : steps.stop].view(-1, 1, 1, 1, 1)
            return first + t * (images - first)

        parts.append(((images - first) * _averaged(network, y, points, weights, chunk)).sum(1))
    raw = torch.cat(parts)
    return raw, _incomplete(network, x, start, target, raw, chunk, "raise steps")


def _averaged(
    network: nn.Module, target: Tensor, points: Callable[[range], Tensor], weights: Tensor, chunk: int
) -> Tensor:
    """Σ_i weights[i] ∂z_c/∂x at points(i), (b, c, h, w); ``points`` gives (steps, b, c, h, w), in order.

    The steps are cut in parts of equal size, so that no small one is left over.
    """
    n, b = len(weights), len(target)
    size = math.ceil(n / math.ceil(n / max(1, chunk // b)))
    total: Tensor | None = None
    for begin in range(0, n, size):
        steps = range(begin, min(begin + size, n))
        at = points(steps)
        g = gradient(network, at.flatten(0, 1), target.repeat(len(steps))).view_as(at)
        part = torch.tensordot(weights[steps.start : steps.stop], g, 1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _split(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor, chunk: int) -> Tensor:
    return torch.cat([function(a, b) for a, b in zip(x.split(chunk), target.split(chunk), strict=True)])


def like(x: Tensor, value: Tensor | float) -> Tensor:
    """A number or images, as images of the shape of ``x``."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return value.expand_as(x)
    except RuntimeError as error:
        raise UserError(
            f"A reference of shape {tuple(value.shape)} does not fit images of {tuple(x.shape)}."
        ) from error


# -- inside the network ----------------------------------------


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
        require(a.ndim == 4, f"Grad-CAM needs a layer that gives maps (b, k, h, w), and '{layer}' gives shape "
                f"{tuple(a.shape)}; name another layer, or take method='integrated_gradients' or 'rise'.")  # fmt: skip
        g = torch.autograd.grad(z.gather(1, y[:, None]).sum(), a)[0]
        cam = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
        return F.interpolate(cam.float(), x.shape[2:], mode="bilinear")[:, 0]

    return _split(one, x, target, chunk), [f"Grad-CAM at layer '{layer}'."]


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
    require(bool(maps) and not (tokens and tokens[-1] > maps[-1][0]), "Grad-CAM finds no map of a convolution behind "
            "the last tokens or vectors of this network; name a layer, or take method='integrated_gradients' or "
            "'rise'.")  # fmt: skip
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
        return _split(one, x, target, chunk), []


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
    return raw, _incomplete(network, x, start, target, raw, chunk, "the network uses what Captum does not see")


def _captum(method: str) -> Any:
    try:
        import captum.attr
        import captum.attr._utils.lrp_rules
    except ImportError as error:
        raise UserError(f"method='{method}' needs Captum: pip install 'upcycle[explain]'.") from error
    return captum


@contextmanager
def _in_words(method: str) -> Iterator[None]:
    """What Captum cannot do with a network, as one sentence."""
    try:
        yield
    except (RuntimeError, TypeError, AssertionError, AttributeError, KeyError) as error:
        raise UserError(f"Captum's {method} does not work with this network ({one_line(error)}); take "
                        "method='integrated_gradients'.") from error  # fmt: skip


# -- what to know about a map ----------------------------------------


def _incomplete(
    network: nn.Module, x: Tensor, start: Tensor, target: Tensor, raw: Tensor, chunk: int, cure: str
) -> list[str]:
    """A sentence for the images whose map does not sum to z_c(x) - z_c(x') within 5 %."""

    def z(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x).gather(1, y[:, None])[:, 0]

    difference = _split(z, x, target, chunk) - _split(z, start, target, chunk)
    gap = (raw.flatten(1).sum(1) - difference).abs() > 0.05 * difference.abs().clamp_min(1e-3)
    return _sentence(gap, f"the contributions miss the difference of the logits by more than 5 %; {cure}")


def _sentence(which: Tensor, text: str) -> list[str]:
    """``text`` about the images that ``which`` (b,) marks, by their numbers; none for none."""
    numbers = which.nonzero().flatten().tolist()
    if not numbers:
        return []
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return [f"Image{'s' if len(numbers) > 1 else ''} {shown}: {text}."]


def _require_gradient(network: nn.Module, x: Tensor, method: str) -> None:
    try:
        gradient(network, x, torch.zeros(1, dtype=torch.long, device=x.device))
    except RuntimeError as error:
        raise UserError(f"method='{method}' needs a gradient from the logits to the images, and this network passes "
                        f"none ({one_line(error)}); take method='occlusion' or 'rise'.") from error  # fmt: skip


METHODS: dict[str, Callable[..., Raw]] = {
    "learned": learned,
    "saliency": saliency,
    "gradient_x_input": gradient_x_input,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "guided_backprop": guided_backprop,
    "gradcam": gradcam,
    "lrp": lrp,
    "deeplift": deeplift,
    "occlusion": occlusion,
    "extremal": extremal,
    "rise": rise,
}
"""By name, functions of a frozen network, images, targets and a chunk; the first line of each says what it shows."""

_WHOLE = ("gradcam", "lrp", "deeplift")
_AVERAGING = ("integrated_gradients", "smoothgrad", "rise")
_FORWARD_ONLY = ("occlusion", "rise")
