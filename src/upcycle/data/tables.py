"""Encoded images in Arrow tables: Parquet files in the Hugging Face layout, and the hub."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.fetching import may_fetch, not_here
from upcycle.core.limits import require_classes
from upcycle.core.read import checked, parse, require_file
from upcycle.data.decode import Item, decode, readable
from upcycle.data.images import Images
from upcycle.data.parquet_files import Tables
from upcycle.data.parquet_pages import AT_ONCE, require_honest, values
from upcycle.data.parts import Keeping, Part, assemble, split_of, with_training
from upcycle.data.pixels import Form, Pixels
from upcycle.data.shares import of_contents

COLUMNS = {
    "image": ("img", "image", "images", "jpg", "png"),
    "label": ("label", "labels", "fine_label", "target", "class", "cls"),
}
"""The usual names of the columns of images and of their classes, the first one that is there counts."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The part of a table that is wanted.

    Args:
        image: the column of images; empty for the first of the usual names.
        label: the column of classes, likewise.
        least_classes: the fewest that there must be.
    """

    image: str = ""
    label: str = ""
    least_classes: int = 2

    def names(self, there: Iterable[str], where: str) -> tuple[str, str]:
        """The columns of images and of labels among those that are there.

        Raises:
            UserError: one is lacking.
        """
        there, found = list(there), []
        for kind, own in (("image", self.image), ("label", self.label)):
            known = [name for name in ((own,) if own else COLUMNS[kind]) if name in there]
            if not known:
                asked = f"'{own}'" if own else f"{kind} column ('{COLUMNS[kind][0]}' or '{COLUMNS[kind][1]}')"
                raise UserError(
                    f"{where} has no {asked}, but {', '.join(there)}. Name the ones that are meant with "
                    "--image_column and --label_column."
                )
            found.append(known[0])
        return found[0], found[1]


def load_parquet(
    name: str,
    tables: Tables,
    form: Form,
    wanted: Wanted | None = None,
    *,
    classes: tuple[str, ...] = (),
    licence: str = "unknown",
    notes: tuple[str, ...] = (),
    keeping: Keeping | None = None,
) -> Images:
    """Images from Parquet files, by split.

    Args:
        classes: class names of a named set, whose lacking splits are drawn by the places of its images; if empty, those
            of the files' Hugging Face metadata, else the labels themselves.
        keeping: where images are kept; in memory where nothing is said.
    """
    wanted, found, names = wanted or Wanted(), {}, classes
    for split, paths in tables.files.items():
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{split}-*.parquet"
        found[split], known = _read(paths, where, wanted)
        names = names or known
    parts, names = _numbered(found, names, stands=not classes)
    said = [*notes, *tables.notes]
    least = wanted.least_classes
    return assemble(name, names, parts, form, licence=licence, notes=said, least_classes=least, keeping=keeping)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of one split: their labels as the table has them, and their images in batches."""

    labels: Any
    batches: Callable[[], Iterable[Any]]
    where: str
    folder: Path | None


def _read(paths: list[Path], where: str, wanted: Wanted) -> tuple[_Rows, tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = readable(where)

    def opened(path: Path) -> pq.ParquetFile:
        require_file(path)
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from error

    schema = opened(paths[0]).schema_arrow
    image, label = _columns(schema, where, wanted)
    at_once, sizes = {}, {path: path.stat().st_size for path in paths}
    for path in paths:
        metadata = opened(path).metadata
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at_once[path] = require_honest(content, metadata, (image, label), str(path))

    def batches() -> Iterator[Any]:
        for path in paths:
            try:
                yield from values(opened(path), image, at_once[path], sizes[path], str(path))
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error

    columns: list[Any] = []
    for path in paths:
        try:
            columns += values(opened(path), label, at_once[path], sizes[path], str(path))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"The column '{label}' of {path} cannot be read: {error}.") from error
    labels = pa.chunked_array(columns, type=schema.field(label).type)
    rows = _Rows(labels=_plain(labels, label, where), batches=batches, where=where, folder=paths[0].parent)
    return rows, class_names(schema, label, where)


