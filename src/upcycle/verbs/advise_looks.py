"""A look at the real things before advice: the network, the data, what they have in common, and the machine."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upcycle.core import references
from upcycle.core.advice import DATA_LEVELS, Access, Architecture, Data, Goal, Inputs
from upcycle.core.devices import device_of
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import measured
from upcycle.core.memory import free_memory
from upcycle.core.models import Model
from upcycle.core.norms import batchnorms
from upcycle.data import Collection, Images, check_reference
from upcycle.data.labels import match_classes
from upcycle.data.sources import spelled
from upcycle.measure.cost import Cost, count
from upcycle.measure.units import bytes_, si
from upcycle.predictors import check_predictor, predictor
from upcycle.verbs.figures import like_of, scored
from upcycle.verbs.naming import Naming, Reference
from upcycle.verbs.networks import any_network, data_for, network_and_data

FEW = 50
"""Training samples a class up to which they are a few."""
SAMPLED = 100
"""Validation and test samples that are looked at, at most."""

UNSUPPORTED = {
    "an object detector": r"detr|yolo|r_?cnn|retinanet|\bssd|fcos|detection",
    "a network that segments images": r"segm|unet|deeplab|lraspp|maskformer|\bsam\b",
    "a text model": r"bert|gpt|llama|\bt5|qwen|mistral|gemma|causallm|\bopt\b",
    "a network of sound": r"wav2vec|whisper|hubert|audio|speech",
    "a network that makes images": r"diffusion|vae\b|stylegan",
}
"""Kinds of networks that no method works on, each with how names speak of it."""
OTHER_DATA = {
    "text": (".txt", ".jsonl", ".tsv", ".csv"),
    "sound": (".wav", ".mp3", ".flac", ".ogg"),
    "video": (".mp4", ".avi", ".mov", ".mkv"),
}
"""Kinds of files that no method works on."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found of a network and its data.

    Args:
        reference, data_ref: as they were given.
        model: the network; ``None`` of one that only answers.
        data: with at most a hundred validation and test samples; ``None`` where there are none at hand.
        cost: of the network; ``None`` of one that only answers.
        classes: how many the student shall tell apart.
        resized: the data were brought to what the network takes, which not every verb does by itself.
        labels: whether there are any.
        level, access, architecture, goal, inputs: the answers to the questions of ``advise``.
        facts: in sentences.
    """

    reference: Any
    data_ref: Any
    naming: Naming
    model: Model | None
    data: Collection | None
    cost: Cost | None
    classes: int
    resized: bool
    labels: bool
    level: Data
    access: Access
    architecture: Architecture
    goal: Goal
    inputs: Inputs
    facts: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that a student is built for."""
        if isinstance(self.data, Images):
            return self.data.shape
        assert self.model is not None  # one that only answers needs images to answer about
        return self.model.input_shape


def look(reference: Reference, data_ref: Any, naming: Naming) -> Seen:
    """Look at a network and data.

    Args:
        reference: see :func:`upcycle.core.references.resolve`; also an endpoint's address or an ONNX file.
        data_ref: see :func:`upcycle.data.load`; or a level of data, such as ``none``.
        naming: what the reference does not say.

    Raises:
        UserError: a network or data that cannot be used; of a kind that no method works on, once and by that kind.
    """
    there = not (isinstance(data_ref, str) and data_ref in DATA_LEVELS and not Path(data_ref).is_dir())
    asked = isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))
    asked = asked or (isinstance(reference, str | Path) and str(reference).endswith(".onnx"))
    if there:
        data_ref = spelled(data_ref)
        _require_kind_of_data(data_ref)
        check_reference(data_ref)
    if asked:
        require(there, f"{reference} only answers, so images to ask about are needed: give --data DATA.")
        check_predictor(str(reference))
        return _of_answers(reference, data_ref, naming)
    try:
        if isinstance(reference, str):
            references.check_reference(reference)
        data, resized = None, False
        if there:
            model, data, resized = _both(reference, data_ref, naming)
        else:
            model = any_network(reference, naming)
    except UserError as error:
        if kind := unsupported(reference, str(error)):
            raise UserError(
                f"{_name(reference)} is {kind}, and upcycle works on classifiers of images and on networks over "
                "graphs: none of its methods serves here."
            ) from error
        raise
    cost = count(model.module, like_of(model, data) if data is not None else model.input_shape or model.example(1))
    kinds = architecture_of(model.module)
    same, sentence = _in_common(model, data, naming)
    level: Data = data_ref if data is None else _level(data, model)
    facts = [_of_network(model, cost), *([_of_data(data), sentence] if data is not None else [])]
    facts += [_of_accuracy(model, data)] if same and data is not None else []
    return Seen(
        reference=reference,
        data_ref=data_ref,
        naming=naming,
        model=model,
        data=None if data is None else _shortened(data),
        cost=cost,
        classes=len(data.classes if data is not None and data.classes else model.classes),
        resized=resized,
        labels=data is not None and data.train.labelled,
        level=level,
        access="weights",
        architecture=kinds,
        goal="smaller" if same else "task",
        inputs="graphs" if model.takes.kind == "graphs" else "images",
        facts=(*filter(None, facts), _of_machine()),
    )


