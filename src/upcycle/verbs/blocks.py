"""``upcycle blocks``: the blocks that can be put into trained networks, one of them, or where a network has room."""

from __future__ import annotations

import inspect
import textwrap
from json import dumps
from typing import Any

from upcycle.core import references
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.method import built_in
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.measure.units import si
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Block, Kind
from upcycle.surgery.looking import Seen, Sight, look
from upcycle.surgery.places import words
from upcycle.surgery.signals import Signal
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import network
from upcycle.verbs.options import tell

KINDS: dict[Kind, str] = {"map": "maps", "square": "tokens on a square", "tokens": "tokens"}


def blocks(
    name: str = "", *, shape: tuple[int, ...] = (64, 16, 16), model: Reference | None = None, **naming: Any
) -> str:
    """List what can be put where, with parameters and multiply-adds.

    Args:
        name: of the block to show with its options; if not given, all are listed.
        shape: channels, height and width of the signal that costs are for.
        model: reference of a network whose places for the block, or for any, are listed in place of costs.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Raises:
        UserError: no such block, a shape of other than three numbers, or see
            :func:`upcycle.core.references.resolve`.
    """
    found = _network(name, shape, model, naming)
    if found is not None:
        return places_list(found, BLOCKS[name] if name else None)
    return page(BLOCKS[name], shape) if name else blocks_list(shape)


def _network(name: str, shape: tuple[int, ...], model: Reference | None, naming: dict[str, Any]) -> Model | None:
    """The network whose places are asked for, if one is; errors as :func:`blocks`."""
    said = options_as(Naming, "blocks", naming)
    if name and name not in BLOCKS:
        raise unknown("block", name, BLOCKS)
    require(
        len(shape) == 3 and all(n > 0 for n in shape),
        f"shape must be channels, height and width, three positive numbers, not {','.join(map(str, shape))}.",
    )
    if isinstance(model, str):
        references.check_reference(model)
    return None if model is None else network(model, said)


def command(
    name: str = "",
    shape: tuple[int, ...] = (64, 16, 16),
    model: Reference | None = None,
    json: bool = False,
    **naming: Any,
) -> int:
    """List what can be put where, with parameters and multiply-adds.

    Args:
        name: of the block to show with its options; if not given, all are listed.
        shape: channels, height and width of the signal that costs are for.
        model: reference of a network whose places for the block, or for any, are listed in place of costs.
        json: print JSON.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.
    """
    if not json:
        tell(blocks(name, shape=shape, model=model, **naming))
        return 0
    found, wanted = _network(name, shape, model, naming), BLOCKS[name] if name else None
    if found is not None:
        keys = ("module", "kind", "gives")
        print(dumps([dict(zip(keys, row, strict=True)) for row in places(found, wanted)]))
    else:
        print(dumps([_as_data(block, shape) for block in BLOCKS.values() if wanted in (None, block)]))
    return 0


def _as_data(block: Block, shape: tuple[int, ...]) -> dict[str, Any]:
    """A block as JSON data; its cost is ``None`` where it cannot be had of this shape."""
    parameters, macs = costs_of(block, shape) or (None, None)
    about = {"name": block.name, "summary": block.summary, "paper": block.paper, "put": ways_of(block)}
    kinds = {"works_on": [KINDS[kind] for kind in block.kinds], "same_start": list(block.exact)}
    return {**about, **kinds, "parameters": parameters, "macs": macs, "options": block.options()}


def blocks_list(shape: tuple[int, ...]) -> str:
    """A line a block: where it is put, what it works on, whether a network starts at its own function, and its cost."""
    c, h, w = shape
    rows = [("block", "put", "works on", "same start", "parameters", "multiply-adds", "")]
    for block in BLOCKS.values():
        kinds = " or ".join(KINDS[kind] for kind in block.kinds if kind != "tokens" or "square" not in block.kinds)
        same = "yes" if block.how in block.exact else "no"
        rows.append((block.name, block.how, kinds, same, *cost(block, shape), block.summary))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = (4, 5)
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    costs = f"Parameters and multiply-adds are those of a block for {c} channels of {h} x {w} places (--shape C,H,W)."
    method = next(m.card.name for m in built_in() if m.card.verb == "reassemble" and m.roles == ("source",))
    more = (
        "upcycle blocks NAME shows its options, and --model REFERENCE where a network has room. upcycle reassemble "
        f"--source REFERENCE --method {method} --block NAME --at PATTERN puts one in."
    )
    return "\n".join([*lines, "", costs, more])


