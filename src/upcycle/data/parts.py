"""From the splits that a source has to an :class:`Images` with all three."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.reading import WHITE, Reading
from upcycle.data.collection import listed, stratified
from upcycle.data.headers import look
from upcycle.data.images import Images, ImageSplit
from upcycle.data.memory import within_share
from upcycle.data.on_disk import OnDisk
from upcycle.data.pixels import Form, Pixels, header_of, sides_of
from upcycle.data.shares import drawn

SPLIT_SEED = 0  # of every split of our own; the user's seed has no part in it, so that all runs share their test set
MAX_VALIDATION = 5_000

# What the splits are called in folders, files and dicts, in any case.
ALIASES = {
    "train": ("train", "training", "seg_train"),
    "validation": ("validation", "val", "valid", "dev", "eval", "seg_val"),
    "test": ("test", "testing", "seg_test"),
}


def split_of(name: str) -> str:
    """The split that a name stands for; empty if it is none."""
    return next((split for split, aliases in ALIASES.items() if name.casefold() in aliases), "")


Found = TypeVar("Found")


class Opened(Protocol):
    """The images of a split that stay on disk, once they were looked at."""

    @property
    def shares(self) -> Tensor | None:
        """See :attr:`Part.shares`; ``None`` where the part itself says it."""
        ...

    def read(self, order: Tensor, form: Form, trained: int, num_workers: int | None) -> tuple[OnDisk, Reading, int]:
        """See :meth:`upcycle.data.headers.Headers.read`."""
        ...


def with_training(found: dict[str, Found], name: str) -> tuple[dict[str, Found], list[str]]:
    """Splits in their order, of which one is trained on: those of validation, where there are none for training.

    Args:
        found: something for each split that is there.
        name: of the data.

    Returns:
        the splits, and a note where validation became training.

    Raises:
        UserError: there is a test split alone.
    """
    found, notes = dict(found), []
    if "train" not in found:
        require(
            "validation" in found,
            f"{name} has a test split alone, and no training images beside it. Add a train split; or give the images "
            "of that split by themselves, which are then shared among all three.",
        )
        found["train"] = found.pop("validation")
        notes = [f"{name} has no train split: its validation images are trained on, and some of them set aside."]
    return {split: found[split] for split in ALIASES if split in found}, notes


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split as its source has it: labels first, images once it is known where each belongs.

    Args:
        labels: int64 (n,).
        where: what to call sample i in an error.
        read: from (order, form, trained) to the pixels of the samples ``order``, of which the first ``trained`` are
            trained on.
        shares: the numbers that decide to which split each sample goes, see :mod:`upcycle.data.shares`; ``None`` where
            its place in the source does, as in the named sets.
        contents: the encoded images, or their files, in order; ``None`` where there are none, but pixels.
        opened: the images where they are to stay on disk in any case; ``None`` otherwise.
    """

    labels: Tensor
    where: Callable[[int], str]
    read: Callable[[Tensor, Form, int], Pixels]
    shares: Callable[[], Tensor] | None = None
    contents: Callable[[], Iterable[bytes | Path]] | None = None
    opened: Opened | None = None


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where images are kept.

    Args:
        in_memory: decoded once, in memory, or read from disk as they are used; ``None``: in memory where they take no
            more than a share of it.
        num_workers: threads that decode what is read from disk; ``None`` for one a processor, 8 at most.
    """

    in_memory: bool | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        require(
            self.num_workers is None or 0 <= self.num_workers <= 256,
            f"num_workers must lie between 0 and 256, not {self.num_workers}.",
        )

    def on_disk(self, parts: Iterable[Part], form: Form) -> bool:
        """Whether the images of a set are read as they are used."""
        parts = list(parts)
        if self.in_memory or any(part.contents is None for part in parts):
            return False
        if self.in_memory is False:
            return True
        count, channels = sum(len(part.labels) for part in parts), form.channels or 3
        height, width = _sides(parts, form)
        return not within_share(count * height * width * channels)


def _sides(parts: list[Part], form: Form) -> tuple[int, int]:
    """The sides that images will have: those of the first whose header can be read, where no size is asked for."""
    if form.size is not None:
        return sides_of(form.size)
    for content in (content for part in parts if part.contents is not None for content in part.contents()):
        with contextlib.suppress(Exception):  # named when all are read
            return header_of(content).size
    return 0, 0


Read = Callable[[Tensor, Form, int], tuple[Tensor | OnDisk, Reading, int]]
"""From (order, form, trained) to images, how they were read, and how many were reshaped; see :class:`Part`."""


def _in_memory(part: Part) -> Read:
    def read(order: Tensor, form: Form, trained: int) -> tuple[Tensor | OnDisk, Reading, int]:
        found = part.read(order, form, trained)
        return found.images, found.reading, found.reshaped

    return read


def assemble(
    name: str,
    classes: Sequence[str],
    parts: dict[str, Part],
    form: Form,
    *,
    licence: str = "unknown",
    take: dict[str, int] | None = None,
    notes: Sequence[str] = (),
    least_classes: int = 2,
    keeping: Keeping | None = None,
) -> Images:
    """Check the labels, draw the splits that are lacking from the training images, and read the pixels.

    Args:
        parts: by split; ``train`` is a must.
        form: that images are brought to.
        take: how many training images the lacking splits get, where places decide; by default a fifth (test), a tenth
            (validation).
        least_classes: the fewest that there must be.
        keeping: where images are kept; in memory where nothing is said.

    Raises:
        UserError: naming the samples and classes that are wrong.
    """
    require("train" in parts, f"{name} has no train split.")
    for split, part in parts.items():
        _check_labels(name, split, part, classes, least_classes)
    train = parts["train"]
    n = len(train.labels)
    keeping = keeping or Keeping(in_memory=True)
    opened: dict[str, Opened] = {s: part.opened for s, part in parts.items() if part.opened is not None}
    if not opened and keeping.on_disk(parts.values(), form):
        opened = {s: look(part.contents(), part.where) for s, part in parts.items() if part.contents is not None}
    readers: dict[str, Read] = {s: _in_memory(part) for s, part in parts.items()}
    readers |= {s: partial(found.read, num_workers=keeping.num_workers) for s, found in opened.items()}
    lacking = [split for split in ("test", "validation") if split not in parts]
    if train.shares is None:
        usual = {"validation": max(1, min(n // 10, MAX_VALIDATION)), "test": max(1, n // 5)} | (take or {})
        orders = _draw(name, train.labels, {split: size for split, size in usual.items() if split in lacking})
    elif lacking:
        known = opened["train"].shares if "train" in opened else None
        orders = drawn(name, train.shares() if known is None else known, lacking, MAX_VALIDATION)
        _require_trained(name, classes, train.labels, orders["train"])
    else:
        orders = {"train": torch.arange(n)}

    # One block of memory for all that comes from the train split; the splits are views of it.
    images, reading, reshaped = readers["train"](torch.cat(list(orders.values())), form, len(orders["train"]))
    splits, before = {}, 0
    for split, order in orders.items():
        block = images[before : before + len(order)]
        splits[split] = ImageSplit.plain(block, train.labels[order], order)
        before += len(order)
    for split in [split for split in parts if split != "train"]:
        part, ids = parts[split], torch.arange(len(parts[split].labels))
        alike = Form(size=form.size, channels=splits["train"].shape[0], reading=reading)
        images, reading, more = readers[split](ids, alike, 0)
        reshaped += more
        splits[split] = ImageSplit.plain(images, part.labels, ids)
        if splits[split].shape != splits["train"].shape:
            ours, theirs = (" x ".join(map(str, splits[s].shape)) for s in ("train", split))
            raise UserError(
                f"The train images of {name} are {ours} and its {split} images {theirs}; say to what size "
                "they shall be brought with --size."
            )
    return Images(
        name=name,
        classes=tuple(classes),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        licence=licence,
        notes=[
            *notes,
            *_drawn_notes(name, orders, n, by_place=train.shares is None),
            *_white_note(name, form.reading, reading),
            *(f"The {s} images of {name} have no labels." for s in parts if (parts[s].labels < 0).all()),
            *_unseen_notes(name, classes, splits),
        ],
        reading=reading,
        reshaped=reshaped,
    )


def _drawn_notes(name: str, orders: dict[str, Tensor], n: int, *, by_place: bool) -> list[str]:
    how = "stratified, with a fixed seed" if by_place else "by what they hold, so that none moves when images are added"
    return [
        f"The {split} split of {name} is ours: {len(order):,} of its {n:,} training images, {how}."
        for split, order in orders.items()
        if split != "train"
    ]


def _white_note(name: str, asked: Reading, found: Reading) -> list[str]:
    """Give what was taken to be white in images of more than 8 bits, where it was found and is not the whole range."""
    if asked.white or found.white in (0, WHITE):
        return []
    return [
        f"{name} has images of more than 8 bits whose values end at {found.white:,} among the training images; that is "
        "taken to be white (--white)."
    ]


def _unseen_notes(name: str, classes: Sequence[str], splits: dict[str, ImageSplit]) -> list[str]:
    """The classes of labelled images that have no validation or test image."""
    notes = []
    for split in ("validation", "test"):
        labels = splits[split].labels
        counts = torch.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
        without = [f"'{c}'" for c, count in zip(classes, counts, strict=True) if not count]
        if len(without) < len(classes):
            notes += (
                [f"No {split} image of {name} belongs to the class {listed(without, 'classes')}."] if without else []
            )
    return notes


def _require_trained(name: str, classes: Sequence[str], labels: Tensor, order: Tensor) -> None:
    """Every class has a training image after others were set aside."""
    if (labels < 0).all():
        return
    have, kept = (torch.bincount(found, minlength=len(classes)).tolist() for found in (labels, labels[order]))
    short = [f"'{c}' ({n})" for c, n, left in zip(classes, have, kept, strict=True) if not left]
    if short:
        raise UserError(
            f"{name} has too few images of the class {listed(short, 'classes')} to share them among training, "
            "validation and test: none is left to train on. Add images, or bring the splits."
        )


def _draw(name: str, labels: Tensor, shares: dict[str, int]) -> dict[str, Tensor]:
    """Positions in the train split, by split: train first, then those that get a share of it."""
    orders = {}
    left = torch.arange(len(labels))
    for split, share in shares.items():
        # Without labels (-1) all samples are of one class here.
        drawn = stratified(labels[left].clamp_min(0), left, share, SPLIT_SEED, f"split {split}")
        if not len(drawn):
            raise UserError(
                f"{name} has {len(labels)} training images, too few to set some aside for {split}; add "
                f"images, or a {split} split."
            )
        orders[split] = left[drawn]
        rest = torch.ones(len(left), dtype=torch.bool)
        rest[drawn] = False
        left = left[rest]
    return {"train": left, **orders}


def _check_labels(name: str, split: str, part: Part, classes: Sequence[str], least: int) -> None:
    """Labels are all class numbers, or all unknown (-1); every class has a training image."""
    labels, k = part.labels, len(classes)
    require(len(labels) > 0, f"The {split} split of {name} is empty.")
    if (labels == -1).all():
        return
    require(k >= least, f"{name} has {k} class; a classifier needs at least 2.")
    if wrong := ((labels < 0) | (labels >= k)).nonzero().flatten().tolist():
        named = [f"{part.where(i)} has {int(labels[i])}" for i in wrong]
        raise UserError(
            f"Labels must lie between 0 and {k - 1} for the {k} classes of {name}: {listed(named, 'labels')}."
        )
    counts = torch.bincount(labels, minlength=k).tolist()
    empty = [f"'{c}'" for c, n in zip(classes, counts, strict=True) if n == 0]
    if split == "train" and empty:
        raise UserError(f"No training image of {name} belongs to the class {listed(empty, 'classes')}.")
