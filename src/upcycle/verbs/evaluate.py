"""``upcycle evaluate``: a network measured on a data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.core import references
from upcycle.core.devices import device_of
from upcycle.core.evaluate import evaluate as measure
from upcycle.core.frequency import Groups, counts_of, groups
from upcycle.core.heads import gives_probabilities
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.task import Evaluation
from upcycle.data import check_reference
from upcycle.data.labels import match_classes
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.units import bytes_, duration, si
from upcycle.verbs.figures import like_of
from upcycle.verbs.frequency import group_lines
from upcycle.verbs.naming import Naming, Reference, answering, network_and_data, options_as

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
    """

    model: Model
    data: str
    split: str
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    like: Any = None
    noun: str = "images"
    groups: Groups | None = None

    def record(self) -> dict[str, Any]:
        """The figures as JSON data."""
        cost, sure = count(self.model.module, self.like), gives_probabilities(self.model.module)
        return {
            "model": self.model.name,
            "data": self.data,
            "split": self.split,
            "accuracy": self.accuracy,
            "loss": self.loss if sure else None,
            "ece": self.ece if sure else None,
            "per_class": self.per_class,
            "classes": list(self.classes),
            "count": self.count,
            "parameters": cost.parameters,
            "macs": cost.macs,
            "notes": list(self.notes),
            **(self.groups.plain() | {"groups": self.groups.means(self.per_class)} if self.groups else {}),
        }

    def text(self) -> str:
        """The figures for a terminal, with those of size and speed."""
        module, like = self.model.module, self.like
        cost, sure = count(module, like), gives_probabilities(module)
        lines = [
            f"{self.model.name} on {self.count:,} {self.split} {self.noun} of {self.data}",
            "",
            f"  accuracy           {self.accuracy:.2%}",
            f"  loss               {f'{self.loss:.4f}' if sure else NOT}",
            f"  calibration error  {f'{self.ece:.2%}' if sure else NOT}",
            f"  parameters         {si(cost.parameters)}",
            f"  multiply-adds      {si(cost.macs)}",
            f"  latency            {duration(latency(module, like))}",
            f"  memory             {bytes_(peak_memory(module, like))}",
            "",
            "  by class",
        ]
        if self.groups is not None:
            lines[-1:] = [f"  by number of training {self.noun}"]
            lines += [*(f"    {line}" for line in group_lines(self.per_class, self.groups)), "", "  by class"]
        width = max(map(len, self.classes))
        for name, share in zip(self.classes, self.per_class, strict=True):
            lines.append(f"    {name.ljust(width)}  {f'no {self.noun}' if share is None else f'{share:.1%}'}")
        return "\n".join([*lines, *(f"note     {note}" for note in self.notes)])


def evaluate(
    model: Reference,
    data: Any = "digits",
    split: Literal["train", "validation", "test"] = "test",
    *,
    borders: tuple[int, ...] | None = None,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    **naming: Any,
) -> Evaluated:
    """Measure a network on a data set: accuracy, by class too, calibration, size and speed.

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
    columns, note = match_classes(net.classes, found.classes, between=(net.name, found.name))
    by = groups(counts_of(found.train.labels, len(found.classes)), borders, name=found.name)
    part = getattr(found.seen_by(net), split)
    measured = measure(Columns(net.module, columns), part, device=device_of(accelerator), name=net.name)
    figures = {f.name: getattr(measured, f.name) for f in dataclasses.fields(measured)}
    notes = (*net.notes, *found.notes, *found.remarks, *([note] if note else []))
    return Evaluated(
        **figures,
        model=net,
        data=found.name,
        split=split,
        classes=found.classes,
        notes=notes,
        like=like_of(net, found),
        noun=found.noun,
        groups=by,
    )
