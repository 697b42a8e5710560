"""Where images come from: names, folders, and what :func:`load` hands on to Parquet, the hub and Datasets."""

from __future__ import annotations

import gzip
import importlib.util
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.data.decode import SUFFIXES, Item, Size, decode, fit, image_files
from upcycle.data.images import Images, listed
from upcycle.data.parts import ALIASES, Part, assemble
from upcycle.data.pool_files import PREFIX, load_pool, pool_directory
from upcycle.data.tables import load_hub, load_parquet, parquet_files
from upcycle.data.torch_sets import load_datasets


@dataclass(frozen=True, kw_only=True)
class Named:
    """A data set that has a name.

    Args:
        folders: where it may lie, under ``$UPCYCLE_DATA`` or ``data``.
        classes: class names.
        fetch: what to fetch when it is not found.
        cache: where Hugging Face's cache has it (a glob), or empty.
        licence: SPDX identifier, as the authors state it.
        first: the first test labels of the official split, where another split is about.
    """

    folders: tuple[str, ...]
    classes: tuple[str, ...]
    fetch: str
    cache: str = ""
    licence: str = "unknown"
    first: tuple[int, ...] = ()


_DIGITS = tuple(str(i) for i in range(10))
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FOUR_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"

NAMED = {
    "mnist": Named(
        folders=("mnist", "digits/mnist", "MNIST/raw"),
        cache="datasets--ylecun--mnist/snapshots/*/mnist",
        classes=_DIGITS,
        fetch=f"{_FOUR_FILES} of MNIST",
    ),
    "fashion_mnist": Named(
        folders=("fashion_mnist", "FashionMNIST/raw"),
        cache="datasets--zalando-datasets--fashion_mnist/snapshots/*/fashion_mnist",
        classes=_CLOTHES,
        licence="MIT",
        fetch=f"{_FOUR_FILES} of zalandoresearch/fashion-mnist",
        first=(9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
    ),
    "fashion_mnist_local": Named(
        folders=("fashion_mnist_local",),
        classes=_CLOTHES,
        licence="MIT",
        fetch=f"{_FOUR_FILES} of a split of Fashion-MNIST that is not the official one",
    ),
    "usps": Named(
        folders=("usps", "digits/usps"),
        classes=_DIGITS,
        fetch=f"{_FOUR_FILES} of USPS (16 x 16 pixels)",
    ),
    "cifar10": Named(
        folders=("cifar10",),
        cache="datasets--uoft-cs--cifar10/snapshots/*/plain_text",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        fetch="the Parquet files of uoft-cs/cifar10 (train.parquet and test.parquet)",
    ),
}
NAMES = ("digits", *NAMED)


def check_reference(reference: Any) -> None:
    """Raise :class:`UserError` at once for a reference that cannot be loaded (cheap: no data are read)."""
    if not isinstance(reference, str | Path) or reference in NAMES:
        return
    text = str(reference)
    if text.startswith(PREFIX):
        pool_directory(text)
    elif text.startswith("hub:"):
        owner, _, name = text[4:].partition("/")
        require(bool(owner and name), f"A data set of the hub is written hub:ORG/NAME, not '{text}'.")
    elif not Path(text).expanduser().is_dir():
        if Path(text).expanduser().exists():
            raise UserError(f"{text} is a file; give the folder that the images or Parquet files are in.")
        if isinstance(reference, Path) or any(mark in text for mark in ("/", "\\", "~")):
            raise UserError(
                f"There is no folder {text}. Data are a folder of images or Parquet files, pool:PATH, hub:ORG/NAME, "
                f"or one of {', '.join(NAMES)}."
            )
        raise unknown("data set or folder", text, NAMES)


def load(reference: Any, *, size: Size | None = None, channels: int | None = None) -> Images:
    """Load an image data set, decoded into memory, with train, validation and test splits.

    A validation split that the source lacks is a stratified tenth of the training images, at most 5,000; a
    test split that it lacks is a stratified fifth. Both are drawn with a fixed seed, and ``notes`` says so.
    Batches come in [0, 1] until :meth:`Images.normalised`, and without augmentation until
    :meth:`Images.augmented`.

    Args:
        reference: a name (``digits``, ``mnist``, ``fashion_mnist``, ``fashion_mnist_local``, ``usps``,
            ``cifar10``); a folder of images, ``CLASS/IMAGE`` (or just ``IMAGE``, without labels) or
            ``train/CLASS/IMAGE`` with ``val`` or ``validation`` and ``test`` beside it; a folder of Parquet
            files in the Hugging Face layout; ``pool:PATH``, images that a method made from a network (see
            :func:`upcycle.data.pool_files.load_pool`); ``hub:ORG/NAME``; a torch Dataset or DataLoader of (image, class
            number) pairs, where an image is a PIL image, a uint8 tensor or a float tensor in [0, 1], (c, h,
            w); a dict of them by split, or a tuple (train, test) or (train, validation, test); or an
            :class:`Images`, which is handed back.
        size: bring every image to this side, or (height, width), in pixels: made just large enough to cover it, then
            the centre.
        channels: 1 (grey) or 3 (RGB); ``None`` for what the images have.

    Raises:
        UserError: for what is unknown, not found, broken, empty, mislabelled, of different sizes or too
            large, naming it.
    """
    check_reference(reference)
    if isinstance(reference, Images):
        if size is not None or channels is not None:
            raise UserError("These images are loaded already; load them anew for another size or channels.")
        return reference
    if not isinstance(reference, str | Path):
        return load_datasets(reference, size=size, channels=channels)
    if reference == "digits":
        return _digits(size, channels)
    if reference in NAMED:
        return _named(str(reference), size, channels)
    if str(reference).startswith(PREFIX):
        return load_pool(str(reference), size=size, channels=channels)
    if str(reference).startswith("hub:"):
        return load_hub(str(reference), size=size, channels=channels)
    folder = Path(reference).expanduser()
    # No figure should take a folder that happens to be called cifar10 for the official set.
    name = f"{folder.resolve().name}_local" if folder.resolve().name in NAMES else folder.resolve().name
    if "train" in (files := parquet_files(folder)):
        return load_parquet(name, files, size=size, channels=channels)
    return _folder(name, folder, size, channels)


# --- named sets ---------------------------------------------------------------------------------------


def _digits(size: Size | None, channels: int | None) -> Images:
    images, labels = _digits_of_sklearn()
    pixels = np.round(images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    part = _array_part(pixels, labels, "digits")
    return assemble("digits", _DIGITS, {"train": part}, size=size, channels=channels, licence="CC-BY-4.0",
                    take={"test": 500, "validation": 297})  # fmt: skip


def _digits_of_sklearn() -> tuple[np.ndarray, np.ndarray]:
    """The images, float64 (1797, 8, 8), and labels, int64, that scikit-learn comes with.

    Read from the file itself where it is in its place: to import scikit-learn takes longer than to train on them.
    """
    spec = importlib.util.find_spec("sklearn")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def _named(name: str, size: Size | None, channels: int | None) -> Images:
    known = NAMED[name]
    for folder in _places(known):
        if "train" in (files := parquet_files(folder)):
            notes = []
            if (copies := folder / "from_jpeg.csv").is_file():
                count = len(copies.read_text().splitlines()) - 1
                notes.append(f"{count:,} images of {name} come from a JPEG copy ({copies.name} lists them).")
            return load_parquet(name, files, size=size, channels=channels, classes=known.classes,
                                licence=known.licence, notes=tuple(notes))  # fmt: skip
        if _idx_file(folder, _IDX["train"][0]):
            return _idx(name, folder, known, size, channels)
    root = os.environ.get("UPCYCLE_DATA")
    raise UserError(
        f"The data set {name} is not here. Fetch {known.fetch} and put them into "
        f"{root or '$UPCYCLE_DATA'}/{known.folders[0]}"
        + ("." if root else "; the environment variable UPCYCLE_DATA is not set.")
    )


def _places(known: Named) -> Iterator[Path]:
    """The folders where a named set may lie: ours, torchvision's habitual ``data``, Hugging Face's cache."""
    for root in (os.environ.get("UPCYCLE_DATA"), "data"):
        if root:
            yield from (Path(root).expanduser() / folder for folder in known.folders)
    if known.cache:
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        yield from sorted((Path(home).expanduser() / "hub").glob(known.cache))


def _idx(name: str, folder: Path, known: Named, size: Size | None, channels: int | None) -> Images:
    parts = {}
    for split, stems in _IDX.items():
        images, labels = (_read_idx(folder, stem) for stem in stems)
        require(images.ndim == 3 and labels.shape == images.shape[:1],
                f"{folder / stems[0]} and {stems[1]} do not belong together: {images.shape} images, "
                f"{labels.shape} labels.")  # fmt: skip
        parts[split] = _array_part(images, labels, f"{folder / stems[0]}")
    if known.first and tuple(parts["test"].labels[: len(known.first)].tolist()) != known.first:
        raise UserError(
            f"{folder} does not hold the official split of {name}: its first test labels differ. Put another "
            f"split into the folder {name}_local and load it by that name."
        )
    return assemble(name, known.classes, parts, size=size, channels=channels, licence=known.licence)


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None)


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """An array of bytes in MNIST's IDX format: two zeros, type 8, number of axes, their lengths, data."""
    path = _idx_file(folder, stem)
    if path is None:
        raise UserError(f"{folder} has no file {stem}.gz.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    start = 4 + 4 * axes
    if not axes or len(content) != start + int(np.prod(shape)):
        raise UserError(f"{path} is damaged: its content is not the array of bytes that its header announces.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _array_part(images: np.ndarray, labels: np.ndarray, name: str) -> Part:
    """A split from grey pixels (n, h, w) that are in memory already."""

    def read(order: Tensor, size: Size | None, channels: int | None) -> Tensor:
        return fit(torch.from_numpy(images)[:, :, :, None].index_select(0, order), size, channels)

    return Part(labels=torch.from_numpy(labels.astype(np.int64)), where=lambda i: f"image {i} of {name}", read=read)


# --- folders of images --------------------------------------------------------------------------------


def _folder(name: str, folder: Path, size: Size | None, channels: int | None) -> Images:
    """``[SPLIT/]CLASS/.../IMAGE``; a split without class folders holds images without labels."""
    roots = {
        split: folder / alias for split, aliases in ALIASES.items() for alias in aliases if (folder / alias).is_dir()
    }
    # A folder "train" alone with nothing but images in it is a class: a railway's.
    if "train" not in roots or (len(roots) == 1 and not _subfolders(roots["train"])):
        roots = {"train": folder}
    classes = next((names for root in roots.values() if (names := [p.name for p in _subfolders(root)])), [])
    parts, empty, others = {}, [], 0
    for split, root in roots.items():
        files: list[Path] = []
        labels: list[int] = []
        for path in _subfolders(root) or [root]:
            if path != root and path.name not in classes:
                raise unknown(f"class folder for {path}, that is, no class", path.name, classes)
            images = image_files(path)
            others += sum(p.is_file() and not p.name.startswith(".") for p in path.rglob("*")) - len(images)
            if not images:
                empty.append(str(path))
            files += images
            labels += [classes.index(path.name) if path != root else -1] * len(images)
        parts[split] = _file_part(files, labels)
    if empty:
        raise UserError(
            f"There is no image in {listed(empty, 'folders')}. Add images ({', '.join(SUFFIXES[:4])}, ...) "
            "or remove the folder."
        )
    notes = [f"{others:,} files in {folder.name} are no images by their names and were left out."] if others else []
    return assemble(name, classes, parts, size=size, channels=channels, notes=notes)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _file_part(files: list[Path], labels: list[int]) -> Part:
    def read(order: Tensor, size: Size | None, channels: int | None) -> Tensor:
        def items() -> Iterator[Item]:
            return ((row, str(files[i]), files[i]) for row, i in enumerate(order.tolist()))

        return decode(items, len(order), size=size, channels=channels)

    return Part(labels=torch.tensor(labels, dtype=torch.long), where=lambda i: str(files[i]), read=read)
