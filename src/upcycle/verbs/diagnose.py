"""``upcycle diagnose``: a report on a trained network for a person who did not train it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upcycle.core import lineage, references, store
from upcycle.core.devices import device_of
from upcycle.core.errors import require, unknown
from upcycle.core.evaluate import Evaluation, judged, predict_logits
from upcycle.core.models import Model
from upcycle.data import Images, check_reference, describe
from upcycle.diagnosis.attribution import EXPLAINERS
from upcycle.diagnosis.errors.class_channels import channel_order
from upcycle.diagnosis.errors.findings import Diagnosis
from upcycle.diagnosis.errors.findings import diagnose as look_inside
from upcycle.measure.machine import machine
from upcycle.reports import write_report
from upcycle.verbs import DEFAULT_METHOD
from upcycle.verbs.directory import claim_directory
from upcycle.verbs.figures import row, show_accuracy
from upcycle.verbs.heatmaps import maps_of, overlay
from upcycle.verbs.naming import Naming, Reference, in_classes_of, network_and_images, options_as
from upcycle.verbs.options import Say, command_of

NAMED = 8
"""How many pairs, classes and channels are named in words."""


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """What :func:`diagnose` leaves: the directory with its report, the accuracy on test images, and what it saw."""

    directory: Path
    report: Path
    sentence: str
    evaluation: Evaluation
    inside: Diagnosis


def diagnose(
    model: Reference,
    *,
    data: Any = None,
    out: Path | str | None = None,
    images: int = 12,
    methods: tuple[str, ...] = ("gradcam", "saliency", "integrated_gradients"),
    layer: str | None = None,
    samples: int = 50,
    theta: float = 0.2,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    say: Say = print,
    **naming: Any,
) -> Diagnosed:
    """Where a classifier errs, what it looks at, and which channels speak for which class; nothing is changed.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model. A classifier with convolutions.
        data: labelled images of its classes: a data set, as for distill; digits if not given.
        out: the directory; if not given, runs/diagnose-MODEL.
        images: how many right answers, and how many wrong ones, are shown with heat maps.
        methods: of the heat maps: gradcam, saliency, gradient_x_input, smoothgrad, integrated_gradients, learned,
            guided_backprop, extremal, rise, occlusion, and, with upcycle[explain], lrp and deeplift.
        layer: whose channels are meant; if not given, the last convolution.
        samples: confident training images of a class that its channels are found from.
        theta: what a channel's score must exceed to belong to a class.
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
    require(bool(methods), "methods must name at least one method.")
    for method in methods:
        if method not in EXPLAINERS:
            raise unknown("attribution method", method, EXPLAINERS)
    if isinstance(model, str):
        references.check_reference(model)
    if isinstance(reference, str):
        check_reference(reference)
    net, raw = network_and_images(model, reference, said)
    seen = in_classes_of(net, raw, said).normalised(net.mean, net.std)
    require(len(seen.test) > 0, f"{seen.name} has no test images to diagnose {net.name} on.")
    place = Path(out) if out is not None else Path("runs") / f"diagnose-{net.name}"
    device = device_of(accelerator)
    inside = look_inside(net, seen, layer=layer, n=samples, theta=theta, device=device)  # refuses what it cannot do
    held = claim_directory(place, resume=False, hold=True)
    say(f"data     {describe(seen)}")
    show_accuracy(say, "model", net, seen, inside.evaluation)

    looked = {"images": images, "methods": methods, "layer": layer, "samples": samples, "theta": theta}
    named = {"model": model, "data": reference}
    typed = {**named, "out": out, **looked, **naming, "accelerator": accelerator}
    command = command_of("diagnose", diagnose, typed, positional=("model",), always=("data",))
    mending = command_of("treat", diagnose, {**named, **naming}, positional=("model",), always=("data",))
    z = predict_logits(net.module, seen.test, device=device)
    measured = judged(z, seen.test.labels, name=net.name)
    line = row(net.name, "source", [measured], net)
    right, wrong = _picked(z, seen.test.labels.tolist(), images)
    pictures = {"3-channels": _channels(inside), "4-shared": _shares(inside, mending)}
    shown = {
        "1-wrong": ("Why it errs", "The surest errors first, and what speaks for the wrong answer.", wrong),
        "2-right": ("What right answers rest on", "The surest of each class, and what speaks for it.", right),
    }
    for name, (title, caption, which) in shown.items():
        if len(which):
            part = seen.test.subset(which)
            pictures[name] = overlay(title, caption, net, part, *maps_of(net, part, methods))
    doubted = suspects(inside.evaluation, measured)
    for k in doubted:
        own = (seen.validation.labels == k).nonzero()[:, 0][:images]
        part, title = seen.validation.subset(own), f"What {net.classes[k]} rests on where it is recognised"
        caption = (
            "Validation images, on which it does so much better than on test images. Is there something that only "
        )
        pictures[f"0-suspect-{k}"] = overlay(title, f"{caption}these have?", net, part, *maps_of(net, part, methods))
    for name, picture in pictures.items():
        store.write_json(place / "pictures" / f"{name}.json", picture)
    sentence = _sentence(net, seen, measured, inside, doubted)
    store.write_json(place / "diagnosis.json", inside.to_json())
    store.write_json(place / "result.json", {
        "format": 1, "verb": "diagnose", "method": DEFAULT_METHOD["treat"], "title": f"{net.name}, looked into",
        "command": command, "date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - start, 2),
        "sentence": sentence, "shows": "Inside the network",
        "data": {"name": seen.title, "train": len(seen.train), "validation": len(seen.validation),
                 "test": len(seen.test), "classes": list(net.classes), "notes": seen.notes},
        "rows": [line], "seeds": [], "machine": machine(), "notes": list(net.notes),
        "versions": lineage.versions(),
    })  # fmt: skip
    report = write_report(place)
    if held is not None:
        held.release()
    say(sentence)
    say(f"Report:  {report}")
    return Diagnosed(directory=place, report=report, sentence=sentence, evaluation=measured, inside=inside)


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


