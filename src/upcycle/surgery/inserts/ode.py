"""ODE blocks in place of residual blocks: a trained x + f(x) is one Euler step of dz/dt = f(z).

Yan, Du, Tan, Feng, "On Robustness of Neural Ordinary Differential Equations" (ICLR 2020, arXiv:1910.05513).

A trained block x + f(x) is z(1) of its own f with the step h = 1, so the network starts at its function; while it is
tuned, h falls to its end, and then, for ``tisode``, the steady-state term comes in. A ReLU behind the sum, as ResNets
have it, stays behind z(1). The block that is left computes f as often as there are steps.

Departures. The paper trains from random weights; it knows no trained blocks. A trained f knows no time, so of blocks
that start at the same function ``ode`` and ``tisode`` differ in the steady-state term alone; only new ones of ``ode``
take the time. The term comes in when h has reached its end, where the paper waits for 5 of 100 epochs. BatchNorm has
one set of statistics and no meaning over several steps: inside a trained f it normalises by its running statistics, in
training too. A new f has GroupNorm. The paper's window runs from T to 2T (unchecked), the published code's from 0.9 to
1.5 with h = 0.05; the default here is the nearest that fits h = 0.1.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.euler import OFF_GRID, euler, euler_to_rest, steps_in
from upcycle.core.undisturbed import undisturbed
from upcycle.surgery.inserts.base import Block, How, Insert, Place, Start
from upcycle.surgery.signals import Signal
from upcycle.surgery.trace import trace_blocks
from upcycle.zoo.odenet import Field

PAPER = "Yan, Du, Tan, Feng; arXiv:1910.05513"
WINDOW = (0.9, 1.5)
"""T1 and T2 of the published training log, multiples of h = 0.1 and 0.05."""
FINEST = 1000
"""Most steps of one block: 1 / h."""
EXACT = 1e-6
"""Largest difference from the block before, relative to its largest output, at which f counts as found."""
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, "relu", "relu_")


# -- what a residual block adds ---------------------------------------------------------------------------------------


class Autonomous(nn.Module):
    """f(z) of a trained block as a field f(t, z) that no time enters.

    Its BatchNorms stay in evaluation mode: they normalise by their running statistics, whatever the mode around them.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.train(body.training)

    def forward(self, t: float, z: Tensor) -> Tensor:
        return self.body(z)

    def train(self, mode: bool = True) -> Autonomous:
        super().train(mode)
        for m in self.modules():
            if isinstance(m, _BatchNorm):
                m.training = False
        return self


