"""The cost of a network: parameters, multiply-adds, time and memory; and bounds on it."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from upcycle.core.errors import UserError, require
from upcycle.core.outputs import called
from upcycle.core.undisturbed import undisturbed
from upcycle.measure.machine import fastest
from upcycle.measure.multiply_adds import MultiplyAdds


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs, whatever it runs on.

    Args:
        parameters: numbers that training adjusts, shared ones once.
        macs: multiply-adds of one sample's forward, in convolutions, matrix products and attention.
        bytes: of parameters and buffers in their number formats.
    """

    parameters: int
    macs: int
    bytes: int


Like = Any
"""The like of one sample: its shape without the batch, (c, h, w) for images; or inputs of one sample themselves."""


def count(module: nn.Module, like: Like) -> Cost:
    """Parameters, multiply-adds and bytes of a network.

    Args:
        like: see :data:`Like`.

    Raises:
        UserError: the network does not take that.
    """
    counter = MultiplyAdds()
    # Fused transformer layers and fused attention hide their matrix products from the counter.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # The counter follows gradients, and a view of a parameter that was made without any has none to follow.
    asking = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        with undisturbed(module), sdpa_kernel(SDPBackend.MATH), counter:
            _forward(module, _sample(module, like, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for p in asking:
            p.requires_grad_(True)
    return Cost(
        parameters=sum(p.numel() for p in module.parameters()),
        macs=counter.total,
        bytes=_stored(module),
    )


def latency(module: nn.Module, like: Like, batch: int = 1, repetitions: int = 30) -> float:
    """Seconds of one forward in eval mode without gradients: the minimum, least disturbed by others.

    Args:
        like: see :data:`Like`.
        batch: samples in the forward; inputs that are given are taken as they are.
        repetitions: at most; at least 3 are made, then it stops after 0.4 s.
    """
    sample = _sample(module, like, batch)

    def once() -> None:
        module(sample)
        if sample.is_cuda:
            torch.cuda.synchronize(sample.device)

    with undisturbed(module):
        _forward(module, sample)
        return fastest(once, repetitions)


def peak_memory(module: nn.Module, like: Like, batch: int = 1) -> int:
    """Bytes that a forward in eval mode without gradients holds at its worst moment.

    Parameters and buffers, plus the largest sum of tensors alive at once, the batch among them. On the CPU
    the tensors are counted as operations make them and Python lets go of them: scratch space inside an
    operation is not seen. On CUDA it is the allocator's own peak, scratch space included.

    Args:
        like: see :data:`Like`.
        batch: samples in the forward; inputs that are given are taken as they are.
    """
    with undisturbed(module):
        device = _home(module).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            _forward(module, _sample(module, like, batch))
            return _stored(module) + torch.cuda.max_memory_allocated(device) - before
        with _Live(module) as live:
            _forward(module, _sample(module, like, batch))
        return _stored(module) + live.peak


def _stored(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def _sample(module: nn.Module, like: Like, batch: int) -> Any:
    """A batch on the network's device, in its floating-point format: of zeros, where a shape is given."""
    return _home(module).new_zeros(batch, *like) if isinstance(like, tuple | list) else like.to(_home(module))


def _home(module: nn.Module) -> Tensor:
    """A tensor on the network's device, in its number format."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))


def _forward(module: nn.Module, sample: Any) -> Any:
    try:
        return module(sample)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shape = " x ".join(map(str, sample.shape[1:])) if isinstance(sample, Tensor) else type(sample).__name__
        raise UserError(f"{called(module)} does not take inputs of {shape}: {reason}") from error


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """Give the tensors that one lies in: three others where it is sparse in CSR layout."""
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return (tensor,)


class _Live(TorchDispatchMode):
    """Follows the storages that operations make until they are freed; ``peak``: their largest sum, bytes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        stored = [*module.parameters(), *module.buffers()]
        self._seen = weakref.WeakSet[Any](t.untyped_storage() for t in stored)
        self._now = 0
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it is to import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            for part in _strided(tensor) if isinstance(tensor, Tensor) else ():
                self._follow(part.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _follow(self, storage: Any) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            size = storage.nbytes()
            self._now += size
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._now -= size


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds on the assembled network, stitches and head included; both ends belong to it.

    Args:
        params: most parameters.
        macs: most multiply-adds of one sample's forward.
        params_min: fewest parameters.
        macs_min: fewest multiply-adds.
    """

    params: float | int = math.inf
    macs: float | int = math.inf
    params_min: float | int = 0
    macs_min: float | int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("params", self.params_min, self.params), ("macs", self.macs_min, self.macs)):
            require(most > 0, f"{name} must be positive, not {most}.")
            require(0 <= least <= most, f"{name}_min must lie between 0 and {name} = {most}, not be {least}.")

    def allows(self, params: float | int, macs: float | int) -> bool:
        return self.params_min <= params <= self.params and self.macs_min <= macs <= self.macs

    def __str__(self) -> str:
        bounds = [
            f"at {word} {value:,.0f} {unit}"
            for word, value, unit in (
                ("least", self.params_min, "parameters"),
                ("most", self.params, "parameters"),
                ("least", self.macs_min, "multiply-adds"),
                ("most", self.macs, "multiply-adds"),
            )
            if 0 < value < math.inf
        ]
        return " and ".join(bounds)


UNLIMITED = Budget()
