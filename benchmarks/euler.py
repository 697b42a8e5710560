"""Euler's steps of an ODE network against torchdiffeq's, forwards and backwards, and the time as a channel.

The field is that of the published networks for digits (64 channels, 13 x 13 places), h = 0.05 as in TisODE and 0.1 with
time as in ODENet. The floor of a forward is the field by itself, as often as there are steps. The steady-state term is
set against the published form, which follows the state from T1 to the read-out twice. All take turns in one process,
and minima count. Run from the repository: ``python -m benchmarks.euler``; needs torchdiffeq (extra dev).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchdiffeq
from torch import Tensor

from benchmarks.common import alternate, asked_sizes, record
from upcycle.core.euler import euler, euler_to_rest
from upcycle.zoo.odenet import Field


def both_loops(f: Callable[[float, Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """The published form with h = 0.05: to T = 1, and from T1 = 0.9 again to T2 = 1.5."""
    h = 0.05
    for k in range(20):
        if k == 18:
            y = z
        z = z + h * f(k * h, z)
    moved = torch.zeros_like(z)
    for k in range(18, 30):
        change = f(k * h, y)
        moved, y = moved + h * change.abs(), y + h * change
    return z, moved.mean()


def concatenated(field: Field) -> Callable[[float, Tensor], Tensor]:
    """The same field with the time built as a channel."""

    def conv(layer: torch.nn.Module, t: float, z: Tensor) -> Tensor:
        time = torch.full_like(z[:, :1], t)
        return F.conv2d(torch.cat([time, z], 1), layer.weight, layer.bias, padding=1)  # type: ignore[arg-type]

    def f(t: float, z: Tensor) -> Tensor:
        z = F.relu(field.norm1(conv(field.conv1, t, z)))
        return F.relu(field.norm2(conv(field.conv2, t, z)))

    return f


def main() -> None:
    """Time, print and record."""
    asked = asked_sizes(batch=32, repetitions=15)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    still, timed = Field(64, timed=False), Field(64, timed=True)
    with_channel = concatenated(timed)
    z = torch.randn(asked.batch, 64, 13, 13)
    ends = torch.tensor([0.0, 1.0])

    def theirs(f: Callable[[float, Tensor], Tensor], h: float) -> Tensor:
        return torchdiffeq.odeint(f, z, ends, method="euler", options={"step_size": h})[1]

    @torch.no_grad()
    def floor() -> None:
        for k in range(20):
            still(0.05 * k, z)

    def forward(run: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            with torch.no_grad():
                run()

        return once

    def backward(run: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: run().square().mean().backward()

    arms = {
        "the field alone": floor,
        "ours, forward": forward(lambda: euler(still, z, 0.05)),
        "torchdiffeq, forward": forward(lambda: theirs(still, 0.05)),
        "ours, and backward": backward(lambda: euler(still, z, 0.05)),
        "torchdiffeq, and backward": backward(lambda: theirs(still, 0.05)),
        "ours, with time": backward(lambda: euler(timed, z, 0.1)),
        "torchdiffeq, time as a channel": backward(lambda: theirs(with_channel, 0.1)),
        "ours, to rest": backward(lambda: torch.stack(_scalars(*euler_to_rest(still, z, 0.05, (0.9, 1.5))))),
        "two loops, to rest": backward(lambda: torch.stack(_scalars(*both_loops(still, z)))),
    }
    off = max(float((euler(f, z, h) - theirs(f, h)).detach().abs().max()) for f, h in ((still, 0.05), (timed, 0.1)))
    times = {name: min(seconds) for name, seconds in alternate(arms, asked.repetitions).items()}
    figures = {
        **{f"{name} (ms)": round(1e3 * seconds, 1) for name, seconds in times.items()},
        "forward, ours over the floor": round(times["ours, forward"] / times["the field alone"], 3),
        "forward, ours over torchdiffeq": round(times["ours, forward"] / times["torchdiffeq, forward"], 3),
        "backward, ours over torchdiffeq": round(times["ours, and backward"] / times["torchdiffeq, and backward"], 3),
        "with time, ours over a channel": round(times["ours, with time"] / times["torchdiffeq, time as a channel"], 3),
        "to rest, ours over two loops": round(times["ours, to rest"] / times["two loops, to rest"], 3),
        "largest difference from torchdiffeq": off,
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    if not asked.quick:
        settings = {"batch": asked.batch, "repetitions": asked.repetitions, "threads": 1}
        print(record("euler", figures, **settings, torchdiffeq="0.2.5"))


def _scalars(z: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    return z.square().mean(), moved


if __name__ == "__main__":
    main()
