"""Once a machine: what its first process makes the others receive, and all of them map the memory of large tensors.

Batches are drawn from all samples, so a process cannot do with a part of them; but the processes of one machine can do
with one copy. Pages of it that somebody writes to become that process' own.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from upcycle.core import collective

Thing = TypeVar("Thing")
LEAST = 2**20
"""Bytes of a tensor from which it is shared."""

_machine: tuple[list[int], Any] | None = None


def once(make: Callable[[], Thing]) -> Thing:
    """Give what ``make`` gives to the first process of each machine; every process of the command calls this.

    It travels pickled, from process to process of one command and never through a file. What cannot be pickled, such as
    an open file, and what cannot be shared here, each process makes for itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return make()
    ranks, group = _here()
    if len(ranks) == 1:
        return make()
    first, files = dist.get_rank() == ranks[0], _Files()
    made = make() if first else None
    sent: list[Any] = [files.pack(made) if first else None]
    dist.broadcast_object_list(sent, ranks[0], group=group)
    found = _unpacked(sent[0])
    all_have = torch.tensor(int(found is not None))
    dist.all_reduce(all_have, dist.ReduceOp.MIN, group=group)
    files.close()  # whoever maps them keeps them
    if int(all_have):
        return found[0]  # type: ignore[index]  # this process has it too
    return made if first else make()  # type: ignore[return-value]  # the first one has made it


def _here() -> tuple[list[int], Any]:
    """The processes of this machine that see each other's files, and their group."""
    global _machine
    if _machine is None:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                place = file.read() + os.readlink("/proc/self/ns/pid")
        except OSError:  # not Linux: nothing is shared
            place = f"{socket.gethostname()} {dist.get_rank()}"
        places = collective.every(place, dist.get_world_size())
        for one in dict.fromkeys(places):  # every process takes part in making every group
            ranks = [rank for rank, other in enumerate(places) if other == one]
            group = dist.new_group(ranks, backend="gloo")
            if one == place:
                _machine = ranks, group
    assert _machine is not None
    return _machine


class _Files:
    """Files without a name, in memory, that hold what is shared."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def pack(self, thing: Any) -> bytes | None:
        """Pickle a thing, its large tensors in files; ``None`` if that cannot be."""
        content = io.BytesIO()
        try:
            _Pickler(content, self._written).dump(thing)
        except (pickle.PicklingError, TypeError, AttributeError, OSError, ValueError):  # as by what is in there
            return None
        return content.getvalue()

    def _written(self, tensor: Tensor) -> str:
        file = os.memfd_create("upcycle")
        self._open.append(file)
        with open(file, "wb", closefd=False) as stream:
            stream.write(tensor.numpy().reshape(-1).view(np.uint8).data)
        return f"/proc/{os.getpid()}/fd/{file}"

    def close(self) -> None:
        """Let go of them."""
        for file in self._open:
            os.close(file)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, write: Callable[[Tensor], str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._write = write

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is not Tensor or thing.device.type != "cpu" or not thing.is_contiguous():
            return NotImplemented
        if thing.nbytes < LEAST or thing.requires_grad or not hasattr(os, "memfd_create"):
            return NotImplemented
        return _mapped, (self._write(thing), thing.dtype, tuple(thing.shape))


def _mapped(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    file = os.open(path, os.O_RDONLY)
    try:
        return torch.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_COPY), dtype=dtype).view(shape)
    finally:
        os.close(file)


def _unpacked(content: bytes | None) -> tuple[Any] | None:
    """What was packed, if it was and the files can be had."""
    try:
        return None if content is None else (pickle.loads(content),)
    except OSError:
        return None
