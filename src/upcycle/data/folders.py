"""Folders of images: which folder is which split, and which class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.data.collection import listed
from upcycle.data.decode import SUFFIXES, Item, decode, readable
from upcycle.data.images import Images
from upcycle.data.listing import Left, image_files, own_images, subfolders
from upcycle.data.parts import ALIASES, Keeping, Part, assemble, split_of, with_training
from upcycle.data.pixels import Form, Pixels
from upcycle.data.shares import READ_FIRST, of_contents, of_paths


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which folder is which split.

    Args:
        roots: by split; without a folder for a split, the folder itself is ``train``.
        notes: what was understood, in sentences.
    """

    roots: dict[str, Path]
    notes: list[str]


def load_folder(
    name: str, folder: Path, form: Form, *, least_classes: int = 2, keeping: Keeping | None = None
) -> Images:
    """``[SPLIT/]CLASS/.../IMAGE``; a split without class folders holds images without labels.

    Args:
        least_classes: the fewest that there must be.
        keeping: where images are kept; in memory where nothing is said.

    Raises:
        UserError: a folder that cannot be placed, or without an image; see :func:`upcycle.data.load`.
    """
    left = Left()
    layout = layout_of(folder, left)
    places = {split: subfolders(root, left, (folder,)) for split, root in layout.roots.items()}
    classes = _classes(places)
    parts, empty = {}, []
    for split, root in layout.roots.items():
        files: list[Path] = []
        labels: list[int] = []
        for place in places[split] or [root]:
            labelled = place != root
            if labelled and readable(place.name) not in classes:
                raise unknown(f"class folder for {place}, that is, no class", readable(place.name), classes)
            images = image_files(place, left, (folder, root))
            if not images and not (labelled and split != "train"):
                empty.append(readable(str(place)))
            files += images
            labels += [classes.index(readable(place.name)) if labelled else -1] * len(images)
        if places[split]:
            left.beside += own_images(root, left)
        parts[split] = _part(folder, files, labels)
    if empty:
        raise UserError(
            f"There is no image in {listed(empty, 'folders')}. Add images ({', '.join(SUFFIXES[:4])}, ...) "
            "or remove the folder."
        )
    notes = [*layout.notes, *left.notes(name)]
    return assemble(name, classes, parts, form, notes=notes, least_classes=least_classes, keeping=keeping)


def layout_of(folder: Path, left: Left) -> Layout:
    """Understand the folders in ``folder`` as splits, or as classes.

    Args:
        left: gets what is left out.

    Raises:
        UserError: two folders for one split, folders beside those of splits that hold images, or a test split alone.
    """
    below = subfolders(folder, left)
    named = [(split, path) for path in below if (split := split_of(path.name))]
    others = [path for path in below if not split_of(path.name)]
    # A folder "train" with nothing but images in it, beside others, is a class: a railway's.
    sorts = {path: bool(subfolders(path, left, (folder,))) for _, path in named}
    if not named or (len(named) == 1 and others and not any(sorts.values())):
        return Layout(roots={"train": folder}, notes=[])
    odd = [path for path in others if image_files(path, above=(folder,))]
    require(
        not odd,
        f"{readable(str(folder))} has folders of splits ({_names([p for _, p in named])}) and beside them "
        f"{_names(odd)}, which can be neither a split nor a class. Move it away, or into one of them; if all are "
        "classes, into a folder train.",
    )
    left.folders += others
    roots: dict[str, Path] = {}
    for split, path in named:
        if split in roots:
            raise UserError(
                f"{readable(str(folder))} has two folders for the {split} split: {_names([roots[split], path])}. "
                "Join them, or move one away."
            )
        roots[split] = _inner(path, left)
    left.beside += own_images(folder, left)
    said = [f"{readable(roots[s].relative_to(folder).as_posix())} ({s})" for s in ALIASES if s in roots]
    notes = [f"The splits of {readable(folder.name)} are its folders {', '.join(said)}."]
    ordered, more = with_training(roots, readable(folder.name))
    return Layout(roots=ordered, notes=[*notes, *more])


def _inner(path: Path, left: Left) -> Path:
    """The folder of a split, or the one in it that is called the same and alone there, as archives have it."""
    inside = subfolders(path, left)
    if len(inside) == 1 and split_of(inside[0].name) == split_of(path.name) and subfolders(inside[0], left):
        return inside[0]
    return path


def _classes(places: dict[str, list[Path]]) -> list[str]:
    """The names of the classes: of the training images, or else of all others."""
    names = {split: [readable(path.name) for path in found] for split, found in places.items()}
    return names["train"] or sorted({name for found in names.values() for name in found})


def _names(paths: list[Path]) -> str:
    return listed([readable(path.name) for path in paths], "folders")


def _part(folder: Path, files: list[Path], labels: list[int]) -> Part:
    def read(order: Tensor, form: Form, trained: int) -> Pixels:
        def items() -> Iterator[Item]:
            return ((row, str(files[i]), files[i]) for row, i in enumerate(order.tolist()))

        return decode(items, len(order), form, trained=trained)

    def shares() -> Tensor:
        if sum(file.stat().st_size for file in files) > READ_FIRST:
            return of_paths(folder, files)
        return of_contents(files)

    return Part(
        labels=torch.tensor(labels, dtype=torch.long),
        where=lambda i: readable(str(files[i])),
        read=read,
        shares=shares,
        contents=lambda: files,
    )
