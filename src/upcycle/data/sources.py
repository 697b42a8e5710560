"""Where images come from: names, folders, and what :func:`load` hands on to Parquet, the hub and Datasets."""

from __future__ import annotations

import importlib.util
import math
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
from upcycle.core.fetching import fetched
from upcycle.core.limits import gunzip
from upcycle.core.read import bytes_of, require_file
from upcycle.core.reading import Reading
from upcycle.core.synonyms import same_name
from upcycle.data import graph_sources
from upcycle.data.collection import Collection
from upcycle.data.decode import readable
from upcycle.data.fetched import HOMES, obtain
from upcycle.data.folders import load_folder
from upcycle.data.graph_objects import is_graph_object
from upcycle.data.graph_pool import is_graph_pool, load_graph_pool
from upcycle.data.graphs import GraphSet
from upcycle.data.images import Images
from upcycle.data.memory import require_memory
from upcycle.data.parquet_files import parquet_files
from upcycle.data.parts import Keeping, Part, assemble
from upcycle.data.pixels import Form, Pixels, Size, fit
from upcycle.data.pool_files import PREFIX, load_pool, pool_directory
from upcycle.data.tables import Wanted, load_hub, load_parquet
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


def spelled(reference: Any) -> Any:
    """A named set as it is written here, whatever its case: ``fashion_mnist`` for ``Fashion-MNIST``; else as it is.

    A folder that is called so comes first.
    """
    if not isinstance(reference, str) or Path(reference).is_dir():
        return reference
    return same_name(reference, ("none", *NAMES, *graph_sources.NAMED)) or reference


def check_reference(reference: Any) -> None:
    """Raise :class:`UserError` at once for a reference that cannot be loaded (cheap: no data are read)."""
    reference = spelled(reference)
    if not isinstance(reference, str | Path) or reference in NAMES:
        return
    text = str(reference)
    if graph_sources.is_graphs(reference):
        graph_sources.check_graphs(text)
    elif text.startswith(PREFIX):
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
                f"graphs:PATH, or one of {', '.join((*NAMES, *graph_sources.NAMED))}."
            )
        raise unknown("data set or folder", text, (*NAMES, *graph_sources.NAMED))


