"""The teacher and the data of a distillation, brought to the same classes, and what students are measured with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from upcycle.core import references
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.task import CLASSIFICATION
from upcycle.data import Collection, Images
from upcycle.data.graph_pool import load_graph_pool
from upcycle.data.graphs import GraphSet
from upcycle.data.images import as_images
from upcycle.data.labels import match_classes, read_label_map
from upcycle.data.pool_files import PREFIX, lineage_of, load_pool, pool_directory, weights_digest
from upcycle.verbs.loading import is_files, load_for, loaded
from upcycle.verbs.naming import naming_of
from upcycle.verbs.networks import any_network, data_as, data_for, takes_any
from upcycle.verbs.options import Say


def teacher_and_data(
    setting: Any,
    reference: Any,
    data_ref: Any,
    *,
    free: bool,
    say: Say,
    taught: Any = None,
    compared: bool = True,
) -> tuple[Model | None, Collection]:
    """The teacher, if there is one, and the data with those of ``test_data`` in place of their own held-out images.

    Args:
        setting: of the verb.
        reference: of the teacher, or ``None``.
        data_ref: reference of the data, or the data themselves.
        free: the method makes its own images, so the teacher alone says what they are like.
        taught: the student; where it is a :class:`Model` and there is no teacher, it says what images it takes.
        compared: answers of the teacher are looked at, so that its classes have to be those of the data. Otherwise it
            comes back without classes where they are others.
    """
    teacher: Model | None
    data: Collection
    if free:
        teacher = _lone_teacher(setting, reference)
        data = _nothing(teacher)
    else:
        teacher, data = _pair(setting, reference, data_ref, say, taught, compared)
    data = _tested(setting, data, free=free, say=say)
    require(
        teacher is not None or data.test.labelled,
        f"{data.name} has no labels to measure with, "
        "and without a teacher there are no answers in their place; give --test_data.",
    )
    return teacher, data


def _lone_teacher(setting: Any, reference: Any) -> Model:
    """The teacher of a method that takes no data; it alone says what images are like."""
    naming = naming_of(setting, "teacher")
    like = None
    if takes_any(reference, naming):
        if setting.test_data is not None:
            like = data_for(setting.test_data, naming)
        elif references.is_bare(reference) and (naming.sides is None or naming.channels is None):
            raise UserError(
                "The teacher does not say what images it takes: give --size CHANNELS,HEIGHT,WIDTH, or --test_data."
            )
    return any_network(reference, naming, like)


def _nothing(teacher: Model) -> Collection:
    """No data at all, of the kind that a teacher takes."""
    if isinstance(teacher.takes, GraphTakes):
        return GraphSet.none(teacher.takes, teacher.classes)
    return Images.none(teacher.input_shape, teacher.classes, teacher.mean, teacher.std, teacher.reading)


def _pair(
    setting: Any, reference: Any, data_ref: Any, say: Say, taught: Any, compared: bool
) -> tuple[Model | None, Collection]:
    """The teacher and the data that both are given."""
    naming, tail = naming_of(setting, "teacher"), setting.long_tail
    if reference is None and isinstance(taught, Model) and not isinstance(data_ref, Images):
        reading = setting.reading(taught.reading)
        asked = {"columns": setting.columns, "long_tail": tail, **setting.kept}
        return None, load_for(taught, data_ref, setting.sides, reading=reading, **asked)
    if reference is None:
        return None, loaded(data_ref, size=setting.sides, channels=setting.planes, long_tail=tail, **setting.asked)
    if takes_any(reference, naming):  # what it takes is what the data are
        data = data_for(data_ref, naming)
        teacher = any_network(reference, naming, data)
        _require_own_pool(teacher, data_ref)
    else:
        teacher = any_network(reference, naming)
        _require_own_pool(teacher, data_ref)  # before its images are read
        teacher, data = data_as(teacher, data_ref, naming)
    if not data.classes:  # a folder without class folders: unlabelled images, the teacher's classes
        data = dataclasses.replace(data, classes=teacher.classes)
    if setting.label_map is not None:
        columns = read_label_map(setting.label_map, teacher.classes, data.classes)
    else:
        try:
            columns, note = match_classes(teacher.classes, data.classes, between=("the teacher", data.name))
        except UserError:
            if compared:
                raise
            columns, note = torch.arange(0), "no class in common"
        if note and not compared:  # no names in common either, which position says nothing of
            say(f"The classes of {teacher.name} are not those of {data.name}; its answers serve for nothing here.")
            return dataclasses.replace(teacher, classes=()), data
        if note:
            say(note)
    if columns.tolist() != list(range(len(teacher.classes))):
        module = Columns(teacher.module, columns)
        teacher = dataclasses.replace(teacher, module=module, classes=data.classes)
    return teacher, data


def _require_own_pool(teacher: Model, data_ref: Any) -> None:
    """Refuse a pool that another network's images are in: its labels and its look belong to that one."""
    if not (isinstance(data_ref, str | Path) and str(data_ref).startswith(PREFIX)):
        return
    maker, digest = lineage_of(data_ref)["parents"][0], weights_digest(teacher.module)
    if maker["digest"] != digest:
        raise UserError(
            f"The images of {data_ref} were made from {maker['name']} (weights {maker['digest'][:8]}) and the "
            f"teacher is {teacher.name} (weights {digest[:8]}): give that teacher, or take them as ordinary images "
            f"by --data {pool_directory(data_ref)}."
        )


