"""The allocator keeps freed memory where that can be asked for, and is left alone where a person has set it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from upcycle.core.memory import keep_freed
print(keep_freed())
def step():
    for made in [torch.ones(2 * 2**20) for _ in range(20)]:  # 160 MiB in blocks of 8 MiB
        del made
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(), step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step(), step()
print(min(faults() for _ in range(3)))  # where the heap grows by one block more, it does so once
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_not_cleared_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[str]:
        return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()

    done, faults = run()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    left, others = run()
    assert (done, left) == ("True", "False")
    assert int(faults) < 2000 < int(others)  # of 81,920 pages
