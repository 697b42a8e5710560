"""What the first process of a machine makes, the others receive, and large tensors are in memory once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from upcycle.core.once import once


def _shared() -> dict[str, Any]:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"pixels": torch.arange(2**18).view(-1, 4), "names": ("a", "b"), "few": torch.ones(3)}

    found = once(make)
    maps = "memfd:upcycle" in Path("/proc/self/maps").read_text()
    found["pixels"][0] = torch.distributed.get_rank() + 7  # of this process alone
    torch.distributed.barrier()
    total = int(found["pixels"][1:].sum()), found["pixels"][0].tolist()
    return {"made": len(made), "maps": maps, "total": total, "names": found["names"]}


def _own() -> int:
    made: list[int] = []
    once(lambda: (made.append(1), threading.Lock()))  # a lock travels nowhere
    return len(made)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is shared on Linux")
@pytest.mark.xdist_group("ranks")
def test_the_first_process_makes_it_and_all_map_it(ranks: Any) -> None:
    first, second = ranks(_shared)
    total = sum(range(4, 2**18))
    assert (first["made"], second["made"]) == (1, 0)
    assert first["maps"] and second["maps"]
    assert first["total"] == (total, [7] * 4) and second["total"] == (total, [8] * 4)
    assert first["names"] == second["names"] == ("a", "b")


@pytest.mark.xdist_group("ranks")
def test_what_cannot_travel_each_makes(ranks: Any) -> None:
    assert ranks(_own) == [1, 1]


def test_alone_it_is_made() -> None:
    assert once(lambda: 3) == 3
