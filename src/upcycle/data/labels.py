"""Which class of one network is which class of another."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.read import require_file
from upcycle.data.images import Images, ImageSplit

HEADERS = (["teacher", "student"], ["source", "target"])


def read_label_map(path: str | Path, source_classes: Sequence[str], target_classes: Sequence[str]) -> Tensor:
    """Read a label map: a CSV file, header ``teacher,student`` (or ``source,target``), a line a class.

    Every target class stands in it exactly once, and no source class twice: two targets that read one output
    could not be told apart. Source classes that are not named are left out. Spaces around names do not count,
    nor does case where the names are different without it.

    Returns:
        int64 (k_target,): for each target class, the source output that it reads, so that ``logits[:, map]``
        of the source are logits of the target.

    Raises:
        UserError: naming file, line and class.
    """
    rows = _rows(Path(path))
    sources, targets = _numbers(source_classes), _numbers(target_classes)
    used: dict[int, int] = {}  # source output -> line
    reads: dict[int, int] = {}  # target class -> source output
    for line, row in rows:
        try:
            source = _find(row[0], source_classes, sources, "teacher class")
            target = _find(row[1], target_classes, targets, "student class")
        except UserError as error:
            raise UserError(f"Line {line} of the label map {path}: {error}") from None
        if target in reads:
            raise UserError(f"The label map {path} names the student class '{row[1]}' twice, again in line {line}.")
        if source in used:
            raise UserError(
                f"Lines {used[source]} and {line} of the label map {path} read the same teacher class "
                f"'{row[0]}': the teacher could not tell the two student classes apart."
            )
        used[source], reads[target] = line, source
    missing = [f"'{name}'" for number, name in enumerate(target_classes) if number not in reads]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"The label map {path} has no line for the student class {', '.join(missing[:3])}{more}.")
    return torch.tensor([reads[k] for k in range(len(target_classes))], dtype=torch.long)


def targets_of(path: str | Path) -> tuple[str, ...]:
    """The target classes of a label map, in the order of its lines."""
    return tuple(row[1] for _, row in _rows(Path(path)))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a label map below its header, each with its number and its two cells."""
    require_file(path)
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1)]
    except OSError as error:
        raise UserError(f"Cannot read the label map {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The label map {path} is not a CSV file in UTF-8: {error}.") from error
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows or [cell.lower() for cell in rows[0][1]] not in HEADERS:
        raise UserError(f"The label map {path} must begin with the line 'teacher,student' (or 'source,target').")
    for line, row in rows[1:]:
        if len(row) != 2:
            raise UserError(f"Line {line} of the label map {path} has {len(row)} cells instead of 2.")
    require(len(rows) > 1, f"The label map {path} has no line below its first.")
    return rows[1:]


def mapped(data: Images, path: str | Path, classes: tuple[str, ...]) -> Images:
    """``data`` with ``classes``, those of a network, as its labels, by a label map from these to those of the data."""
    return _renumbered(data, read_label_map(path, classes, data.classes), classes)


MAP_THEM = " Say which is which with --label_map FILE, a CSV file with the header teacher,student."


def match_classes(
    source: Sequence[str],
    target: Sequence[str],
    *,
    between: tuple[str, str] = ("the network", "the data"),
    remedy: str = MAP_THEM,
) -> tuple[Tensor, str]:
    """Match two lists of classes by their names, whatever their case and order.

    Args:
        between: what has the source's classes and what has the target's, in words.
        remedy: the sentence that says what to do if they do not match.

    Returns:
        int64 (k_target,), as :func:`read_label_map`, and a note: empty when the names decided. Lists of one
        length without a common name are matched by position, and the note says so.

    Raises:
        UserError: for anything else, asking for a label map.
    """
    ours, theirs = between
    plain = [[_plain(name) for name in names] for names in (source, target)]
    for a, b in ([list(source), list(target)], plain):
        if len(set(a)) == len(a) and len(a) == len(b) and set(a) == set(b):
            return torch.tensor([a.index(name) for name in b], dtype=torch.long), ""
    if list(source) == list(target):  # names that repeat, but in the same order on both sides
        return torch.arange(len(source)), ""
    common = set(plain[0]) & set(plain[1])
    if len(source) == len(target) and not common:
        return torch.arange(len(source)), (
            f"The classes have no name in common ('{source[0]}', ... and '{target[0]}', ...), so they are "
            "matched by position; give a label map if that is wrong."
        )
    raise UserError(
        f"The {len(source)} classes of {ours} and the {len(target)} of {theirs} do not match: {len(common)} names are "
        f"common to both.{remedy}"
    )


def relabelled(data: Images, classes: tuple[str, ...], *, partial: bool = False, remedy: str = MAP_THEM) -> Images:
    """``data`` with ``classes`` in their order as its labels; images of other classes are left out.

    Args:
        partial: the data may lack some of ``classes``, and then have no other ones.
        remedy: see :func:`match_classes`.

    Raises:
        UserError: the names of the classes do not tell which is which.
    """
    if not data.classes:  # a folder without class folders: unlabelled images
        return dataclasses.replace(data, classes=classes)
    if set(classes) <= set(data.classes):
        return data.only(classes)
    if partial and set(data.classes) < set(classes):
        return _renumbered(data, torch.tensor([classes.index(name) for name in data.classes]), classes)
    between = (data.name, "the network")
    # For each class wanted, its label in the data.
    columns, note = match_classes(data.classes, classes, between=between, remedy=remedy)
    found = data.only(tuple(data.classes[i] for i in columns.tolist()))
    return dataclasses.replace(found, classes=classes, notes=[*found.notes, *([note] if note else [])])


def _renumbered(data: Images, to: Tensor, classes: tuple[str, ...]) -> Images:
    """``data`` with ``classes``, among which label y is ``to[y]``."""

    def of(split: ImageSplit) -> ImageSplit:
        return dataclasses.replace(split, labels=torch.where(split.labels >= 0, to[split.labels], -1))

    return dataclasses.replace(
        data, classes=classes, train=of(data.train), validation=of(data.validation), test=of(data.test)
    )


def _plain(name: str) -> str:
    return name.strip().casefold()


def _numbers(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class, by its name and, where that stays unambiguous, by its name without case."""
    plain = [_plain(name) for name in classes]
    loose = {name: k for k, name in enumerate(plain) if plain.count(name) == 1}
    return loose | {name.strip(): k for k, name in enumerate(classes)}


def _find(name: str, classes: Sequence[str], numbers: dict[str, int], kind: str) -> int:
    if name in numbers:
        return numbers[name]
    if _plain(name) in numbers:
        return numbers[_plain(name)]
    raise unknown(kind, name, classes)
