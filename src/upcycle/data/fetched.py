"""Named sets that no folder holds: fetched once, from where torchvision knows them, and kept as four IDX files.

The addresses and digests are torchvision's (``torchvision.datasets``: ``mirrors``, ``resources``, ``split_list``,
``url``), so its newest ones count. Its downloaders are not used: they wait for ever, and unpickle what they find.
"""

from __future__ import annotations

import bz2
import importlib
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.core import fetching
from upcycle.core.errors import UserError, one_line
from upcycle.core.read import bytes_of
from upcycle.data.pickles import array_of, unpickle


@dataclass(frozen=True, kw_only=True)
class Home:
    """What torchvision calls a set, and how large the files are that are fetched.

    Args:
        called: its class in ``torchvision.datasets``.
        megabytes: of all files together.
        unpack: makes four IDX files of what was fetched into a folder; ``None`` where it is four of them.
    """

    called: str
    megabytes: float
    unpack: Callable[[Path], None] | None = None


def obtain(name: str) -> Path | str:
    """Fetch a set, once.

    Args:
        name: one of :data:`HOMES`.

    Returns:
        the folder of its four files; or why it is not fetched, in words to follow "The data set is not here".

    Raises:
        UserError: fetching began and failed.
    """
    if fetching.place() is None:
        return ", and UPCYCLE_CACHE keeps nothing that could be fetched"
    try:
        sets: Any = importlib.import_module("torchvision.datasets")
        files = _files(getattr(sets, HOMES[name].called))
    except (ImportError, RuntimeError, AttributeError, OSError):
        return ", and torchvision, which knows where to fetch it, is not installed or does not work"
    home = fetching.first_that_answers(files[0][1])
    if home is None:
        return f", and {fetching.why_not(files[0][1][0])}"

    def fill(folder: Path) -> None:
        for file, addresses, md5 in files:
            address = fetching.first_that_answers(addresses) or addresses[0]
            fetching.fetch(address, folder / file, most=1.5e6 * HOMES[name].megabytes, md5=md5)
        if (unpack := HOMES[name].unpack) is not None:
            try:
                unpack(folder)
            except (KeyError, ValueError, EOFError, pickle.UnpicklingError, tarfile.TarError) as error:
                raise UserError(f"What was fetched of {name} is not what is known of it: {one_line(error)}.") from error

    return fetching.keep(name, fill)


def _files(known: Any) -> list[tuple[str, list[str], str]]:
    """The files of a set: the name of each, its addresses and its MD5, as a class of torchvision has them."""
    if hasattr(known, "mirrors"):
        return [(file, [f"{mirror}{file}" for mirror in known.mirrors], md5) for file, md5 in known.resources]
    if hasattr(known, "split_list"):
        return [(file, [address], md5) for address, file, md5 in known.split_list.values()]
    return [(known.filename, [known.url], known.tgz_md5)]


# -- what they are made of --------------------------------------------------------------------------------------------


def _usps(folder: Path) -> None:
    """USPS as LIBSVM has it: a line an image, ``label 1:value ... 256:value``, labels from 1, values in [-1, 1]."""
    for split, packed in (("train", "usps.bz2"), ("t10k", "usps.t.bz2")):
        lines = [line.split() for line in bz2.decompress(bytes_of(folder / packed)).decode().splitlines()]
        values = np.array([[item.partition(":")[2] for item in line[1:]] for line in lines], np.float32)
        pixels = np.round((values + 1) * 127.5).clip(0, 255).astype(np.uint8)
        _write(folder, split, pixels.reshape(-1, 16, 16), [int(line[0]) - 1 for line in lines])
        (folder / packed).unlink()


def _cifar10(folder: Path) -> None:
    """CIFAR-10 as its authors have it: six pickles in an archive, the planes of each image one after the other."""
    (packed,) = folder.glob("*.gz")
    found: dict[str, Any] = {}
    with tarfile.open(packed) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and "_batch" in member.name:
                found[member.name.rpartition("/")[2]] = unpickle(content.read())
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("t10k", ["test_batch"])):
        planes = np.concatenate([array_of(found[name]["data"]) for name in names]).reshape(-1, 3, 32, 32)
        labels = [label for name in names for label in found[name]["labels"]]
        _write(folder, split, planes.transpose(0, 2, 3, 1), labels)
    packed.unlink()


def _write(folder: Path, split: str, images: np.ndarray, labels: list[int]) -> None:
    """Write images, (n, h, w) or (n, h, w, 3), and their labels as two IDX files."""
    pairs = ((f"{split}-images-idx{images.ndim}-ubyte", images), (f"{split}-labels-idx1-ubyte", np.array(labels)))
    for name, array in pairs:
        header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4) for side in array.shape)
        (folder / name).write_bytes(header + np.ascontiguousarray(array, np.uint8).tobytes())


HOMES = {
    "mnist": Home(called="MNIST", megabytes=11.6),
    "fashion_mnist": Home(called="FashionMNIST", megabytes=30.9),
    "usps": Home(called="USPS", megabytes=8.4, unpack=_usps),
    "cifar10": Home(called="CIFAR10", megabytes=170.5, unpack=_cifar10),
}
"""The sets that can be fetched."""
