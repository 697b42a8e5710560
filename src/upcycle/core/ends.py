"""What a network ends in, seen by its answers: logits, or probabilities that were made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from upcycle.core.outputs import Squashed

SQUASHED: dict[str, Squashed] = {"softmax": "softmax", "sigmoid": "sigmoid"}
SAID = {
    "softmax": "probabilities (a softmax); their logarithms are used as its logits",
    "log-softmax": "logarithms of probabilities (a log-softmax), which are used as its logits",
    "sigmoid": "a probability for each class by itself (a sigmoid); log p - log(1 - p) is used as its logits",
    "unknown": "numbers between 0 and 1 that do not sum to 1, which are used as logits; if they are probabilities, let "
    "it answer with what they are made from",
}
"""The ends that are no plain logits, in words behind "answers with"."""


def end_of(z: Tensor) -> str | None:
    """Give what rows of numbers (b, k) look like, a key of :data:`SAID`; ``None``: like logits."""
    if z.dim() != 2 or z.shape[1] < 2 or not z.is_floating_point() or not bool(z.isfinite().all()):
        return None
    rounding, z = max(1e-4, 4 * torch.finfo(z.dtype).eps), z.double()
    if bool((z >= 0).all()) and float((z.sum(1) - 1).abs().max()) < rounding:
        return "softmax"
    if bool((z <= 0).all()) and float(z.logsumexp(1).abs().max()) < rounding:
        return "log-softmax"
    # What is the same everywhere comes of a classifier that begins with zeros.
    return "unknown" if 0 <= float(z.min()) < float(z.max()) <= 1 else None


class Sigmoids(TorchDispatchMode):
    """Within: keeps what sigmoids give, to tell answers of one from numbers that lie between 0 and 1 by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_):
            self.outputs.append(output.clone())
        return output
