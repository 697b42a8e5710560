"""Explicit Euler for networks whose depth is time, differentiated through its steps, and how far the end is from rest.

Chen, Rubanova, Bettencourt, Duvenaud, "Neural Ordinary Differential Equations" (arXiv:1806.07366); the steady-state
term is that of Yan, Du, Tan, Feng, "On Robustness of Neural Ordinary Differential Equations" (arXiv:1910.05513).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from upcycle.core.errors import require

Field = Callable[[float, Tensor], Tensor]
"""dz/dt = f(t, z), of the shape of z; one that ignores t is autonomous."""
OFF_GRID = 1e-6
"""By how much of a step a time may miss the grid, since 0.3 is no whole number of times 0.1 in binary numbers."""


def steps_in(time: float, h: float, name: str = "time") -> int:
    """The number of steps of h that a time takes.

    Args:
        time: not negative.
        h: the step, positive.
        name: of the time, for the error.

    Raises:
        UserError: h is not positive, or the time is no multiple of it.
    """
    require(h > 0, f"The step must be positive, and it is {h:g}.")
    steps = round(time / h)
    require(
        steps >= 0 and abs(time / h - steps) < OFF_GRID,
        f"{name} {time:g} is no multiple of the step {h:g}; give one that is.",
    )
    return steps


def euler(f: Field, z: Tensor, h: float, time: float = 1.0, start: float = 0.0) -> Tensor:
    """z(start + time) of dz/dt = f(t, z) from z(start) = z, by z ← z + h f(t, z).

    One step with h = time = 1 is a residual block z + f(z).

    Args:
        f: the field.
        z: the state, of any shape.
        h: the step.
        time: a multiple of h.
        start: the time at which z is.

    Raises:
        UserError: the time is no multiple of h.
    """
    for k in range(steps_in(time, h)):
        z = torch.add(z, f(start + k * h, z), alpha=h)
    return z


def euler_to_rest(
    f: Field, z: Tensor, h: float, window: tuple[float, float], time: float = 1.0
) -> tuple[Tensor, Tensor]:
    """z(time) as :func:`euler` has it from t = 0, and the mean over all entries of ∫ |f(t, z(t))| dt over a window.

    The window may begin before the time at which the state is read and end behind it. The state follows f itself; the
    absolute value is inside the integral alone, so the term is not |∫ f|. A trajectory that is at rest has 0. The
    published code follows the state from T1 to the read-out twice; here both need it once.

    Args:
        f: the field.
        z: the state at t = 0, of any shape.
        h: the step of state and integral alike.
        window: T1 and T2.
        time: T, at which the state is read.

    Raises:
        UserError: a time that is no multiple of h, or a window that ends where it begins or before.
    """
    first, last = (steps_in(t, h, name) for t, name in zip(window, ("T1", "T2"), strict=True))
    require(first < last, f"The window must end behind its beginning, and it is {window[0]:g} to {window[1]:g}.")
    read = steps_in(time, h)
    at_end, moved = z, z.new_zeros(())
    for k in range(max(read, last)):
        change = f(k * h, z)
        if first <= k < last:
            moved = torch.add(moved, change.abs().mean(), alpha=h)
        if k + 1 < last or k + 1 <= read:  # the state at the end of the window is read by nobody
            z = torch.add(z, change, alpha=h)
        if k + 1 == read:
            at_end = z
    return at_end, moved
