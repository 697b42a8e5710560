"""Images from torch Datasets and DataLoaders, read once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from upcycle.core.errors import UserError, require, unknown
from upcycle.data.decode import Size, fit, pixels_of, require_memory
from upcycle.data.images import Images, listed
from upcycle.data.parts import ALIASES, Part, assemble

LOOKS = 8  # samples that are read twice, to see whether a transform is random


def load_datasets(reference: Any, *, size: Size | None, channels: int | None) -> Images:
    """Images from a Dataset or DataLoader, or from a dict or tuple of them; see :func:`upcycle.data.load`.

    Of a DataLoader only its Dataset counts. Class names are the Dataset's ``classes`` where it has them.
    """
    sets = {split: d.dataset if isinstance(d, DataLoader) else d for split, d in _by_split(reference).items()}
    parts = {split: _part(dataset, split, size, channels) for split, dataset in sets.items()}
    train = sets["train"]
    classes = getattr(train, "classes", None) or getattr(getattr(train, "dataset", None), "classes", None)
    classes = classes or range(int(parts["train"].labels.max()) + 1)
    name = f"{type(train).__name__.lower()}_local"  # its split is whatever the user made it
    return assemble(name, [str(c) for c in classes], parts, size=size, channels=channels)


def _by_split(reference: Any) -> dict[str, Any]:
    if isinstance(reference, dict):
        splits = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
        for key in reference:
            if key not in splits:
                raise unknown("split", key, ALIASES)
        require("train" in reference, "Give a data set for the split 'train' too.")
        return {splits[key]: value for key, value in reference.items()}
    if isinstance(reference, tuple):
        require(len(reference) in (2, 3), "A tuple of data sets is (train, test) or (train, validation, test).")
        names = ("train", "test") if len(reference) == 2 else ("train", "validation", "test")
        return dict(zip(names, reference, strict=True))
    return {"train": reference}


def _part(dataset: Any, split: str, size: Size | None, channels: int | None) -> Part:
    if not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise UserError(
            f"A {type(dataset).__name__} is no data; give a name, a folder, a torch Dataset or a DataLoader."
        )
    counted = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if counted:
        _require_repeatable(dataset, split)
    images: list[Tensor] = []
    labels: list[int] = []
    problems: list[str] = []
    for i, pair in enumerate((dataset[i] for i in range(len(dataset))) if counted else dataset):
        try:
            image, label = pair
            images.append(_pixels(image, size, channels))
            labels.append(_class_number(label))
        except (ValueError, TypeError) as error:
            problems.append(f"sample {i} ({error})")
        if i == 0 and images and counted:  # twice: as read, and as one tensor
            needed = 2 * len(dataset) * images[0].numel() * images[0].element_size()
            require_memory(needed, f"{len(dataset):,} samples of {tuple(images[0].shape)}")
    if problems:
        raise UserError(f"{len(problems):,} samples of the {split} data set cannot be used: "
                        f"{listed(problems, 'samples')}.")  # fmt: skip
    require(bool(images), f"The {split} data set is empty.")
    kinds = {(image.dtype, tuple(image.shape)): i for i, image in enumerate(images)}
    if len(kinds) > 1:
        named = [f"{d} {s} as sample {i}".removeprefix("torch.") for (d, s), i in kinds.items()]
        raise UserError(
            f"The images of the {split} data set differ: {listed(named, 'kinds')}. Say to what channels "
            "and size they shall be brought: --size 3,32,32, or size=(3, 32, 32) in Python."
        )

    def read(order: Tensor, size: Size | None, channels: int | None) -> Tensor:
        return fit(torch.stack([images[i] for i in order.tolist()]), size, channels)

    return Part(labels=torch.tensor(labels), where=lambda i: f"sample {i} of the {split} data set", read=read)


def _require_repeatable(dataset: Any, split: str) -> None:
    """Refuse random transforms: an image is read once, which would freeze them at their first draw."""
    for i in range(min(LOOKS, len(dataset))):
        if _bytes(dataset[i]) != _bytes(dataset[i]):
            raise UserError(
                f"The {split} data set gives another image each time that sample {i} is read. Take the "
                "random transforms out of it; upcycle reads each image once and augments it itself."
            )


def _bytes(pair: Any) -> bytes:
    """The image of a pair as bytes, as far as it is an image; what it should be is checked later."""
    image = pair[0] if isinstance(pair, tuple | list) and pair else None
    if isinstance(image, Tensor):
        return image.contiguous().numpy().tobytes()
    return image.tobytes() if isinstance(image, Image.Image) else b""


def _pixels(image: Any, size: Size | None, channels: int | None) -> Tensor:
    """uint8 (h, w, c) of a PIL image or a uint8 tensor, float32 (c, h, w) of a float tensor."""
    if isinstance(image, Image.Image):
        return torch.from_numpy(pixels_of(image, size, channels).copy())
    if not isinstance(image, Tensor) or image.ndim not in (2, 3):
        raise ValueError("its image is neither a PIL image nor a tensor (c, h, w)")
    image = image[None] if image.ndim == 2 else image
    if image.dtype == torch.uint8:
        return fit(image.permute(1, 2, 0)[None], size, channels)[0]
    if not image.is_floating_point():
        raise ValueError(f"{image.dtype} pixels; give uint8, or float in [0, 1]")
    if not image.isfinite().all():
        raise ValueError("NaN or infinite pixels")
    if image.min() < 0 or image.max() > 1:
        raise ValueError("pixels outside [0, 1]; take Normalize out of its transform, each network gets its own")
    return fit(image[None].float(), size, channels)[0]


def _class_number(label: Any) -> int:
    if isinstance(label, Tensor | np.generic) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label {label!r} is no class number")
    return label
