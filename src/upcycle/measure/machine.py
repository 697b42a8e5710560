"""The machine that figures are measured on, and its speed."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from upcycle.core.frozen import fast_bf16

LATENCY_BUDGET = 0.4
"""Seconds that :func:`fastest` spends at most, after its first repetitions."""


def machine() -> dict[str, Any]:
    """Describe the machine that figures were measured on: processor, cores, threads, GPU, and if bf16 is fast there."""
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
    return 2 * n**3 / fastest(once, 30)


def fastest(once: Callable[[], None], repetitions: int) -> float:
    """Seconds of the fastest of some calls: at most ``repetitions``, at least 3, then until 0.4 s have passed."""
    best, start = float("inf"), time.perf_counter()
    for done in range(max(repetitions, 3)):
        before = time.perf_counter()
        if done >= 3 and before - start > LATENCY_BUDGET:
            break
        once()
        best = min(best, time.perf_counter() - before)
    return best
