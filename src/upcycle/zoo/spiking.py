"""Networks of leaky integrate-and-fire neurons, and ordinary networks of the same shape that teach them.

An image enters a spiking network as a current that stays the same for T steps. Between layers there are spikes alone, 0
or 1, and its answer is read from the currents that reach the last layer. Equations, constants and the larger shape are
those of Local Tandem Learning (Yang, Wu, Zhang, Chua, Wang, Li; NeurIPS 2022, arXiv:2210.04532) and of its authors'
code.

Tensors over time are (T b, ...), step by step, so that a layer is one call for all steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from upcycle.core.errors import require
from upcycle.core.ranges import ranges
from upcycle.core.spikes import Neurons

Reset = Literal["zero", "subtract"]
Plan = tuple[Sequence[tuple[int, int]], Sequence[int]]
"""Channels and stride of each 3x3 convolution, and the widths of the linear layers behind them, one at least."""

SMALL: Plan = (((16, 1), (32, 2), (64, 2)), (128,))
VGG11: Plan = (((64, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2), (512, 1), (512, 2)), (512, 512))
"""As in the authors' code, for CIFAR."""
CAP = 2.0
"""Of the activations of the network that teaches."""
LONGEST = 10_000
"""Steps, at most."""


# -- neurons ----------------------------------------------------------------------------------------------------------


class LIF(Neurons):
    """Leaky integrate-and-fire neurons: currents in, spikes out, from rest (u = 0, s = 0).

        u[t] = λ u[t-1] (1 - s[t-1]) + I[t],  s[t] = 1 if u[t] > θ else 0,  λ = exp(-1/τ)

    Backward takes ds/du = 1 where |u - θ| < window and 0 elsewhere, both strictly, and runs through u and through the
    reset; or, with ``through_time`` off, holds everything before a step constant.

    Args:
        tau: τ, in steps; infinite for neurons that do not leak (IF).
        theta: θ, the threshold.
        window: half the width of the surrogate gradient.
        reset: zero, as above; or subtract, u[t] = λ (u[t-1] - θ s[t-1]) + I[t].
    """

    def __init__(self, tau: float = 10.0, theta: float = 0.6, window: float = 0.2, reset: Reset = "zero") -> None:
        super().__init__()
        self.decay, self.theta, self.window, self.reset = math.exp(-1 / tau), theta, window, reset

    def forward(self, current: Tensor, steps: int, constant: bool = False, through_time: bool = True) -> Tensor:
        """Spikes (T b, ...).

        Args:
            current: I, (T b, ...); of a ``constant`` current one step, (b, ...).
            steps: T.
            constant: the same current comes in at every step.
            through_time: let gradients run to earlier steps.
        """
        return fire(current, steps, constant, self.decay, self.theta, self.window, self.reset, through_time)

    def extra_repr(self) -> str:
        return f"decay={self.decay:.4g}, theta={self.theta}, window={self.window}, reset={self.reset}"


@fx.wrap  # the graph of a network shows it as one node
def fire(
    current: Tensor,
    steps: int,
    constant: bool,
    decay: float,
    theta: float,
    window: float,
    reset: Reset,
    through_time: bool,
) -> Tensor:
    """Spikes of :class:`LIF` neurons, in float32 or better; see there for the arguments."""
    current = wide(current)
    if torch.is_grad_enabled() and current.requires_grad:
        return _Fire.apply(current, steps, constant, decay, theta, window, reset, through_time)
    return _simulated(current, steps, constant, decay, theta, reset)[0]


@fx.wrap
def wide(x: Tensor) -> Tensor:
    """``x`` in float32 or better, whatever autocast made of it."""
    return x if x.dtype == torch.float64 else x.float()


