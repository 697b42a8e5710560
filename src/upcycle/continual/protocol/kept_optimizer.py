"""An optimiser that goes on over the tasks of a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upcycle.continual.protocol.tasks import restore
from upcycle.core.recipe import Recipe


class KeptOptimizer:
    """An optimiser whose moments are kept from task to task, for ``keep`` of :func:`tasks`; others begin anew in each.

    The network is then set up without one: ``student, _ = run.setup(net.module)``. What is saved goes by the
    parameters' names, so that it fits again after the classifier has grown; rates come from the recipe.

    Args:
        module: whose trainable parameters it moves.
        recipe: says which optimiser.

    Attributes:
        inner: the optimiser, for steps.
    """

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        self.inner: torch.optim.Optimizer = recipe.make(module)
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """The moments of each parameter by its name; none before the first step."""
        return {name: dict(self.inner.state.get(p, {})) for name, p in self._parameters.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; outputs that are new since then have moments of zero."""
        for name, p in self._parameters.items():
            self.inner.state[p] = {key: _fitted(value, p, f"{key} of {name}") for key, value in state[name].items()}


def _fitted(value: Any, p: Tensor, name: str) -> Any:
    """Fit what is kept of a parameter to it: a count of steps, or numbers that lie in memory as the parameter does."""
    if not isinstance(value, Tensor) or value.dim() == 0 < p.dim():
        return value.to(p.device, copy=True) if isinstance(value, Tensor) else value
    made = torch.zeros_like(p, requires_grad=False)
    restore(made, value, name)
    return made
