"""``upcycle disassemble``, ``assemble`` and ``reassemble``: parts of trained networks, and networks of such parts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upcycle.core import models, references, saved
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import evaluate
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.data import Images, describe
from upcycle.data.images import joined
from upcycle.data.labels import relabelled
from upcycle.data.pool_files import parent_node
from upcycle.measure.cost import count
from upcycle.measure.units import si
from upcycle.verbs import DEFAULT_METHOD
from upcycle.verbs.figures import points, row, spread
from upcycle.verbs.options import Reference, Say, Setting
from upcycle.verbs.session import Result, Session

__all__ = ["Setting", "assemble", "disassemble", "members", "reassemble"]


def disassemble(
    model: Reference,
    *,
    method: str | type[Method] = DEFAULT_METHOD["disassemble"],
    data: Any = None,
    say: Say = print,
    **options: Any,
) -> Result:
    """The part of a classifier that knows chosen classes, as a smaller network.

    Args:
        model: reference, module or :class:`~upcycle.core.models.Model` of a trained classifier.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; the images that the network was trained on, or such. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method, above all ``classes``.

    Raises:
        UserError: before any work where the request cannot work.
    """
    data = "digits" if data is None else data
    session = Session("disassemble", method, {"model": model}, data, say, options, positional=("model",))
    session.check()
    source = references.resolve(model, trust=session.setting.trust)
    images = relabelled(session.load(data, source), source.classes).normalised(source.mean, source.std)
    session.say(f"data     {describe(images)}")
    session.show("source", source, images)
    product, beside = session.arms(lambda seed: (session.method(source=models.own_copy(source)), images))
    if session.setting.dry_run:
        return session.estimate([product, *beside], source)
    made, _ = session.run(product, beside, lambda part, _: session.measured(part, images.only(part.classes)))
    chosen = [source.classes.index(name) for name in made.model.classes]
    same, part = Columns(source.module, torch.tensor(chosen)), images.only(made.model.classes)
    # The source may choose among the same classes only: that alone makes a task easier.
    among = [evaluate(same, part.test, device=session.setting.device)] if len(part.test) else []
    name = source.name if len(chosen) == len(source.classes) else f"{source.name}, of these classes"
    rows = [row(name, "source", among, source), made.row(made.model.name)]
    return session.leave(made, rows, _sentence(rows, made.model), parents=[parent_node(source, "source")], data=images)


def assemble(
    parts: Sequence[Reference],
    *,
    method: str | type[Method] = DEFAULT_METHOD["assemble"],
    data: Any = None,
    say: Say = print,
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
    session = Session("assemble", method, {"parts": parts}, data, say, options, positional=("parts",))
    require(len(sets) in (1, len(parts)), f"--data names {len(sets)} sets for {len(parts)} parts; give one for all, or "
            "one for each.")  # fmt: skip
    if data is None and session.own.get("tune"):
        raise UserError("Fine-tuning needs images: give --data with the classes of the parts.")
    session.check(sets)
    found = [references.resolve(part, trust=session.setting.trust) for part in parts]
    require(len(found) > 1, "assemble needs two parts or more: upcycle assemble PART1 PART2.")
    if data is None:
        first = found[0]
        classes = tuple(name for part in found for name in part.classes)
        images = Images.none(first.input_shape, classes, first.mean, first.std)
        each = [images] * len(found)
        session.own["scale"] = False
        session.say("data     none: the parts' logits are not scaled to each other, and nothing is measured")
    else:
        loaded = [session.load(ref, found[i]) for i, ref in enumerate(sets)]
        loaded = loaded * len(found) if len(loaded) == 1 else loaded
        each = [relabelled(own, part.classes) for own, part in zip(loaded, found, strict=True)]
        images = session.augmented(joined(each).normalised(found[0].mean, found[0].std))
        session.say(f"data     {describe(images)}")
        for part, own in zip(found, each, strict=True):
            session.show("part", part, own)
    product, beside = session.arms(lambda seed: (session.method(parts=tuple(map(models.own_copy, found))), images))
    if session.setting.dry_run:
        return session.estimate([product, *beside], max(found, key=_macs))
    made, _ = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = []
    for part, own in zip(found, each, strict=True):
        arms = session.measured(part, own)
        rows.append(row(f"{part.name}, alone on its own classes" if arms else part.name, "part", arms, part))
    rows.append(made.row(made.model.name))
    parents = [parent_node(part, "part") for part in found]
    return session.leave(made, rows, _sentence(rows, made.model), parents=parents, data=images)


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
    session = Session("reassemble", method, {"zoo": typed}, data, say, options)
    session.check(looks={"zoo": _check_members})
    found = [references.resolve(reference, trust=session.setting.trust) for reference in given]
    images = session.load(data, found[0], other_task=True)
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
        return session.estimate([product, *beside], max(found, key=_macs))
    made, _ = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = [row(m.name, "member", arms, m) for m, arms in zip(found, measured, strict=True)]
    rows.append(made.row(made.model.name))
    used = getattr(made.model.module, "recipe", {}).get("names", [model.name for model in found])
    parents = [parent_node(model, "block source") for model in found if model.name in used]
    return session.leave(made, rows, _sentence(rows, made.model), parents=parents, data=images, pictures=_fronts(rows))


def _check_members(zoo: str) -> None:
    """:func:`references.check_reference` for each network of a zoo."""
    for one in members(zoo):
        references.check_reference(str(one))


def _objects(networks: Sequence[Any]) -> bool:
    return any(isinstance(network, nn.Module | Model) for network in networks)


def _macs(model: Model) -> int:
    return count(model.module, model.input_shape).macs


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
        str(path) for path in sorted(folder.iterdir())
        if any((place / saved.ARCHITECTURE).is_file() for place in (path, path / "model"))
    ]  # fmt: skip
    require(bool(found), f"{folder} holds no saved models; a zoo is a folder of these, or references with commas "
            "between them.")  # fmt: skip
    return found


def _fronts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A product among the members of its zoo: accuracy by each cost, for those that were measured."""
    measured = [line for line in rows if line["accuracy"]]
    if len(measured) < 3 or not any(line["role"] == "member" for line in measured):
        return {}
    pictures = {}
    for cost, words in (("parameters", "parameters"), ("macs", "multiply-adds"), ("latency", "seconds of an image")):
        items = [{"name": line["name"], "x": line[cost], "y": 100 * statistics.fmean(line["accuracy"]), "group":
                  "zoo" if line["role"] == "member" else "reassembled"} for line in measured]  # fmt: skip
        for item in items:
            item["front"] = not any(other["x"] <= item["x"] and other["y"] >= item["y"] and other is not item
                                    for other in items)  # fmt: skip
        pictures[f"zoo-{cost}"] = {
            "kind": "scatter", "title": f"Accuracy by {words}", "x": words, "y": "test accuracy (%)", "log": False,
            "caption": "The line joins the networks that no cheaper one outdoes.", "items": items,
        }  # fmt: skip
    return pictures


def _sentence(rows: list[dict[str, Any]], product: Model) -> str:
    made, others = rows[-1], rows[:-1]
    size = f"{si(made['parameters'])} parameters and {si(made['macs'])} multiply-adds"
    if not made["accuracy"]:
        return f"{product.name} tells {len(product.classes)} classes apart with {size}; nothing was measured."
    text = f"{product.name} reaches {spread(made['accuracy'])} on the test images of its {len(product.classes)} "
    text += f"classes with {size}"
    source = next((line for line in others if line["role"] == "source" and line["accuracy"]), None)
    if source is not None:
        gain = statistics.fmean(made["accuracy"]) - statistics.fmean(source["accuracy"])
        text += f", {points(gain)} its source on the same classes"
        text += f" and with {made['parameters'] / source['parameters']:.0%} of its parameters"
    return text + "."
