"""A network that takes gradient steps on a self-supervised loss of each input before it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from upcycle.core.errors import require
from upcycle.core.models import copy_of
from upcycle.core.outputs import called

Mode = Literal["vanilla", "online"]
Params = Literal["encoder", "all", "norm-affine"]
Optimizer = Literal["adam", "sgd"]
Loss = Callable[[nn.Module, Tensor], Tensor]


class StreamAdapter:
    """A network that takes ``steps`` on ssl_loss(network, x) before it answers x; it changes in place.

    Vanilla: each x starts from the weights, buffers and empty optimiser that the network came with. Online: from
    what the x before left. The network runs in evaluation mode for good: dropout is off, and no BatchNorm takes
    statistics of one sample.

    Args:
        network: any module; the parts that only the loss uses (ψ) are submodules of it.
        ssl_loss: function from the network and x to a scalar. Vanilla answers do not depend on the order of the
            stream if it draws nothing at random.
        mode: vanilla or online.
        steps: number T of steps before each answer.
        lr: learning rate of these steps.
        params: choice of what moves: all but the main head φ (encoder), all, or the scales and shifts of
            normalisations (norm-affine).
        head: name of the submodule φ, which ``encoder`` leaves as it is.
        optimizer: adam, or sgd without momentum.
        reset_every: number of answers after which online mode goes back to the start; 0 for never.
        pull: share ρ of θ ← (1 - ρ) θ + ρ θ0 after each step, against drift; from 0 to 1.
        update: function that steps down the loss and clears the gradients, in place of the optimiser alone.

    Raises:
        UserError: nothing moves, or a value is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        ssl_loss: Loss,
        *,
        mode: Mode,
        steps: int,
        lr: float,
        params: Params = "encoder",
        head: str = "",
        optimizer: Optimizer = "adam",
        reset_every: int = 0,
        pull: float = 0.0,
        update: Callable[[Tensor, torch.optim.Optimizer], None] | None = None,
    ) -> None:
        require(mode in ("vanilla", "online"), f"mode must be vanilla or online, not '{mode}'.")
        require(optimizer in ("adam", "sgd"), f"optimizer must be adam or sgd, not '{optimizer}'.")
        require(steps >= 0, f"steps must not be negative, it is {steps}.")
        require(0 <= lr < math.inf, f"lr must be zero or a positive number, not {lr}.")
        require(reset_every >= 0, f"reset_every must not be negative, it is {reset_every}.")
        require(0 <= pull <= 1, f"pull must lie in [0, 1], not {pull}.")
        self.network = network.eval().requires_grad_(False)
        self.ssl_loss, self.steps, self.pull = ssl_loss, steps, pull
        self.reset_every = 1 if mode == "vanilla" else reset_every
        self.answered = 0
        self._moving = [p.requires_grad_(True) for p in moving_parameters(network, params, head)]
        make = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = make(self._moving, lr=lr, fused=True)
        self._update = update or _descend
        self._state = [*(p.data for p in self._moving), *network.buffers()]
        self._start = [t.clone() for t in self._state]

    def reset(self) -> None:
        """Set weights, buffers and optimiser to what they were at the start."""
        torch._foreach_copy_(self._state, self._start)
        self.optimizer.state.clear()

    def answer(self, x: Float[Tensor, "b ..."]) -> Tensor:
        """Answer the next x, usually one sample, after the steps on it.

        Raises:
            UserError: the loss is not finite; the weights were not touched by it.
        """
        if self.reset_every and self.answered % self.reset_every == 0:
            self.reset()
        with torch.enable_grad():
            for _ in range(self.steps):
                loss = self.ssl_loss(self.network, x)
                require(
                    bool(loss.isfinite()),
                    f"The self-supervised loss of sample {self.answered} of the stream is "
                    "not a finite number; lower lr or look at that sample.",
                )
                self._update(loss, self.optimizer)
                if self.pull:
                    torch._foreach_lerp_(self._state[: len(self._moving)], self._start[: len(self._moving)], self.pull)
        self.answered += 1
        with torch.no_grad():
            return self.network(x)

    def answers(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give one answer to each x of a stream, in its order."""
        return map(self.answer, batches)


def adapt(
    model: nn.Module,
    batches: Iterable[Tensor],
    ssl_loss: Loss,
    *,
    mode: Mode,
    steps: int,
    lr: float,
    params: Params = "encoder",
    head: str = "",
    optimizer: Optimizer = "adam",
    reset_every: int = 0,
    pull: float = 0.0,
) -> Iterator[Tensor]:
    """Give the answers of a copy of ``model`` to a stream, each after the copy has adapted to that x.

    ``model`` stays as it is. Whoever wants the adapted copy makes an :class:`StreamAdapter` of one, which says what the
    arguments are.

    Args:
        batches: the stream; each of its tensors x (b, ...) is adapted to at once and answered once. As a rule it is
            one sample, b = 1.
    """
    return StreamAdapter(
        copy_of(model),
        ssl_loss,
        mode=mode,
        steps=steps,
        lr=lr,
        params=params,
        head=head,
        optimizer=optimizer,
        reset_every=reset_every,
        pull=pull,
    ).answers(batches)


def moving_parameters(network: nn.Module, params: Params, head: str = "") -> list[nn.Parameter]:
    """List the parameters that adaptation moves, see :class:`StreamAdapter`.

    Raises:
        UserError: an unknown choice, an encoder without the name of the head, or no such parameter.
    """
    require(params in ("encoder", "all", "norm-affine"), f"params must be encoder, all or norm-affine, not '{params}'.")
    if params == "norm-affine":
        kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
        found = [p for m in network.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]
    else:
        known = dict(network.named_modules())
        require(
            params == "all" or (head != "" and head in known),
            f"params='encoder' leaves the main head out: give head= the name of that submodule; '{head}' is none.",
        )
        out = {id(p) for p in known[head].parameters()} if params == "encoder" else set()
        found = [p for p in network.parameters() if id(p) not in out]
    require(
        bool(found),
        f"{called(network)} has no parameters of params='{params}' that could adapt; choose encoder or all.",
    )
    return found


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
