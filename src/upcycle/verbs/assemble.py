"""``upcycle disassemble``, ``assemble`` and ``reassemble``: parts of trained networks, and networks of such parts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from upcycle.core import models
from upcycle.core.cost import count, si
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import Evaluation, evaluate
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.data import Images, check_reference, describe
from upcycle.data import load as load_data
from upcycle.data.images import joined
from upcycle.data.labels import match_classes
from upcycle.data.pool_files import parent_node
from upcycle.verbs.making import (
    UNRECORDED,
    Result,
    RunSetting,
    Say,
    claim_directory,
    command_line,
    default_of,
    estimate,
    find_method,
    first_process,
    is_files,
    leave,
    plain,
    points,
    row,
    run_in,
    split_options,
    spread,
    tell,
)

Reference = str | Path | nn.Module | Model


@dataclass(kw_only=True)
class Setting(RunSetting):
    """Data, devices, and where it goes.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, or hub:ORG/NAME. To assemble, also several with commas between them, one for each part, or none.
        augment: crop, flip, color, or none, for training; auto takes crop and flip for colour images.
    """

    augment: tuple[Literal["auto", "none", "crop", "flip", "color"], ...] = ("auto",)


def disassemble(
    model: Reference, *, method: str | type[Method] = "mda", data: Any = None, say: Say = print, **options: Any
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
    work = _Work("disassemble", method, {"model": model}, data, say, options)
    work.check({"source": nn.Identity()})
    source = models.resolve(model, trust=work.setting.trust)
    images = relabelled(work.load(data, source), source).normalised(source.mean, source.std)
    work.say(f"data     {describe(images)}")
    work.measure("source", source, images)
    made = work.cls(source=source, **work.own)

    def rows(product: Model, seen: Images) -> list[dict[str, Any]]:
        chosen = [source.classes.index(name) for name in product.classes]
        same = Columns(source.module, torch.tensor(chosen))
        part = images.only(product.classes)
        # The source may choose among the same classes only: that alone makes a task easier.
        among = [evaluate(same, part.test, device=work.setting.device)] if len(part.test) else []
        name = source.name if len(chosen) == len(source.classes) else f"{source.name}, of these classes"
        return [row(name, "source", among, source),
                row(product.name, "product", work.measured(product, part), product)]  # fmt: skip

    return work.do(made, images, [("source", source)], rows, positional=("model",))


def assemble(
    parts: Sequence[Reference],
    *,
    method: str | type[Method] = "mdaassembly",
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
    sets = data.split(",") if isinstance(data, str) else data if isinstance(data, list | tuple) else [data]
    work = _Work("assemble", method, {"parts": parts}, data, say, options)
    require(len(sets) in (1, len(parts)), f"--data names {len(sets)} sets for {len(parts)} parts; give one for all, or "
            "one for each.")  # fmt: skip
    if data is None and work.own.get("tune"):
        raise UserError("Fine-tuning needs images: give --data with the classes of the parts.")
    work.check({"parts": (nn.Identity(), nn.Identity())}, sets)
    found = [models.resolve(part, trust=work.setting.trust) for part in parts]
    require(len(found) > 1, "assemble needs two parts or more: upcycle assemble PART1 PART2.")
    if data is None:
        first = found[0]
        classes = tuple(name for part in found for name in part.classes)
        images = Images.none(first.input_shape, classes, first.mean, first.std)
        work.own["scale"] = False
        work.say("data     none: the parts' logits are not scaled to each other, and nothing is measured")
    else:
        loaded = [work.load(ref, found[i]) for i, ref in enumerate(sets)]
        loaded = loaded * len(found) if len(loaded) == 1 else loaded
        each = [relabelled(own, part) for own, part in zip(loaded, found, strict=True)]
        images = joined(each).normalised(found[0].mean, found[0].std)
        images = work.augmented(images)
        work.say(f"data     {describe(images)}")
        for part, own in zip(found, each, strict=True):
            work.measure("part", part, own)
    made = work.cls(parts=tuple(found), **work.own)

    def rows(product: Model, seen: Images) -> list[dict[str, Any]]:
        lines = []
        for i, part in enumerate(found):
            arms = [] if data is None else work.measured(part, each[i])
            lines.append(row(f"{part.name}, alone on its own classes" if arms else part.name, "part", arms, part))
        return [*lines, row(product.name, "product", [] if data is None else work.measured(product, images), product)]

    return work.do(made, images, [("part", part) for part in found], rows, positional=("parts",))


def reassemble(
    zoo: Reference | Sequence[Reference],
    *,
    method: str | type[Method] = "dery",
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
    references = members(zoo)
    data = "digits" if data is None else data
    work = _Work("reassemble", method, {"zoo": references}, data, say, options)
    work.check({"zoo": (nn.Identity(), nn.Identity())})
    found = [models.resolve(reference, trust=work.setting.trust) for reference in references]
    images = work.load(data, found[0], other_task=True)
    images = work.augmented(images.normalised(found[0].mean, found[0].std))
    work.say(f"data     {describe(images)}")
    # A network of the same classes shows as it is what the new one is to reach; of others only the size is known.
    known = [set(model.classes) == set(images.classes) for model in found]
    measured = [work.measured(model, images) if same else [] for model, same in zip(found, known, strict=True)]
    for model, arms in zip(found, measured, strict=True):
        cost = count(model.module, model.input_shape)
        figure = f", {spread([a.accuracy for a in arms])} on test" if arms else ""
        work.say(f"member   {model.name}: {si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds{figure}")
    made = work.cls(zoo=tuple(found), **work.own)

    def rows(product: Model, seen: Images) -> list[dict[str, Any]]:
        lines = [row(m.name, "member", arms, m) for m, arms in zip(found, measured, strict=True)]
        return [*lines, row(product.name, "product", work.measured(product, images), product)]

    def used(product: Model) -> list[tuple[str, Model]]:
        names = getattr(product.module, "recipe", {}).get("names", [model.name for model in found])
        return [("block source", model) for model in found if model.name in names]

    return work.do(made, images, [("block source", model) for model in found], rows, positional=(), used=used)


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
        if any((place / models.ARCHITECTURE).is_file() for place in (path, path / "model"))
    ]  # fmt: skip
    require(bool(found), f"{folder} holds no saved models; a zoo is a folder of these, or references with commas "
            "between them.")  # fmt: skip
    return found


def relabelled(data: Images, model: Model) -> Images:
    """``data`` with the classes of ``model`` in its order; classes that it does not have are left out.

    Raises:
        UserError: the names of the classes do not tell which is which.
    """
    if set(model.classes) <= set(data.classes):
        return data.only(model.classes)
    columns, _ = match_classes(data.classes, model.classes)  # for each class of the model, its label in the data
    return dataclasses.replace(data.only(tuple(data.classes[i] for i in columns.tolist())), classes=model.classes)


class _Work:
    """One command: its options, the checks before it, and what it leaves."""

    def __init__(
        self,
        verb: str,
        method: str | type[Method],
        networks: dict[str, Any],
        data: Any,
        say: Say,
        options: dict[str, Any],
    ) -> None:
        self.verb, self.networks, self.data_ref = verb, networks, data
        self.cls: Any = method if isinstance(method, type) else find_method(method, verb)
        common, self.own = split_options(self.cls, Setting, options)
        self.setting = Setting(**common, data=data if isinstance(data, str) else None)
        self.say: Say = say if first_process() and not self.setting.quiet else lambda text: None
        named = "-".join(Path(part).name for part in data.split(",")) if isinstance(data, str) else "data"
        self.out = self.setting.out or Path("runs") / f"{verb}-{self.cls.card.name}-{named.replace(':', '-')}"

    def check(self, probe: dict[str, Any], sets: Sequence[Any] | None = None) -> None:
        """Everything that can be known to be wrong without building or reading anything large."""
        for value in self.networks.values():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    require(bool(reference.strip()), f"{self.verb} was given a model without a name.")
                    models.check_reference(reference)
        for reference in sets or [self.data_ref]:
            if isinstance(reference, str):
                check_reference(reference)
        self.cls(**probe, **self.own)  # its __post_init__ checks the values
        if not self.setting.dry_run and first_process():
            claim_directory(self.out, resume=self.setting.resume)

    def load(self, reference: Any, like: Model, *, other_task: bool = False) -> Images:
        """The images; those of a person's own, or of another task, are brought to what a network takes."""
        channels, height, _ = like.input_shape
        files, size = is_files(reference) or other_task, self.setting.size
        data = load_data(reference, size=size or height if files else size, channels=channels if files else None)
        if data.shape[0] != channels:
            raise UserError(f"{like.name} takes {channels} input channels, and the images of {data.name} have "
                            f"{data.shape[0]}.")  # fmt: skip
        return data

    def augmented(self, data: Images) -> Images:
        """``data`` with the augmentation of the setting."""
        usual = {"auto": ("crop", "flip") if data.shape[0] == 3 else (), "none": ()}
        return data.augmented(tuple(usual.get(self.setting.augment[0], self.setting.augment)))

    def measure(self, role: str, model: Model, data: Images) -> None:
        """Say how good a network is on these data, so that a wrong normalisation shows at once."""
        split = data.normalised(model.mean, model.std).validation
        if not (split.labels >= 0).any():
            return
        accuracy = evaluate(model.module, split, device=self.setting.device).accuracy
        self.say(f"{role.ljust(8)} {model.name}: {accuracy:.1%} on {len(split):,} validation images")
        if accuracy < 2 / len(data.classes) and len(data.classes) > 2:
            self.say("         That is near chance. Is its normalisation right, and the order of its classes?")

    def measured(self, model: Model, data: Images) -> list[Evaluation]:
        """A model on the test images of its own classes."""
        test = relabelled(data, model).normalised(model.mean, model.std).test
        return [evaluate(model.module, test, device=self.setting.device)] if len(test) else []

    def do(
        self,
        method: Method,
        data: Images,
        parents: list[tuple[str, Model]],
        rows: Callable[[Model, Images], list[dict[str, Any]]],
        positional: tuple[str, ...],
        used: Callable[[Model], list[tuple[str, Model]]] | None = None,
    ) -> Result:
        """Run the method, measure, and leave the run directory.

        Args:
            parents: the networks given, with their roles.
            rows: the lines of the comparison.
            positional: networks that stand without their names on the command line.
            used: of the networks given those that went into the product; all if not given.
        """
        start, setting = time.time(), self.setting
        method.require(data)
        if setting.dry_run:
            n, macs = len(data.train), max(count(m.module, m.input_shape).macs for _, m in parents)
            self.say(estimate(method.work(n, macs, macs), setting, updates=method.steps(n)))
            return Result(directory=self.out, model=parents[0][1], rows=[], sentence="",
                          report=self.out / "report.html")  # fmt: skip
        run = run_in(self.out, setting, self.config())
        with run.interruptible():
            module = method.fit(run, data).float()
        product = method.product(module, data)
        lines = rows(product, data)
        result = Result(directory=self.out, model=product, rows=lines, sentence=_sentence(lines, product, data),
                        report=self.out / "report.html")  # fmt: skip
        for note in data.notes:
            run.note(note)
        for name, picture in _fronts(lines).items():
            run.picture(name, picture)
        if run.rank == 0:
            shown = data.only(product.classes) if set(product.classes) < set(data.classes) else data
            named = tuple(name for name in self.networks if name not in positional)
            command = command_line(self.verb, self.config(), ("data", *named), self._default_of, positional)
            family = [parent_node(model, role) for role, model in (used(product) if used else parents)]
            leave(result, self.cls, family, shown, run,
                  config=self.config(), command=command, seconds=time.time() - start, seeds=[setting.seed])  # fmt: skip
            tell(result, run, self.say)
        run.close()
        return result

    def config(self) -> dict[str, Any]:
        """Everything that re-makes this run, as plain data in the names of the command line."""
        own = {key: self.own.get(key, default_of(self.cls, key)) for key in self.cls.options()}
        names = [f.name for f in dataclasses.fields(Setting) if f.name not in UNRECORDED]
        common = {name: getattr(self.setting, name) for name in names}
        config = {**self.networks, "method": self.cls.card.name, **common, "data": self.data_ref, "out": self.out,
                  **own}  # fmt: skip
        return {key: plain(value) for key, value in config.items()}

    def _default_of(self, key: str) -> Any:
        if key == "method":
            return self.cls.card.name
        return default_of(self.cls, key) if key in self.cls.options() else getattr(Setting(), key, None)