def _simulated(
    current: Tensor, steps: int, constant: bool, decay: float, theta: float, reset: Reset, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """s, (T b, ...), and of u[1] to u[T] the last, or all to ``keep``.

    All in floating point: on a CPU, masks of booleans take ten times as long.
    """
    each = [current] * steps if constant else _by_step(current, steps)
    s, u = [_above(each[0], theta)], [each[0]]
    for I in each[1:]:  # noqa: E741
        left = u[-1] * (1 - s[-1]) if reset == "zero" else u[-1] - theta * s[-1]
        now = torch.add(I, left, alpha=decay)
        s.append(_above(now, theta))
        if not keep:
            u.clear()
        u.append(now)
    return torch.cat(s), u


def _above(u: Tensor, theta: float) -> Tensor:
    return torch.gt(u, theta, out=torch.empty_like(u))


def _by_step(x: Tensor, steps: int) -> list[Tensor]:
    """Views of ``x`` (T b, ...), one for each step."""
    return list(x.unflatten(0, (steps, -1)).unbind(0))


def _room_like(one: Tensor, steps: int) -> Tensor:
    """Memory for ``steps`` tensors like ``one``, in the same order of axes."""
    last = one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(steps * len(one), *one.shape[1:], dtype=one.dtype, device=one.device, memory_format=order)


class _Fire(torch.autograd.Function):
    """Spikes with their surrogate gradient: one node for all steps, where a graph would have six for each."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        steps: int,
        constant: bool,
        decay: float,
        theta: float,
        window: float,
        reset: Reset,
        through_time: bool,
    ) -> Tensor:
        s, u = _simulated(current, steps, constant, decay, theta, reset, keep=True)
        ctx.save_for_backward(s, *u)
        ctx.facts = (constant, decay, theta, window, reset, through_time)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (s, *u), (constant, decay, theta, window, reset, through_time) = ctx.saved_tensors, ctx.facts
        T = len(u)
        to_current = _room_like(u[0], T)
        to_spikes, spikes, du = (_by_step(x, T) for x in (grad, s, to_current))  # du[t] = dL/du[t]
        for t in reversed(range(T)):
            ds, later = to_spikes[t], t + 1 < T and through_time
            if later:
                # u[t+1] has λ u[t] (1 - s[t]) in it, or λ (u[t] - θ s[t]).
                if reset == "zero":
                    ds = torch.addcmul(ds, du[t + 1], u[t], value=-decay)
                else:
                    ds = torch.add(ds, du[t + 1], alpha=-decay * theta)
            # The derivative of a clamp is that of a window: 1 between its ends, both left out.
            torch.ops.aten.hardtanh_backward.grad_input(ds, u[t], theta - window, theta + window, grad_input=du[t])
            if later:
                du[t].add_(du[t + 1], alpha=decay)
                if reset == "zero":
                    du[t].addcmul_(du[t + 1], spikes[t], value=-decay)
        return to_current.unflatten(0, (T, -1)).sum(0) if constant else to_current, *[None] * 7


# -- networks ---------------------------------------------------------------------------------------------------------


def layers(shape: tuple[int, int, int], plan: Plan, bias: bool) -> Iterator[nn.Module]:
    """The hidden layers of a plan, of synapses alone: 3x3 convolutions, and linear layers over what they leave.

    Args:
        shape: (c, h, w) of an image.
        plan: of channels, strides and widths.
        bias: whether layers have one.
    """
    (inputs, height, width), (convolutions, linear) = shape, plan
    for outputs, stride in convolutions:
        yield nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        inputs, height, width = outputs, -(-height // stride), -(-width // stride)
    inputs *= height * width
    for outputs in linear:
        yield nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs, bias))
        inputs = outputs


def width_of(layer: nn.Module) -> int:
    """The outputs of a layer of synapses."""
    last = layer[-1] if isinstance(layer, nn.Sequential) else layer
    return int(last.out_channels if isinstance(last, nn.Conv2d) else last.out_features)  # type: ignore[arg-type]


def check_steps(thing: Any) -> None:
    """Refuse numbers of steps that cannot be.

    Args:
        thing: has fields ``time_steps`` and ``warmup_steps``, which may be ``None``.

    Raises:
        UserError: no step, or none that is read.
        TypeError: no whole number.
    """
    T, T_w = thing.time_steps, thing.warmup_steps
    for number in (T, T_w):
        if number is not None and not isinstance(number, int):
            raise TypeError(f"steps are whole numbers, not {number!r}")
    ranges(thing, at_least={"time_steps": 1}, not_negative=("warmup_steps",))
    require(T <= LONGEST, f"time_steps must be at most {LONGEST:,}, and it is {T}.")
    require(T_w is None or T_w < T, f"warmup_steps must be below time_steps, {T}, and it is {T_w}.")


def currents(synapses: nn.Module, s: Tensor, steps: int, quiet: int) -> Tensor:
    """Give the currents of a layer for all steps, (T b, ...); for the first ``quiet`` of them without a gradient."""
    if not quiet:
        return synapses(s)
    n = quiet * (len(s) // steps)
    with torch.no_grad():
        before = synapses(s[:n])
    return torch.cat([before, synapses(s[n:])])


class Spiking(nn.Module):
    """A network of layers of synapses with :class:`LIF` neurons behind each, and synapses that are read from.

    Images (b, c, h, w) to logits (b, k): with y[t] the currents of the last synapses and Y[t] = y[1] + ... + y[t],

        logits = Σ_{t > T_w} Y[t] / Σ_{t > T_w} t,

    which is the mean of y over all steps where T_w = T - 1, as it is by default.

    Args:
        synapses: hidden layers, each from images or spikes (n, ...) to currents (n, ...).
        readout: from the spikes of the last layer to k currents.
        time_steps: T.
        warmup_steps: T_w, steps before the answer is read; T - 1 if not given.
        neuron: of :class:`LIF`, for all layers.
    """

    time_steps: int
    warmup_steps: int | None

    def __init__(
        self,
        synapses: Iterable[nn.Module],
        readout: nn.Module,
        time_steps: int = 16,
        warmup_steps: int | None = None,
        **neuron: Any,
    ) -> None:
        super().__init__()
        self.synapses, self.readout = nn.ModuleList(synapses), readout
        self.neurons = nn.ModuleList(LIF(**neuron) for _ in self.synapses)
        self.run_for(time_steps, warmup_steps)

    def run_for(self, time_steps: int, warmup_steps: int | None = None) -> None:
        """Set T and T_w; neither changes a weight.

        Raises:
            UserError: no step, or none that is read.
        """
        self.time_steps, self.warmup_steps = time_steps, warmup_steps
        check_steps(self)

    def steps(self) -> dict[str, int]:
        """T, and T_w where it was set: what the network is rebuilt with."""
        warmup = {} if self.warmup_steps is None else {"warmup_steps": self.warmup_steps}
        return {"time_steps": self.time_steps, **warmup}

    def forward(self, images: Tensor) -> Tensor:
        y, _ = self.simulate(images)
        T = self.time_steps
        T_w = T - 1 if self.warmup_steps is None else self.warmup_steps
        return y.cumsum(0)[T_w:].sum(0) / sum(range(T_w + 1, T + 1))

    def simulate(
        self, images: Tensor, *, blocked: bool = False, through_time: bool = True, quiet: int = 0
    ) -> tuple[Float[Tensor, "T b k"], list[Tensor]]:
        """Run all steps: the currents y that are read, and the spikes of each layer, (T, b, ...).

        Args:
            images: (b, c, h, w).
            blocked: detach the spikes that enter a layer, so that no gradient leaves it for the one before.
            through_time: see :class:`LIF`.
            quiet: the first steps that nothing is learnt from: behind the first layer no gradient is kept for them.
        """
        s, spikes, T = images, [], self.time_steps
        for i, (synapses, neurons) in enumerate(zip(self.synapses, self.neurons, strict=True)):
            s = neurons(currents(synapses, s, T, quiet if i else 0), T, i == 0, through_time)
            spikes.append(s.unflatten(0, (T, -1)))
            s = s.detach() if blocked else s
        return wide(currents(self.readout, s, T, quiet)).unflatten(0, (T, -1)), spikes


def spiking(shape: tuple[int, int, int], num_classes: int, plan: Plan = SMALL, **options: Any) -> Spiking:
    """A spiking network of a plan, without BatchNorm.

    *Chosen here.* Weights start as He et al. have them for ReLUs, and biases at zero: of neurons whose potential never
    comes near θ there is nothing to learn from.

    Args:
        shape: (c, h, w) of an image.
        num_classes: k.
        plan: channels, strides and widths.
        options: of :class:`Spiking`.
    """
    hidden = list(layers(shape, plan, bias=True))
    made = Spiking(hidden, nn.Linear(width_of(hidden[-1]), num_classes), **options)
    for m in made.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)  # type: ignore[arg-type]
    return made


class Capped(nn.Module):
    """An ordinary network of a plan: BatchNorm and min(max(x, 0), 2) behind each hidden layer.

    Images (b, c, h, w) to logits (b, k).

    Departures: dropout rests in evaluation, where the authors' code leaves it on; BatchNorm's momentum is 0.1, where
    theirs is 0.9 in torch's meaning, that is nearly the last batch alone.

    Args:
        shape: (c, h, w) of an image.
        num_classes: k.
        plan: channels, strides and widths.
        dropout: in front of each linear layer.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, plan: Plan = SMALL, dropout: float = 0.2) -> None:
        super().__init__()
        blocks, width = [], shape[0]
        for i, layer in enumerate(layers(shape, plan, bias=False)):
            flat, width = i >= len(plan[0]), width_of(layer)
            norm = nn.BatchNorm1d(width, eps=1e-4) if flat else nn.BatchNorm2d(width, eps=1e-4)
            blocks.append(nn.Sequential(*[nn.Dropout(dropout)] * flat, *_flattened(layer), norm, nn.Hardtanh(0.0, CAP)))
        self.blocks = nn.Sequential(*blocks)
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.drop(self.blocks(images)))


def _flattened(layer: nn.Module) -> Iterable[nn.Module]:
    """A layer of synapses as its parts, so that a BatchNorm stands beside the layer that it is folded into."""
    return layer if isinstance(layer, nn.Sequential) else (layer,)
