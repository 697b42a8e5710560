"""Encoded images in Arrow tables: Parquet files in the Hugging Face layout, and the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.read import checked, parse
from upcycle.data.decode import Item, Size, decode
from upcycle.data.images import Images
from upcycle.data.parts import ALIASES, Part, assemble

COLUMNS = {"image": ("img", "image"), "label": ("label", "labels")}
CHUNK = 1024  # rows in memory at a time, while decoding


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: ``train.parquet`` or ``train-*.parquet``, in the folder or its ``data``; empty
    if there are none."""
    found: dict[str, list[Path]] = {}
    for split, aliases in ALIASES.items():
        for place in (folder, folder / "data"):
            files = sorted(p for alias in aliases for pattern in (f"{alias}.parquet", f"{alias}-*.parquet")
                           for p in place.glob(pattern))  # fmt: skip
            if files:
                found.setdefault(split, files)
    return found


def load_parquet(
    name: str,
    files: dict[str, list[Path]],
    *,
    size: Size | None,
    channels: int | None,
    classes: tuple[str, ...] = (),
    licence: str = "unknown",
    notes: tuple[str, ...] = (),
) -> Images:
    """Images from Parquet files, by split.

    Args:
        classes: class names; if empty, those of the files' Hugging Face metadata, else numbers.
    """
    parts = {}
    for split, paths in files.items():
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{split}-*.parquet"
        parts[split], names = _read(paths, where)
        classes = classes or names
    return assemble(name, classes or _numbers(parts), parts, size=size, channels=channels, licence=licence,
                    notes=notes)  # fmt: skip


def _read(paths: list[Path], where: str) -> tuple[Part, tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def opened(path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from error

    schema = opened(paths[0]).schema_arrow
    image, label = _columns(schema, where)

    def batches() -> Iterator[Any]:
        for path in paths:
            try:
                for batch in opened(path).iter_batches(CHUNK, columns=[image]):
                    yield batch.column(0)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error

    columns = []
    for path in paths:
        try:
            columns.append(opened(path).read(columns=[label]).column(0))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"The column '{label}' of {path} cannot be read: {error}.") from error
    labels = np.concatenate([column.fill_null(-1).to_numpy() for column in columns])
    return _part(labels, batches, where, paths[0].parent), class_names(schema, label, where)


def load_hub(reference: str, *, size: Size | None, channels: int | None) -> Images:
    """Images from the Hugging Face hub (``hub:ORG/NAME``), through ``datasets`` and its cache."""
    name = reference.removeprefix("hub:")
    try:
        import datasets
    except ImportError:
        raise UserError("Data sets of the hub need an extra: pip install 'upcycle[hub]'.") from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # a dozen kinds, from no network to no such data set
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"Cannot load {reference}: {reason}. Without a network, give the folder of its Parquet files."
        ) from error
    parts, classes, licence = {}, (), "unknown"
    for split, aliases in ALIASES.items():
        if alias := next((a for a in aliases if a in found), None):
            data, where = found[alias], f"{reference}, {split}"
            table = data.data.table  # images are encoded in it still: decoding is ours, as for every source
            image, label = _columns(table.schema, where)
            labels, column = table.column(label).fill_null(-1).to_numpy(), table.select([image])
            parts[split] = _part(labels, partial(_image_columns, column), where, Path())
            classes = classes or tuple(getattr(data.features[label], "names", ()))
            licence = data.info.license or licence
    require("train" in parts, f"{reference} has no train split, but {', '.join(found)}.")
    return assemble(name, classes or _numbers(parts), parts, size=size, channels=channels, licence=licence)


def _image_columns(table: Any) -> Iterator[Any]:
    return (batch.column(0) for batch in table.to_batches(CHUNK))


def _columns(schema: Any, where: str) -> tuple[str, str]:
    """The names of the image and the label column, whose types are checked."""
    import pyarrow as pa

    found = []
    for kind, wanted in COLUMNS.items():
        if not (names := [name for name in wanted if name in schema.names]):
            raise UserError(f"{where} has no {kind} column ('{wanted[0]}' or '{wanted[1]}'), but "
                            f"{', '.join(schema.names)}.")  # fmt: skip
        found.append(names[0])
    image, label = found
    kind = schema.field(image).type
    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind):
        encoded = bool({"bytes", "path"} & {field.name for field in kind})
    require(encoded, f"The column '{image}' of {where} holds {kind} instead of encoded images.")
    kind = schema.field(label).type
    require(pa.types.is_integer(kind), f"The column '{label}' of {where} holds {kind} instead of class numbers.")
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


def _numbers(parts: dict[str, Part]) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(parts["train"].labels.max()) + 1)) if len(parts["train"].labels) else ()


def _part(labels: np.ndarray, batches: Callable[[], Iterable[Any]], where: str, folder: Path) -> Part:
    """A split from its labels and its image column in batches; image paths are relative to ``folder``."""

    def content(value: Any) -> bytes | Path:
        if isinstance(value, dict):
            value = value.get("bytes") or (inside(value["path"]) if value.get("path") else None)
        return value or b""

    def inside(path: str) -> Path:
        found = (folder / path).resolve()
        require(found.is_relative_to(folder.resolve()), f"{where} names {path}, which is not in {folder}.")
        return found

    def read(order: Tensor, size: Size | None, channels: int | None) -> Tensor:
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        rows = place.tolist()

        def items() -> Iterator[Item]:
            values = (value for batch in batches() for value in batch.to_pylist())
            return (
                (row, f"row {i} of {where}", content(v)) for i, (row, v) in enumerate(zip(rows, values, strict=True))
            )

        return decode(items, len(order), size=size, channels=channels)

    return Part(labels=torch.from_numpy(labels.astype(np.int64)), where=lambda i: f"row {i} of {where}", read=read)
