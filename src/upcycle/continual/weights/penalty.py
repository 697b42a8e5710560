"""Quadratic penalties on leaving the weights of earlier tasks: elastic weight consolidation and synaptic intelligence.

Both keep for each trainable parameter where it was after the last task, θ*, and how much it matters, Ω, and add the
gradient of c Σ Ω (θ - θ*)² to that of the loss. What is kept does not grow with the number of tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upcycle.continual.protocol.tasks import restore
from upcycle.core.errors import require

Tensors = list[Tensor] | tuple[Tensor, ...]


@torch.no_grad()
def pull(parameters: Tensors, importance: Tensors, anchor: Tensors, strength: float) -> None:
    """Add to the gradients that of strength · Σ Ω (θ - θ*)²: 2 · strength · Ω (θ - θ*), in place and without a graph.

    Args:
        parameters: θ, with gradients.
        importance: Ω, of the same shapes.
        anchor: θ*, of the same shapes.
    """
    apart = torch._foreach_sub(parameters, anchor)
    torch._foreach_addcmul_(gradients(parameters), importance, apart, value=2 * strength)


def gradients(parameters: Tensors) -> list[Tensor]:
    """The gradient of each; zeros where the loss does not reach, as on several processes."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def clip(gradients: Tensors, most: float = 1.0) -> None:
    """Bring each number into [-most, most], in place; one that is not finite becomes NaN, so that it shows."""
    bad = torch._foreach_sub(gradients, gradients)  # zeros, or NaN
    torch._foreach_clamp_min_(gradients, -most)
    torch._foreach_clamp_max_(gradients, most)
    torch._foreach_add_(gradients, bad)


class ParameterState:
    """Numbers beside each trainable parameter of a network, such as importances.

    ``state["importance"]`` is a list in the parameters' order, each tensor of its parameter's shape.

    Saved by the parameters' names, so that they fit again after the classifier has grown.

    Args:
        module: whose parameters they are of.
        names: the kinds of numbers; zeros at first.
    """

    def __init__(self, module: nn.Module, *names: str) -> None:
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = tuple(p for p in module.parameters() if p.requires_grad)
        self._lists: dict[str, list[Tensor]] = {name: self._zeros() for name in names}

    def __getitem__(self, name: str) -> list[Tensor]:
        return self._lists[name]

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self.parameters]

    @torch.no_grad()
    def copy_in(self, name: str, values: Tensors) -> None:
        """Copy values into a list."""
        torch._foreach_copy_(self._lists[name], values)

    @torch.no_grad()
    def match(self) -> None:
        """Bring everything to the device, number format and memory layout of the parameters, once these are set up."""
        for name, values in self._lists.items():
            self._lists[name] = self._zeros()
            self.copy_in(name, values)

    def state_dict(self) -> dict[str, Any]:
        """By kind and the parameters' names."""
        return {kind: dict(zip(self._names, values, strict=True)) for kind, values in self._lists.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; outputs that are new since then have zeros.

        Raises:
            UserError: it belongs to another network.
        """
        for kind in self._lists:
            require(list(state[kind]) == self._names, "What was kept beside the parameters belongs to another network.")
            self._lists[kind] = self._zeros()
            for name, mine in zip(self._names, self._lists[kind], strict=True):
                restore(mine, state[kind][name], f"{kind} of {name}")