def load(
    reference: Any,
    *,
    size: Size | None = None,
    channels: int | None = None,
    reading: Reading | None = None,
    columns: tuple[str, str] = ("", ""),
    least_classes: int = 2,
    keep_in_memory: bool | None = None,
    num_workers: int | None = None,
) -> Any:
    """Load a data set, with train, validation and test splits: :class:`Images`, or a :class:`GraphSet`.

    Of a named set a validation split that it lacks is a stratified tenth of the training images, at most 5,000, and a
    test split a stratified fifth, both drawn with a fixed seed. Of other data an image's content decides
    (:mod:`upcycle.data.shares`), so that no image moves when others are added. ``notes`` says what was drawn. Batches
    come in [0, 1] until :meth:`Images.normalised`, and without augmentation until :meth:`Images.augmented`.

    Args:
        reference: a name (``digits``, ``mnist``, ``fashion_mnist``, ``fashion_mnist_local``, ``usps``,
            ``cifar10``); a folder of images, ``CLASS/IMAGE`` (or just ``IMAGE``, without labels) or
            ``train/CLASS/IMAGE`` with ``val`` and ``test`` beside it (or what else these are called, see
            :data:`upcycle.data.parts.ALIASES`); a folder of Parquet files in the Hugging Face layout; ``pool:PATH``,
            images that a method made from a network (see :func:`upcycle.data.pool_files.load_pool`);
            ``hub:ORG/NAME``; a torch Dataset or DataLoader of (image, class number) pairs or of dicts, where an image
            is a PIL image, a uint8 tensor or a float tensor in [0, 1], (c, h, w); a dict of them by split, or a tuple
            (train, test) or (train, validation, test); graphs by a name, ``graphs:PATH`` or objects of PyTorch
            Geometric (:func:`upcycle.data.graph_sources.load_graphs`, :meth:`GraphSet.of`); or an :class:`Images` or
            :class:`GraphSet`, which is handed back.
        size: bring every image to this side, or (height, width), in pixels.
        channels: 1 (grey) or 3 (RGB); ``None`` for what the images have.
        reading: how files become pixels, and images of other proportions come to ``size``.
        columns: the names of the columns of images and of labels in a table; empty for the usual ones.
        least_classes: the fewest classes that labelled images must have.
        keep_in_memory: decode images once and keep them in memory, or read them from disk as they are used. ``None``:
            in memory where they take up to a quarter of it. The samples are the same. Sets of arrays are in memory.
        num_workers: threads that decode what is read from disk; ``None`` for one a processor, 8 at most. Any number
            gives the same bits.

    Raises:
        UserError: for what is unknown, not found, broken, empty, mislabelled, of different sizes or too
            large, naming it.
    """
    reference = spelled(reference)
    check_reference(reference)
    if isinstance(reference, Collection) and not isinstance(reference, Images):
        return reference
    if graph_sources.is_graphs(reference) or is_graph_object(reference):
        if size is not None or channels is not None or any(columns):
            raise UserError("Graphs have no size, channels or columns of images; leave these out.")
        require(keep_in_memory is not False, "Graphs are kept in memory; leave out keep_in_memory.")
        return graph_sources.load_graphs(reference) if isinstance(reference, str) else GraphSet.of(reference)
    if isinstance(reference, Images):
        if size is not None or channels is not None or any(columns) or reading not in (None, reference.reading):
            raise UserError(
                "These images are loaded already; load them anew for another size, channels, reading or columns."
            )
        require(
            keep_in_memory is None or keep_in_memory is not reference.on_disk,
            "These images are loaded already; load them anew to keep them elsewhere (keep_in_memory).",
        )
        return reference
    form = Form(size=size, channels=channels, reading=reading or Reading())
    keeping = Keeping(in_memory=keep_in_memory, num_workers=num_workers)
    wanted = Wanted(image=columns[0], label=columns[1], least_classes=least_classes)
    if not isinstance(reference, str | Path):
        return load_datasets(reference, form, wanted, keeping)
    text = str(reference)
    folder = Path(reference).expanduser()
    # No figure should take a folder that happens to be called cifar10 for the official set.
    own = readable(folder.resolve().name)
    name = f"{own}_local" if own in NAMES else own
    if text.startswith("hub:"):
        return load_hub(text, form, wanted, keeping=keeping)
    if reference == "digits":
        found = _digits(form)
    elif reference in NAMED:
        found = _named(text, form, keeping)
    elif text.startswith(PREFIX):
        if is_graph_pool(pool_directory(text)):
            return load_graph_pool(text)
        found = load_pool(text, form)
    elif (tables := parquet_files(folder)) is not None:
        return load_parquet(name, tables, form, wanted, keeping=keeping)
    else:
        found = load_folder(name, folder, form, least_classes=least_classes, keeping=keeping)
    if keep_in_memory is False and not found.on_disk:
        found.notes.append(f"{found.name} is no folder or table of images, and so is kept in memory.")
    if any(columns):  # where there are several sets, others may have them
        found.notes.append(f"{found.name} is no table of a person's own, so the names of columns say nothing about it.")
    return found


# --- named sets ---------------------------------------------------------------------------------------


