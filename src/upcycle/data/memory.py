"""How much memory there is, asked before it is taken."""

from __future__ import annotations

import os
from pathlib import Path

from upcycle.core.errors import UserError

SHARE = 1 / 4
"""Share of the machine's memory up to which images are kept in it."""


def require_memory(needed: int, what: str) -> None:
    """Raise :class:`UserError` if ``needed`` bytes are more than 80 % of the free memory."""
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"{what} need {needed / 1e9:,.1f} GB in memory, of which {free / 1e9:,.1f} GB are free. "
            "Load them with a smaller size, or fewer of them; files can be read as they are used "
            "(--keep_in_memory false)."
        )


def within_share(needed: int) -> bool:
    """Whether ``needed`` bytes are no more than images may take of the memory, whatever other programs take."""
    return needed <= SHARE * total_memory()


def total_memory() -> int:
    """Bytes of memory of this machine, or of this container where it has less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return whole


def free_memory() -> int:
    """Bytes of memory that can be had: what the system says, or less if this container has a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{k}").read_text()) for k in ("max", "current"))
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free
    return min(free, limit - used + int(counters.get("inactive_file", 0)))  # cached files make way
