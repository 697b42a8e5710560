"""Processes and devices, and a network's way onto them and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from upcycle.core import collective, line, world
from upcycle.core.errors import UserError, one_line
from upcycle.core.memory import keep_freed
from upcycle.core.outputs import layout_of
from upcycle.core.precision import autocast, double

Thing = TypeVar("Thing")


class Processes(Protocol):
    """The processes of a run, as this one sees them; what is used of Lightning Fabric."""

    @property
    def global_rank(self) -> int:
        """The number of this process."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def barrier(self) -> None:
        """Wait for the others."""
        ...

    def broadcast(self, obj: Thing) -> Thing:
        """Give what the first process has."""
        ...

    def all_reduce(self, data: Tensor) -> Any:
        """The mean over all processes."""
        ...


class Alone:
    """One process, which has nobody to wait for: importing Fabric takes longer than a small network takes to train."""

    global_rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def barrier(self) -> None:
        """Nobody else."""

    def broadcast(self, obj: Thing) -> Thing:
        """Its own."""
        return obj

    def all_reduce(self, data: Tensor) -> Any:
        """Its own."""
        return data


_HERE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
"""Accelerators that one process takes without Fabric, and whether they are here."""


def launch(devices: int | None, accelerator: str, num_nodes: int = 1) -> Processes:
    """Start the processes of a run, or join those that a launcher started; arguments as in Lightning Fabric.

    The memory that they free stays with them, see :func:`upcycle.core.memory.keep_freed`. Each learns when another one
    ends, see :mod:`upcycle.core.line`.

    Args:
        devices: processes on each machine; ``None``: those that a launcher started, or one. 1 on one machine is this
            process alone, whatever a launcher started.
        accelerator: the kind of device.
        num_nodes: machines; as many as a launcher started, where it did and this is 1.

    Raises:
        UserError: this machine has no such devices, or a launcher started another number of processes.
    """
    keep_freed()
    told = world.told() if (devices, num_nodes) != (1, 1) else None
    if told is not None:
        world.check_devices(devices, num_nodes)
        devices, num_nodes = told.devices, told.num_nodes
    devices = devices or 1
    kind = device_of(accelerator).type if accelerator in ("auto", "gpu", *_HERE) else ""
    if devices * num_nodes == 1 and kind and _HERE[kind]():
        device = torch.device(kind, 0) if kind != "cpu" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        return Alone(device)

    from lightning_fabric import Fabric
    from lightning_fabric.plugins import environments

    kinds = {
        "torchrun": environments.TorchElasticEnvironment,
        "srun": environments.SLURMEnvironment,
        "Kubernetes": environments.KubeflowEnvironment,
    }
    try:
        # Fabric's ddp only to start processes and find devices: modules stay unwrapped.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # advice about tensor cores on every start
        fabric = Fabric(
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            strategy="ddp" if devices * num_nodes > 1 else "auto",
            plugins=[kinds[told.by]() if told is not None else environments.LightningEnvironment()],
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"Cannot use devices={devices} with accelerator='{accelerator}': {one_line(error)}") from error
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(devices))  # among which the cores are divided
    if fabric.world_size > 1 and not line.is_open():
        desk = line.Desk(os.environ["MASTER_ADDR"], fabric.world_size) if fabric.global_rank == 0 else None
        found = fabric.broadcast(desk.place if desk is not None else None)
        if desk is not None:
            desk.open()
        elif found is not None:
            line.join(found, fabric.global_rank, fabric.world_size)
    return fabric


def device_of(accelerator: str) -> torch.device:
    """The device that a run of one process has, for measuring outside of it; ``accelerator`` as in ``Run``."""
    if accelerator not in ("auto", "gpu"):
        return torch.device(accelerator)
    kinds = [kind for kind in ("cuda", "mps") if _HERE[kind]()]
    return torch.device(kinds[0] if kinds else "cuda" if accelerator == "gpu" else "cpu")


def make_deterministic(device: torch.device) -> None:
    """Make a GPU give the same bits again; only warns of operations that have no such form."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matrix product
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def hurry(*, tf32: bool, cudnn_benchmark: bool) -> None:
    """Let GPUs trade for speed what a run has by default: float32 as it is, and the same bits again.

    Args:
        tf32: matrix products and convolutions of float32 round what they take to 10 bits of mantissa.
        cudnn_benchmark: convolutions are timed, and the fastest is taken.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def place(
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    world_size: int,
    tensors: bool = False,
) -> None:
    """Put a module on the device, its ``forward`` wrapped in ``precision``, its BatchNorm synchronised; see `plain`.

    Args:
        tensors: mixed precision is for tensors alone, and what else goes in is taken in float32.
    """
    module.to(device=device, dtype=dtype)
    if any(p.dim() == 4 for p in module.parameters()):
        module.to(memory_format=layout_of(module))
    if world_size > 1:
        collective.sync_batchnorm(module)
    if precision == "bf16-mixed":
        module.forward = MethodType(autocast(device.type, tensors), module)
    elif precision == "64-true":
        module.forward = MethodType(double, module)


def plain(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Undo :func:`place`: on the CPU, contiguous, in eval mode, without gradients, nothing wrapped or compiled."""
    for m in module.modules():
        if getattr(m.__dict__.get("forward"), "upcycle", False):
            del m.forward
        m._compiled_call_impl = None
    module.zero_grad(set_to_none=True)
    module.to("cpu", dtype, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    module.eval()
    return module


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory format of its parameter: fused optimisers walk both in memory order."""
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[key] = torch.empty_like(p).copy_(value)
