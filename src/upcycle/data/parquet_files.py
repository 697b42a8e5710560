"""Parquet files in a folder: which belong to which split, as Hugging Face and others lay them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from upcycle.core.errors import UserError
from upcycle.data.collection import listed
from upcycle.data.decode import readable
from upcycle.data.listing import Left, image_files, subfolders
from upcycle.data.parts import ALIASES, split_of, with_training


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Parquet files by split, and what was understood and left out, in sentences."""

    files: dict[str, list[Path]]
    notes: list[str] = field(default_factory=list)


def parquet_files(folder: Path) -> Tables | None:
    """The Parquet files of each split; ``None`` if there are none.

    They lie in the folder, in its ``data``, or in the folder of its only configuration (``default``): as
    ``train.parquet``, ``train-00000-of-00002.parquet``, ``train/0000.parquet``, and other splits likewise. Files of
    which none says a split are those of ``train``.

    Raises:
        UserError: several configurations, or a test split alone.
    """
    if not folder.is_dir():
        return None
    for place in (folder, folder / "data"):
        if place.is_dir() and (found := _in(place)):
            return _trained(folder, found)
    below = [(place, found) for place in subfolders(folder, Left()) if (found := _in(place))]
    if len(below) > 1:
        names = listed([readable(place.name) for place, _ in below], "configurations")
        raise UserError(
            f"{readable(str(folder))} has several folders of Parquet files: {names}. Give one of them, such as "
            f"{readable(str(below[0][0]))}."
        )
    return _trained(folder, below[0][1]) if below else None


def _trained(folder: Path, found: Tables) -> Tables:
    files, notes = with_training(found.files, readable(folder.name))
    return Tables(files=files, notes=[*found.notes, *notes])


def _in(place: Path) -> Tables | None:
    """Give what lies in one folder and in those of splits below it."""
    files: dict[str, list[Path]] = {}
    unplaced = []
    for path in _parquet(place):
        if split := _split_in(path.stem):
            files.setdefault(split, []).append(path)
        else:
            unplaced.append(path)
    for below in subfolders(place, Left()):
        split = split_of(below.name.casefold().removeprefix("partial-"))
        if split and (more := _parquet(below)):
            files.setdefault(split, []).extend(more)
    if files:
        left = listed([readable(path.name) for path in unplaced], "files")
        notes = [f"Left out of {readable(place.name)}: {left}, which no split is named in."] if unplaced else []
        return Tables(files=files, notes=notes)
    if not unplaced or image_files(place):  # a table beside folders of images is about these
        return None
    return Tables(files={"train": unplaced})


def _parquet(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if path.is_file() and not path.name.startswith("."))


def _split_in(stem: str) -> str:
    """The split that a file's name begins with."""
    stem = stem.casefold()
    for split, aliases in ALIASES.items():
        for alias in aliases:
            if stem == alias or any(stem.startswith(alias + mark) for mark in "-_."):
                return split
    return ""
