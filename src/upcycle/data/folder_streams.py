"""Streams of folders: each is a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from upcycle.core.errors import UserError, require
from upcycle.core.reading import Reading
from upcycle.data.decode import readable
from upcycle.data.images import Images, ImageSplit
from upcycle.data.joining import joined
from upcycle.data.labels import relabelled
from upcycle.data.listing import Left, subfolders
from upcycle.data.streams import Scenario, Stream


def folder_stream(
    name: str, root: Path, scenario: Scenario, shuffle: int | None, read: Callable[..., Images], reading: Reading
) -> Stream:
    """A folder for each task, in the order of their names; classes are named by the folders in them.

    A task may have one class. A folder of nothing but images is such a task, whose class is called as it is.

    Args:
        read: one task.
        reading: of the first task; the others are read as that was.
    """
    require(scenario != "general", "Folders are tasks: their scenario is class, task or domain.")
    left = Left()
    places = subfolders(root, left)
    require(bool(places), f"There is no folder in {root}, and each task is one.")
    if shuffle is not None:
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(shuffle))
        places = [places[i] for i in order.tolist()]
    sets: list[Images] = []
    for place in places:
        found = read(place, reading=reading)
        sets.append(found if found.classes else _alone(found, readable(place.name)))
        reading = sets[0].reading if sets[0].reading.white else reading
    classes = tuple(dict.fromkeys(c for s in sets for c in s.classes))
    tasks = tuple(tuple(sorted(classes.index(c) for c in s.classes)) for s in sets)
    if scenario == "domain" and (odd := next((s for s in sets if set(s.classes) != set(classes)), None)) is not None:
        raise UserError(
            f"The task {odd.name} in {root} lacks some of the classes, which a domain-incremental stream "
            "has in every task; use --scenario class."
        )

    @cache
    def labelled(t: int) -> Images:
        return relabelled(sets[t], classes, partial=True)

    if scenario == "domain":
        base = labelled(0)
    else:
        alike = all(s.shape == sets[0].shape for s in sets)
        base = dataclasses.replace(joined(sets), name=root.name) if alike and _disjoint(tasks) else sets[0]
    return Stream(
        name=name,
        scenario=scenario,
        classes=classes,
        tasks=tasks,
        make=labelled,
        base=base,
        order={"folders": [readable(p.name) for p in places]},
    )


def _alone(images: Images, name: str) -> Images:
    """Images without labels as those of one class."""

    def of(split: ImageSplit) -> ImageSplit:
        return dataclasses.replace(split, labels=torch.zeros_like(split.labels))

    train, validation, test = map(of, (images.train, images.validation, images.test))
    notes = [note for note in images.notes if not note.endswith("have no labels.")]
    said = f"All images of {name} are of one class, which is called so."
    return dataclasses.replace(
        images, classes=(name,), train=train, validation=validation, test=test, notes=[*notes, said]
    )


def _disjoint(tasks: tuple[tuple[int, ...], ...]) -> bool:
    return len({k for columns in tasks for k in columns}) == sum(map(len, tasks))
