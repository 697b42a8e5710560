"""``upcycle evaluate``: a network measured on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from upcycle.core import cells, references
from upcycle.core.devices import device_of
from upcycle.core.errors import require
from upcycle.core.evaluate import measured as measure
from upcycle.core.frequency import Groups, counts_of, groups
from upcycle.core.models import Model
from upcycle.core.outputs import Columns, gives_probabilities
from upcycle.core.task import CLASSIFICATION, Evaluation, Measured
from upcycle.data import check_reference
from upcycle.data.labels import match_classes
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.units import bytes_, duration, joules, si
from upcycle.verbs.figures import like_of, scored, spent
from upcycle.verbs.frequency import group_lines
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import answering, network_and_data

NOT = "not probabilities"
"""Stands for figures of probabilities, where the answers of a network are scores alone."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Evaluation):
    """The outcome of :func:`evaluate`, and the images that it was measured on.

    Args:
        model: the network that was measured.
        data: the name of the data set.
        split: the part of it.
        classes: the names of its classes, in the order of ``per_class``.
        notes: what a person must know of how it was measured.
        like: what its size and speed are measured on.
        noun: what the samples are called.
        groups: its classes by the number of their training samples, where some are rare or borders were given.
        spent: additions and energy of one sample, of a network that sends spikes.
    """

    model: Model
    data: str
    split: str
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    like: Any = None
    noun: str = "images"
    groups: Groups | None = None
    spent: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return _line(self, f"accuracy {self.accuracy:.2%}")

    def _repr_html_(self) -> str:
        return _html(self, "accuracy", self.per_class)

    def record(self) -> dict[str, Any]:
        """The figures as JSON data."""
        sure = gives_probabilities(self.model.module)
        figures = {
            "accuracy": self.accuracy,
            "loss": self.loss if sure else None,
            "ece": self.ece if sure else None,
            "per_class": self.per_class,
        }
        by = {**self.groups.plain(), "groups": self.groups.means(self.per_class)} if self.groups else {}
        return _record(self, figures) | by

    def text(self) -> str:
        """The figures for a terminal, with those of size and speed."""
        sure = gives_probabilities(self.model.module)
        shown = {
            "accuracy": f"{self.accuracy:.2%}",
            "loss": f"{self.loss:.4f}" if sure else NOT,
            "calibration error": f"{self.ece:.2%}" if sure else NOT,
        }
        by = group_lines(self.per_class, self.groups) if self.groups is not None else []
        return _text(self, shown, self.per_class, by)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcome of :func:`evaluate` where the task is no classification.

    Args:
        measured: its figures.
        model, data, split, classes, notes, like, noun, spent: see :class:`Evaluated`.
    """

    measured: Measured
    model: Model
    data: str
    split: str
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    like: Any = None
    noun: str = "images"
    spent: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return _line(self, f"{self.model.task.figure} {scored([self.score], self.model.task)}")

    def _repr_html_(self) -> str:
        return _html(self, self.model.task.figure, getattr(self.measured, "per_class", []))

    @property
    def score(self) -> float:
        """The figure of the task, in its unit."""
        return self.measured.score

    @property
    def count(self) -> int:
        """The number of samples that it was measured on."""
        return self.measured.count

    def record(self) -> dict[str, Any]:
        """The figures as JSON data."""
        by_class = {"per_class": found} if (found := getattr(self.measured, "per_class", None)) else {}
        return _record(self, {"task": self.model.task.name, **self.measured.figures, **by_class})

    def text(self) -> str:
        """The figures for a terminal, with those of size and speed."""
        task = self.model.task
        others = {key: f"{value:.4f}" for key, value in self.measured.figures.items() if key != task.figure}
        shown = {task.figure: f"{self.score:.2%}" if task.unit == "share" else scored([self.score], task), **others}
        return _text(self, shown, getattr(self.measured, "per_class", []))


def _line(found: Evaluated | Scored, figure: str) -> str:
    """The figure in one line, and what it is of."""
    return cells.line(
        found, f"{figure}, {found.model.name} on {found.count:,} {found.split} {found.noun} of {found.data}"
    )


def _html(found: Evaluated | Scored, figure: str, per_class: list[float | None]) -> str:
    """The figure for a notebook, of all samples and by class."""
    rows = [("all", scored([found.score], found.model.task), f"{found.count:,}")]
    for name, share in zip(found.classes, per_class, strict=False):
        rows.append((name, f"no {found.noun}" if share is None else f"{share:.1%}", ""))
    title = f"{found.model.name} on the {found.split} {found.noun} of {found.data}"
    return cells.table(title, ("class", figure, found.noun), rows, found.notes)


def _record(found: Evaluated | Scored, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a task as JSON data, with what they are of."""
    cost = count(found.model.module, found.like)
    return {
        "model": found.model.name,
        "data": found.data,
        "split": found.split,
        **figures,
        "classes": list(found.classes),
        "count": found.count,
        "parameters": cost.parameters,
        "macs": cost.macs,
        **found.spent,
        "notes": list(found.notes),
    }


