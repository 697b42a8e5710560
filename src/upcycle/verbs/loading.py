"""Data as a verb loads them: brought to what a network takes, and augmented as asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.core.once import once
from upcycle.core.reading import Reading
from upcycle.core.takes import Pictures
from upcycle.data import Collection, Images
from upcycle.data import load as load_data
from upcycle.data.pixels import Size
from upcycle.data.streams import Stream

Seen = TypeVar("Seen", Collection, Images, Stream)
SEED = 0
"""What a long tail is drawn with, whatever the seed of a run: so all commands see the same set."""


def is_files(reference: Any) -> bool:
    """Whether a data reference names image files of a person's own, which can be brought to another size."""
    return isinstance(reference, str | Path) and (str(reference).startswith("hub:") or Path(reference).is_dir())


def loaded(reference: Any, *, long_tail: float | None = None, **asked: Any) -> Collection:
    """The data of ``reference``; see :func:`upcycle.data.load`, whose arguments ``asked`` are.

    They are read once on each machine, whose processes share them; every process of a command calls this. Data of
    another kind than images, which are loaded already, are as they are.

    Args:
        long_tail: keep only such a tail of the training images, see :meth:`upcycle.data.Images.long_tailed`.
    """
    there = isinstance(reference, Collection) and not isinstance(reference, Images)
    named = isinstance(reference, str | Path)
    read: Callable[[], Collection] = partial(load_data, reference, **asked)
    data: Collection = reference if there else once(read) if named else read()
    if long_tail is None:
        return data
    if not isinstance(data, Images):
        raise UserError(f"--long_tail is about images, and {data.name} holds {data.noun}.")
    return data.long_tailed(long_tail, SEED)


def load_for(
    like: Model,
    reference: Any,
    size: Size | None,
    *,
    reading: Reading | None = None,
    columns: tuple[str, str] = ("", ""),
    other_task: bool = False,
    long_tail: float | None = None,
    keep_in_memory: bool | None = None,
    num_workers: int | None = None,
) -> Collection:
    """The data of ``reference``; images of a person's own are brought to what a network takes.

    Args:
        like: the network.
        size: what was asked for in its place.
        reading: what was asked for in place of the network's own.
        columns, keep_in_memory, num_workers: see :func:`upcycle.data.load`.
        other_task: bring any images to what the network takes, since it was trained on others.
        long_tail: see :func:`loaded`.

    Raises:
        UserError: data of another kind, or a named set of other channels or another size, unless that was asked for.
    """
    takes = like.takes
    if not isinstance(takes, Pictures):
        return _fitting(like, loaded(reference, size=size, columns=columns, long_tail=long_tail))
    channels, height, width = takes.shape
    there = isinstance(reference, Images)  # in Python, which are as they are
    files = (is_files(reference) or other_task) and not there
    data = loaded(
        reference,
        size=size or ((height, width) if files else None),
        channels=channels if files else None,
        reading=reading or (None if there else like.reading),
        columns=columns,
        long_tail=long_tail,
        keep_in_memory=keep_in_memory,
        num_workers=num_workers,
    )
    if not isinstance(data, Images):
        return _fitting(like, data)
    if data.shape[0] != channels:
        raise UserError(
            f"{like.name} takes {channels} input channels, and the images of {data.name} have {data.shape[0]}."
        )
    if size is None and not there and data.shape[1:] != (height, width):
        own, theirs = (f"{h} x {w}" for h, w in ((height, width), data.shape[1:]))
        raise UserError(
            f"{like.name} takes images of {own} pixels, and those of {data.name} have {theirs}: give "
            f"--size {height},{width} to bring them to that, or, where it takes them as they are, "
            f"--size {data.shape[1]},{data.shape[2]}."
        )
    return data


def _fitting(like: Model, data: Collection) -> Collection:
    """``data``, which must be what a network takes."""
    problems = like.takes.problems(data.takes)
    require(not problems, f"{like.name} does not fit {data.name}: {'; '.join(problems)}.")
    return data


def augmented(data: Seen, choice: tuple[str, ...], grey: tuple[str, ...] = ()) -> Seen:
    """``data`` with the augmentation of a setting: ``auto`` takes crop and flip for colour images, else ``grey``."""
    usual = {"auto": data.usual_augmentation or grey, "none": ()}
    return data.augmented(usual.get(choice[0], choice))
