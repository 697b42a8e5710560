"""Free memory, and the C library's allocator, asked to keep what one step of training frees for the next one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
from pathlib import Path

MAPPED = 32 * 2**20
"""Bytes from which glibc maps a block of its own; the most that it takes, and where it arrives by itself in time."""
KEPT = 512 * 2**20
"""Bytes of freed memory that stay with the process instead of going back to the system."""

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h


@functools.cache
def keep_freed() -> bool:
    """Let freed memory stay with this process; says whether that was done.

    A step of training frees all activations and asks for as much again. In between glibc hands them back to the system,
    and the kernel clears every page anew: a twentieth of a small network's step. The peak stays what it is, but up to
    half a GiB is not handed back until the process ends. Done once, on Linux with glibc, and not where the environment
    sets the allocator itself.
    """
    named = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in named):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Both: to set one of them ends glibc's own raising of the other.
    return bool(mallopt(_MAP, MAPPED)) and bool(mallopt(_TRIM, KEPT))


def free_memory() -> float | None:
    """Bytes that can still be had, by the kernel and by the container's limit; ``None`` off Linux."""
    try:
        (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    except (OSError, ValueError):
        return None
    free = float(kilobytes) * 1024
    with contextlib.suppress(OSError, ValueError):  # no container, or one whose limit is "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, float(limit - used))
    return free
