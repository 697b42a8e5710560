"""Where a network has room for a block: by names, and by what one batch shows."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.weights import require_finite
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Block, How, Kind, Place
from upcycle.surgery.looking import Seen, Sight, Stopped, look
from upcycle.surgery.signals import Signal


@dataclass(frozen=True, kw_only=True)
class Cut:
    """An operation on a network, as plain data.

    Args:
        at: patterns of module names, as ``fnmatch`` has them: ``*`` matches dots too. Of modules inside each other the
            outer one is meant.
        block: a name in :data:`~upcycle.surgery.inserts.BLOCKS`.
        how: before, after or in place of a module, or as a gate on what it gives; empty for what the block is made for.
        options: of the block, plain data.
    """

    at: tuple[str, ...]
    block: str
    how: How | Literal[""] = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Spot:
    """A place, and how it is seen from the network.

    Args:
        place: as the block is told it.
        kind: of the signal as the block is given it.
        signal: that the network has there, before the block.
        shape: of what the module gave for one image.
    """

    place: Place
    kind: Kind
    signal: Signal
    shape: tuple[int, ...]


def block_of(cut: Cut) -> tuple[Block, How, dict[str, Any]]:
    """The block of a cut, the way it is put there, and all its options.

    Raises:
        UserError: there is no such block, way or option, or an option is of another type.
    """
    if cut.block not in BLOCKS:
        raise unknown("block", cut.block, BLOCKS)
    block = BLOCKS[cut.block]
    how, ways = cut.how or block.how, (block.how, *block.others)
    require(how in ways, f"{block.name} can be put at a module with how {' or '.join(ways)}, not {how}.")
    usual = block.options()
    for name, value in cut.options.items():
        if name not in usual:
            raise unknown(f"option of {block.name}", name, usual)
        if not _fits(value, usual[name]):
            raise UserError(
                f"The option {name} of {block.name} must be like {usual[name]!r}, its default, not {value!r}."
            )
    whole = {name: float(v) if isinstance(usual[name], float) else v for name, v in cut.options.items()}
    return block, how, {**usual, **whole}


def _fits(value: Any, usual: Any) -> bool:
    """Whether an option's value is of the type of its default."""
    if usual is None:
        return value is None or isinstance(value, int | float | str | bool)
    if isinstance(usual, list | tuple):
        return isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value)
    if isinstance(usual, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(usual)


def places(model: Model, cut: Cut) -> list[Place]:
    """Find where a network has room for the block of a cut, by names and by what one batch shows.

    A module that a pattern with wildcards names and that the block cannot be put at is passed over; one that is named
    outright is refused.

    Args:
        model: a network of images; it stays as it is.
        cut: what is to be put where.

    Raises:
        UserError: a pattern names no module, or nothing at which the block could be put.
    """
    return [spot.place for spot in spots(model, cut)]


def spots(model: Model, cut: Cut) -> list[Spot]:
    """See :func:`places`; with how the network sees each."""
    block, how, _ = block_of(cut)
    require(bool(model.input_shape), f"{model.name} takes no images, and blocks are put into networks of images.")
    network = own(model.module)
    names = _named(model.name, network, cut.at)
    _require_plain(model.name, network)
    try:
        seen = look(model)
    except Stopped as stopped:
        raise UserError(f"{model.name} does not take images of its input_shape: {stopped.reason}.") from stopped
    found, problems = [], {}
    for name in names:
        spot = _spot(network, name, seen[name], block, how)
        if isinstance(spot, Spot):
            found.append(spot)
        else:
            problems[name] = spot
    _require_some(cut, names, [spot.place.name for spot in found], problems)
    return found


def _named(title: str, network: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """The modules that patterns name, in the order of the network, outer ones alone."""
    known = [name for name, _ in network.named_modules() if name]
    require(bool(patterns), "at must name modules of the network, as in 'layer1.*'.")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.5)
            top = [name for name, _ in network.named_children()]
            raise unknown(f"module of {title} called", pattern, dict.fromkeys([*near, *top]))
    named = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [name for name in named if not any(name.startswith(f"{outer}.") for outer in named)]


def _require_some(cut: Cut, names: list[str], found: list[str], problems: Mapping[str, str]) -> None:
    """Refuse a cut of which no place is left, or one that it names outright is not."""
    outright = [name for name in names if name in problems and name in cut.at]
    wrong = outright or ([] if found else names)
    if wrong:
        name = wrong[0]
        more = f" ({len(wrong) - 1} more are no places for it either)" if len(wrong) > 1 else ""
        raise UserError(f"{cut.block} cannot be put at '{name}': {problems[name]}{more}.")


def _require_plain(title: str, network: nn.Module) -> None:
    """Refuse networks that hold what cannot be cut or is no ordinary weight."""
    for name, m in network.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise UserError(
                f"'{name or title}' is TorchScript, which cannot be cut; give the Python module that it was made from."
            )
        if parametrize.is_parametrized(m):
            raise UserError(
                f"'{name or title}' computes its weights from others (torch.nn.utils.parametrize); make them ordinary "
                "first, with remove_parametrizations."
            )
    require_finite(network.state_dict(), title)


def _spot(network: nn.Module, name: str, seen: Seen, block: Block, how: How) -> Spot | str:
    """A module as a place for a block; in words where it is none."""
    module = network.get_submodule(name)
    if seen.calls > 1:
        return f"the network runs it {seen.calls} times, and a place is run once"
    if sum(m is module for _, m in network.named_modules(remove_duplicate=False)) > 1:
        return "the network has it under two names"
    if not seen.calls:
        return "the network does not run it"
    if how in ("before", "replace") and seen.tensors:
        return f"it is given {1 + seen.tensors} tensors, and {block.name} takes one"
    sight, other = (seen.takes, seen.gives) if how in ("before", "replace") else (seen.gives, seen.takes)
    if isinstance(sight, str):
        return f"it {sight}"
    gives = sight.signal
    if how == "replace":
        if isinstance(other, str):
            return f"it {other}"
        gives = other.signal
        if gives.layout != sight.signal.layout or gives.extra != sight.signal.extra:
            return f"it turns {words(sight.signal)} into {words(gives)}, which {block.name} does not"
    fitting: list[Kind] = [kind for kind in block.kinds if kind in sight.kinds]
    if not fitting:
        return f"there is {words(sight.signal)}, and {block.name} works on {' or '.join(map(_KINDS.get, block.kinds))}"  # type: ignore[arg-type]
    kind = fitting[0]
    if kind == "square" and isinstance(other, Sight) and how == "replace" and "square" not in other.kinds:
        return f"it gives {words(gives)}, and {block.name} gives tokens on a square of places"
    place = Place(name, module, _as(sight.signal, kind), _as(gives, kind))
    return Spot(place, kind, sight.signal, seen.shape[1:])


_KINDS = {"map": "maps", "square": "tokens on a square of places", "tokens": "tokens"}


def words(signal: Signal) -> str:
    """A signal in words: ``a map of 64 x 8 x 8``, ``65 tokens``."""
    h, w = signal.size
    if signal.layout == "map":
        return f"a map of {signal.channels} x {h} x {w}"
    if signal.layout == "grid":
        return f"a grid of {h} x {w} tokens"
    return f"{signal.extra + h * w} tokens" + ("" if h > 1 else " on no square of places")


def _as(signal: Signal, kind: Kind) -> Signal:
    """The signal as a block of some kind is given it."""
    if kind == "tokens" and signal.layout == "grid":
        return replace(signal, layout="tokens")
    return replace(signal, layout="map", extra=0) if kind == "square" else signal
