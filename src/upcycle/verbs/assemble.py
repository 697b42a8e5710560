"""``upcycle assemble``: one classifier from the parts of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upcycle.core import models
from upcycle.core.errors import UserError, require
from upcycle.core.fetching import dry
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.data import Images, describe
from upcycle.data.joining import joined
from upcycle.data.labels import relabelled
from upcycle.data.pool_files import parent_node
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Result
from upcycle.verbs.figures import macs, row, share, size_sentence
from upcycle.verbs.naming import Naming, Reference, Weights, naming_of
from upcycle.verbs.networks import images_for, network, network_and_images, takes_any
from upcycle.verbs.options import Say, tell
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(Weights, options.Setting):
    """Data, the parts, devices, and where it goes.

    Args:
        classes: the names of the outputs of all parts, in the order of the parts, with commas between, or a text file
            with a name in each line; if not given, those of the references, or else of each part's own data.
    """

    classes: tuple[str, ...] | None = None


@dry
def assemble(
    parts: Sequence[Reference],
    *,
    method: str | type[Method] = DEFAULT_METHOD["assemble"],
    data: Any = None,
    say: Say = tell,
    **options: Any,
) -> Result:
    """One classifier from the parts of several, with the classes of all.

    Args:
        parts: two references, modules or models or more, in the order of the new network's classes.
        method: see :func:`disassemble`.
        data: images of the parts' classes: one set for all, or one for each part, as a list or with commas between
            names. ``None``: nothing is scaled, trained or measured.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    parts = [parts] if isinstance(parts, str | Path | nn.Module | Model) else list(parts)
    sets: Sequence[Any] = data if isinstance(data, list | tuple) else [data]
    if isinstance(data, str) and not Path(data).exists():  # a folder may have a comma in its name
        sets = data.split(",")
    session = Session("assemble", method, {"parts": parts}, data, say, options, kind=Setting, positional=("parts",))
    require(len(sets) in (1, len(parts)), f"--data names {len(sets)} sets for {len(parts)} parts; give one for all, or "
            "one for each.")  # fmt: skip
    if data is None and session.own.get("tune"):
        raise UserError("Fine-tuning needs images: give --data with the classes of the parts.")
    require(
        data is not None or session.setting.long_tail is None,
        "There are no data for --long_tail to choose from; give --data.",
    )
    session.check(sets)
    require(len(parts) > 1, "assemble needs two parts or more: upcycle assemble PART1 PART2.")
    found, loaded = _parts(parts, sets, naming_of(session.setting))
    if data is None:
        first = found[0]
        classes = tuple(name for part in found for name in part.classes)
        images = Images.none(first.input_shape, classes, first.mean, first.std, first.reading)
        each = [images] * len(found)
        session.own["scale"] = False
        session.say("data     none: the parts' logits are not scaled to each other, and nothing is measured")
    else:
        remedy = " Say with --classes what the outputs of the parts are called in the data."
        each = [relabelled(own, part.classes, remedy=remedy) for own, part in zip(loaded, found, strict=True)]
        images = session.augmented(joined(each).normalised(found[0].mean, found[0].std))
        session.say(f"data     {describe(images)}")
        for part, own in zip(found, each, strict=True):
            session.show("part", part, own)
    product, beside = session.arms(lambda seed: (session.method(parts=tuple(map(models.own_copy, found))), images))
    if session.setting.dry_run:
        return session.estimate([product, *beside], max(found, key=macs))
    made, _ = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = []
    for part, own in zip(found, each, strict=True):
        arms = session.measured(part, own)
        rows.append(row(f"{part.name}, alone on its own classes" if arms else part.name, "part", arms, part))
    whole = made.row(made.model.name)
    sentence = size_sentence([*rows, whole], made.model)
    within = [
        session.measured(_restricted(made.model, part.classes), own) for part, own in zip(found, each, strict=True)
    ]
    if all(within):
        inside = " and ".join(share([found.accuracy for found in arms]) for arms in within)
        alone = " and ".join(share(line["accuracy"]) for line in rows)
        sentence += f" Among the classes of each part it reaches {inside}, and the parts alone reach {alone} there."
    rows.append(whole)
    parents = [parent_node(part, "part") for part in found]
    return session.leave(made, rows, sentence, parents=parents, data=images)


def _restricted(whole: Model, classes: tuple[str, ...]) -> Model:
    """The assembled network among some of its classes, as a part of it answers."""
    columns = torch.tensor([whole.classes.index(name) for name in classes])
    return dataclasses.replace(whole, module=Columns(whole.module, columns), classes=classes)


def _parts(parts: Sequence[Reference], sets: Sequence[Any], naming: Naming) -> tuple[list[Model], list[Images]]:
    """The networks, and the images of each; no images where there are no data."""
    names, naming = naming.classes, dataclasses.replace(naming, classes=None)
    if sets[0] is None:
        found, loaded = [network(part, naming) for part in parts], []
    elif len(sets) == 1 and any(takes_any(part, naming) for part in parts):
        require(
            names is not None,
            "One set of images does not tell which of its classes each part knows; give --data with a set for each "
            "part, or --classes with the classes of all parts in their order.",
        )
        images = images_for(sets[0], naming)
        found = [network(part, naming, images, other_task=True) for part in parts]
        loaded = [images] * len(parts)
    else:
        pairs = zip(parts, sets, strict=True) if len(sets) > 1 else [(part, sets[0]) for part in parts[:1]]
        found, loaded = map(list, zip(*(network_and_images(*pair, naming) for pair in pairs), strict=True))
        found += [network(part, naming) for part in parts[len(found) :]]
        loaded = loaded * len(parts) if len(loaded) == 1 else loaded
    if names is not None:
        counts = [len(part.classes) for part in found]
        outputs = " + ".join(map(str, counts))
        require(sum(counts) == len(names), f"The parts have {outputs} outputs, and --classes names {len(names)}.")
        starts = [sum(counts[:i]) for i in range(len(counts))]
        found = [
            dataclasses.replace(part, classes=names[start : start + k])
            for part, start, k in zip(found, starts, counts, strict=True)
        ]
    return found, loaded