def load_hub(reference: str, form: Form, wanted: Wanted | None = None, *, keeping: Keeping | None = None) -> Images:
    """Images from the Hugging Face hub (``hub:ORG/NAME``), through ``datasets`` and its cache.

    The hub is tried once, for seconds; where it does not answer, or nothing shall be fetched, what is kept here counts.
    """
    name, wanted = reference.removeprefix("hub:"), wanted or Wanted()
    try:
        import datasets
    except ImportError:
        raise UserError("Data sets of the hub need an extra: pip install 'upcycle[hub]'.") from None
    from huggingface_hub import constants as hub

    there = may_fetch(hub.ENDPOINT)
    try:
        with contextlib.nullcontext() if there else _offline(hub, getattr(datasets, "config", hub)):
            sets = datasets.load_dataset(name)
    except Exception as error:  # a dozen kinds, from no network to no such data set
        if not there:
            raise not_here(reference, hub.ENDPOINT, "Give the folder of its Parquet files.") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"Cannot load {reference}: {reason}. Without a network, give the folder of its Parquet files."
        ) from error
    found: dict[str, _Rows] = {}
    names: tuple[str, ...] = ()
    licence = "unknown"
    for called, data in sets.items():
        split = split_of(called)
        if not split or split in found:
            continue
        where = f"{reference}, {called}"
        table = data.data.table  # images are encoded in it still: decoding is ours, as for every source
        image, label = _columns(table.schema, where, wanted)
        labels = _plain(table.column(label), label, where)
        batches = partial(_image_columns, table.select([image]))
        found[split] = _Rows(labels=labels, batches=batches, where=where, folder=None)
        names = names or tuple(getattr(data.features[label], "names", None) or ())
        licence = data.info.license or licence
    require(bool(found), f"{reference} has no train split, but {', '.join(sets)}.")
    found, notes = with_training(found, reference)
    parts, names = _numbered(found, names)
    least = wanted.least_classes
    return assemble(name, names, parts, form, licence=licence, notes=notes, least_classes=least, keeping=keeping)


@contextlib.contextmanager
def _offline(*settings: Any) -> Iterator[None]:
    """Let the libraries of the hub ask nobody while the block lasts, neither once nor again and again.

    Args:
        settings: their modules with a switch ``HF_HUB_OFFLINE``, which is read at each request.
    """
    before = [(module, getattr(module, "HF_HUB_OFFLINE", False)) for module in settings]
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in reversed(before):
            module.HF_HUB_OFFLINE = value


def _plain(column: Any, label: str, where: str) -> list[str] | np.ndarray:
    """Labels of a column: names, where it holds text, or numbers, int64; unknown ones are empty or -1."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        flat = [chunk.flatten() for chunk in column.chunks]
        require(
            sum(map(len, flat)) == len(column) and not column.null_count,
            f"The column '{label}' of {where} holds lists of other lengths than 1; a sample has one class.",
        )
        column = pa.chunked_array(flat, type=column.type.value_type)
    if types.is_integer(column.type):
        try:
            return column.cast(pa.int64()).fill_null(-1).to_numpy()
        except pa.ArrowException as error:
            raise UserError(f"The column '{label}' of {where} has no class numbers: {one_line(error)}.") from error
    text = types.is_string(column.type) or types.is_large_string(column.type)
    require(text, f"The column '{label}' of {where} holds {column.type} instead of class numbers or names.")
    column = column.cast(pa.large_binary())  # a stranger's text need not be UTF-8
    return [(value or b"").decode("utf-8", "backslashreplace") for value in column.to_pylist()]


def _numbered(
    found: dict[str, _Rows], names: tuple[str, ...], *, stands: bool = True
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Splits whose labels are numbers, and the names of the classes.

    Args:
        names: that are known; if there are none, the labels are their own names, in order.
        stands: images stay where they are when data grow.
    """
    named = {split: rows.labels for split, rows in found.items() if isinstance(rows.labels, list)}
    if named and not names:
        names = tuple(sorted({value for value in named.get("train", next(iter(named.values()))) if value}))
    places = {name: number for number, name in enumerate(names)}
    parts = {}
    for split, rows in found.items():
        if isinstance(rows.labels, list):
            odd = next((value for value in rows.labels if value and value not in places), None)
            require(odd is None, f"{rows.where} has the class '{odd}', which no training image has.")
            labels = np.array([places.get(value, -1) for value in rows.labels], np.int64)
        else:
            labels = rows.labels
        parts[split] = _part(labels, rows, stands)
    if not names:
        trained = parts["train"].labels
        count = int(trained.max()) + 1 if len(trained) else 0
        require_classes(count - 1, len(trained), found["train"].where)
        names = tuple(str(i) for i in range(count))
    return parts, names