def _fronts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A product among the members of its zoo: accuracy by each cost, for those that were measured."""
    measured = [line for line in rows if line["accuracy"]]
    if len(measured) < 3 or not any(line["role"] == "member" for line in measured):
        return {}
    pictures = {}
    for cost, words in (("parameters", "parameters"), ("macs", "multiply-adds"), ("latency", "seconds of an image")):
        items = [{"name": line["name"], "x": line[cost], "y": 100 * line["accuracy"][0], "group":
                  "zoo" if line["role"] == "member" else "reassembled"} for line in measured]  # fmt: skip
        for item in items:
            item["front"] = not any(other["x"] <= item["x"] and other["y"] >= item["y"] and other is not item
                                    for other in items)  # fmt: skip
        pictures[f"zoo-{cost}"] = {
            "kind": "scatter", "title": f"Accuracy by {words}", "x": words, "y": "test accuracy (%)", "log": False,
            "caption": "The line joins the networks that no cheaper one outdoes.", "items": items,
        }  # fmt: skip
    return pictures


def _sentence(rows: list[dict[str, Any]], product: Model, data: Images) -> str:
    made, others = rows[-1], rows[:-1]
    size = f"{si(made['parameters'])} parameters and {si(made['macs'])} multiply-adds"
    if not made["accuracy"]:
        return f"{product.name} tells {len(product.classes)} classes apart with {size}; nothing was measured."
    text = f"{product.name} reaches {spread(made['accuracy'])} on the test images of its {len(product.classes)} "
    text += f"classes with {size}"
    source = next((line for line in others if line["role"] == "source" and line["accuracy"]), None)
    if source is not None:
        text += f", {points(made['accuracy'][0] - source['accuracy'][0])} its source on the same classes"
        text += f" and with {made['parameters'] / source['parameters']:.0%} of its parameters"
    return text + "."