def _held_out(setting: Any, data: Collection) -> Collection:
    """The data that ``--test_data`` names, which must be like ``data``."""
    if not isinstance(data, Images):
        like = loaded(setting.test_data)
        problems = data.takes.problems(like.takes)
        require(not problems, f"--test_data {like.name} is not like {data.name}: {'; '.join(problems)}.")
        return like
    channels, height, width = data.shape
    files = is_files(setting.test_data)
    images = as_images(
        loaded(
            setting.test_data,
            size=(height, width) if files else setting.sides,
            channels=channels if files else None,
            reading=data.reading,
            columns=setting.columns,
            **setting.kept,
        )
    )
    if images.shape != data.shape:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (data.shape, images.shape))
        raise UserError(
            f"--test_data {images.name} has images of {theirs} (channels, height, width), but {ours} are "
            "needed here; --size brings images to another size."
        )
    return images


def _tested(setting: Any, data: Collection, *, free: bool, say: Say) -> Collection:
    """``data`` with the validation and test samples of ``--test_data``, if that is given."""
    if setting.test_data is None:
        return data
    like = _held_out(setting, data)
    if like.classes and free and setting.label_map is not None:
        columns, note = read_label_map(setting.label_map, data.classes, like.classes), ""
    elif like.classes and data.classes:
        try:
            columns, note = match_classes(data.classes, like.classes)
        except UserError as error:
            raise UserError(
                f"--test_data {like.name} cannot measure here: its {len(like.classes)} classes "
                f"({like.classes[0]}, ...) do not match the {len(data.classes)} of the student "
                f"({data.classes[0]}, ...)."
            ) from error
    else:
        columns, note = torch.arange(len(data.classes)), ""
    if note:
        say(note)
    of_classes = data.task == CLASSIFICATION
    require(
        like.task == data.task and (of_classes or columns.tolist() == list(range(len(columns)))),
        f"--test_data {like.name} is of another task than {data.name}, or has its labels in another order.",
    )
    splits = {}
    for name in ("validation", "test"):
        split, labels = getattr(like, name), getattr(like, name).labels
        if len(columns) and of_classes:
            labels = torch.where(labels >= 0, columns[labels.clamp_min(0)], -1)
        splits[name] = dataclasses.replace(split, labels=labels)
    said = f"Measured on the validation and test {data.noun} of {like.name}, which served for nothing else."
    return dataclasses.replace(data, **splits, measured=like.name, notes=[*data.notes, *like.notes, said])


def answered_by(teacher: Model, data: Collection, device: torch.device) -> Collection:
    """Where test samples have no labels, the teacher's answers take their place, and the notes say so.

    Validation samples without labels get them too then. Beside labelled test samples they stay as they are, and nothing
    is measured on them.
    """
    if not len(data.test):
        return data
    name = data.measured or data.name
    blank = [split for split in ("validation", "test") if not getattr(data, split).labelled]
    require(
        "test" not in blank or bool(teacher.classes),
        f"{name} has no labels to measure with, and its classes are not those of {teacher.name}, so that there are no "
        "answers in their place; give --test_data.",
    )
    if "test" not in blank:
        note = f"The validation {data.noun} of {name} have no labels, so nothing is measured on them during training."
        return dataclasses.replace(data, notes=[*data.notes, note]) if blank else data
    seen, answered = data.seen_by(teacher), {}
    for split in blank:
        z = predict_logits(teacher.module, getattr(seen, split), device=device)
        answered[split] = dataclasses.replace(getattr(data, split), labels=z.argmax(1))
    # Of a pool nothing is held out.
    where = f", on {data.noun} that the student is trained on" if data.lineage is not None and not data.measured else ""
    if "validation" in blank:
        note = f"{name} has no labels to measure with: every accuracy here is agreement with the teacher{where}."
    else:
        note = f"The test {data.noun} of {name} have no labels: every figure on them is agreement with the teacher."
    splits = {"validation": data.validation, **answered}
    return dataclasses.replace(
        data,
        validation=splits["validation"],
        test=splits["test"],
        answered=tuple(blank),
        notes=[*data.notes, note],
    )


def on_its_pool(teacher: Model, data: Collection, directory: Path, device: torch.device) -> Collection:
    """Without any data, what a student is measured on: samples of the pool it learnt from, the teacher's answers."""
    pool: Collection = (load_pool if isinstance(data, Images) else load_graph_pool)(directory / "pool")
    held = dataclasses.replace(data, validation=pool.validation, test=pool.test, measured=pool.name)
    if isinstance(data, Images) and isinstance(held, Images):
        held = held.normalised(data.train.mean, data.train.std)
    answered = answered_by(teacher, held, device)
    note = (
        f"Every figure is agreement with the teacher on {data.noun} that the student was trained on, which is no "
        "accuracy; give --test_data to measure one."
    )
    return dataclasses.replace(answered, notes=[*data.notes, note])
