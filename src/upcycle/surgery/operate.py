"""Put a block into a trained network, or in place of a part of it, and build such a network again from its record."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.models import Model, copy_of, source_of
from upcycle.core.outputs import own
from upcycle.core.seeds import seed_of
from upcycle.core.undisturbed import undisturbed
from upcycle.core.weights import require_finite
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Block, How, Insert, Kind, Place, Start
from upcycle.surgery.looking import Seen, Sight, Stopped, look
from upcycle.surgery.signals import Signal
from upcycle.surgery.wrappers import wrapped

REFERENCE = "assembly:operated"
TOLERANCE = 1e-6
"""Largest relative error of a network that starts at its source's function, in float64."""
LARGEST = 2**28
"""Parameters of one block; a record that asks for more is damaged."""


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
    return block, how, {**usual, **cut.options}


def _fits(value: Any, usual: Any) -> bool:
    """Whether an option's value is of the type of its default."""
    if usual is None:
        return value is None or isinstance(value, int | float | str | bool)
    if isinstance(usual, list | tuple):
        return isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value)
    if isinstance(usual, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(usual)


# -- places -------------------------------------------------------------------------------------------------------


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
    require(bool(patterns), "at must name modules, as in 'layer1.*': upcycle blocks NAME --model REFERENCE lists them.")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise unknown(f"module of {title} called", pattern, known)
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
            return f"it turns {_words(sight.signal)} into {_words(gives)}, which {block.name} does not"
    fitting: list[Kind] = [kind for kind in block.kinds if kind in sight.kinds]
    if not fitting:
        return f"there is {_words(sight.signal)}, and {block.name} works on {' or '.join(map(_KINDS.get, block.kinds))}"  # type: ignore[arg-type]
    kind = fitting[0]
    if kind == "square" and isinstance(other, Sight) and how == "replace" and "square" not in other.kinds:
        return f"it gives {_words(gives)}, and {block.name} gives tokens on a square of places"
    place = Place(name, module, _as(sight.signal, kind), _as(gives, kind))
    return Spot(place, kind, sight.signal, seen.shape[1:])


_KINDS = {"map": "maps", "square": "tokens on a square of places", "tokens": "tokens"}


def _words(signal: Signal) -> str:
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


# -- operations ---------------------------------------------------------------------------------------------------


class _Sides(TypedDict):
    """The signals at a place, as the block is told them."""

    name: Annotated[str, Meta(min_length=1, max_length=1000)]
    takes: dict[str, Any]
    gives: dict[str, Any]


class Record(TypedDict):
    """An operation as a saved model has it, beside its source."""

    block: Annotated[str, Meta(max_length=100)]
    how: How
    start: Start
    options: dict[str, Any]
    places: Annotated[list[_Sides], Meta(min_length=1, max_length=10_000)]


def operate(
    model: Model, cut: Cut, start: Start = "same", *, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> Model:
    """Put a block into a copy of a network, in evaluation mode.

    The module at a place stays under the name that it had with ``module`` behind it, and the block stands beside it as
    ``block``: ``layer1.0.module.conv1.weight``, ``layer1.0.block.gate.weight``.

    Args:
        model: a trained network of images; it stays as it is.
        cut: what is put where.
        start: same: the network starts at its own function, which is compared before and after; fresh: at another.
        seed: of what is drawn for fresh weights.
        say: where sentences go about modules that a pattern names and that were passed over.

    Raises:
        UserError: the block cannot be put there, or not at the same function.
    """
    block, how, options = block_of(cut)
    require(
        start == "fresh" or how in block.exact,
        f"{block.name} has no start at the same function with how {how}: take the start fresh, and train.",
    )
    made = replace(model, module=copy_of(model.module))
    found, problems = [], {}
    for spot in spots(made, cut):
        try:
            _put(made, spot, block, how, start, options, seed)
            found.append(spot)
        except UserError as error:
            problems[spot.place.name] = str(error).rstrip(".")
    left = [spot.place.name for spot in found]
    if problems and (not left or set(problems) & set(cut.at)):
        raise UserError(f"{next(iter(problems.values()))}.")
    _check(made, found, block, how)
    for name, problem in problems.items():
        say(f"{problem}, so '{name}' stays as it is.")
    if start == "same" and not (error := start_error(model, made)) <= TOLERANCE:
        raise UserError(
            f"{model.name} with {block.name} does not start at its own function: its answers differ by {error:.1e} of "
            f"the largest, more than {TOLERANCE:.0e}; take the start fresh, and train."
        )
    record: dict[str, Any] = {
        "block": block.name,
        "how": how,
        "start": start,
        "options": {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()},
        "places": [
            {"name": s.place.name, "takes": s.place.takes.record(), "gives": s.place.gives.record()} for s in found
        ],
    }
    source = source_of(model)
    return replace(
        made,
        reference=None if source is None else REFERENCE,
        options={} if source is None else {"source": source, "cut": record},
        lineage=None,
        name=f"{model.name}-{block.name}",
    )


def start_error(before: Model, after: Model, images: Tensor | None = None) -> float:
    """The largest difference of two networks' answers, over the largest answer of the first, in float64.

    Args:
        images: a batch, normalised as both expect; if not given, the example of the first.
    """
    images = before.example() if images is None else images
    answers = []
    for model in (before, after):
        network = copy_of(model.module).double()
        with undisturbed(network):
            answers.append(network(images.to(next(network.parameters(), torch.empty(0))).double()))
    return float((answers[0] - answers[1]).abs().max() / answers[0].abs().max().clamp_min(1e-30))


def inserts(network: nn.Module) -> Iterator[Insert]:
    """The blocks in a network that ask for something while it is tuned."""
    return (m for m in network.modules() if isinstance(m, Insert))


def _put(model: Model, spot: Spot, block: Block, how: How, start: Start, options: dict[str, Any], seed: int) -> None:
    """Put one block in, in place."""
    network, place = own(model.module), spot.place
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        numbers = block.parameters(place.takes, **options)
        if not 0 <= numbers <= LARGEST:
            raise UserError(f"{block.name} at '{place.name}' would have {numbers:,} parameters, too many.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "operate", place.name))
            made = block.make(place, how, start, **options)
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(
            f"{block.name} cannot be made for '{place.name}' with these options: {one_line(error)}."
        ) from error
    made = wrapped(place.module, made.to(like.device, like.dtype), how, spot.kind, spot.signal)
    network.set_submodule(place.name, made.train(place.module.training))


def _check(model: Model, found: list[Spot], block: Block, how: How) -> None:
    """Look at a network after the operation: every block ran once, and gave what its place asks for.

    Raises:
        UserError: one did not.
    """
    try:
        seen, reason = look(model), ""
    except Stopped as stopped:
        seen, reason = stopped.seen, stopped.reason
    for spot in found:
        name = spot.place.name
        at = seen[f"{name}.block"]
        wanted = spot.signal.shape(1)[1:] if how == "before" else spot.shape
        shape = at.shape[1:] if how == "before" else seen[name].shape[1:]
        if shape and shape != wanted:
            sizes = (" x ".join(map(str, s)) for s in (shape, wanted))
            raise UserError("{} at '{}' gives {} where {} is needed.".format(block.name, name, *sizes))
        require(at.calls == 1 or bool(reason), f"The network runs past '{name}', so nothing can be put there.")
    require(not reason, f"With {block.name} in it {model.name} does not run: {reason}.")


def rebuild_operated(source: dict[str, Any], cut: Any, rebuild: Callable[[dict[str, Any]], Model]) -> nn.Module:
    """The architecture of a network that was operated on, with fresh weights; see :mod:`upcycle.core.saved`.

    Args:
        source: the network that it was made of, as a record.
        cut: a :class:`Record`.
        rebuild: the function that builds a recorded architecture.

    Raises:
        ValueError: they do not fit together.
    """
    try:
        record = msgspec.convert(cut, Record, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(one_line(error)) from error
    names = tuple(side["name"] for side in record["places"])
    asked = Cut(at=names, block=record["block"], how=record["how"], options=record["options"])
    origin = rebuild(source)
    try:
        block, how, options = block_of(asked)
        require(record["start"] == "fresh" or how in block.exact, f"{block.name} has no such start")
        require(len({*names}) == len(names) and not any("*" in n or "?" in n or "[" in n for n in names), "odd places")
        for spot, side in zip(spots(origin, asked), record["places"], strict=True):
            place, told = spot.place, (Signal.from_record(side["takes"]), Signal.from_record(side["gives"]))
            require((place.name, place.takes, place.gives) == (side["name"], *told), f"'{place.name}' is another place")
            _put(origin, spot, block, how, record["start"], options, 0)
    except UserError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return origin.module