# -- pictures -----------------------------------------------------------------------------------------------------


def _channels(d: Diagnosis) -> dict[str, Any]:
    order = channel_order(d.scores)
    return {
        "kind": "map", "title": f"Channels that speak for each class ({d.layer})",
        "caption": "Gradient of each class's logit with respect to each channel, summed over the images that are "
                   "recognised most surely; every row from 0 to 1. Channels in the order of their loudest class.",
        "rows": list(d.classes), "columns": [str(ch) for ch in order.tolist()], "values": d.scores[:, order].tolist(),
        "x": f"{len(order)} channels", "y": "class",
    }  # fmt: skip


def _shares(d: Diagnosis, command: str) -> dict[str, Any]:
    return {
        "kind": "heatmap", "title": "Own and foreign channels", "digits": 2,
        "caption": "Of what speaks for the true class, the share in that class's own channels; and of what speaks for "
                   "its strongest rival, the share in the rival's channels. High and low would be ideal.",
        "rows": list(d.classes), "columns": ["own", "rival's"],
        "values": [[a if a is not None else float("nan"), b if b is not None else float("nan")]
                   for a, b in zip(d.concentration, d.wrong, strict=True)],
        "notes": _advice(d, command),
    }  # fmt: skip


# -- words --------------------------------------------------------------------------------------------------------


def suspects(held: Evaluation, tested: Evaluation) -> list[int]:
    """Classes that are recognised far less often in test images than in validation images, the worst first.

    More than ten points, and more than three standard errors. Such a class rests on something that one of the two sets
    does not have: a watermark, a background, a way of taking the picture.
    """
    found = []
    for k, (v, t) in enumerate(zip(held.per_class, tested.per_class, strict=True)):
        if v is None or t is None:
            continue
        counts = (sum(held.confusion[k]), sum(tested.confusion[k]))
        error = math.sqrt(sum(p * (1 - p) / n for p, n in zip((v, t), counts, strict=True)))
        if v - t > max(0.1, 3 * error):
            found.append((t - v, k))
    return [k for _, k in sorted(found)]


def _sentence(net: Model, data: Images, measured: Evaluation, d: Diagnosis, doubted: list[int]) -> str:
    text = f"{net.name} is right on {measured.accuracy:.1%} of the {measured.count:,} test images of {data.name}"
    known = {name: r for name, r in zip(net.classes, measured.per_class, strict=True) if r is not None}
    worst = min(known, key=lambda name: known[name])
    text += f", least often on {worst} ({known[worst]:.1%})."
    counts = torch.tensor(measured.confusion).fill_diagonal_(0)
    if int(counts.max()):
        a, b = divmod(int(counts.argmax()), len(net.classes))
        text += f" Its most frequent error is {net.classes[a]} taken for {net.classes[b]} ({int(counts[a, b])} times)"
        share = next((j for x, y, j in d.shared if {x, y} == {net.classes[a], net.classes[b]}), None)
        text += f"; the two share {share:.0%} of their channels." if share else "; they share no channels."
    for k in doubted:
        held, tested = d.evaluation.per_class[k], measured.per_class[k]
        text += f" Beware of {net.classes[k]}: it is recognised in {held:.1%} of the validation images and "
        text += f"{tested:.1%} of the test images, so it may rest on something that only the former have."
    return text


def _advice(d: Diagnosis, command: str) -> list[str]:
    """What a treatment would change, in words, and how to ask for it."""
    pairs = [f"{a} and {b} ({j:.0%})" for a, b, j in d.shared[:NAMED]]
    notes = [f"Classes that share most channels: {', '.join(pairs)}."] if pairs else []
    weak = sorted((s, name) for name, s in zip(d.classes, d.concentration, strict=True) if s is not None)[:3]
    if weak:
        named = ", ".join(f"{name} ({s:.0%})" for s, name in weak)
        notes.append(
            f"Least of their support comes from channels of their own: {named}. Treating would move it there, "
            f"and quieten rivals' channels: {command}."
        )
    return notes