def _digits(form: Form) -> Images:
    images, labels = _digits_of_sklearn()
    pixels = np.round(images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    part = _array_part(pixels, labels, "digits")
    taken = {"test": 500, "validation": 297}
    return assemble("digits", _DIGITS, {"train": part}, form, licence="CC-BY-4.0", take=taken)


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


def _named(name: str, form: Form, keeping: Keeping) -> Images:
    known = NAMED[name]
    for folder in places(name):
        if (found := _from_folder(name, folder, form, keeping)) is not None:
            return found
    why = obtain(name) if name in HOMES else ""
    if isinstance(why, Path):
        return _idx(name, why, known, form)
    root = os.environ.get("UPCYCLE_DATA")
    raise UserError(
        f"The data set {name} is not here{why}. Fetch {known.fetch} and put them into "
        f"{root or '$UPCYCLE_DATA'}/{known.folders[0]}"
        + ("." if root else "; the environment variable UPCYCLE_DATA is not set.")
    )


def _from_folder(name: str, folder: Path, form: Form, keeping: Keeping) -> Images | None:
    """A named set from a folder, or nothing where it is not in there."""
    known = NAMED[name]
    if files := parquet_files(folder):
        notes = []
        if (copies := folder / "from_jpeg.csv").is_file():
            count = len(bytes_of(copies).decode(errors="replace").splitlines()) - 1
            notes.append(f"{count:,} images of {name} come from a JPEG copy ({copies.name} lists them).")
        return load_parquet(
            name, files, form, classes=known.classes, licence=known.licence, notes=tuple(notes), keeping=keeping
        )
    return _idx(name, folder, known, form) if _idx_file(folder, _IDX["train"][0]) else None


def places(name: str) -> Iterator[Path]:
    """The folders where a named set may lie: ours, torchvision's ``data``, Hugging Face's cache, what was fetched."""
    known = NAMED[name]
    for root in (os.environ.get("UPCYCLE_DATA"), "data"):
        if root:
            yield from (Path(root).expanduser() / folder for folder in known.folders)
    if known.cache:
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        yield from sorted((Path(home).expanduser() / "hub").glob(known.cache))
    if name in HOMES and (folder := fetched(name)) is not None:
        yield folder


def _idx(name: str, folder: Path, known: Named, form: Form) -> Images:
    parts = {}
    for split, stems in _IDX.items():
        images, labels = (_read_idx(folder, stem) for stem in stems)
        require(
            images.ndim in (3, 4) and labels.shape == images.shape[:1],
            f"{folder / stems[0]} and {stems[1]} do not belong together: {images.shape} images, {labels.shape} labels.",
        )
        parts[split] = _array_part(images, labels, f"{folder / stems[0]}")
    if known.first and tuple(parts["test"].labels[: len(known.first)].tolist()) != known.first:
        raise UserError(
            f"{folder} does not hold the official split of {name}: its first test labels differ. Put another "
            f"split into the folder {name}_local and load it by that name."
        )
    return assemble(name, known.classes, parts, form, licence=known.licence)


def _idx_file(folder: Path, stem: str) -> Path | None:
    """A file of grey images or of labels, or of colour images, whose arrays have an axis more."""
    names = (f"{stem}.gz", stem, stem.replace("idx3", "idx4"))
    return next((p for name in names if (p := folder / name).is_file()), None)


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """An array of bytes in MNIST's IDX format: two zeros, type 8, number of axes, their lengths, data."""
    path = _idx_file(folder, stem)
    if path is None:
        raise UserError(f"{folder} has no file {stem}.gz.")
    try:
        require_file(path)
        require_memory(2 * path.stat().st_size, str(path))
        content = gunzip(bytes_of(path), path) if path.suffix == ".gz" else bytes_of(path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    start = 4 + 4 * axes
    if not 1 <= axes <= 4 or 0 in shape[1:] or len(content) != start + math.prod(shape):
        raise UserError(f"{path} is damaged: its content is not the array of bytes that its header announces.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _array_part(images: np.ndarray, labels: np.ndarray, name: str) -> Part:
    """A split from pixels, grey (n, h, w) or colour (n, h, w, 3), that are in memory already."""
    pixels = torch.from_numpy(images if images.ndim == 4 else images[:, :, :, None])

    def read(order: Tensor, form: Form, trained: int) -> Pixels:
        return fit(pixels.index_select(0, order), form)

    return Part(labels=torch.from_numpy(labels.astype(np.int64)), where=lambda i: f"image {i} of {name}", read=read)
