"""Images: decoded once and kept in memory, or on disk and decoded as they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from upcycle.core.batches import Batch, View
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.frequency import counts_of
from upcycle.core.reading import RESIZES, Reading
from upcycle.core.takes import Pictures
from upcycle.data import augment
from upcycle.data.collection import Collection, Samples, counted, draw
from upcycle.data.on_disk import OnDisk, concatenated

if TYPE_CHECKING:
    from upcycle.core.models import Model

PIECE = 2**18
"""Values that statistics are taken of at a time."""
BLOCK = 64
"""Images that are read from disk at a time for them."""
_IN_MEMORY = (
    "resized_crop cuts windows out of whole images, and these are in memory at one size; give a folder or a table of "
    "images with --keep_in_memory false."
)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; to a GPU by way of pinned memory, so that nobody waits for the copy."""
    if torch.device(device).type != "cuda":  # in a loop of one's own it is often text
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=64)  # the same for every batch: a small copy to a GPU costs as much as a large one
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], top: float, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of a row of pixels (w * c), to a normalised one."""
    scale = torch.tensor([1 / (top * s) for s in std]).repeat(width)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
    return scale.to(device), shift.to(device)


@dataclass(eq=False, kw_only=True, repr=False)
class ImageSplit(Samples):
    """One split of an image data set.

    Args:
        images: uint8 (n, h, w, c), or float32 (n, c, h, w) in [0, 1] when a torch Dataset gave tensors; in memory, or
            on disk.
        labels, ids, ordered: see :class:`upcycle.data.collection.Samples`.
        mean, std: what batches are normalised with; set by :meth:`Images.normalised`.
        augment: any of resized_crop, crop, flip, color; applied when a batch is asked for with a view.
    """

    images: Tensor | OnDisk
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        first, second, third = self.images.shape[1:]
        return (third, first, second) if self.images.dtype == torch.uint8 else (first, second, third)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`; images are float32 (b, c, h, w), channels_last."""
        c, h, w = self.shape
        whole = self.images.dtype == torch.uint8
        draws = self._draws(index, view)
        if isinstance(self.images, OnDisk):
            pixels = self.images.read(index, draws)
        else:
            require(draws is None, _IN_MEMORY)
            pixels = self.images.index_select(0, index)
        if not whole:
            pixels = pixels.permute(0, 2, 3, 1).contiguous()
        if view is not None and self.augment:
            ids = self.ids.index_select(0, index)
            if "crop" in self.augment:
                pixels = augment.crop(pixels, augment.crop_offsets(view, ids, h, w))
            if "flip" in self.augment:
                pixels = augment.flip(pixels, augment.flipped(view, ids))
        pixels = sent(pixels, device)
        top = 255.0 if whole else 1.0  # what white is
        if view is not None and "color" in self.augment:
            factors = sent(augment.color_factors(view, ids), device)
            pixels = augment.color(pixels, factors, top)
            top = 1.0
        # One affine map from pixels to network inputs, over whole rows: an inner loop of c = 3 would crawl.
        # Two operations, each rounded by itself, so that no fused one makes a sample depend on its place in
        # the batch.
        scale, shift = _affine(self.mean, self.std, top, w, device)
        rows = pixels.view(-1, w * c).to(torch.float32).mul_(scale).add_(shift)
        images = rows.view(-1, h, w, c).permute(0, 3, 1, 2)
        return Batch(images, sent(self.labels.index_select(0, index), device), sent(index, device))

    def ahead(self, plan: Iterable[tuple[Tensor, View]]) -> AbstractContextManager[None]:
        """See :func:`upcycle.core.batches.reading_ahead`; nothing of images in memory."""
        if not isinstance(self.images, OnDisk):
            return nullcontext()
        return self.images.ahead((index, self._draws(index, view)) for index, view in plan)

    def _draws(self, index: Tensor, view: tuple[int, int] | None) -> Tensor | None:
        """The numbers that choose each sample's window of its whole image, if one is to be cut out."""
        if view is None or augment.WINDOW not in self.augment:
            return None
        return augment.window_draws(view, self.ids.index_select(0, index))

    def pixels(self) -> Tensor:
        """All images in memory.

        Raises:
            UserError: they are on disk, and do not fit.
        """
        return self.images if isinstance(self.images, Tensor) else self.images.in_memory()

    @classmethod
    def plain(cls, images: Tensor | OnDisk, labels: Tensor, ids: Tensor) -> ImageSplit:
        """A split whose batches come in [0, 1], not normalised."""
        c = images.shape[3] if images.dtype == torch.uint8 else images.shape[1]
        return cls(images=images, labels=labels, ids=ids, mean=(0.0,) * c, std=(1.0,) * c)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """See :meth:`Images.normalised`."""
        c = self.shape[0]
        if not len(mean) == len(std) == c:
            raise UserError(
                f"The images have {counted(c, 'channel')}, the normalisation is for {len(mean)} (mean) and "
                f"{len(std)} (std). Load the data with channels={len(mean)}, or give one number a channel."
            )
        if not all(math.isfinite(x) for x in (*mean, *std)) or min(std) <= 0:
            raise UserError(f"mean must be finite and std positive, not {tuple(mean)} and {tuple(std)}.")
        return replace(self, mean=tuple(mean), std=tuple(std))

    def seen_by(self, model: Model) -> Self:
        """See :meth:`normalised`."""
        return self.normalised(model.mean, model.std)

    def subset(self, index: Tensor) -> Self:
        """The samples ``index``, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index], ids=self.ids[index])

    def with_others(self, others: Sequence[Self]) -> Self:
        """See :meth:`Samples.with_others`; an image that is in several gets a number of its own in each."""
        every = (self, *others)
        ids = torch.cat([split.ids for split in every])
        if len(ids.unique()) < len(ids):
            step = int(ids.max()) + 1
            ids = torch.cat([split.ids + i * step for i, split in enumerate(every)])
        images, labels = concatenated([s.images for s in every]), torch.cat([s.labels for s in every])
        return replace(self, images=images, labels=labels, ids=ids, ordered=False)

    def contents(self) -> tuple[Tensor, ...]:
        """The pixels; or the digests of what they are decoded from, and how."""
        if isinstance(self.images, Tensor):
            return (self.images,)
        forms = repr([form for _, form in self.images.sources]).encode()
        return self.images.digests, torch.frombuffer(bytearray(forms), dtype=torch.uint8)


@dataclass(eq=False, kw_only=True, repr=False)
class Images(Collection):
    """An image data set with train, validation and test splits.

    Args:
        name, classes, licence, notes, chosen, measured, lineage, reading, answered: see
            :class:`upcycle.data.collection.Collection`.
        reshaped: how many images had other proportions than the size that they were brought to.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    reshaped: int = 0

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
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        return self.train.shape

    @property
    def takes(self) -> Pictures:
        """Images of this shape and normalisation."""
        return Pictures(self.shape, self.train.mean, self.train.std)

    @property
    def form(self) -> str:
        """The shape, and what was done to images of other proportions."""
        shape = " x ".join(map(str, self.shape))
        return "; ".join([shape, *(remark.rstrip(".") for remark in self.remarks)])

    @property
    def remarks(self) -> list[str]:
        """Sentences on what was done to images of other proportions, and on where they are."""
        found = [f"{reshaped_words(self.reshaped, self.reading)} (--resize)."] if self.reshaped else []
        return [*found, "read from disk as they are used (--keep_in_memory)."] if self.on_disk else found

    @property
    def on_disk(self) -> bool:
        """Whether training images are decoded as they are used."""
        return isinstance(self.train.images, OnDisk)

    @property
    def usual_augmentation(self) -> tuple[str, ...]:
        """Crop and flip, for colour images."""
        return ("crop", "flip") if self.shape[0] == 3 else ()

    def seen_by(self, model: Model) -> Self:
        """See :meth:`normalised`."""
        return self.normalised(model.mean, model.std)

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the training images in [0, 1], for :meth:`normalised`.

        A channel that is the same everywhere gets a standard deviation of 1.
        """
        split, (c, h, w) = self.train, self.shape
        whole = split.images.dtype == torch.uint8
        total = torch.zeros(2, c, dtype=torch.float64)
        # In pieces that stay small in float64; sums of whole numbers are exact, so their size changes no bit.
        each = max(1, PIECE // (c * h * w))
        blocks = (split.images,) if isinstance(split.images, Tensor) else split.images.pieces(BLOCK)
        for part in (part for block in blocks for part in block.split(each)):
            rows = part.reshape(-1, c) if whole else part.transpose(0, 1).reshape(c, -1).T
            values = rows.to(torch.float64)
            total += torch.stack([values.sum(0), values.square().sum(0)])
        first, second = (total / (len(split) * h * w)).unbind()
        top = 255 if whole else 1
        std = (second - first.square()).clamp_min(0).sqrt() / top
        return tuple((first / top).tolist()), tuple(s if s > 1e-6 else 1.0 for s in std.tolist())

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same set, whose batches are normalised with ``mean`` and ``std`` (per channel, of images in
        [0, 1]); shares the pixels.

        Raises:
            UserError: if they do not fit the images' channels, or a standard deviation is not positive.
        """
        train, validation, test = (split.normalised(mean, std) for split in self.splits().values())
        return replace(self, train=train, validation=validation, test=test)

    def augmented(self, operations: tuple[str, ...]) -> Self:
        """The same set, whose training images are augmented with ``operations``: any of crop, flip, color.

        ``resized_crop`` cuts a random window out of each whole image, so it goes with sets that are read from disk.

        Raises:
            UserError: there is no such operation, or images are in memory and lack what a window may need.
        """
        for name in operations:
            if name not in (augment.WINDOW, *augment.OPERATIONS):
                raise unknown("augmentation", name, (augment.WINDOW, *augment.OPERATIONS))
        require(augment.WINDOW not in operations or self.on_disk, _IN_MEMORY)
        return replace(self, train=replace(self.train, augment=tuple(operations)))

    def long_tailed(self, ratio: float, seed: int, order: Sequence[int] | None = None) -> Self:
        """Only a long tail of the training images: of the j-th of k classes n_j = round(n_1 ratio^(-j/(k-1))).

        n_1 is the largest for which each class has enough: all images of the first class, where all have equally many.
        Validation and test keep their balance. For one seed a steeper tail is part of a flatter one, and of each class
        those are kept that :meth:`few` would keep.

        Args:
            ratio: of the images of the first class to those of the last one.
            seed: draws them.
            order: places in ``classes``, from the most frequent class to the rarest; ``None``: as they are.

        Raises:
            UserError: a ratio of 1 or less, or one that leaves a class without images.
        """
        check_ratio(ratio)
        k = len(self.classes)
        require(k >= 2, f"{self.name} has {counted(k, 'class', 'classes')}, and a long tail takes two or more.")
        order = tuple(range(k)) if order is None else tuple(order)
        require(sorted(order) == list(range(k)), f"order must name each of the {k} classes of {self.name} once.")
        have, share = counts_of(self.train.labels, k), [ratio ** (-j / (k - 1)) for j in range(k)]
        if 0 in have:
            raise UserError(
                f"{self.name} has no labelled training image of '{self.classes[have.index(0)]}', so no long tail."
            )
        most = int(min(have[c] / s for c, s in zip(order, share, strict=True)))
        counts = [0] * k
        for c, s in zip(order, share, strict=True):
            counts[c] = round(most * s)
            if not counts[c]:
                raise UserError(
                    f"A long tail of {ratio:g} leaves '{self.classes[c]}' of {self.name} without a training image, "
                    f"since the most frequent class has {most:,}; choose a smaller one."
                )
        index = draw(self.train.labels, self.train.ids, counts, seed, "few")
        first, last = (f"{counts[c]:,} training images of '{self.classes[c]}'" for c in (order[0], order[-1]))
        note = f"A long tail of {self.name}: from {first} to {last}, drawn with seed {seed}."
        chosen = {"ratio": ratio, "seed": seed, "order": list(order), "ids": self.train.ids[index].tolist()}
        return replace(
            self.subset(index),
            name=f"{self.name}_lt{ratio:g}",
            chosen={**self.chosen, "long_tailed": chosen},
            notes=[*self.notes, note],
        )

    def splits(self) -> Mapping[str, ImageSplit]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def check_ratio(ratio: float) -> None:
    """Raise :class:`UserError` for the ratio of a long tail that is none."""
    require(
        math.isfinite(ratio) and ratio > 1,
        "long_tail must be more than 1, the training images of the first class for each of the last one, not "
        f"{ratio:g}.",
    )


def as_images(data: Collection) -> Images:
    """``data``, which are images, for what works on nothing else.

    Raises:
        UserError: they are something else.
    """
    if not isinstance(data, Images):
        raise UserError(f"{data.name} holds {data.noun}, and this works on images alone.")
    return data


def reshaped_words(count: int, reading: Reading) -> str:
    """Give what was done to so many images, which had other proportions than the size that they were brought to."""
    return f"{counted(count, 'image was', 'images were')} {RESIZES[reading.resize]}"
