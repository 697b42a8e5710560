"""The best weights of a training by a figure that is to fall, and when to stop waiting for better ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Patience:
    """Early stopping whose count begins late: before, nothing is compared and nothing is kept.

    On graphs with few labels the loss on held-out nodes is often lowest at the start, long before anything is learnt.

    Args:
        network: its state is kept where the figure is lowest; it is on the device where it trains.
        wait: epochs without a lower figure after which it is over; 0: never, and nothing is kept.
        after: the epoch from which on it counts.
    """

    def __init__(self, network: nn.Module, wait: int, after: int) -> None:
        self.network, self.wait, self.after = network, wait, after
        self._state: dict[str, Tensor] = {}
        self._best: float | None = None
        self._epoch = self._last = 0

    @property
    def over(self) -> bool:
        """Whether it was waited long enough."""
        return self._best is not None and self._last - self._epoch >= self.wait

    def see(self, epoch: int, figure: float) -> None:
        """Compare the figure of an epoch, and keep the network's state where it is the lowest."""
        if not self.wait or epoch < self.after:
            return
        self._last = epoch
        if self._best is None or figure < self._best:
            self._best, self._epoch = figure, epoch
            self._state = {key: tensor.detach().clone() for key, tensor in self.network.state_dict().items()}

    def restore(self) -> None:
        """Give the network its best state back, if there is one."""
        if self._best is not None:
            self.network.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """The state that was kept, for a save point."""
        return {"state": self._state, "best": self._best, "epoch": self._epoch, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a save point."""
        self._state, self._best = state["state"], state["best"]
        self._epoch, self._last = state["epoch"], state["last"]
