"""A teacher's frozen copy, made and checked once for a run and for whoever measures beside it."""

from __future__ import annotations

import weakref
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upcycle.core.frozen import Frozen, Precision, frozen
from upcycle.core.store import tensor_digest

if TYPE_CHECKING:
    from upcycle.core.batches import Split
    from upcycle.core.models import Model

CHECKED = 256
"""Samples that a copy is checked on, at most."""
PIXELS = 2**19
"""Fewer, but 64 at least, where images are so large that all of them have more pixels than this."""

_made: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Frozen]] = weakref.WeakKeyDictionary()


def frozen_for(
    split: Split | None,
    model: Model,
    device: torch.device,
    precision: Precision,
    *,
    input_grad: bool = False,
    keep_bn: bool = False,
    keep_modules: bool = False,
) -> Frozen:
    """A frozen copy of ``model`` that takes the inputs of ``split`` (``None``: noise) and is checked on some of them.

    The copy of a split is the same one again until other weights, inputs or properties are asked for.
    """
    kind: dict[str, Any] = {"input_grad": input_grad, "keep_bn": keep_bn, "keep_modules": keep_modules}
    kind |= {"precision": precision, "task": model.task}
    if split is None:
        return frozen(model.module, model.example(CHECKED).to(device), **kind)
    own = (getattr(split, "mean", model.mean), getattr(split, "std", model.std))
    kind["renormalise"] = (own, (model.mean, model.std))
    few = max(64, PIXELS // prod(model.input_shape[1:])) if model.input_shape else CHECKED
    index = torch.arange(len(split) if split.together else min(CHECKED, few, len(split)))
    inputs = split.batch(index, device=device).inputs
    if not isinstance(inputs, Tensor):  # there is no telling them apart
        return frozen(model.module, inputs, **kind)
    held = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers()), "the inputs": inputs}
    asked = (kind, inputs.device, tensor_digest(held))
    known = _made.get(model.module)
    if known is None or known[0] != asked:
        known = _made[model.module] = (asked, frozen(model.module, inputs, **kind))
    return known[1]
