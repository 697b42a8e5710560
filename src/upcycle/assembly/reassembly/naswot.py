"""A score of networks that needs no training: how differently a network's units respond to different inputs.

Mellor, Turner, Storkey, Crowley, "Neural Architecture Search without Training", arXiv:2006.04647; as Deep Model
Reassembly (arXiv:2210.17409) uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from upcycle.core.errors import UserError

UNITS: frozenset[Any] = frozenset({
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.prelu,
    torch.prelu, F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh, F.hardtanh_,
    F.softplus, F.linear, F.dropout, F.multi_head_attention_forward,
})  # fmt: skip
"""Functions that count as units: activations, linear layers, dropout and attention."""


class Agreement(TorchFunctionMode):
    """A mode that adds up, over every unit that runs in it, the bits in which two inputs of the batch agree.

    K = sum over units of x x' + (1 - x)(1 - x)', where x (b, d) says which of the unit's outputs are positive.
    Functions are watched, not modules, so that a forward that calls ``F.relu`` counts too, and no hook is left behind.
    Windows and patches that a network folds into its batch (Swin, MobileViT) count as parts of their image; whether
    they lie image after image is asked by :func:`unscorable`.

    Args:
        batch: b.
        kernel: sum over units that ran before, (b, b).
    """

    def __init__(self, batch: int, kernel: Float64[Tensor, "b b"] | float = 0.0) -> None:
        super().__init__()
        self.batch, self.kernel, self.folded = batch, kernel, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in UNITS:
            x = out[0] if isinstance(out, tuple) else out
            if func is F.multi_head_attention_forward and x.dim() == 3:
                x = x.transpose(0, 1)  # it gives (tokens, b, c)
            if len(x) % self.batch:
                raise UserError(f"a unit gives {len(x)} rows for {self.batch} images.")
            self.folded = self.folded or len(x) != self.batch
            self.kernel = self.kernel + agreement(x.reshape(self.batch, -1))
        return out


def agreement(out: Tensor) -> Float64[Tensor, "b b"]:
    """Count equal bits, x x' + (1 - x)(1 - x)' for x = 1[out > 0], by one product of signs."""
    signs = (out.detach() > 0).flatten(1).to(torch.float32).mul_(2).sub_(1)
    return (signs @ signs.T).double().add_(signs.shape[1]).div_(2)


def log_det(kernel: Float64[Tensor, "b b"]) -> float:
    """Compute log |det K|; -inf where K is singular, for example because two inputs agree in every bit."""
    values = torch.linalg.eigvalsh(kernel)
    largest = float(values[-1])
    if not largest > 0 or float(values[0]) <= largest * len(values) * torch.finfo(torch.float64).eps:
        return -math.inf
    return float(values.log().sum())


@torch.no_grad()
def unscorable(module: nn.Module, images: Float[Tensor, "b c h w"]) -> str | None:
    """Say why a network has no score: it folds space into the batch so that an image's parts do not lie together.

    Asked is whether the images in another order agree as they did.

    Args:
        module: any network, in evaluation mode.
        images: three or more; what divides the numbers of its tokens by chance is best avoided, so an odd number.
    """
    kernels = []
    for x in (images, images.roll(1, 0)):
        with Agreement(len(x)) as seen:
            try:
                module(x.clone())
            except UserError as error:
                return str(error).rstrip(".")
        if not seen.folded:
            return None
        kernels.append(seen.kernel)
    first, second = kernels
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    same = (second.roll((-1, -1), (0, 1)) - first).abs().max() <= 1e-3 * first.abs().max()  # signs near zero may turn
    return None if same else "its units give the parts of several images in turn"


def naswot(module: nn.Module, batches: Iterable[Float[Tensor, "b c h w"]]) -> float:
    """Score a network by log |det K| / b, averaged over batches; higher is better, among networks of like size.

    The network runs in evaluation mode, so that BatchNorm keeps its statistics and each input stands alone. (The
    authors' code runs in training mode, which changes them.) Modes are restored.

    Args:
        module: any network; one without units scores -inf.
        batches: normalised images, on the network's device.

    Returns:
        -inf where two inputs of a batch share all bits.
    """
    return score_paths([[("network",)]], lambda _: module, batches)[0]


@torch.no_grad()
def score_paths(
    candidates: Sequence[Sequence[Hashable]],
    make: Callable[[Hashable], nn.Module],
    batches: Iterable[Float[Tensor, "b c h w"]],
) -> list[float]:
    """Score networks that are sequences of modules as :func:`naswot` does; what several begin with runs once a batch.

    Args:
        candidates: each network's modules, by key, in the order in which they run.
        make: makes the module of a key; called once for each key.
        batches: normalised images, the same for all candidates.
    """
    modules: dict[Hashable, nn.Module] = {}
    for key in dict.fromkeys(key for candidate in candidates for key in candidate):
        modules[key] = make(key)
    modes = {m: m.training for module in modules.values() for m in module.modules()}
    totals, count = [0.0] * len(candidates), 0

    def walk(members: list[int], depth: int, x: Tensor, kernel: Any) -> None:
        """All candidates that are equal up to ``depth``, where they have computed ``x`` and ``kernel``."""
        groups: dict[Hashable, list[int]] = {}
        for i in members:
            if depth == len(candidates[i]):
                totals[i] += log_det(kernel) / len(x) if isinstance(kernel, Tensor) else -math.inf
            else:
                groups.setdefault(candidates[i][depth], []).append(i)
        for n, (key, group) in enumerate(groups.items()):
            with Agreement(len(x), kernel) as seen:  # the last group may overwrite what it is given
                out = modules[key](x if n == len(groups) - 1 and depth else x.clone())
            walk(group, depth + 1, out, seen.kernel)

    try:
        for module in modules.values():
            module.eval()
        for images in batches:
            walk(list(range(len(candidates))), 0, images, 0.0)
            count += 1
    finally:
        for m, mode in modes.items():
            m.training = mode
    return [total / max(count, 1) for total in totals]
