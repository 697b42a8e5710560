"""``upcycle reassemble``: a network of blocks of several trained ones, or a trained one with another block in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from upcycle.core import models, references, saved
from upcycle.core.errors import UserError, require
from upcycle.core.fetching import dry
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.data import Images, describe
from upcycle.data.pool_files import parent_node
from upcycle.measure.cost import count
from upcycle.measure.units import si
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Fitted, Result
from upcycle.verbs.figures import chance, macs, row, share, size_sentence, spread
from upcycle.verbs.methods import all_methods, find_method
from upcycle.verbs.naming import Reference, naming_of
from upcycle.verbs.networks import in_classes_of, network, network_and_images
from upcycle.verbs.options import Say, tell
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(options.NamedSetting):
    """Data, the networks, devices, and where it goes.

    Args:
        classes: the names of the outputs of a zoo's network, or of the source, with commas between, or a text file with
            a name in each line; if not given, those of its reference.
        control: also run the same training without the block, where a method puts one in, so that one sees which of the
            two helped.
    """

    control: bool = True


@dry
def reassemble(
    zoo: Reference | Sequence[Reference] | None = None,
    *,
    source: Reference | None = None,
    method: str | type[Method] = DEFAULT_METHOD["reassemble"],
    data: Any = None,
    say: Say = tell,
    **options: Any,
) -> Result:
    """A new network of trained ones: blocks of several within a budget, or one of them with another block in it.

    Args:
        zoo: references, modules or models, or one directory whose sub-directories are saved models.
        source: reference, module or model of the one network that a method such as swap takes.
        method: see :func:`disassemble`.
        data: the images and labels of the new task; with a source, images of its own classes. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method, above all the budget: ``params`` and ``flops``.

    Raises:
        UserError: before any work where the request cannot work.
    """
    cls = method if isinstance(method, type) else find_method(method, "reassemble")
    data = "digits" if data is None else data
    if cls.roles == ("source",):
        return _operated(_one(cls.card.name, zoo, source), cls, data, say, options)
    taking_one = [m.card.name for m in all_methods() if m.card.verb == "reassemble" and m.roles == ("source",)]
    hint = f"--source REFERENCE is for --method {' or '.join(taking_one)}"
    require(source is None, f"{cls.card.name} takes several networks: give --zoo. {hint}.")
    if zoo is None:
        raise UserError(
            f"reassemble needs networks to take blocks from: give --zoo DIR or --zoo REFERENCE,REFERENCE. {hint}."
        )
    return _stitched(zoo, cls, data, say, options)


def _one(method: str, zoo: Any, source: Reference | None) -> Reference:
    """The one network that a method takes."""
    several = zoo is not None or isinstance(source, tuple | list)
    if isinstance(source, str) and "," in source and not Path(source).exists():
        several = True
    require(not several, f"{method} takes one network: give --source REFERENCE, and no --zoo.")
    if source is None:
        raise UserError(f"{method} needs a network: give --source REFERENCE, for example zoo:cifar10_mobilenetv2.")
    return source


# -- one network with a block in it ---------------------------------------------------------------------------------


def _operated(reference: Reference, cls: type[Method], data: Any, say: Say, options: dict[str, Any]) -> Result:
    session = Session("reassemble", cls, {"source": reference}, data, say, options, kind=Setting)
    session.check()
    naming = naming_of(session.setting)
    source, images = network_and_images(reference, data, naming)
    images = in_classes_of(source, images, naming)
    seen = session.augmented(images).normalised(source.mean, source.std)
    session.say(f"data     {describe(images)}")
    session.show("source", source, images)
    product, beside = session.arms(lambda seed: (session.method(source=models.own_copy(source)), seen))
    student = _show_plan(session, source, seen)
    if session.setting.dry_run:
        return session.estimate([product, *beside], source, student=student)
    made, others = session.run(product, beside, lambda model, data: session.measured(model, images))
    rows = [row(source.name, "source", session.measured(source, images), source)]
    rows += [other.row(f"{source.name}, {other.arm.words}") for other in others]
    rows += [made.row(made.model.name)]
    return session.leave(
        made,
        rows,
        _swap_sentence(rows, made, seen),
        parents=[parent_node(source, "source")],
        data=seen,
        metrics={key: left for key in ("start error",) if (left := made.left[0].get(key)) is not None},
    )


def _show_plan(session: Session, source: Model, data: Images) -> int | None:
    """Say what a network would cost, where its method knows that before it runs; returns its multiply-adds."""
    if (planned := getattr(session.method(source=source), "planned", None)) is None:
        return None
    before, found = count(source.module, source.input_shape), planned(data)
    session.say(
        f"product  {found.name}: {found.parameters:,} parameters ({found.parameters - before.parameters:+,}), "
        f"{found.macs / 1e6:,.2f} M multiply-adds ({(found.macs - before.macs) / 1e6:+,.2f} M)"
    )
    return int(found.macs)


def _swap_sentence(rows: list[dict[str, Any]], made: Fitted, data: Images) -> str:
    """The cost of the surgery, and the accuracies of source, control and product."""
    source, product, name = rows[0], rows[-1], made.model.name
    by = [
        _more(source[key], product[key], noun)
        for key, noun in (("parameters", "parameters"), ("macs", "multiply-adds"))
    ]
    text = f"{name} has {by[0]} and {by[1]} than {source['name']}"
    if (off := made.left[0].get("start error")) is not None:
        text += "; before it was tuned its answers "
        text += f"differed by {off:.1e} of the largest" if off else "were the same"
    text += "."
    accuracy = {line["role"]: line["accuracy"] for line in rows if line["accuracy"]}
    if "product" not in accuracy:
        return f"{text} There were no test images to measure it on."
    text += f" It reaches {share(accuracy['product'])} on the test images of {data.name}, and the source reaches "
    text += share(accuracy["source"])
    if "control" not in accuracy:
        return f"{text}. How much of the difference is the training's own was not measured (--control false)."
    own, plain = (statistics.fmean(accuracy[role]) for role in ("product", "control"))
    return (
        f"{text}, or {share(accuracy['control'])} after the same training without the block. The block's own part is "
        f"{chance(own, plain, len(data.test))}"
    )


def _more(before: int, after: int, noun: str) -> str:
    """How much more or less there is: ``34.2 k more parameters (+14.2 %)``."""
    if before == after:
        return f"no more {noun}"
    word = "more" if after > before else "fewer"
    return f"{si(abs(after - before))} {word} {noun} ({after / before - 1:+.1%})"


# -- blocks of several networks -------------------------------------------------------------------------------------


def _stitched(
    zoo: Reference | Sequence[Reference], cls: type[Method], data: Any, say: Say, options: dict[str, Any]
) -> Result:
    given = members(zoo)
    typed = ",".join(map(str, zoo)) if isinstance(zoo, list | tuple) and not _objects(zoo) else zoo
    session = Session("reassemble", cls, {"zoo": typed}, data, say, options, kind=Setting)
    require(
        session.setting.label_map is None,
        f"{cls.card.name} makes a network for the classes of the data, whatever its members tell apart; leave out "
        "--label_map.",
    )
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
