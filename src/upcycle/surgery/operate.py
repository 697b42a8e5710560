"""Put a block into a trained network, or in place of a part of it, and build such a network again from its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.models import Model, copy_of, source_of
from upcycle.core.outputs import own
from upcycle.core.seeds import seed_of
from upcycle.core.undisturbed import undisturbed
from upcycle.surgery.inserts.base import Block, How, Insert, Start
from upcycle.surgery.looking import Stopped, look
from upcycle.surgery.places import Cut as Cut
from upcycle.surgery.places import Spot, block_of, spots
from upcycle.surgery.places import places as places
from upcycle.surgery.signals import Signal
from upcycle.surgery.wrappers import wrapped

REFERENCE = "assembly:operated"
TOLERANCE = 1e-6
"""Largest relative error of a network that starts at its source's function, in float64."""
CORNER = 64
"""Pixels of a side that two networks are compared on by themselves, where their images are larger."""
LARGEST = 2**28
"""Parameters of one block; a record that asks for more is damaged."""


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
    ``block``: ``layer1.0.module.conv1.weight``, ``layer1.0.block.fc1.weight``.

    Its ``options`` hold the record of the operation, see :class:`Record`, with the names of the places.

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
    if start == "same":
        off = start_error(model, made)
        require(
            off <= TOLERANCE,
            f"{model.name} with {block.name} does not start at its own function: its answers differ by {off:.1e} of "
            f"the largest, more than {TOLERANCE:.0e}; take the start fresh, and train.",
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
        options={"cut": record} if source is None else {"source": source, "cut": record},
        lineage=None,
        name=f"{model.name}-{block.name}",
    )


def start_error(before: Model, after: Model, images: Tensor | None = None) -> float:
    """The largest difference of two networks' answers, over the largest answer of the first, in float64.

    Args:
        images: a batch, normalised as both expect. If not given, the example of the first; of large images a corner,
            where both take that.
    """
    if images is None:
        images = before.example()
        corner = images[..., :CORNER, :CORNER]
        if corner.shape != images.shape:
            try:
                return start_error(before, after, corner)
            except (RuntimeError, ValueError, TypeError, AssertionError):
                pass
    answers = []
    for model in (before, after):
        network = copy_of(model.module).double()
        with undisturbed(network):
            answers.append(network(images.to(next(network.parameters(), torch.empty(0)))))
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


def rebuild_operated(source: dict[str, Any], cut: Any, rebuild: Callable[..., Model]) -> nn.Module:
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
    origin = rebuild(source, tried=False)
    try:
        block, how, options = block_of(asked)
        require(record["start"] == "fresh" or how in block.exact, f"{block.name} has no such start")
        require(len({*names}) == len(names) and not any({*"*?["} & {*name} for name in names), "odd names of places")
        for spot, side in zip(spots(origin, asked), record["places"], strict=True):
            place, told = spot.place, (Signal.from_record(side["takes"]), Signal.from_record(side["gives"]))
            require((place.name, place.takes, place.gives) == (side["name"], *told), f"'{place.name}' is another place")
            _put(origin, spot, block, how, record["start"], options, 0)
    except UserError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return origin.module