def _image_columns(table: Any) -> Iterator[Any]:
    return (batch.column(0) for batch in table.to_batches(AT_ONCE))


def _columns(schema: Any, where: str, wanted: Wanted) -> tuple[str, str]:
    """The names of the image and the label column; the type of images is checked."""
    import pyarrow as pa

    image, label = wanted.names(schema.names, where)
    kind = schema.field(image).type
    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind):
        encoded = bool({"bytes", "path"} & {field.name for field in kind})
    require(encoded, f"The column '{image}' of {where} holds {kind} instead of encoded images.")
    return image, label


class Label(TypedDict, total=False):
    """A column of classes."""

    names: list[str] | None


class Info(TypedDict):
    """Features of a table's columns, by their names; only that of classes matters."""

    features: dict[str, Any]


class HuggingFace(TypedDict):
    """Metadata of Hugging Face's libraries in the schema of a Parquet file, under ``huggingface``."""

    info: Info


def class_names(schema: Any, label: str, where: str) -> tuple[str, ...]:
    """The class names in Hugging Face's schema metadata; empty if there are none.

    Raises:
        UserError: it is damaged.
    """
    metadata = (schema.metadata or {}).get(b"huggingface")
    if not metadata:
        return ()
    file, place = Path(where), "the metadata 'huggingface'"
    column = parse(metadata, HuggingFace, file, place)["info"]["features"].get(label)
    found = checked({} if column is None else column, Label, file, f"{place}, {label}")
    return tuple(found.get("names") or ())


def _part(labels: np.ndarray, rows: _Rows, stands: bool) -> Part:
    """A split from its rows, whose images may lie in files of the table's folder and nowhere else."""

    def content(value: Any) -> bytes | Path:
        if isinstance(value, dict):
            value = value.get("bytes") or (inside(value["path"]) if value.get("path") else None)
        return value or b""

    def inside(path: str) -> Path:
        where, folder = rows.where, rows.folder
        if folder is None:
            raise UserError(f"{where} names the file {path} and does not hold it; give the folder of the images.")
        found = (folder / path).resolve()
        require(found.is_relative_to(folder.resolve()), f"{where} names {path}, which is not in {folder}.")
        return found

    def contents() -> Iterator[bytes | Path]:
        return (content(value) for batch in rows.batches() for value in batch.to_pylist())

    def read(order: Tensor, form: Form, trained: int) -> Pixels:
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        to = place.tolist()

        def items() -> Iterator[Item]:
            numbered = enumerate(zip(to, contents(), strict=True))
            return ((row, f"row {i} of {rows.where}", found) for i, (row, found) in numbered)

        return decode(items, len(order), form, trained=trained)

    def shares() -> Tensor:
        return of_contents(contents())

    return Part(
        labels=torch.from_numpy(labels.astype(np.int64)),
        where=lambda i: f"row {i} of {rows.where}",
        read=read,
        shares=shares if stands else None,
        contents=contents,
    )
