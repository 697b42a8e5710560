"""Which process this is, and how many there are, as the program says that started it; known before torch is imported.

``torchrun``, SLURM's ``srun`` and the PyTorchJob of Kubernetes start every process themselves and say so in environment
variables. Otherwise Lightning Fabric starts the further processes of a machine as the same command again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from upcycle.core.errors import UserError, require


@dataclass(frozen=True)
class Told:
    """What a launcher says.

    Args:
        by: which launcher it is.
        devices: processes on each machine.
        num_nodes: machines.
        rank: the number of this process among all.
    """

    by: Literal["torchrun", "srun", "Kubernetes"]
    devices: int
    num_nodes: int
    rank: int


def told(env: Mapping[str, str] | None = None) -> Told | None:
    """Read what a launcher says, ``None`` where there is none or where it started a single process.

    Args:
        env: environment variables; those of this process if not given.
    """
    env = os.environ if env is None else env
    if "TORCHELASTIC_RUN_ID" in env:
        found = _told(env, "torchrun", "WORLD_SIZE", "RANK", env.get("LOCAL_WORLD_SIZE"))
    elif "SLURM_STEP_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        # The number of a step stands there for what srun started, and not in a batch script around it.
        found = _told(env, "srun", "SLURM_NTASKS", "SLURM_PROCID", env.get("SLURM_NTASKS_PER_NODE"))
    elif "KUBERNETES_SERVICE_HOST" in env and "MASTER_ADDR" in env and "LOCAL_RANK" not in env:
        found = _told(env, "Kubernetes", "WORLD_SIZE", "RANK", "1")  # a process in each pod
    else:
        return None
    return found if found is not None and found.devices * found.num_nodes > 1 else None


def _told(
    env: Mapping[str, str], by: Literal["torchrun", "srun", "Kubernetes"], size: str, rank: str, local: str | None
) -> Told | None:
    numbers = [env.get(size, ""), env.get(rank, ""), local or env.get(size, "")]
    if not all(number.isdecimal() for number in numbers):
        return None
    world, own, devices = map(int, numbers)
    return Told(by, devices, max(1, world // max(1, devices)), own)


def first_process() -> bool:
    """Whether this is the process that speaks, claims and writes: the first one of the first machine."""
    if (found := told()) is not None:
        return found.rank == 0
    # Of those that Fabric starts; the machines' first processes are started by a person, who numbers them.
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def check_devices(devices: int | None, num_nodes: int) -> None:
    """Raise :class:`UserError` where a launcher started another number of processes than is asked for."""
    found = told()
    if found is not None and not (devices in (None, found.devices) and num_nodes in (1, found.num_nodes)):
        raise UserError(
            f"{found.by} started {found.devices} processes on each of {found.num_nodes} machines, and --devices "
            f"{devices} --num_nodes {num_nodes} asks for others; leave these two options out."
        )


def check_strategy(strategy: str) -> None:
    """Raise :class:`UserError` for a strategy of Lightning Fabric that no run can follow."""
    require(
        strategy in ("auto", "ddp"),
        f"--strategy {strategy} divides or wraps networks, which methods take apart and put together; the one here is "
        "ddp, a copy of each network in every process.",
    )