def _text(
    found: Evaluated | Scored, figures: dict[str, str], per_class: list[float | None], groups: Sequence[str] = ()
) -> str:
    """The figures of a task for a terminal, with those of size and speed; shares by class where there are some.

    Args:
        groups: lines on classes with many and with few training samples.
    """
    module, like = found.model.module, found.like
    cost = count(module, like)
    shown = {
        **figures,
        "parameters": si(cost.parameters),
        "multiply-adds": si(cost.macs),
        **_spent(found.spent),
        "latency": duration(latency(module, like)),
        "memory": bytes_(peak_memory(module, like)),
    }
    lines = [f"{found.model.name} on {found.count:,} {found.split} {found.noun} of {found.data}", ""]
    wide = max(17, *map(len, shown))
    lines += [f"  {name.ljust(wide)}  {value}" for name, value in shown.items()]
    if groups:
        lines += ["", f"  by number of training {found.noun}", *(f"    {line}" for line in groups)]
    width = max(map(len, found.classes), default=0)
    lines += ["", "  by class"] if per_class else []
    for name, share in zip(found.classes, per_class, strict=False):
        lines.append(f"    {name.ljust(width)}  {f'no {found.noun}' if share is None else f'{share:.1%}'}")
    return "\n".join([*lines, *(f"note     {note}" for note in found.notes)])


def _spent(found: dict[str, float]) -> dict[str, str]:
    """The operations of a network that sends spikes, in words; none of another."""
    if not found:
        return {}
    return {"synaptic operations": si(found["additions"]), "energy, estimated": joules(found["energy"])}


def evaluate(
    model: Reference,
    data: Any = "digits",
    split: Literal["train", "validation", "test"] = "test",
    *,
    borders: tuple[int, ...] | None = None,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    **naming: Any,
) -> Evaluated | Scored:
    """Measure a network on a data set: accuracy, by class too, calibration, size and speed.

    Where the data have several labels a sample, F1 takes the place of the accuracy: the result is :class:`Scored`.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model.
        data: a data set, as for distill.
        split: which part of it.
        borders: two numbers of training samples, LOW,HIGH: classes with fewer are few, with more many. If not given,
            they divide the way from the rarest to the most frequent class, where some are rare.
        accelerator: the kind of device, as in Lightning Fabric.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Raises:
        UserError: a network and data that do not fit each other.
    """
    said = options_as(Naming, "evaluate", naming)
    if isinstance(model, str):
        references.check_reference(model)
    check_reference(data)
    net, found = network_and_data(model, data, said)
    if not found.classes:
        found = dataclasses.replace(found, classes=net.classes)
    net = answering(net, said)
    require(
        net.task.name == found.task.name,
        f"{net.name} is for {net.task.name}, and {found.task.name} is the task of the {found.noun} of {found.name}.",
    )
    columns, note = match_classes(net.classes, found.classes, between=(net.name, found.name))
    by = None
    if found.task.name == CLASSIFICATION.name:
        by = groups(counts_of(found.train.labels, len(found.classes)), borders, name=found.name)
    require(borders is None or by is not None, f"borders divide single classes, and the task is {found.task.name}.")
    part = getattr(found.seen_by(net), split)
    measured = measure(Columns(net.module, columns), part, device=device_of(accelerator), name=net.name)
    notes = (*net.notes, *found.notes, *found.remarks, *([note] if note else []))
    about: dict[str, Any] = {
        "model": net,
        "data": found.name,
        "split": split,
        "classes": found.classes,
        "notes": notes,
        "like": like_of(net, found),
        "noun": found.noun,
        "spent": spent(net, found),
    }
    if not isinstance(measured, Evaluation):
        return Scored(measured=measured, **about)
    figures = {f.name: getattr(measured, f.name) for f in dataclasses.fields(measured)}
    return Evaluated(**figures, **about, groups=by)
