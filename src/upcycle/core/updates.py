"""Optimiser steps, the same on one process and on several, and none by a gradient that is not a finite number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.collective import average_gradients
from upcycle.core.errors import UserError


class Updates:
    """The optimiser steps of a run.

    Args:
        device: that the networks are on.
        world_size: number of processes.
        place: says in words where the run is, for an error.

    Attributes:
        count: steps so far, in all stages.
    """

    def __init__(self, device: torch.device, world_size: int, place: Callable[[], str]) -> None:
        self.device, self.world_size, self._place = device, world_size, place
        self.count = 0
        self._bad: Tensor | None = None  # a gradient was not finite
        self._climbs = False  # an optimiser ascends
        self._ascent: Tensor | None = None  # that of the ascent before this step was not

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """Average gradients over processes, clip their norm, step, and clear them."""
        self.count += 1
        parameters, grads, norm = self._gradients(optimizer)
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        if self.device.type != "cpu":
            bad = ~norm.isfinite()
            _void(optimizer, grads, bad if self._ascent is None else bad | self._ascent)
            self._ascent = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ascend(self, optimizer: Any) -> None:
        """Average gradients over processes, unless each ascends by itself, ascend by them, and clear them."""
        self._climbs = True
        local = optimizer.local and self.world_size > 1
        _, grads, norm = self._gradients(optimizer, local)
        if self.device.type != "cpu":
            self._ascent = ~norm.isfinite()
            for g in grads:
                g.masked_fill_(self._ascent, 0.0)
        optimizer.ascend()
        optimizer.zero_grad(set_to_none=True)

    def _gradients(self, optimizer: Any, local: bool = False) -> tuple[list[nn.Parameter], list[Tensor], Tensor]:
        """The parameters, the gradients that they have, and the norm of these, which is finite or is on record.

        Args:
            local: of this process alone, which cannot stop alone: what is wrong then shows in the step.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if self.world_size > 1 and not local:
            average_gradients(parameters, self.world_size)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if not local:
            bad = ~norm.isfinite()
            self._bad = bad if self._bad is None else self._bad | bad
            if self.device.type == "cpu" or self.count % 50 == 0:  # elsewhere, to ask is to wait for the device
                self.check()
        return parameters, grads, norm

    def check(self) -> None:
        """Raise :class:`UserError` if a gradient was not finite since this was last asked; waits for the device."""
        bad, self._bad = self._bad, None
        if bad is not None and bool(bad):
            remedy = (
                "lower lr or rho, or look at those samples" if self._climbs else "lower lr or look at those samples"
            )
            raise UserError(
                f"The loss or its gradient is not a finite number at {self._place()}. The weights were not touched; "
                f"{remedy}."
            )


def _void(optimizer: torch.optim.Optimizer, grads: list[Tensor], bad: Tensor) -> None:
    """Let the next step change nothing where ``bad`` (bool scalar), without asking the device for it."""
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # what a gradient scaler leaves there
    else:  # a step of zeros
        for g in grads:
            g.masked_fill_(bad, 0.0)