def cost(block: Block, shape: tuple[int, ...]) -> tuple[str, str]:
    """Parameters and multiply-adds of a block with its usual options; a dash where it cannot be had of this shape."""
    found = costs_of(block, shape)
    return ("-", "-") if found is None else (si(found[0]), si(found[1]))


def costs_of(block: Block, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Parameters and multiply-adds of a block with its usual options, if it can be had of this shape."""
    c, h, w = shape
    signal = Signal("map" if {"map", "square"} & {*block.kinds} else "tokens", c, (h, w))
    try:
        return block.parameters(signal, **block.options()), block.macs(signal, **block.options())
    except (UserError, ValueError, ArithmeticError):
        return None


def page(block: Block, shape: tuple[int, ...]) -> str:
    """All about one block: what it does, where it goes, its cost, and its options."""
    c, h, w = shape
    parameters, macs = cost(block, shape)
    ways = [
        f"{how}{' (the network starts at its own function)' if how in block.exact else ''}" for how in ways_of(block)
    ]
    about = inspect.cleandoc(block.make.__doc__ or "").partition("\nArgs:")[0].strip()
    facts = {
        "paper": block.paper,
        "put": ", ".join(ways),
        "works on": ", ".join(KINDS[kind] for kind in block.kinds),
        "cost": f"{parameters} parameters and {macs} multiply-adds for {c} channels of {h} x {w} places",
    }
    lines = [f"{block.name}: {block.summary}", ""]
    if about:
        lines += [*textwrap.wrap(about, 88), ""] if "\n\n" not in about else [about, ""]
    lines += [f"{key.ljust(8)}  {value}" for key, value in facts.items()]
    options = block.options()
    lines += ["", "options, each as --settings.NAME VALUE" if options else "It has no options."]
    told = help_of(block)
    for name, usual in options.items():
        lines += textwrap.wrap(
            f"{name} ({usual}): {told.get(name, '')}".rstrip(": "), 88, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(lines)


def ways_of(block: Block) -> tuple[str, ...]:
    """The ways in which a block can be put at a module, the usual one first."""
    return (block.how, *block.others)


def help_of(block: Block) -> dict[str, str]:
    """Read the line of each argument from the docstring of a block's ``make``."""
    text = inspect.cleandoc(block.make.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for line in textwrap.dedent(text).splitlines():
        if not line.startswith(" ") and ":" in line:
            names, _, told = line.partition(": ")
            last = names.split(", ")
            found |= dict.fromkeys(last, told)
        elif found and line.strip():
            for name in last:
                found[name] += f" {line.strip()}"
    return found


def places_list(model: Model, wanted: Block | None) -> str:
    """The modules of a network at which a block can be put as it usually is, with what each gives.

    Args:
        model: a network of images.
        wanted: the block that is asked for; without one, modules at which any can be put, and which that are.
    """
    asked = list(BLOCKS.values()) if wanted is None else [wanted]
    rows = [("module", "kind", "gives"), *places(model, wanted)]
    if len(rows) == 1:
        return f"{model.name} has no place for {wanted.name if wanted is not None else 'any block'}."
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if wanted is None:
        for kind, noun in KINDS.items():
            lines += ["", *textwrap.wrap(f"On {noun}: {', '.join(b.name for b in asked if kind in b.kinds)}.", 88)]
    return "\n".join(lines)


def places(model: Model, wanted: Block | None) -> list[tuple[str, str, str]]:
    """The modules at which a block, or any, can be put as it usually is: name, kind, and what each gives."""
    require(bool(model.input_shape), f"{model.name} takes no images, and blocks are put into networks of images.")
    seen = look(model)
    asked = list(BLOCKS.values()) if wanted is None else [wanted]
    found = []
    for name, module in own(model.module).named_modules():
        gives = seen[name].gives
        if name and isinstance(gives, Sight) and any(fits(seen[name], block) for block in asked):
            found.append((name, type(module).__name__, words(gives.signal)))
    return found


def fits(seen: Seen, block: Block) -> bool:
    """Whether a module is of the kind that a block is usually put at, by what passes it; the block may still refuse."""
    if seen.calls != 1 or not isinstance(seen.gives, Sight):
        return False
    sides = (
        [seen.takes, seen.gives] if block.how == "replace" else [seen.takes if block.how == "before" else seen.gives]
    )
    if any(not isinstance(side, Sight) or not side.kinds & {*block.kinds} for side in sides):
        return False
    return block.how != "replace" or (isinstance(seen.takes, Sight) and seen.takes.signal == seen.gives.signal)
