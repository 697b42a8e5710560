"""``upcycle diagnose``: a report on a trained network for a person who did not train it."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from upcycle.core import cells, lineage, references, store
from upcycle.core.devices import device_of
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.frequency import counts_of, groups
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.printable import file_name
from upcycle.core.task import CLASSIFICATION, Evaluation, judged
from upcycle.data import Collection, check_reference, describe
from upcycle.data.images import as_images
from upcycle.data.labels import match_classes
from upcycle.diagnosis.errors.findings import Diagnosis
from upcycle.diagnosis.errors.findings import diagnose as look_inside
from upcycle.diagnosis.errors.frequency import following
from upcycle.measure.machine import machine
from upcycle.reports import write_report
from upcycle.verbs import DEFAULT_METHOD, RARE
from upcycle.verbs.degrees import by_class_and_degree
from upcycle.verbs.degrees import sentence as of_graphs
from upcycle.verbs.directory import claim_directory, numbered
from upcycle.verbs.errors_found import channels, remembered, shares, suspects
from upcycle.verbs.errors_found import sentence as of_errors
from upcycle.verbs.figures import like_of, row, show_accuracy
from upcycle.verbs.frequency import by_group, group_lines, recall_by_count
from upcycle.verbs.frequency import sentence as of_frequency
from upcycle.verbs.heatmaps import known, maps_of, overlay
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import in_classes_of, network_and_data
from upcycle.verbs.options import Say, command_of, tell

if TYPE_CHECKING:
    from upcycle.data.graphs import GraphSet

DEFAULT = ("gradcam", "saliency", "integrated_gradients")


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """Results of :func:`diagnose`: the directory with its report, the accuracy on test images, and what it saw.

    Of a network over graphs nothing is looked at inside.
    """

    directory: Path
    report: Path
    sentence: str
    evaluation: Evaluation
    inside: Diagnosis | None

    def __repr__(self) -> str:
        return cells.line(self, f"{self.directory}. {self.sentence}")

    def _repr_html_(self) -> str:
        figures = [("accuracy", f"{self.evaluation.accuracy:.1%}"), ("images", f"{self.evaluation.count:,}")]
        return cells.table(self.sentence, (), figures, [f"Report: {self.report}"])

    def record(self) -> dict[str, Any]:
        """Give what was found, as JSON data."""
        return {"report": str(self.report), "sentence": self.sentence, "evaluation": vars(self.evaluation)}


def diagnose(
    model: Reference,
    *,
    data: Any = None,
    out: Path | str | None = None,
    images: int = 12,
    methods: tuple[str, ...] | None = None,
    layer: str | None = None,
    samples: int = 50,
    theta: float = 0.2,
    borders: tuple[int, ...] | None = None,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    say: Say = tell,
    **naming: Any,
) -> Diagnosed:
    """Where a classifier errs, what it looks at, and which channels speak for which class; nothing is changed.

    Of a network over graphs, or their nodes: where it errs, by class and degree, and how sure it is.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model. A trained classifier.
        data: labelled images, or graphs, of its classes: a data set, as for distill; digits if not given.
        out: the directory; if not given, runs/diagnose-MODEL, with a number behind it where that is used.
        images: how many right answers, and how many wrong ones, are shown with heat maps.
        methods: of the heat maps: gradcam, saliency, gradient_x_input, smoothgrad, integrated_gradients, learned,
            guided_backprop, extremal, rise, occlusion, and, with upcycle[explain], lrp and deeplift; if not given, the
            first two and integrated_gradients, as far as the network allows them.
        layer: whose channels are meant; if not given, the last convolution, or where that is one branch of several, or
            none, the last feature map that all logits pass through.
        samples: confident training images of a class that its channels are found from.
        theta: what a channel's score must exceed to belong to a class.
        borders: two numbers of training images, LOW,HIGH: classes with fewer are few, with more many. If not given,
            they divide the way from the rarest to the most frequent class, where some are rare.
        accelerator: the kind of device, as in Lightning Fabric.
        say: where progress lines go.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Raises:
        UserError: before any work where the request cannot work; classes or images that tell nothing.
    """
    start = time.time()
    reference: Any = "digits" if data is None else data
    said = options_as(Naming, "diagnose", naming)
    require(images >= 1, f"images must be at least 1, not {images}.")
    known(methods if methods is not None else DEFAULT)
    if isinstance(model, str):
        references.check_reference(model)
    if isinstance(reference, str):
        check_reference(reference)
    net, found = network_and_data(model, reference, said)
    place = Path(out) if out is not None else numbered(Path("runs") / f"diagnose-{file_name(net.name)}")
    looked = {
        "images": images,
        "methods": methods,
        "layer": layer,
        "samples": samples,
        "theta": theta,
        "borders": borders,
    }
    named = {"model": model, "data": reference}
    typed = {**named, "out": out, **looked, **naming, "accelerator": accelerator}
    command = command_of("diagnose", diagnose, typed, positional=("model",), always=("data",))
    if found.takes.kind == "graphs":
        usual = {name: inspect.signature(diagnose).parameters[name].default for name in looked}
        for name, value in looked.items():
            require(value == usual[name], f"--{name} is about images, and {found.name} holds {found.noun}.")
        return _of_graphs(net, found, place, command, device_of(accelerator), start, say)  # type: ignore[arg-type]
    raw = as_images(found)
    seen = in_classes_of(net, raw, said).normalised(net.mean, net.std)
    require(len(seen.test) > 0, f"{seen.name} has no test images to diagnose {net.name} on.")
    by = groups(counts_of(seen.train.labels, len(net.classes)), borders, name=raw.name)
    device = device_of(accelerator)
    claim_directory(place, resume=None)
    inside = look_inside(net, seen, layer=layer, n=samples, theta=theta, device=device)  # refuses what it cannot do
    say(f"data     {describe(seen)}")
    show_accuracy(say, "model", net, seen, inside.evaluation)

    mending = command_of("treat", diagnose, {**named, **naming}, positional=("model",), always=("data",))
    z = predict_logits(net.module, seen.test, device=device)
    measured = judged(z, seen.test.labels, name=net.name)
    line = by_group(row(net.name, "source", [measured], net), [measured], by)
    right, wrong = _picked(z, seen.test.labels.tolist(), images)
    pictures = {"3-channels": channels(inside), "4-shared": shares(inside, mending)} if inside.layer else {}
    shown = {
        "1-wrong": ("Why it errs", "The surest errors first, and what speaks for the wrong answer.", wrong, seen.test),
        "2-right": (
            "What right answers rest on",
            "The surest of each class, and what speaks for it.",
            right,
            seen.test,
        ),
    }
    doubted = suspects(inside.evaluation, measured)
    for k in [] if remembered(inside, measured, doubted) else doubted:
        own = (seen.validation.labels == k).nonzero()[:, 0][:images]
        title = f"What {net.classes[k]} rests on where it is recognised"
        caption = "Validation images, on which it does so much better than on test images. What do only these have?"
        shown[f"0-suspect-{k}"] = (title, caption, own, seen.validation)
    for name, (title, caption, which, split) in shown.items():
        if len(which):
            part = split.subset(which)
            maps = maps_of(net, part, methods or DEFAULT, strict=methods is not None)
            pictures[name] = overlay(title, caption, net, part, *maps)
    sentence = of_errors(net, seen, measured, inside, doubted)
    told = inside.to_json()
    if by is not None:
        found_so = following(net, measured.per_class, by.counts)
        told["frequency"] = {**by.plain(), **dataclasses.asdict(found_so), "groups": by.means(measured.per_class)}
        pictures["5-recall-by-count"] = recall_by_count(net.classes, by.counts, {"": measured.per_class})
        sentence += of_frequency(found_so, f"{mending} --method {RARE}")
        say(f"         {len(seen.test):,} test images, by the number of training images of their class:")
        for text in group_lines(measured.per_class, by):
            say(f"           {text}")
    report = _leave(
        net,
        seen,
        place,
        command,
        start,
        sentence=sentence,
        row=line,
        pictures=pictures,
        diagnosis=told,
        shows="Inside the network",
    )
    say(sentence)
    say(f"Report:  {report}")
    return Diagnosed(directory=place, report=report, sentence=sentence, evaluation=measured, inside=inside)


def _of_graphs(
    net: Model, data: GraphSet, place: Path, command: str, device: torch.device, start: float, say: Say
) -> Diagnosed:
    """Where a network over graphs errs."""
    require(
        data.task == CLASSIFICATION,
        f"diagnose looks at classes, and the task of {data.name} is {data.task.name}; upcycle evaluate measures it.",
    )
    require(len(data.test) > 0, f"{data.name} has no test {data.noun} to diagnose {net.name} on.")
    claim_directory(place, resume=None)
    say(f"data     {describe(data)}")
    columns, note = match_classes(net.classes, data.classes, between=(net.name, data.name))
    z = predict_logits(Columns(net.module, columns), data.test, device=device)
    measured = judged(z, data.test.labels, num_classes=len(data.classes), name=net.name)
    picture = by_class_and_degree(data, z)
    sentence = of_graphs(net, data, measured, picture)
    report = _leave(
        net,
        data,
        place,
        command,
        start,
        sentence=sentence,
        row=row(net.name, "source", [measured], net, like_of(net, data)),
        pictures={"1-degrees": picture},
        notes=[note] if note else [],
        diagnosis={"classes": list(data.classes), "evaluation": dataclasses.asdict(measured), "degrees": picture},
        shows="Where it errs",
    )
    say(sentence)
    say(f"Report:  {report}")
    return Diagnosed(directory=place, report=report, sentence=sentence, evaluation=measured, inside=None)


def _leave(
    net: Model,
    data: Collection,
    place: Path,
    command: str,
    start: float,
    *,
    sentence: str,
    row: dict[str, Any],
    pictures: dict[str, dict[str, Any]],
    diagnosis: dict[str, Any],
    shows: str,
    notes: Sequence[str] = (),
) -> Path:
    """Write everything into the directory; the report's path."""
    held = claim_directory(place, resume=None, hold=True)
    for name, picture in pictures.items():
        store.write_json(place / "pictures" / f"{file_name(name)}.json", picture)
    store.write_json(place / "diagnosis.json", diagnosis)
    result = {
        "format": 1,
        "verb": "diagnose",
        "method": DEFAULT_METHOD["treat"],
        "title": f"{net.name}, looked into",
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - start, 2),
        "sentence": sentence,
        "shows": shows,
        "data": {
            "name": data.title,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "classes": list(data.classes),
            "notes": data.notes,
        },
        "rows": [row],
        "seeds": [],
        "machine": machine(),
        "notes": [*net.notes, *notes],
        "versions": lineage.versions(),
    }
    store.write_json(place / "result.json", result)
    report = write_report(place)
    if held is not None:
        held.release()
    return report


# -- which images -------------------------------------------------------------------------------------------------


def _picked(z: Tensor, labels: list[int], n: int) -> tuple[Tensor, Tensor]:
    """Positions of right answers, the surest of each class in turn, and of wrong ones, the surest first."""
    top, predicted = z.softmax(1).max(1)
    order = top.argsort(descending=True, stable=True).tolist()
    wrong = [i for i in order if labels[i] >= 0 and int(predicted[i]) != labels[i]][:n]
    by_class: dict[int, list[int]] = {}
    for i in order:
        if int(predicted[i]) == labels[i]:
            by_class.setdefault(labels[i], []).append(i)
    turns = (by_class[k][t] for t in range(n) for k in sorted(by_class) if t < len(by_class[k]))
    right = [i for i, _ in zip(turns, range(n), strict=False)]
    return torch.tensor(right, dtype=torch.int64), torch.tensor(wrong, dtype=torch.int64)