def architecture_of(module: nn.Module) -> Architecture:
    """Whether a network is a transformer (attention and LayerNorm), convolutional, or neither."""
    modules = list(module.modules())
    attends = any("attention" in type(m).__name__.lower() for m in modules)
    if attends and any("layernorm" in type(m).__name__.lower() for m in modules):
        return "transformer"
    return "conv" if any(isinstance(m, nn.Conv2d) for m in modules) else "any"


def unsupported(reference: Reference, error: str) -> str:
    """The kind of a network that no method works on, by its names and what was said of it; empty where none shows."""
    if references.is_bare(reference) and not re.search("answer|output|logits", error):
        return ""  # of a network of one's own the name says little
    module = reference.module if isinstance(reference, Model) else reference
    named = f"{type(module).__module__} {type(module).__name__}" if isinstance(module, nn.Module) else str(module)
    said = re.findall(r"but '([^']+)'", error)  # the kind in a configuration
    text = " ".join([named, *said]).lower()
    return next((kind for kind, pattern in UNSUPPORTED.items() if re.search(pattern, text)), "")


# -- what there is ------------------------------------------------------------------------------------------------


def _both(reference: Reference, data_ref: Any, naming: Naming) -> tuple[Model, Collection, bool]:
    """The network and the data, as for the same task where they fit each other, and else as for another one."""
    try:
        return *network_and_data(reference, data_ref, naming), False
    except UserError:
        return *network_and_data(reference, data_ref, naming, other_task=True), True


def _of_answers(reference: Reference, data_ref: Any, naming: Naming) -> Seen:
    """A network that only answers, and the images to ask it about."""
    data = data_for(data_ref, naming)
    file = str(reference).endswith(".onnx")
    given = {name: getattr(naming, name) for name in ("classes", "mean", "std")} if file else {}
    one = predictor(str(reference), **{key: value for key, value in given.items() if value is not None})
    whom = (
        f"{_name(reference)} only answers: its weights and layers cannot be read. It knows {len(one.classes)} classes."
    )
    return Seen(
        reference=reference,
        data_ref=data_ref,
        naming=naming,
        model=None,
        data=_shortened(data),
        cost=None,
        classes=len(one.classes),
        resized=False,
        labels=data.train.labelled,
        level=_level(data, one),
        access="predictions",
        architecture="any",
        goal="domain",
        inputs="images",
        facts=(whom, _of_data(data), _of_machine()),
    )


def _level(data: Collection, model: Any) -> Data:
    """How much there is to learn from."""
    classes = len(data.classes or model.classes)
    if len(data.train) <= FEW * classes:
        return "few"
    return "labelled" if bool(data.task.known(data.train.labels).all()) else "unlabelled"


def _shortened(data: Collection) -> Collection:
    """The same with at most a hundred validation and test samples, evenly drawn: they only measure."""
    splits = {}
    for name in ("validation", "test"):
        split = getattr(data, name)
        some = torch.linspace(0, max(len(split) - 1, 0), min(SAMPLED, len(split))).long()
        splits[name] = split if data.train.together else split.subset(some)
    return dataclasses.replace(data, **splits)


