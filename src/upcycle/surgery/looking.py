"""Inputs and outputs of every module of a network, seen while one batch passes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.errors import UserError, one_line
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.undisturbed import undisturbed
from upcycle.surgery.inserts.base import Kind
from upcycle.surgery.signals import Signal, signal_at_cut

BATCH = 2
"""Images in the batch."""


@dataclass(frozen=True)
class Sight:
    """A tensor that was seen.

    Args:
        signal: how it is laid out; tokens that lie on no places of the image have the size (1, n).
        kinds: of signals that it can be taken as.
    """

    signal: Signal
    kinds: frozenset[Kind]


@dataclass
class Seen:
    """The part of a module in one forward.

    Args:
        calls: how often it ran.
        takes: its first argument, or in words why that is no signal.
        gives: likewise what it gave.
        tensors: that it was given beside its first argument.
        shape: of what it gave.
    """

    calls: int = 0
    takes: Sight | str = "is not run"
    gives: Sight | str = "is not run"
    tensors: int = 0
    shape: tuple[int, ...] = ()


@dataclass
class _Looking:
    """Hooks that follow one forward.

    Args:
        image: (h, w) of the network's input.
        start: the signal of that.
        shapes: of all that modules gave so far.
        seen: by the modules' names.
    """

    image: tuple[int, int]
    start: Signal
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)

    def before(self, name: str, module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        found = self.seen[name]
        found.calls += 1
        found.takes = self._sight(given[0], self.start) if given else "is given nothing but by keyword"
        found.tensors = sum(isinstance(x, Tensor) for x in (*given[1:], *named.values()))

    def after(self, name: str, module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        found = self.seen[name]
        if isinstance(out, Tensor):
            found.shape = tuple(out.shape)
        before = found.takes.signal if isinstance(found.takes, Sight) else self.start
        found.gives = self._sight(out, before)
        if isinstance(out, Tensor):
            self.shapes.append(found.shape)

    def _sight(self, x: Any, before: Signal) -> Sight | str:
        """Find out how a tensor is laid out; in words where it is no signal."""
        if not isinstance(x, Tensor):
            return f"has a {type(x).__name__} there, not one tensor"
        shape = tuple(x.shape)
        if len(shape) not in (3, 4) or not x.is_floating_point():
            sizes = " x ".join(map(str, shape[1:])) or "nothing"
            return f"has {sizes} numbers of an image there, neither a map nor tokens"
        if shape[0] != BATCH:
            return "has parts of images there in place of images"
        try:
            signal = signal_at_cut(shape, self.shapes, before, self.image, "")
        except UserError:  # tokens on no places
            return Sight(Signal("tokens", shape[2], (1, shape[1])), frozenset({"tokens"}))
        kinds: frozenset[Kind] = frozenset({"map"} if signal.layout == "map" else {"square", "tokens"})
        return Sight(signal, kinds)


def look(model: Model) -> dict[str, Seen]:
    """Show the network a batch, and give what each of its modules did, by its name within ``own(model.module)``.

    Shapes are all that is looked at, so a copy without weights is tried first.

    Args:
        model: a network of images, unchanged afterwards.

    Raises:
        Stopped: the batch does not pass.
    """
    try:
        return _look(model, _weightless(model.module))
    except (Stopped, RuntimeError, TypeError, NotImplementedError):  # a forward that looks at values, or makes tensors
        return _look(model, model.module)


def _weightless(module: nn.Module) -> nn.Module:
    """A copy of a network on the meta device, which none of its weights are copied for."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    made = copy.deepcopy(module, memo)
    for m in made.modules():
        if type(m).forward is _BatchNorm.forward:  # which keeps shapes, and takes half the time without weights
            m.forward = nn.Identity().forward
    return made


def _look(model: Model, module: nn.Module) -> dict[str, Seen]:
    """See :func:`look`; of ``module`` in the model's place."""
    network = own(module)
    looking = _Looking(model.input_shape[1:], Signal("map", model.input_shape[0], model.input_shape[1:]))
    hooks = []
    for name, m in network.named_modules():
        looking.seen[name] = Seen()
        hooks.append(m.register_forward_pre_hook(partial(looking.before, name), with_kwargs=True))
        hooks.append(m.register_forward_hook(partial(looking.after, name)))
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with undisturbed(module):
            module(model.example(BATCH).to(like))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        raise Stopped(one_line(error), looking.seen) from error
    finally:
        for hook in hooks:
            hook.remove()
    return looking.seen


class Stopped(Exception):
    """A forward that did not come to its end.

    Args:
        reason: in words.
        seen: of the modules up to there.
    """

    def __init__(self, reason: str, seen: dict[str, Seen]) -> None:
        super().__init__(reason)
        self.reason, self.seen = reason, seen
