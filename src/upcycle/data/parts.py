"""From the splits that a source has to an :class:`Images` with all three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data.images import Images, ImageSplit, listed, stratified

SPLIT_SEED = (
    0  # of every split of our own; the user's seed has no part in it, so that all runs share their test set
)
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
    read: Callable[[Tensor, int | None, int | None], Tensor]


def assemble(
    name: str,
    classes: Sequence[str],
    parts: dict[str, Part],
    *,
    size: int | None = None,
    channels: int | None = None,
    licence: str = "unknown",
    take: dict[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Images:
    """Check the labels, draw the splits that are lacking from the training images, and read the pixels.

    Args:
        parts: by split; ``train`` is a must.
        take: how many training images the lacking splits get; by default a fifth (test), a tenth (validation).

    Raises:
        UserError: naming the samples and classes that are wrong.
    """
    require("train" in parts, f"{name} has no train split.")
    for split, part in parts.items():
        _check_labels(name, split, part, classes)
    train = parts["train"]
    n = len(train.labels)
    lacking = [split for split in ("validation", "test") if split not in parts]
    orders = _draw(name, train.labels, {"validation": max(1, min(n // 10, MAX_VALIDATION)), "test": max(1, n // 5)}
                   | (take or {}), lacking)  # fmt: skip

    # One block of memory for all that comes from the train split; the splits are views of it.
    pixels = train.read(torch.cat([orders[split] for split in ("train", *lacking)]), size, channels)
    blocks = pixels.split([len(orders[split]) for split in ("train", *lacking)])
    splits = {split: _split(block, train.labels[orders[split]], orders[split])
              for split, block in zip(("train", *lacking), blocks, strict=True)}  # fmt: skip
    for split in (split for split in parts if split != "train"):
        ids = torch.arange(len(parts[split].labels))
        splits[split] = _split(
            parts[split].read(ids, size, splits["train"].shape[0]), parts[split].labels, ids
        )
        if splits[split].shape != splits["train"].shape:
            shapes = [" x ".join(map(str, splits[s].shape)) for s in ("train", split)]
            raise UserError(f"The train images of {name} are {shapes[0]} and its {split} images {shapes[1]}; say to "
                            "what size they shall be brought (size=...).")  # fmt: skip
    said = [
        f"The {split} split of {name} is ours: {len(splits[split]):,} of its {n:,} training images, stratified, "
        "with a fixed seed."
        for split in lacking
    ]
    return Images(name=name, classes=tuple(classes), licence=licence, notes=[*notes, *said], **splits)


def _draw(name: str, labels: Tensor, shares: dict[str, int], lacking: list[str]) -> dict[str, Tensor]:
    """Positions in the train split, by split: those that are lacking get their shares, train keeps the rest."""
    orders = {}
    left = torch.arange(len(labels))
    for split in lacking:
        drawn = stratified(labels[left], left, shares[split], SPLIT_SEED, f"split {split}")
        require(len(drawn) > 0, f"{name} has too few training images to set some aside for {split}: "
                f"{len(labels)}.")  # fmt: skip
        orders[split] = left[drawn]
        rest = torch.ones(len(left), dtype=torch.bool)
        rest[drawn] = False
        left = left[rest]
    return orders | {"train": left}


def _split(pixels: Tensor, labels: Tensor, ids: Tensor) -> ImageSplit:
    c = pixels.shape[3] if pixels.dtype == torch.uint8 else pixels.shape[1]
    return ImageSplit(images=pixels, labels=labels, ids=ids, mean=(0.0,) * c, std=(1.0,) * c)


def _check_labels(name: str, split: str, part: Part, classes: Sequence[str]) -> None:
    labels, k = part.labels, len(classes)
    require(len(labels) > 0, f"The {split} split of {name} is empty.")
    require(k >= 2, f"{name} has {k} class; a classifier needs at least 2.")
    if len(wrong := ((labels < 0) | (labels >= k)).nonzero().flatten().tolist()):
        named = [f"{part.where(i)} has {int(labels[i])}" for i in wrong]
        raise UserError(f"Labels must lie between 0 and {k - 1} for the {k} classes of {name}: "
                        f"{listed(named, 'labels')}.")  # fmt: skip
    empty = [
        f"'{classes[i]}'" for i in (torch.bincount(labels, minlength=k) == 0).nonzero().flatten().tolist()
    ]
    if split == "train" and empty:
        raise UserError(f"No training image of {name} belongs to the class {listed(empty, 'classes')}.")
