"""``upcycle reassemble``: a network within a budget, from blocks of several trained ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from upcycle.core import models, references, saved
from upcycle.core.errors import require
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.data import describe
from upcycle.data.pool_files import parent_node
from upcycle.measure.cost import count
from upcycle.measure.units import si
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Result
from upcycle.verbs.figures import macs, row, size_sentence, spread
from upcycle.verbs.naming import Reference, Weights, naming_of, network, network_and_images
from upcycle.verbs.options import Say
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(Weights, options.Setting):
    """Data, the networks of the zoo, devices, and where it goes.

    Args:
        classes: the names of the outputs of a zoo's network, with commas between, or a text file with a name in each
            line; if not given, those of its reference.
    """

    classes: tuple[str, ...] | None = None


def reassemble(
    zoo: Reference | Sequence[Reference],
    *,
    method: str | type[Method] = DEFAULT_METHOD["reassemble"],
    data: Any = None,
    say: Say = print,
    **options: Any,
) -> Result:
    """A new network within a budget, from blocks of several trained ones.

    Args:
        zoo: references, modules or models, or one directory whose sub-directories are saved models.
        method: see :func:`disassemble`.
        data: the images and labels of the new task. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method, above all the budget: ``params`` and ``flops``.

    Raises:
        UserError: before any work where the request cannot work.
    """
    given = members(zoo)
    data = "digits" if data is None else data
    typed = ",".join(map(str, zoo)) if isinstance(zoo, list | tuple) and not _objects(zoo) else zoo
    session = Session("reassemble", method, {"zoo": typed}, data, say, options, kind=Setting)
    session.check(looks={"zoo": _check_members})
    naming = naming_of(session.setting)
    first, images = network_and_images(given[0], data, naming, other_task=True)
    found = [first, *(network(reference, naming, images, other_task=True) for reference in given[1:])]
    images = session.augmented(images.normalised(found[0].mean, found[0].std))
    session.say(f"data     {describe(images)}")
    # A network of the same classes shows as it is what the new one is to reach; of others only the size is known.
    known = [set(model.classes) == set(images.classes) for model in found]
    measured = [session.measured(model, images) if same else [] for model, same in zip(found, known, strict=True)]
    for model, arms in zip(found, measured, strict=True):
        cost = count(model.module, model.input_shape)
        figure = f", {spread([a.accuracy for a in arms])} on test" if arms else ""
        session.say(f"member   {model.name}: {si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds{figure}")
    product, beside = session.arms(lambda seed: (session.method(zoo=tuple(map(models.own_copy, found))), images))
    if session.setting.dry_run:
        return session.estimate([product, *beside], max(found, key=macs))
    made, _ = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = [row(m.name, "member", arms, m) for m, arms in zip(found, measured, strict=True)]
    rows.append(made.row(made.model.name))
    used = getattr(made.model.module, "recipe", {}).get("names", [model.name for model in found])
    parents = [parent_node(model, "block source") for model in found if model.name in used]
    said = size_sentence(rows, made.model)
    return session.leave(made, rows, said, parents=parents, data=images, pictures=_fronts(rows))


def _check_members(zoo: str) -> None:
    """:func:`references.check_reference` for each network of a zoo."""
    for one in members(zoo):
        references.check_reference(str(one))


def _objects(networks: Sequence[Any]) -> bool:
    return any(isinstance(one, nn.Module | Model) for one in networks)


def members(zoo: Reference | Sequence[Reference]) -> list[Reference]:
    """The networks of a zoo: the references given, or the saved models in a directory's sub-directories."""
    if isinstance(zoo, str) and "," in zoo:
        zoo = [word.strip() for word in zoo.split(",")]
    if not isinstance(zoo, str | Path):
        return [zoo] if isinstance(zoo, nn.Module | Model) else list(zoo)
    folder = Path(zoo)
    if not folder.is_dir():
        return [zoo]
    found: list[Reference] = [
        str(path)
        for path in sorted(folder.iterdir())
        if any((place / saved.ARCHITECTURE).is_file() for place in (path, path / "model"))
    ]
    require(
        bool(found),
        f"{folder} holds no saved models; a zoo is a folder of these, or references with commas between them.",
    )
    return found


def _fronts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A product among the members of its zoo: accuracy by each cost, for those that were measured."""
    measured = [line for line in rows if line["accuracy"]]
    if len(measured) < 3 or not any(line["role"] == "member" for line in measured):
        return {}
    pictures = {}
    for cost, words in (("parameters", "parameters"), ("macs", "multiply-adds"), ("latency", "seconds of an image")):
        items = [
            {
                "name": line["name"],
                "x": line[cost],
                "y": 100 * statistics.fmean(line["accuracy"]),
                "group": "zoo" if line["role"] == "member" else "reassembled",
            }
            for line in measured
        ]
        for item in items:
            item["front"] = not any(
                other["x"] <= item["x"] and other["y"] >= item["y"] and other is not item for other in items
            )
        pictures[f"zoo-{cost}"] = {
            "kind": "scatter",
            "title": f"Accuracy by {words}",
            "x": words,
            "y": "test accuracy (%)",
            "log": False,
            "caption": "The line joins the networks that no cheaper one outdoes.",
            "items": items,
        }
    return pictures