def _in_common(model: Model, data: Collection | None, naming: Naming) -> tuple[bool, str]:
    """Whether the classes of the data are those of the network, and a sentence on it."""
    if data is None or not data.classes:
        return True, ""
    if naming.label_map is not None:
        return True, f"{naming.label_map} says which class is which."
    k, theirs = len(model.classes), len(data.classes)
    common = {name.casefold() for name in model.classes} & {name.casefold() for name in data.classes}
    numbered = model.classes == tuple(map(str, range(k)))
    try:
        _, note = match_classes(model.classes, data.classes)
    except UserError:
        note = ""
    else:
        if not note:
            return True, "The classes of the network and of the data are the same."
        if numbered:
            return True, note
    if len(common) == theirs:
        return False, (
            f"All {theirs} classes of the data are among the {k} of the network: it is adapted to them, or give "
            "--label_map to say that the others do not count."
        )
    known = "none of them" if not common else f"{len(common)} of them"
    return False, f"The data have {theirs} classes, and the network knows {known}: it is adapted to them."


# -- in words -----------------------------------------------------------------------------------------------------


def _name(reference: Any) -> str:
    return (
        str(reference) if isinstance(reference, str | Path) else type(getattr(reference, "module", reference)).__name__
    )


def _of_network(model: Model, cost: Cost) -> str:
    kind = {"conv": "a convolutional network", "transformer": "a transformer", "any": "a network"}
    norms = len(batchnorms(model.module))
    layers = f"{norms} BatchNorm layer{'s' * (norms != 1)}" if norms else "no BatchNorm"
    return (
        f"{model.name} is {kind[architecture_of(model.module)]} with {len(model.classes)} classes, "
        f"{si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds and {layers}; it takes {model.takes}."
    )


def _of_data(data: Collection) -> str:
    n = len(data.train)
    known = int(data.task.known(data.train.labels).sum())
    labels = "each with its label" if known == n else f"{known:,} of them with labels" if known else "without labels"
    classes = f" of {len(data.classes)} classes" if data.classes else ""
    held = f"{len(data.validation):,} for validation and {len(data.test):,} for tests"
    text = f"{data.name} has {n:,} {data.noun} to train on{classes}, {labels}, and {held}, each as {data.form}"
    if isinstance(data, Images) and data.reshaped:
        text += f"; {data.reshaped:,} had other proportions"
    return f"{text}."


def _of_accuracy(model: Model, data: Collection) -> str:
    """How good the network is on some of the validation samples; nothing where they have no labels."""
    split = _shortened(data).validation
    if not len(split) or not split.labelled or set(model.classes) != set(data.classes):
        return ""
    found = measured(model.module, split.seen_by(model), device=device_of("auto"), name=model.name)
    score = scored([found.score], data.task)
    return f"On {found.count} validation {data.noun} it reaches {score}."


def _of_machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    words = [f"{cores} processor{'s' * (cores != 1)}", f"{bytes_(free)} of memory free" if free else ""]
    return f"Here: {', '.join(filter(None, [*words, ', '.join(gpus) or 'no GPU']))}."


def _require_kind_of_data(reference: Any) -> None:
    """Refuse a folder of boxes, texts, sounds or films, by what lies in it."""
    folder = Path(str(reference)).expanduser() if isinstance(reference, str | Path) else None
    if folder is None or not folder.is_dir():
        return
    boxes = [("Annotations", "*.xml"), ("labels", "**/*.txt"), ("annotations", "*.json")]
    if any(next((folder / place).glob(pattern), None) for place, pattern in boxes if (folder / place).is_dir()):
        raise UserError(
            f"{reference} is a data set for object detection, with boxes in its images, and upcycle works on images "
            "with classes of the whole image: none of its methods serves here."
        )
    files = [file for file in folder.rglob("*") if file.is_file()][:1000]
    for kind, endings in OTHER_DATA.items():
        if files and all(file.suffix.lower() in endings for file in files):
            raise UserError(
                f"{reference} holds {kind}, and upcycle works on images and graphs: none of its methods serves here."
            )
