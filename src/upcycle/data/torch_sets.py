"""Images from torch Datasets and DataLoaders: read once, or as they are used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.limits import require_classes
from upcycle.core.reading import WHITE, Reading
from upcycle.data.collection import listed
from upcycle.data.images import Images
from upcycle.data.memory import require_memory, within_share
from upcycle.data.on_disk import OnDisk, usual_workers
from upcycle.data.parts import ALIASES, Keeping, Part, assemble, split_of
from upcycle.data.pixels import Form, Pixels, brightest, fit, pixels_of, white_of
from upcycle.data.shares import as_table, digest, of_contents, of_digests
from upcycle.data.tables import Wanted

LOOKS = 8  # samples that are read twice, to see whether a transform is random

_Pair = Callable[[Any], tuple[Any, Any]]
Kind = tuple[torch.dtype, tuple[int, ...]]


def load_datasets(reference: Any, form: Form, wanted: Wanted, keeping: Keeping) -> Images:
    """Images from a Dataset or DataLoader, or from a dict or tuple of them; see :func:`upcycle.data.load`.

    Of a DataLoader only its Dataset counts. Class names are the Dataset's ``classes`` where it has them, or those of
    the ``features`` of Hugging Face's.
    """
    sets = {split: d.dataset if isinstance(d, DataLoader) else d for split, d in _by_split(reference).items()}
    parts = {s: _part(dataset, s, form, _pairs(dataset, s, wanted), keeping) for s, dataset in sets.items()}
    train = sets["train"]
    if not (classes := _classes(train, wanted)):
        largest = int(parts["train"].labels.max())
        require_classes(largest, len(parts["train"].labels), "The data set")
        classes = range(largest + 1)
    name = f"{type(train).__name__.lower()}_local"  # its split is whatever the user made it
    return assemble(name, [str(c) for c in classes], parts, form, least_classes=wanted.least_classes, keeping=keeping)


def _classes(dataset: Any, wanted: Wanted) -> Any:
    inner = getattr(dataset, "dataset", None)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return getattr(features[wanted.names(features, "The data set")[1]], "names", None)
    return getattr(dataset, "classes", None) or getattr(inner, "classes", None)


def _by_split(reference: Any) -> dict[str, Any]:
    if isinstance(reference, dict):
        found: dict[str, Any] = {}
        for key, value in reference.items():
            split = split_of(str(key))
            if not split:
                raise unknown("split", str(key), ALIASES)
            require(split not in found, f"Two data sets are given for the split '{split}'.")
            found[split] = value
        require("train" in found, "Give a data set for the split 'train' too.")
        return found
    if isinstance(reference, tuple):
        require(len(reference) in (2, 3), "A tuple of data sets is (train, test) or (train, validation, test).")
        names = ("train", "test") if len(reference) == 2 else ("train", "validation", "test")
        return dict(zip(names, reference, strict=True))
    return {"train": reference}


def _pairs(dataset: Any, split: str, wanted: Wanted) -> _Pair:
    """From a sample, a pair or a dict, to its image and its label."""

    def pair(sample: Any) -> tuple[Any, Any]:
        if isinstance(sample, Mapping):
            image, label = wanted.names(sample, f"A sample of the {split} data set")
            return sample[image], sample[label]
        image, label = sample
        return image, label

    return pair


def _part(dataset: Any, split: str, form: Form, pair: _Pair, keeping: Keeping) -> Part:
    if not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise UserError(
            f"A {type(dataset).__name__} is no data; give a name, a folder, a torch Dataset or a DataLoader."
        )
    counted = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if counted:
        _require_repeatable(dataset, split, pair)
        if keeping.in_memory is False or (keeping.in_memory is None and _is_large(dataset, form, pair)):
            return _on_disk(dataset, split, form, pair)
    images: list[Tensor | Image.Image] = []
    reshaped: list[bool] = []
    contents: list[Tensor] = []
    labels: list[int] = []
    problems: list[str] = []
    for i, sample in enumerate((dataset[i] for i in range(len(dataset))) if counted else dataset):
        try:
            image, label = pair(sample)
            contents.append(of_contents([_bytes(image)]))
            found, changed = _pixels(image, form)
            images.append(found)
            reshaped.append(changed)
            labels.append(_class_number(label))
        except (ValueError, TypeError) as error:
            problems.append(f"sample {i} ({error})")
        if i == 0 and images and counted and isinstance(first := images[0], Tensor):  # twice: as read, and as one
            needed = 2 * len(dataset) * first.numel() * first.element_size()
            require_memory(needed, f"{len(dataset):,} samples of {tuple(first.shape)}")
    _refuse(problems, split)
    require(bool(images), f"The {split} data set is empty.")

    def read(order: Tensor, form: Form, trained: int) -> Pixels:
        kept = [images[i] for i in order.tolist()]
        changed = [reshaped[i] for i in order.tolist()]
        deep = [i for i, image in enumerate(kept) if not isinstance(image, Tensor)]
        if deep and not form.reading.white:
            form = form.white(white_of(max((brightest(kept[i]) for i in deep if i < trained), default=0)))
        made: list[Tensor] = []
        for i, image in enumerate(kept):
            if not isinstance(image, Tensor):
                image, changed[i] = _pixels(image, form)
            made.append(image)
        kinds = {(image.dtype, tuple(image.shape)): i for i, image in zip(order.tolist(), made, strict=True)}
        _require_alike(kinds, split)
        fitted = fit(torch.stack(made), form)
        return replace(fitted, reshaped=max(fitted.reshaped, sum(changed)))

    return Part(
        labels=torch.tensor(labels),
        where=lambda i: f"sample {i} of the {split} data set",
        read=read,
        shares=lambda: torch.cat(contents),
    )


def _refuse(problems: list[str], split: str) -> None:
    if problems:
        raise UserError(
            f"{len(problems):,} samples of the {split} data set cannot be used: {listed(problems, 'samples')}."
        )


class _Samples:
    """Images that a Dataset is asked for as they are used, one at a time: it need not bear several threads.

    Args:
        white: of images of more than 8 bits, the largest value of each, by its place.
    """

    def __init__(self, dataset: Any, split: str, pair: _Pair) -> None:
        self.dataset, self.split, self.pair = dataset, split, pair
        self.kinds: dict[Kind, int] = {}
        self.white: dict[int, int] = {}
        self.reshaped: list[bool] = []
        self.digests = torch.empty(0, 16, dtype=torch.uint8)
        self.shares: Tensor | None = None
        self._lock = threading.Lock()

    def where(self, i: int) -> str:
        """See :class:`upcycle.data.on_disk.Source`."""
        return f"sample {i} of the {self.split} data set"

    def decode(self, i: int, form: Form, draws: np.ndarray | None) -> np.ndarray:
        """See :class:`upcycle.data.on_disk.Source`."""
        with self._lock:
            image = self.pair(self.dataset[i])[0]
        if draws is not None:
            if not isinstance(image, Image.Image):
                raise ValueError("resized_crop cuts windows out of PIL images, and it is none")
            return pixels_of(image, form, draws)[0]
        found = _pixels(image, form)[0]
        assert isinstance(found, Tensor)  # what is white is known by now
        return found.numpy()

    def read(self, order: Tensor, form: Form, trained: int, num_workers: int | None) -> tuple[OnDisk, Reading, int]:
        """See :class:`upcycle.data.parts.Opened`."""
        rows = order.tolist()
        if any(i in self.white for i in rows) and not form.reading.white:
            form = form.white(white_of(max((self.white.get(i, 0) for i in rows[:trained]), default=0)))
        _require_alike(self.kinds, self.split)
        (dtype, one), *_ = self.kinds
        images = OnDisk(
            sources=((self, form),),
            places=torch.stack([torch.zeros_like(order), order], 1),
            digests=self.digests[order],
            one=(one[0], one[1], one[2]),
            dtype=dtype,
            num_workers=usual_workers() if num_workers is None else num_workers,
        )
        return images, form.reading, sum(self.reshaped[i] for i in rows)


def _is_large(dataset: Any, form: Form, pair: _Pair) -> bool:
    """Whether its images would take more of the memory than is given to them."""
    try:
        first = _pixels(pair(dataset[0])[0], form.white(form.reading.white or WHITE))[0]
    except (ValueError, TypeError, IndexError):  # named when all are read
        return False
    return isinstance(first, Tensor) and not within_share(len(dataset) * first.nbytes)


def _on_disk(dataset: Any, split: str, form: Form, pair: _Pair) -> Part:
    """A split whose images are not kept; each is read once to see what it is, since its label comes with it."""
    samples, problems = _Samples(dataset, split, pair), []
    labels: list[int] = []
    digests: list[bytes] = []
    for i in range(len(dataset)):
        try:
            image, label = pair(dataset[i])
            digests.append(digest(_bytes(image)))
            if isinstance(image, Image.Image) and (largest := brightest(image)):
                samples.white[i] = largest
            found, changed = _pixels(image, form.white(form.reading.white or WHITE))
            assert isinstance(found, Tensor)
            samples.kinds.setdefault((found.dtype, tuple(found.shape)), i)
            samples.reshaped.append(changed)
            labels.append(_class_number(label))
        except (ValueError, TypeError) as error:
            problems.append(f"sample {i} ({error})")
    _refuse(problems, split)
    require(bool(labels), f"The {split} data set is empty.")
    samples.digests = as_table(digests)
    samples.shares = of_digests(samples.digests)
    numbers = samples.shares

    def read(order: Tensor, form: Form, trained: int) -> Pixels:
        raise AssertionError("images that stay on disk are not read at once")

    return Part(labels=torch.tensor(labels), where=samples.where, read=read, shares=lambda: numbers, opened=samples)


def _require_alike(kinds: dict[Kind, int], split: str) -> None:
    if len(kinds) > 1:
        named = [f"{d} {s} as sample {i}".removeprefix("torch.") for (d, s), i in kinds.items()]
        raise UserError(
            f"The images of the {split} data set differ: {listed(named, 'kinds')}. Say to what channels "
            "and size they shall be brought: --size 3,32,32."
        )


def _require_repeatable(dataset: Any, split: str, pair: _Pair) -> None:
    """Refuse random transforms: an image is read once, which would freeze them at their first draw."""

    def look(i: int) -> bytes:
        try:
            return _bytes(pair(dataset[i])[0])
        except (TypeError, ValueError):  # named with all others when they are read
            return b""

    for i in range(min(LOOKS, len(dataset))):
        if look(i) != look(i):
            raise UserError(
                f"The {split} data set gives another image each time that sample {i} is read. Take the "
                "random transforms out of it; upcycle reads each image once and augments it itself."
            )


def _bytes(image: Any) -> bytes:
    """An image as bytes, as far as it is one; what it should be is checked later."""
    if isinstance(image, Tensor):
        return image.contiguous().numpy().tobytes()
    return image.tobytes() if isinstance(image, Image.Image | np.ndarray) else b""


def _pixels(image: Any, form: Form) -> tuple[Tensor | Image.Image, bool]:
    """The pixels of one image, and whether it had other proportions.

    They are uint8 (h, w, c) of a PIL image, an array or a uint8 tensor, and float32 (c, h, w) of a float tensor. A PIL
    image of more than 8 bits stays as it is until it is known what is white.
    """
    if isinstance(image, np.ndarray):  # (h, w) or (h, w, c), as Pillow has it
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
            raise ValueError(f"{image.dtype} pixels {image.shape}; give uint8 or uint16, (h, w) or (h, w, c)")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") and not form.reading.white:
            return image.copy(), False
        found, changed = pixels_of(image, form)
        return torch.from_numpy(found.copy()), changed
    if not isinstance(image, Tensor) or image.ndim not in (2, 3):
        raise ValueError("its image is neither a PIL image nor a tensor (c, h, w)")
    image = image[None] if image.ndim == 2 else image
    if image.dtype == torch.uint16 and len(image) == 1:
        return _pixels(image[0].numpy(), form)
    if image.dtype == torch.uint8:
        fitted = fit(image.permute(1, 2, 0)[None], form)
        return fitted.images[0], bool(fitted.reshaped)
    if not image.is_floating_point():
        raise ValueError(f"{image.dtype} pixels; give uint8, or float in [0, 1]")
    if not image.isfinite().all():
        raise ValueError("NaN or infinite pixels")
    if image.min() < 0 or image.max() > 1:
        raise ValueError("pixels outside [0, 1]; take Normalize out of its transform, each network gets its own")
    fitted = fit(image[None].float(), form)
    return fitted.images[0], bool(fitted.reshaped)


def _class_number(label: Any) -> int:
    """A class number from what a data set gives; an array or a list of one number is that number."""
    if isinstance(label, Tensor | np.generic | np.ndarray):
        label = label.tolist()
    while isinstance(label, list | tuple) and len(label) == 1:
        label = label[0]
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label {label!r} is no class number")
    return label
