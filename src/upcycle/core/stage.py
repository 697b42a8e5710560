"""Where a stage stands: its registered state, its outermost loop and the batch loop in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upcycle.core.devices import match_layout


class Stage:
    """One stage of a run while it runs; :class:`upcycle.core.run.Run` has a stack of them.

    Args:
        name: unique within the enclosing stage.
        device: of what is tracked.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.state: dict[str, Any] = {}
        self.looping = False  # the outermost loop has started
        self.length = 1  # of the outermost loop
        self.epoch = 0
        self.step = 0  # of the batch loop in this epoch
        self.steps = 1
        self.batch_loop = False  # a batch loop is running
        self.within = False  # it has save points of its own
        self.clean = True  # no update and no batch loop since this epoch began
        self.resume_step = 0
        self._marks: Any = None  # of the state when this epoch began
        self._tracked: dict[str, tuple[Tensor, int]] = {}  # sums since this epoch began

    @property
    def progress(self) -> float:
        """The share of the outermost loop that is done, from 0 to below 1."""
        return (self.epoch + self.step / max(self.steps, 1)) / self.length

    def register(self, name: str, thing: Any) -> None:
        """Add state, see :meth:`upcycle.core.run.Run.register`."""
        if self.looping:
            raise RuntimeError(f"'{name}' must be registered before the loop of stage '{self.name}' starts")
        if name in self.state:
            raise RuntimeError(f"'{name}' is registered twice in stage '{self.name}'")
        self.state[name] = thing

    def require_outside_loop(self, name: str) -> None:
        """Refuse a stage inside the loop: it would be stored once and returned for every pass."""
        if self.looping and self.epoch < self.length:
            raise RuntimeError(f"stage '{name}' cannot start inside the loop of stage '{self.name}'")

    def start_loop(self, length: int) -> None:
        """Start the outermost loop, of ``length`` epochs."""
        if self.looping:
            raise RuntimeError(f"stage '{self.name}' has had its outermost loop; put this one in a stage of its own")
        self.looping, self.length = True, max(length, 1)

    def start_epoch(self, epoch: int) -> None:
        """Start a pass of the outermost loop."""
        self.epoch, self.step, self.clean, self._marks = epoch, 0, True, _marks(self.state)

    def unchanged(self) -> bool:
        """Whether nothing wrote to the registered state since the epoch began."""
        return bool(self._marks == _marks(self.state))

    def track(self, name: str, value: Tensor) -> None:
        """Add to the mean of ``name`` over this epoch."""
        total, n = self._tracked.get(name, (torch.zeros((), device=self.device), 0))
        self._tracked[name] = (total + value.detach(), n + 1)

    def means(self) -> dict[str, Tensor]:
        """What was tracked, as means, which begin anew."""
        means = {name: total / n for name, (total, n) in self._tracked.items()}
        self._tracked = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The registered state and what was tracked, for a save point."""
        state = {n: thing if isinstance(thing, Tensor) else thing.state_dict() for n, thing in self.state.items()}
        return {**state, "tracked": self._tracked}

    def load_state_dict(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Go back to the save point at ``epoch`` and ``step``; ``state`` is what :meth:`state_dict` gave."""
        self._tracked = {name: (total.to(self.device), n) for name, (total, n) in state["tracked"].items()}
        for name, thing in self.state.items():
            if isinstance(thing, Tensor):
                thing.detach().copy_(state[name])
            else:
                thing.load_state_dict(state[name])
            if isinstance(thing, torch.optim.Optimizer):
                match_layout(thing)
        self.epoch, self.resume_step = epoch, step


def _marks(state: Any) -> Any:
    """What differs once a state was written to: torch counts the writes to a tensor, its views and what is detached."""
    if isinstance(state, Tensor):
        return state.shape, state._version
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if hasattr(state, "state_dict"):
        return _marks(state.state_dict())
    if isinstance(state, dict):
        return {key: _marks(value) for key, value in state.items()}
    return [_marks(value) for value in state] if isinstance(state, list | tuple) else state
