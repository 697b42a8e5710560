"""Images, decoded once and kept in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.inputs import of_plain, of_tensor
from upcycle.core.reading import RESIZES, Reading
from upcycle.data import augment

PIECE = 2**18
"""Values that statistics are taken of at a time."""


@dataclass(eq=False, kw_only=True)
class ImageSplit:
    """One split of an image data set; implements :class:`upcycle.core.batches.Split`.

    Args:
        images: uint8 (n, h, w, c), or float32 (n, c, h, w) in [0, 1] when a torch Dataset gave tensors.
        labels: int64 (n,), -1 where unknown.
        ids: int64 (n,), each sample's number in its source, which its augmentation is keyed by.
        mean, std: what batches are normalised with; set by :meth:`Images.normalised`.
        augment: any of crop, flip, color; applied when a batch is asked for with a view.
        ordered: the samples are shown in the order in which they lie, not shuffled.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[str, ...] = ()
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether its samples have labels, at least some of them."""
        return bool((self.labels >= 0).any())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        first, second, third = self.images.shape[1:]
        return (third, first, second) if self.images.dtype == torch.uint8 else (first, second, third)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`; images are float32 (b, c, h, w), channels_last."""
        c, h, w = self.shape
        whole = self.images.dtype == torch.uint8
        pixels = self.images.index_select(0, index)
        if not whole:
            pixels = pixels.permute(0, 2, 3, 1).contiguous()
        if view is not None and self.augment:
            ids = self.ids.index_select(0, index)
            if "crop" in self.augment:
                pixels = augment.crop(pixels, augment.crop_offsets(view, ids, h, w))
            if "flip" in self.augment:
                pixels = augment.flip(pixels, augment.flipped(view, ids))
        pixels = pixels.to(device, non_blocking=True)
        top = 255.0 if whole else 1.0  # what white is
        if view is not None and "color" in self.augment:
            factors = augment.color_factors(view, ids).to(device)
            pixels = augment.color(pixels, factors, top)
            top = 1.0
        # One affine map from pixels to network inputs, over whole rows: an inner loop of c = 3 would crawl.
        # Two operations, each rounded by itself, so that no fused one makes a sample depend on its place in
        # the batch.
        scale = torch.tensor([1 / (top * s) for s in self.std], device=device).repeat(w)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=device).repeat(w)
        rows = pixels.view(-1, w * c).to(torch.float32).mul_(scale).add_(shift)
        images = rows.view(-1, h, w, c).permute(0, 3, 1, 2)
        return Batch(images, self.labels.index_select(0, index).to(device), index.to(device))

    @classmethod
    def plain(cls, images: Tensor, labels: Tensor, ids: Tensor) -> ImageSplit:
        """A split whose batches come in [0, 1], not normalised."""
        c = images.shape[3] if images.dtype == torch.uint8 else images.shape[1]
        return cls(images=images, labels=labels, ids=ids, mean=(0.0,) * c, std=(1.0,) * c)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSplit:
        """See :meth:`Images.normalised`."""
        c = self.shape[0]
        if not len(mean) == len(std) == c:
            raise UserError(
                f"The images have {_count(c, 'channel')}, the normalisation is for {len(mean)} (mean) and "
                f"{len(std)} (std). Load the data with channels={len(mean)}, or give one number a channel."
            )
        if not all(math.isfinite(x) for x in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"mean must be finite and std positive, not {tuple(mean)} and {tuple(std)}.")
        return replace(self, mean=tuple(mean), std=tuple(std))

    def subset(self, index: Tensor) -> ImageSplit:
        """The samples ``index``, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index], ids=self.ids[index])


@dataclass(eq=False, kw_only=True)
class Images:
    """An image data set with train, validation and test splits.

    Args:
        name: names the set in every figure; a split that is not the official one carries another name.
        classes: class names.
        licence: as the source states it, or ``unknown``.
        notes: honest sentences about where the splits come from and what was drawn from them.
        chosen: JSON data: which training samples :meth:`few` and :meth:`hide_labels` chose, by their ids.
        measured: the name of the set that validation and test come from, where that is another.
        lineage: the family tree of images that a network made (:mod:`upcycle.data.pool_files`), else ``None``.
        reading: how the files became pixels; a network that is trained on them is used in the same way.
        reshaped: how many images had other proportions than the size that they were brought to.
        answered: the splits whose labels are a teacher's answers, so that what is measured on them is agreement.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    licence: str = "unknown"
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    measured: str = ""
    lineage: dict[str, Any] | None = None
    reading: Reading = field(default_factory=Reading)
    reshaped: int = 0
    answered: tuple[str, ...] = ()

    @classmethod
    def none(
        cls,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        reading: Reading | None = None,
    ) -> Images:
        """No images at all, for methods that make their own: empty splits that say what images would be like.

        Args:
            shape: (c, h, w) of one image.
            classes: class names.
            mean, std: what images are normalised with.
            reading: how files would become pixels.
        """
        c, h, w = shape
        empty = ImageSplit(images=torch.empty(0, h, w, c, dtype=torch.uint8), labels=torch.empty(0, dtype=torch.long),
                           ids=torch.empty(0, dtype=torch.long), mean=mean, std=std)  # fmt: skip
        return cls(
            name="none", classes=classes, train=empty, validation=empty, test=empty, reading=reading or Reading()
        )

    @property
    def title(self) -> str:
        """The name, and that of the set it is measured on."""
        if not self.measured:
            return self.name
        return f"{self.name}, measured on {self.measured}" if len(self.train) else f"{self.measured}, only to measure"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        return self.train.shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the pixels and labels of all splits."""
        total = hashlib.sha256()
        for name, split in self._splits().items():
            for tensor in (split.images, split.labels):
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.contiguous().numpy().data)
        return total.hexdigest()

    def digests(self) -> dict[str, str]:
        """The digest of each part, by its name in a sentence; see :meth:`upcycle.core.method.Method.inputs`."""
        found = {"the names of the classes": of_plain(self.classes)}
        for word, split in zip(("training", "validation", "test"), self._splits().values(), strict=True):
            found[f"the {word} images"] = of_plain([of_tensor(split.images), of_tensor(split.ids)])
            found[f"the labels of the {word} images"] = of_tensor(split.labels)
        return found

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the training images in [0, 1], for :meth:`normalised`.

        A channel that is the same everywhere gets a standard deviation of 1.
        """
        split, (c, h, w) = self.train, self.shape
        whole = split.images.dtype == torch.uint8
        total = torch.zeros(2, c, dtype=torch.float64)
        # In pieces that stay small in float64; sums of whole numbers are exact, so their size changes no bit.
        for part in split.images.split(max(1, PIECE // (c * h * w))):
            rows = part.reshape(-1, c) if whole else part.transpose(0, 1).reshape(c, -1).T
            values = rows.to(torch.float64)
            total += torch.stack([values.sum(0), values.square().sum(0)])
        first, second = (total / (len(split) * h * w)).unbind()
        top = 255 if whole else 1
        std = (second - first.square()).clamp_min(0).sqrt() / top
        return tuple((first / top).tolist()), tuple(s if s > 1e-6 else 1.0 for s in std.tolist())

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
        """The same set, whose batches are normalised with ``mean`` and ``std`` (per channel, of images in
        [0, 1]); shares the pixels.

        Raises:
            UserError: if they do not fit the images' channels, or a standard deviation is not positive.
        """
        train, validation, test = (split.normalised(mean, std) for split in self._splits().values())
        return replace(self, train=train, validation=validation, test=test)

    def augmented(self, operations: tuple[str, ...]) -> Images:
        """The same set, whose training images are augmented with ``operations``: any of crop, flip, color."""
        for name in operations:
            if name not in augment.OPERATIONS:
                raise unknown("augmentation", name, augment.OPERATIONS)
        return replace(self, train=replace(self.train, augment=tuple(operations)))

    def subset(self, index: Tensor) -> Images:
        """The same set with only the training samples ``index``; validation and test stay whole."""
        return replace(self, train=self.train.subset(index))

    def only(self, classes: tuple[str, ...]) -> Images:
        """The images of some classes alone, labelled by their places in ``classes``.

        Raises:
            UserError: a class that the set does not have.
        """
        for name in classes:
            if name not in self.classes:
                raise unknown(f"class of {self.name}", name, self.classes)
        to = torch.full((len(self.classes) + 1,), -1)  # the last one for label -1
        to[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))

        def of(split: ImageSplit) -> ImageSplit:
            labels = to[split.labels]
            return replace(split, labels=labels).subset((labels >= 0).nonzero()[:, 0])

        train, validation, test = map(of, self._splits().values())
        note = f"Only the classes {listed(list(classes), 'classes')} of {self.name}."
        return replace(self, classes=tuple(classes), train=train, validation=validation, test=test,
                       notes=self.notes if set(classes) == set(self.classes) else [*self.notes, note])  # fmt: skip

    def few(self, per_class: int, seed: int) -> Images:
        """Only ``per_class`` training images of each class, drawn with ``seed``.

        For one seed, fewer are always part of more, and :meth:`hide_labels` keeps the labels of the same
        images.

        Raises:
            UserError: naming the classes that have too few labelled images.
        """
        require(per_class >= 1, f"few takes at least 1 image a class, not {per_class}.")
        require(bool(self.classes), f"{self.name} has no labels to draw images of each class by.")
        index = self._draw(per_class, seed)
        chosen = {"per_class": per_class, "seed": seed, "ids": self.train.ids[index].tolist()}
        note = f"Only {_count(per_class, 'training image')} a class of {self.name}, drawn with seed {seed}."
        return replace(self.subset(index), chosen={**self.chosen, "few": chosen}, notes=[*self.notes, note])

    def hide_labels(self, keep: int, seed: int) -> Images:
        """All training images, but labels for only ``keep`` of each class (0: none); the others become -1.

        Validation and test keep theirs: they only measure.

        Raises:
            UserError: naming the classes that have too few labelled images.
        """
        require(keep >= 0, f"hide_labels keeps 0 or more labels a class, not {keep}.")
        index = self._draw(keep, seed)
        labels = torch.full_like(self.train.labels, -1)
        labels[index] = self.train.labels[index]
        chosen = {"keep": keep, "seed": seed, "ids": self.train.ids[index].tolist()}
        kept = f"for {keep} a class, drawn with seed {seed}" if keep else "for none"
        note = f"All {len(labels):,} training images of {self.name}, labels {kept}."
        return replace(
            self,
            train=replace(self.train, labels=labels),
            chosen={**self.chosen, "labels": chosen},
            notes=[*self.notes, note],
        )

    def _draw(self, per_class: int, seed: int) -> Tensor:
        """Positions of ``per_class`` labelled training samples of each class, in ascending order."""
        index = draw(self.train.labels, self.train.ids, [per_class] * len(self.classes), seed, "few")
        got = torch.bincount(self.train.labels[index], minlength=len(self.classes)).tolist()
        short = [f"'{c}' has {n}" for c, n in zip(self.classes, got, strict=True) if n < per_class]
        if short:
            raise UserError(
                f"{self.name} has too few labelled training images to draw {per_class} a class: "
                f"{listed(short, 'classes')}. Ask for fewer, or add images."
            )
        return index

    def _splits(self) -> dict[str, ImageSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def joined(sets: Sequence[Images]) -> Images:
    """Several sets as one with the classes of all, those of the first one first; normalised as the first.

    Raises:
        UserError: images of different shapes, or one class in two sets.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.shape != first.shape:
            ours, theirs = (" x ".join(map(str, s.shape)) for s in (first, other))
            raise UserError(f"{first.name} has images of {ours} (channels, height, width) and {other.name} of "
                            f"{theirs}; --size brings images to one size.")  # fmt: skip
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
        images = torch.cat([split.images for split in splits])
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


def draw(labels: Tensor, ids: Tensor, counts: list[int], seed: int, stream: str) -> Tensor:
    """Positions (ascending) of up to ``counts[k]`` samples of each class k, by their smallest random numbers.

    Each number belongs to a sample's id, so a draw does not depend on the order of the samples or on other
    classes.
    """
    order = augment.uniform(seed, 0, ids, stream)[:, 0].argsort(stable=True)
    ranked = labels[order]
    picked = [order[ranked == k][:count] for k, count in enumerate(counts)]
    return torch.cat([torch.empty(0, dtype=torch.long), *picked]).sort().values


def stratified(labels: Tensor, ids: Tensor, size: int, seed: int, stream: str) -> Tensor:
    """Positions (ascending) of ``size`` samples, each class in its proportion, at least one of each left.

    Shares are rounded by largest remainder; classes that would go without come first. Fewer than ``size``
    come back only when the classes cannot spare more.
    """
    have = torch.bincount(labels)
    exact = have.double() * size / len(labels)
    spare = (have - 1).clamp_min(0)
    counts = exact.floor().long().minimum(spare)
    by_need = sorted(range(len(have)), key=lambda k: (counts[k] > 0, float(counts[k] - exact[k])))
    while (missing := size - int(counts.sum())) > 0:
        takers = [k for k in by_need if counts[k] < spare[k]][:missing]
        if not takers:
            break
        counts[takers] += 1
    return draw(labels, ids, counts.tolist(), seed, stream)


def describe(images: Images) -> str:
    """One line: name, sizes, classes, shape, and what was done to images of other proportions.

    For example ``digits: 1,000 train, 297 validation, 500 test images, 10 classes, 1 x 8 x 8``.
    """
    known = int((images.train.labels >= 0).sum())
    labelled = "" if known == len(images.train) else f" ({known:,} labelled)"
    shape = " x ".join(str(n) for n in images.shape)
    if not len(images.train) and not len(images.test):
        return f"{images.name}; {len(images.classes)} classes, {shape}"
    return (
        f"{images.title}: {len(images.train):,} train{labelled}, {len(images.validation):,} validation, "
        f"{len(images.test):,} test images, {_count(len(images.classes), 'class', 'classes')}, {shape}"
        f"{f'; {reshaped_words(images.reshaped, images.reading)} (--resize)' if images.reshaped else ''}"
    )


def reshaped_words(count: int, reading: Reading) -> str:
    """Give what was done to so many images, which had other proportions than the size that they were brought to."""
    return f"{_count(count, 'image was', 'images were')} {RESIZES[reading.resize]}"


def listed(items: list[str], what: str) -> str:
    """The first three of ``items``, and how many there are when there are more."""
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown}, ... ({len(items):,} {what} in all)"


def _count(n: int, noun: str, several: str = "") -> str:
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"


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
            images=torch.cat([s.images for s in splits]),
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
