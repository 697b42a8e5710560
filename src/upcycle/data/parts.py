"""From the splits that a source has to an :class:`Images` with all three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data.decode import Size
from upcycle.data.images import Images, ImageSplit, listed, stratified

SPLIT_SEED = 0  # of every split of our own; the user's seed has no part in it, so that all runs share their test set
MAX_VALIDATION = 5_000

# What the splits are called in folders, files and dicts.
ALIASES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split as its source has it: labels first, pixels once it is known where in memory each belongs.

    Args:
        labels: int64 (n,).
        where: what to call sample i in an error.
        read: from (order, size, channels) to the pixels of the samples ``order``, as ``ImageSplit.images``.
    """

    labels: Tensor
    where: Callable[[int], str]
    read: Callable[[Tensor, Size | None, int | None], Tensor]


def assemble(
    name: str,
    classes: Sequence[str],
    parts: dict[str, Part],
    *,
    size: Size | None = None,
    channels: int | None = None,
    licence: str = "unknown",
    take: dict[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Images:
    """Check the labels, draw the splits that are lacking from the training images, and read the pixels.

    Args:
        parts: by split; ``train`` is a must.
        take: how many training images the lacking splits get; by default a fifth (test), a tenth
            (validation).

    Raises:
        UserError: naming the samples and classes that are wrong.
    """
    require("train" in parts, f"{name} has no train split.")
    for split, part in parts.items():
        _check_labels(name, split, part, classes)
    train = parts["train"]
    n = len(train.labels)
    shares = {"validation": max(1, min(n // 10, MAX_VALIDATION)), "test": max(1, n // 5)} | (take or {})
    orders = _draw(name, train.labels, {split: share for split, share in shares.items() if split not in parts})

    # One block of memory for all that comes from the train split; the splits are views of it.
    pixels = train.read(torch.cat(list(orders.values())), size, channels)
    blocks = pixels.split([len(order) for order in orders.values()])
    splits = {
        split: ImageSplit.plain(block, train.labels[order], order)
        for (split, order), block in zip(orders.items(), blocks, strict=True)
    }
    for split in [split for split in parts if split != "train"]:
        part, ids = parts[split], torch.arange(len(parts[split].labels))
        pixels = part.read(ids, size, splits["train"].shape[0])
        splits[split] = ImageSplit.plain(pixels, part.labels, ids)
        if splits[split].shape != splits["train"].shape:
            ours, theirs = (" x ".join(map(str, splits[s].shape)) for s in ("train", split))
            raise UserError(
                f"The train images of {name} are {ours} and its {split} images {theirs}; say to what size "
                "they shall be brought with --size."
            )
    drawn = [
        f"The {split} split of {name} is ours: {len(order):,} of its {n:,} training images, stratified, with "
        "a fixed seed."
        for split, order in orders.items()
        if split != "train"
    ]
    blank = [f"The {s} images of {name} have no labels." for s in parts if (parts[s].labels < 0).all()]
    return Images(
        name=name,
        classes=tuple(classes),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        licence=licence,
        notes=[*notes, *drawn, *blank],
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


def _check_labels(name: str, split: str, part: Part, classes: Sequence[str]) -> None:
    """Labels are all class numbers, or all unknown (-1); every class has a training image."""
    labels, k = part.labels, len(classes)
    require(len(labels) > 0, f"The {split} split of {name} is empty.")
    if (labels == -1).all():
        return
    require(k >= 2, f"{name} has {k} class; a classifier needs at least 2.")
    if wrong := ((labels < 0) | (labels >= k)).nonzero().flatten().tolist():
        named = [f"{part.where(i)} has {int(labels[i])}" for i in wrong]
        raise UserError(
            f"Labels must lie between 0 and {k - 1} for the {k} classes of {name}: {listed(named, 'labels')}."
        )
    counts = torch.bincount(labels, minlength=k).tolist()
    empty = [f"'{c}'" for c, n in zip(classes, counts, strict=True) if n == 0]
    if split == "train" and empty:
        raise UserError(f"No training image of {name} belongs to the class {listed(empty, 'classes')}.")