def residual_of(place: Place) -> tuple[nn.Module, bool]:
    """f of a block x + f(x), and whether a ReLU stands behind the sum.

    The block's forward is traced, x taken out of the sum that it ends in, and what is left compared with the block.

    Args:
        place: of the block. Its weights are those of f, which holds its layers under their names.

    Raises:
        UserError: the block is no x + f(x), or cannot be traced.
    """
    refused = f"'{place.name}' is no x + f(x), which an ODE block continues"
    require(
        place.takes == place.gives,
        f"{refused}: it makes {_shape(place.gives)} of {_shape(place.takes)}; choose a block that keeps the shape.",
    )
    block = place.module
    like = next((p for p in block.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(place.takes.shape(2), generator=generator).to(like)
    with undisturbed(block):
        try:
            graph, _ = trace_blocks(block, f"'{place.name}'", x)
        except UserError as error:
            raise UserError(f"{refused}: {one_line(error)}") from error
        if (found := _without_input(block, graph)) is None:
            raise UserError(
                f"{refused}: its forward ends in no sum of which its input is a part; choose another block."
            )
        body, rectified = found
        expected, sum_ = block(x), x + body(x)
        difference = (F.relu(sum_) if rectified else sum_) - expected
        far = float(difference.abs().max() / expected.abs().max().clamp_min(1e-12))
    require(far <= EXACT, f"{refused}: with its f found by tracing it answers otherwise, by {far:.1e} of the largest.")
    return body, rectified


def _shape(signal: Signal) -> str:
    return " x ".join(map(str, signal.shape(1)[1:]))


def _without_input(block: nn.Module, graph: fx.Graph) -> tuple[fx.GraphModule, bool] | None:
    """The graph without the input in the sum at its end, and whether a ReLU stood behind that; ``None`` without one."""
    modules = dict(block.named_modules())
    end = next(n for n in graph.nodes if n.op == "output")
    result = end.args[0]
    if not isinstance(result, fx.Node):
        return None
    behind: list[fx.Node] = []
    while isinstance(result, fx.Node) and (_is_relu(result, modules) or _is_identity(result, modules)):
        behind.append(result)
        result = result.args[0]
    left = _take_out(graph, result, modules)
    if left is None:
        return None
    rectified = any(_is_relu(n, modules) for n in behind)
    end.args = (left,)
    # By hand, since torch.fx keeps what writes in place; where a block needs such a statement, the comparison tells.
    for n in reversed(graph.nodes):
        if not n.users and n.op not in ("placeholder", "output"):
            graph.erase_node(n)
    return fx.GraphModule(block, graph, class_name="Residual"), rectified


def _take_out(graph: fx.Graph, total: Any, modules: dict[str, nn.Module]) -> fx.Node | None:
    """A node for a sum, or a sum of sums, without the graph's input as a term; ``None`` where that is none of them."""
    if not isinstance(total, fx.Node) or total.op not in ("call_function", "call_method"):
        return None
    if total.target not in _SUMS or total.kwargs or len(total.args) != 2:
        return None
    one, other = total.args
    for term, rest in ((one, other), (other, one)):
        if _is_input(term, modules) and isinstance(rest, fx.Node):
            return rest
    for term, rest in ((one, other), (other, one)):
        if isinstance(rest, fx.Node) and (left := _take_out(graph, term, modules)) is not None:
            with graph.inserting_after(total):
                return graph.call_function(operator.add, (left, rest))
    return None


def _is_input(node: Any, modules: dict[str, nn.Module]) -> bool:
    while _is_identity(node, modules):
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder"


def _is_identity(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a layer that changes nothing; an empty shortcut is such."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    layer = modules[str(node.target)]
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Sequential) and len(layer) == 0)


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op in ("call_function", "call_method") and node.target in _RELUS


# -- the block --------------------------------------------------------------------------------------------------------


class OdeBlock(Insert):
    """z(1) of dz/dt = f(t, z) from z(0) = x by explicit Euler, and a ReLU behind it where the replaced block had one.

    Where 1 is no multiple of h, as on the way to its end, the last step is what is left. So z(1) changes continuously
    with h: a network whose h jumped from 1 to 1/2 would answer otherwise at once.

    Args:
        field: f(t, z).
        rectified: whether a ReLU stands behind z(1).
        begin, end: h before the tuning and at its end.
        until: the share of the tuning after which h is at its end.
        weight: w of the steady-state term.
        window: T1 and T2 of that term, multiples of ``end``; ``None`` for an ODE without it.

    Attributes:
        step: h now. It is saved with the weights.
    """

    kept_step: Tensor

    def __init__(
        self,
        field: nn.Module,
        *,
        rectified: bool,
        begin: float,
        end: float,
        until: float,
        weight: float,
        window: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        self.field, self.rectified = field, rectified
        self.begin, self.end, self.until = begin, end, until
        self.weight, self.window = weight, window
        self._resting = False
        self._moved: Tensor | None = None
        self.register_buffer("kept_step", torch.tensor(begin))
        self.register_load_state_dict_post_hook(OdeBlock._follow)
        self.step = begin

    @property
    def step(self) -> float:
        """h."""
        return self._step

    @step.setter
    def step(self, value: float) -> None:
        # A forward that asked the buffer could not be exported, since a program knows no values.
        require(1 / FINEST <= value <= 1, f"The step of an ODE block lies between {1 / FINEST:g} and 1, not {value:g}.")
        whole = round(1 / value)
        self._step = 1 / whole if abs(1 / value - whole) < OFF_GRID else float(value)  # float32 may have kept it
        self.kept_step.fill_(value)

    @staticmethod
    def _follow(module: nn.Module, _: Any) -> None:
        assert isinstance(module, OdeBlock)
        module.step = float(module.kept_step)  # which refuses what a damaged file may hold

    def prepare(self, progress: float, generator: torch.Generator) -> None:
        """Set h, which falls by equal factors until its share of the tuning is over; from then on the term counts."""
        there = progress >= self.until
        step = self.end if there else self.begin * (self.end / self.begin) ** (progress / self.until)
        if step != self.step:
            self.step = step
        self._resting = there and self.window is not None and self.weight > 0

    def penalty(self) -> Tensor | None:
        """w times the mean over all entries of ∫ |f| dt from T1 to T2, of the last forward in training mode."""
        moved, self._moved = self._moved, None
        return None if moved is None else self.weight * moved

    def forward(self, x: Tensor) -> Tensor:
        h = self.step
        if self.training and self._resting and self.window is not None:
            z, self._moved = euler_to_rest(self.field, x, h, self.window)
        else:
            whole = math.floor(1 / h + OFF_GRID)
            z, left = euler(self.field, x, h, whole * h), 1 - whole * h
            if left > OFF_GRID:
                z = torch.add(z, self.field(whole * h, z), alpha=left)
        return F.relu(z) if self.rectified else z

    def __getstate__(self) -> dict[str, Any]:  # a term that nobody asked for holds a graph, which cannot be copied
        return {**self.__dict__, "_moved": None}

    def extra_repr(self) -> str:
        return f"step={self.step:g}"


def _make(
    place: Place, start: Start, timed: bool, step: float, until: float, weight: float, window: Sequence[float] | None
) -> OdeBlock:
    steps = steps_in(1.0, step, "The time")
    require(steps <= FINEST, f"An ODE block takes at most {FINEST:,} steps, and {step:g} asks for {steps:,}.")
    require(0 <= until <= 1, f"until must lie between 0 and 1, and it is {until:g}.")
    require(weight >= 0, f"weight must not be negative, and it is {weight:g}.")
    if window is not None:
        require(len(window) == 2, f"window is T1 and T2, two times, and not {len(window)}.")
        first, last = (steps_in(t, step, name) for t, name in zip(window, ("T1", "T2"), strict=True))
        require(first < last, f"window must end behind its beginning, and it is {window[0]:g} to {window[1]:g}.")
    if start == "same":
        body, rectified = residual_of(place)
        field: nn.Module = Autonomous(body)
    else:
        require(
            place.takes.layout == "map" and place.takes == place.gives,
            f"A new ODE block is of convolutions and keeps the shape: '{place.name}' takes {_shape(place.takes)} and "
            f"gives {_shape(place.gives)}; choose a place that has one map going in and out.",
        )
        c = place.takes.channels
        require(c % min(32, c) == 0, f"A new ODE block has channels in 32 groups, and '{place.name}' has {c} channels.")
        field, rectified = Field(c, timed), False
    return OdeBlock(
        field,
        rectified=rectified,
        begin=1.0 if start == "same" else step,
        end=step,
        until=until if start == "same" else 0.0,
        weight=weight,
        window=None if window is None else (window[0], window[1]),
    )


def make_ode(place: Place, how: How, start: Start, *, step: float = 0.1, until: float = 0.5) -> OdeBlock:
    """Make z(1) of dz/dt = f(z) by Euler of a residual block x + f(x), or a new f of convolutions and GroupNorm.

    Args:
        place: of the residual block that it replaces.
        how: replace.
        start: same: the block's own f, from h = 1 on; fresh: a new f, which takes the time, with h = ``step``.
        step: h at the end, of which 1 is a multiple; the block computes f 1 / h times.
        until: the share of the tuning after which h is at its end; until then it falls from 1.

    Raises:
        UserError: an option out of range, or a block that is no x + f(x).
    """
    return _make(place, start, True, step, until, 0.0, None)


def make_tisode(
    place: Place,
    how: How,
    start: Start,
    *,
    step: float = 0.1,
    until: float = 0.5,
    weight: float = 0.01,
    window: Sequence[float] = WINDOW,
) -> OdeBlock:
    """Make an ODE block that no time enters, and whose state the tuning brings to rest.

    Args:
        place: of the residual block that it replaces.
        how: replace.
        start: same: the block's own f, from h = 1 on; fresh: a new f with h = ``step``.
        step: h at the end, of which 1 is a multiple; the block computes f 1 / h times.
        until: the share of the tuning after which h is at its end; until then it falls from 1.
        weight: w of the steady-state term, which comes in when h is at its end.
        window: T1 and T2 of the steady-state term, multiples of ``step``.

    Raises:
        UserError: see :func:`make_ode`.
    """
    return _make(place, start, False, step, until, weight, window)


def _parameters(timed: bool) -> Any:
    def number(takes: Signal, **options: Any) -> int:
        c = takes.channels
        return 2 * (9 * c * (c + 1) + c if timed else 9 * c * c) + 4 * c

    return number


def _macs(timed: bool) -> Any:
    def number(takes: Signal, *, step: float = 0.1, **options: Any) -> int:
        c, (h, w) = takes.channels, takes.size
        steps = steps_in(1.0, step, "The time")
        # The map of the time is computed for one sample, and is 0 in the first step.
        return 2 * 9 * c * h * w * (steps * c + (steps - 1 if timed else 0))

    return number


ODE = Block(
    name="ode",
    summary="a residual block x + f(x) continued as dz/dt = f(z), solved by Euler",
    paper=PAPER,
    kinds=("map", "tokens"),
    how="replace",
    make=make_ode,
    exact=("replace",),
    parameters=_parameters(True),
    macs=_macs(True),
)
TISODE = replace(
    ODE,
    name="tisode",
    summary="an ODE block that comes to rest, so that small disturbances of its input fade",
    make=make_tisode,
    parameters=_parameters(False),
    macs=_macs(False),
)
