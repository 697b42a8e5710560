"""Several sets of images as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data.images import Images, ImageSplit
from upcycle.data.on_disk import concatenated


def joined(sets: Sequence[Images]) -> Images:
    """Several sets as one with the classes of all, those of the first one first; normalised as the first.

    Raises:
        UserError: images of different shapes, or one class in two sets.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.shape != first.shape:
            ours, theirs = (" x ".join(map(str, s.shape)) for s in (first, other))
            raise UserError(
                f"{first.name} has images of {ours} (channels, height, width) and {other.name} of "
                f"{theirs}; --size brings images to one size."
            )
    classes = [name for s in sets for name in s.classes]
    twice = next((name for name in classes if classes.count(name) > 1), None)
    require(twice is None, f"The class '{twice}' is in two of the sets that are to be joined; leave it out of one.")

    def join(name: str) -> ImageSplit:
        splits, labels, ids = [getattr(s, name) for s in sets], [], []
        before = numbered = 0
        for s, split in zip(sets, splits, strict=True):
            labels.append(torch.where(split.labels >= 0, split.labels + before, -1))
            ids.append(split.ids + numbered)  # augmentation is keyed by them
            before += len(s.classes)
            numbered += int(split.ids.max()) + 1 if len(split) else 0
        images = concatenated([split.images for split in splits])
        return replace(splits[0], images=images, labels=torch.cat(labels), ids=torch.cat(ids))

    licences = list(dict.fromkeys(s.licence for s in sets))
    return Images(
        name=" + ".join(dict.fromkeys(s.name for s in sets)),
        classes=tuple(classes),
        train=join("train"),
        validation=join("validation"),
        test=join("test"),
        licence=licences[0] if len(licences) == 1 else "unknown",
        notes=list(dict.fromkeys(note for s in sets for note in s.notes)),
        reading=sets[0].reading,
        reshaped=sum(s.reshaped for s in sets),
    )


def pooled(domains: Sequence[Images], unseen: Images) -> tuple[Images, Tensor]:
    """Several domains as one training set, measured on another; and the domain of each training sample, int64 (n,).

    All have the same classes and shape. Validation images are those of the domains, test images of the unseen one.
    """

    def join(name: str) -> ImageSplit:
        splits, ids, before = [getattr(d, name) for d in domains], [], 0
        for split in splits:
            ids.append(split.ids + before)  # augmentation is keyed by them
            before += int(split.ids.max()) + 1 if len(split) else 0
        return replace(
            splits[0],
            images=concatenated([s.images for s in splits]),
            labels=torch.cat([s.labels for s in splits]),
            ids=torch.cat(ids),
        )

    whole = replace(
        domains[0],
        name=" + ".join(d.name for d in domains),
        train=join("train"),
        validation=join("validation"),
        test=unseen.test,
        measured=unseen.name,
        notes=list(dict.fromkeys(note for d in (*domains, unseen) for note in d.notes)),
        reshaped=sum(d.reshaped for d in (*domains, unseen)),
        licence=domains[0].licence if len({d.licence for d in domains}) == 1 else "unknown",
    )
    return whole, torch.repeat_interleave(torch.arange(len(domains)), torch.tensor([len(d.train) for d in domains]))
