"""What a network costs: parameters, multiply-adds, time and memory; and how fast matrix products are here."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import undisturbed
from upcycle.core.frozen import fast_bf16

LATENCY_BUDGET = 0.4
"""Seconds that :func:`latency` spends at most, after its first repetitions."""


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


def count(module: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Parameters, multiply-adds and bytes of a network.

    Args:
        input_shape: of one sample, without the batch; (c, h, w) for images.

    Raises:
        UserError: the network does not take that shape.
    """
    counter = FlopCounterMode(display=False)
    # Fused transformer layers and fused attention hide their matrix products from the counter.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undisturbed(module), sdpa_kernel(SDPBackend.MATH), counter:
            _forward(module, _sample(module, input_shape, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Cost(
        parameters=sum(p.numel() for p in module.parameters()),
        macs=counter.get_total_flops() // 2,  # the counter has two operations a multiply-add
        bytes=_stored(module),
    )


def latency(module: nn.Module, input_shape: tuple[int, ...], batch: int = 1, repetitions: int = 30) -> float:
    """Seconds of one forward in eval mode without gradients: the minimum, least disturbed by others.

    Args:
        input_shape: of one sample, without the batch.
        batch: samples in the forward.
        repetitions: at most; at least 3 are made, then it stops after 0.4 s.
    """
    sample = _sample(module, input_shape, batch)

    def once() -> None:
        module(sample)
        if sample.is_cuda:
            torch.cuda.synchronize(sample.device)

    with undisturbed(module):
        _forward(module, sample)
        return _fastest(once, repetitions)


def peak_memory(module: nn.Module, input_shape: tuple[int, ...], batch: int = 1) -> int:
    """Bytes that a forward in eval mode without gradients holds at its worst moment.

    Parameters and buffers, plus the largest sum of tensors alive at once, the batch among them. On the CPU
    the tensors are counted as operations make them and Python lets go of them: scratch space inside an
    operation is not seen. On CUDA it is the allocator's own peak, scratch space included.

    Args:
        input_shape: of one sample, without the batch.
        batch: samples in the forward.
    """
    with undisturbed(module):
        device = _home(module).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            _forward(module, _sample(module, input_shape, batch))
            return _stored(module) + torch.cuda.max_memory_allocated(device) - before
        with _Live(module) as live:
            _forward(module, _sample(module, input_shape, batch))
        return _stored(module) + live.peak


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Floating-point operations a second of a large square matrix product here, measured once (0.5 s)."""
    return _matmul_rate(dtype, str(device), torch.get_num_threads())


@functools.cache
def _matmul_rate(dtype: torch.dtype, device: str, threads: int) -> float:
    n = 1024 if device == "cpu" else 8192
    a = torch.ones(n, n, dtype=dtype, device=device)

    def once() -> None:
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize(a.device)

    once()
    return 2 * n**3 / _fastest(once, 30)


def machine() -> dict[str, Any]:
    """What measured figures must be read with: processor, cores, threads, GPU, and if bf16 is fast there."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": ", ".join(gpus) or None,
        "fast_bf16": fast_bf16("cuda" if gpus else "cpu"),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def si(value: float) -> str:
    """A count with three digits: ``272 k``, ``1.28 M``, ``650``.

    >>> si(272474), si(1_280_000), si(65)
    ('272 k', '1.28 M', '65')
    """
    return _scaled(value, ("", "k", "M", "G", "T", "P"))


def amount(value: float | str) -> float:
    """A count that a person wrote, perhaps with k, M, G or T behind it.

    >>> amount("0.5M"), amount("60 M"), amount(1000)
    (500000.0, 60000000.0, 1000.0)

    Raises:
        UserError: it is no positive number.
    """
    text = str(value).strip()
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1:], 1.0)
    try:
        found = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise UserError(f"'{value}' is no amount; write a number such as 500000, 0.5M or 60M.")
    return found


def bytes_(value: float) -> str:
    """A size with three digits, in powers of 1000.

    >>> bytes_(1_234_567)
    '1.23 MB'
    """
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def duration(seconds: float) -> str:
    """A time with two or three digits.

    >>> duration(0.00123), duration(75), duration(3720)
    ('1.23 ms', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 0.9995:
        return _scaled(seconds * 1e9, ("ns", "µs", "ms"))
    if seconds < 59.95:
        return f"{_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step + 1 < len(units):
        value, step = value / 1000, step + 1
    number = f"{value:.0f}" if step == 0 and value == round(value) else _digits(value)
    return f"{number} {units[step]}".strip()


def _digits(value: float) -> str:
    """Three significant digits, without exponent."""
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"


def _fastest(once: Callable[[], None], repetitions: int) -> float:
    best, start = float("inf"), time.perf_counter()
    for done in range(max(repetitions, 3)):
        before = time.perf_counter()
        if done >= 3 and before - start > LATENCY_BUDGET:
            break
        once()
        best = min(best, time.perf_counter() - before)
    return best


def _stored(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def _sample(module: nn.Module, input_shape: tuple[int, ...], batch: int) -> Tensor:
    """A batch of zeros on the network's device, in its floating-point format."""
    return _home(module).new_zeros(batch, *input_shape)


def _home(module: nn.Module) -> Tensor:
    """A tensor on the network's device, in its number format."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))


def _forward(module: nn.Module, sample: Tensor) -> Any:
    try:
        return module(sample)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shape = " x ".join(map(str, sample.shape[1:]))
        raise UserError(f"{type(module).__name__} does not take inputs of {shape}: {reason}") from error


class _Live(TorchDispatchMode):
    """Follows the storages that operations make until they are freed; ``peak``: their largest sum, bytes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        stored = [*module.parameters(), *module.buffers()]
        self._seen = weakref.WeakSet[Any](t.untyped_storage() for t in stored)
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
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
        bounds = [f"at {word} {value:,.0f} {unit}" for word, value, unit in (
            ("least", self.params_min, "parameters"), ("most", self.params, "parameters"),
            ("least", self.macs_min, "multiply-adds"), ("most", self.macs, "multiply-adds"),
        ) if 0 < value < math.inf]  # fmt: skip
        return " and ".join(bounds)


UNLIMITED = Budget()
