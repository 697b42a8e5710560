"""Heat maps of the pixels that made a network say a class, by any of :data:`EXPLAINERS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.frozen import Precision
from upcycle.core.models import Model
from upcycle.core.outputs import unwrapped
from upcycle.core.portions import portion
from upcycle.diagnosis.attribution.checks import (
    AsItIs,
    Raw,
    batch_of,
    checked,
    class_numbers,
    fitting,
    held,
    probability,
    sentences,
    targets,
)
from upcycle.diagnosis.attribution.gradients import (
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    saliency,
    smoothgrad,
)
from upcycle.diagnosis.attribution.inside import deeplift, gradcam, lrp
from upcycle.diagnosis.attribution.learned_rule import learned
from upcycle.diagnosis.attribution.perturbation import extremal, occlusion, rise


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """Heat maps, and what they are about.

    Args:
        maps: (b, h, w), float32 in [0, 1]: what speaks for the class, over its highest value; the order of pixels is
            that of ``signed``.
        target: (b,), the class explained.
        probability: (b,), p_c of each image.
        method: the name in :data:`EXPLAINERS`.
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

    Weights, modes, hooks and gradients of ``model`` stay as they are: methods of many passes run on a frozen copy,
    those of one pass on the network itself, in evaluation mode meanwhile. It works within ``torch.no_grad()`` and on
    whatever device ``x`` is.

    Args:
        model: a classifier; maps images to logits (b, k).
        x: images (b, c, h, w), normalised as the classifier expects.
        target: class of each image, or one for all; the predicted one by default.
        method: one of :data:`EXPLAINERS`.
        chunk: images a forward and backward; memory grows with it, and not with steps, samples or masks. By default
            :func:`~upcycle.diagnosis.attribution.checks.batch_of`.
        precision: as for :func:`~upcycle.core.frozen.frozen`. ``auto`` is bf16 where that is fast and methods average
            over many passes (integrated_gradients, smoothgrad, rise), otherwise float32; float64 for float64 images.
        options: of the method, see its function.

    Raises:
        UserError: an unknown method or option, images or targets that do not fit, a network without the derivatives
            that the method needs, a library that is not installed.
    """
    if method not in EXPLAINERS:
        raise unknown("attribution method", method, EXPLAINERS)
    function = EXPLAINERS[method]
    known = [n for n in inspect.signature(function).parameters if n not in ("network", "x", "target", "chunk")]
    for name in options:
        if name not in known:
            raise unknown(f"option of {method}", name, known)
    require(chunk is None or chunk >= 1, f"chunk must be at least 1, not {chunk}.")
    by_default = chunk is None
    chunk = chunk or (batch_of(x) if x.ndim == 4 else 1)
    # A caller's no_grad or inference_mode must not reach the gradients here, nor a tensor made in the latter.
    with torch.inference_mode(False), torch.enable_grad():
        if method in _ONCE and _runs(model, x, precision):
            signed, notes, target, p = _once(function, method, model, x, target, chunk, options)
        else:
            gradients, average, whole = method not in _FORWARD_ONLY, method in _AVERAGING, method in _WHOLE
            network, x, target, p = checked(
                model, x, target, precision=precision, average=average, whole=whole, gradients=gradients
            )
            if gradients:
                with _passing(method):
                    gradient(network, x[:1], target[:1])
            elif by_default:
                chunk = portion(network, x)
            signed, notes = function(network, x, target, chunk=chunk, **options)
    signed = signed.detach().float()
    positive = signed.clamp_min(0)
    top = positive.flatten(1).amax(1)
    silent = signed.flatten(1).abs().amax(1) == 0
    maps = torch.where(top[:, None, None] > 0, positive / top[:, None, None], positive)
    notes = [
        *notes,
        *sentences(silent, "the attribution is zero everywhere: the logit does not react to these pixels"),
        *sentences((top == 0) & ~silent, "no pixel speaks for the class, all against it; read the signed map"),
        *sentences(
            p > 1 - 1e-6,
            "the class has probability one to rounding, so that methods which look at "
            "probabilities (learned, rise) see little change",
        ),
    ]
    return Attribution(maps=maps, target=target, probability=p, method=method, signed=signed, notes=tuple(notes))


def _runs(model: Model | nn.Module, x: Tensor, precision: Precision) -> bool:
    """Whether a network computes in the format of its images by itself, where no other is asked for."""
    module = model.module if isinstance(model, Model) else model
    asked = {"auto": x.dtype, "32-true": torch.float32, "64-true": torch.float64}.get(precision)
    return (
        unwrapped(module) is module
        and asked == x.dtype
        and all(p.dtype == asked and p.device == x.device and not p.is_inference() for p in module.parameters())
    )


def _once(
    function: Callable[..., Raw],
    method: str,
    model: Model | nn.Module,
    x: Tensor,
    target: Tensor | int | None,
    chunk: int,
    options: dict[str, Any],
) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Raw maps, notes, classes and their probabilities by a method that lets each image through the network once."""
    module, title = fitting(model, x)
    asked = None if target is None else class_numbers(target, len(x)).to(x.device)
    network = AsItIs(module, title, asked)
    with held(module), _passing(method):
        signed, notes = function(network, x.detach().clone(), asked, chunk=chunk, **options)
    z = torch.cat(network.given)
    classes = targets(z, asked)
    return signed, notes, classes, probability(z, classes)


@contextmanager
def _passing(method: str) -> Iterator[None]:
    """Say in one sentence that no gradient comes through a network."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("grad", "have been used")):
            raise
        raise UserError(
            f"method='{method}' needs a gradient from the logits to the images, and this network passes "
            f"none ({one_line(error)}); take method='occlusion' or 'rise'."
        ) from error


EXPLAINERS: dict[str, Callable[..., Raw]] = {
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
_ONCE = ("gradcam", "saliency", "gradient_x_input", "guided_backprop")
_AVERAGING = ("integrated_gradients", "smoothgrad", "rise")
_FORWARD_ONLY = ("occlusion", "rise")
