"""What lies in a folder of images, and what is left out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from upcycle.data.decode import SUFFIXES, readable

# Made by cameras, viewers and archives beside the images, and never meant.
_BYPRODUCTS = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")


@dataclass(kw_only=True)
class Left:
    """Left out of a folder: by kind, what is meant by no one.

    Args:
        hidden: hidden files and folders, and by-products such as ``@eaDir`` and ``Thumbs.db``.
        dangling: links that lead nowhere.
        loops: links that lead back to a folder that they lie in.
        others: files that are no images by their names.
        beside: images that lie beside the folders of classes or of splits.
        folders: folders without an image beside the folders of splits.
    """

    hidden: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def notes(self, name: str) -> list[str]:
        """Give what was left out of the folder ``name``, in a sentence; none if nothing was."""
        words = (
            (self.hidden, "hidden file or folder", "hidden files or folders"),
            (self.dangling, "link that leads nowhere", "links that lead nowhere"),
            (self.loops, "link that leads back to where it lies", "links that lead back to where they lie"),
            (self.others, "file that is no image by its name", "files that are no images by their names"),
            (self.beside, "image outside of the folders of classes", "images outside of the folders of classes"),
            (self.folders, "folder without an image", "folders without an image"),
        )
        parts = []
        for paths, one, several in words:
            if found := list(dict.fromkeys(paths)):  # a folder may be looked into twice
                more = ", ..." if len(found) > 1 else ""
                kind = one if len(found) == 1 else several
                parts.append(f"{len(found):,} {kind} ({readable(found[0].name)}{more})")
        return [f"Left out of {name}: {', '.join(parts)}."] if parts else []


def image_files(folder: Path, left: Left | None = None, above: tuple[Path, ...] = ()) -> list[Path]:
    """The files below ``folder`` that are images by their names, in order; links are followed.

    Args:
        left: gets what is left out.
        above: folders that no link may lead back to, beside ``folder`` and those on the way.
    """
    left = Left() if left is None else left
    return sorted(_below(folder, left, tuple(map(_identity, (*above, folder)))))


def own_images(folder: Path, left: Left) -> list[Path]:
    """The images in ``folder`` itself, and not in its folders."""
    return [path for path in _visible(folder, left) if path.is_file() and _is_image(path, left)]


def subfolders(folder: Path, left: Left, above: tuple[Path, ...] = ()) -> list[Path]:
    """The folders in ``folder``, in order; links are followed, unless they lead to ``folder`` or what is ``above``."""
    found = [path for path in _visible(folder, left) if path.is_dir()]
    around = {_identity(path) for path in (folder, *above)}
    left.loops += [path for path in found if _identity(path) in around]
    return [path for path in found if path not in left.loops]


def _below(folder: Path, left: Left, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    for path in _visible(folder, left):
        if path.is_dir():
            if (own := _identity(path)) in above:
                left.loops.append(path)
            else:
                yield from _below(path, left, (*above, own))
        elif path.is_file() and _is_image(path, left):
            yield path


def _is_image(path: Path, left: Left) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    left.others.append(path)
    return False


def _visible(folder: Path, left: Left) -> Iterator[Path]:
    """Give what is in a folder itself, in order, without what is hidden or leads nowhere."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.casefold() in _BYPRODUCTS:
            left.hidden.append(path)
        elif path.is_symlink() and not path.exists():
            left.dangling.append(path)
        else:
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    """Give what a folder is, whatever link it is reached by."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino
