"""An image pool on disk: a Parquet data set in the Hugging Face layout that knows which network it was made from.

A saved pool is a directory: ``train.parquet`` (columns ``image`` and ``label``), ``lineage.json``, the data-set card
``README.md`` and ``manifest.json`` with the digest of each. It reads as ``pool:PATH``, as an ordinary Parquet folder
and with Hugging Face's ``datasets``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from upcycle.core import lineage, models, store
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.licences import NOTICE, hub_fields
from upcycle.core.outputs import Around, Columns
from upcycle.data.augment import uniform
from upcycle.data.decode import Item, decode
from upcycle.data.images import Images, ImageSplit
from upcycle.data.parquet_pages import require_honest, values
from upcycle.data.parts import MAX_VALIDATION, SPLIT_SEED
from upcycle.data.pixels import Form, Pixels
from upcycle.data.pool import Pool
from upcycle.data.tables import class_names

PREFIX = "pool:"
GRAPHS = "graphs.safetensors"  # in place of a table, in a pool of graphs (upcycle.data.graph_pool)
TABLE, LINEAGE, CARD = "train.parquet", "lineage.json", "README.md"
ROWS = 1000  # a row group of the Parquet file

PRIVACY = (
    "No image of the teacher's training data was copied. But images that are inverted out of a network may resemble "
    "those it was trained on, so this set is not private: treat it as you would treat the training data."
)
_USE = """import datasets

train = datasets.load_dataset("path/to/this/folder", split="train")"""


# -- where a pool comes from ------------------------------------------------------------------------------------


def weights_digest(module: nn.Module) -> str:
    """The digest of a network's weights, whatever picks or unwraps its outputs."""
    while isinstance(module, Columns | Around):
        module = module.network
    return store.tensor_digest(module.state_dict())


def parent_node(model: models.Model, role: str = "teacher") -> lineage.Node:
    """The lineage of a model that another is made from, with the digest of its weights as they are."""
    known = model.lineage or lineage.node(name=model.name, digest="", licence=model.licence)
    return {**known, "digest": weights_digest(model.module), "role": role}


def pool_lineage(
    pool: Pool, teacher: models.Model, *, name: str, method: str, config: dict[str, Any] | None = None
) -> lineage.Node:
    """The lineage of the images of ``pool``, made from ``teacher``; the licence follows from the teacher's.

    Args:
        name: how tables call the pool.
        method: that made it, by its name on the command line.
        config: what it was made with, as plain data.
    """
    parents = [parent_node(teacher)]
    return lineage.child(parents, name=name, digest=pool.digest, verb="distill", method=method, config=config or {})


def lineage_of(directory: str | Path) -> lineage.Node:
    """The lineage of a saved pool, checked against its digest; no image is read.

    Raises:
        UserError: no pool there, or damage.
    """
    directory = pool_directory(directory)
    files = store.verify_manifest(directory, lambda name: name == LINEAGE)
    require(LINEAGE in files, f"{directory} is damaged: its manifest does not name {LINEAGE}.")
    node = lineage.read(directory / LINEAGE, files[LINEAGE])
    require(bool(node["parents"]), f"{directory / LINEAGE} is no lineage of an image pool: it has no parents.")
    return node


def pool_directory(path: str | Path) -> Path:
    """``path``, or the ``pool`` in it when it is a run; with or without the prefix ``pool:``.

    Raises:
        UserError: there is no saved pool.
    """
    text = str(path).removeprefix(PREFIX)
    require(bool(text), f"'{path}' names no image pool: write {PREFIX}PATH.")
    for folder in (Path(text).expanduser(), Path(text).expanduser() / "pool"):
        table = any((folder / name).is_file() for name in (TABLE, GRAPHS))
        if table and (folder / store.MANIFEST).is_file():
            return folder
    raise UserError(
        f"There is no image pool in {text}: no {TABLE} with its {store.MANIFEST}, nor in pool/. A folder of ordinary "
        "images is given without 'pool:'."
    )


# -- to disk ----------------------------------------------------------------------------------------------------


def save_pool(
    pool: Pool,
    directory: str | Path,
    *,
    classes: Sequence[str],
    name: str,
    lineage: lineage.Node,
    note: str = "",
) -> None:
    """Write the images and labels of ``pool`` as data; call it on one process only.

    The directory appears complete or not at all; a pool that is there already is replaced.

    Args:
        pool: stored without loss, in its order.
        directory: for the files that this module's docstring lists.
        classes: the teacher's class names, which the labels count.
        name: the heading of the card.
        lineage: what :func:`pool_lineage` made.
        note: a sentence or more for the card: how it was made, what it cost.

    Raises:
        UserError: the pool is empty, the directory holds something else, or it cannot be written.
    """
    directory = Path(directory)
    require(len(pool) > 0, f"The pool holds no image, so {directory} is not written.")
    with store.new_directory(directory, "image pool", lambda there: (there / TABLE).is_file()) as fresh:
        store.write_atomic(fresh / TABLE, _table(pool, classes))
        store.write_json(fresh / LINEAGE, lineage)
        store.write_atomic(fresh / CARD, _card(pool, classes, name, lineage, note).encode())
        store.write_manifest(fresh)


def _table(pool: Pool, classes: Sequence[str]) -> bytes:
    """A Parquet file: ``image`` struct{bytes: PNG, path} and ``label``, with Hugging Face's features in its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    sink = pa.BufferOutputStream()
    # PNG is compressed already.
    with pq.ParquetWriter(sink, schema, compression="none") as writer:
        for index in torch.arange(len(pool)).split(ROWS):
            rows = [{"bytes": _png(pixels), "path": f"{i:06d}.png"}
                    for i, pixels in zip(index.tolist(), pool.images[index].numpy(), strict=True)]  # fmt: skip
            columns = [pa.array(rows, image), pa.array(pool.labels[index].numpy())]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _card(pool: Pool, classes: Sequence[str], name: str, node: lineage.Node, note: str) -> str:
    """The data-set card in the form of the Hugging Face hub: a YAML header, then sections."""
    licence, (c, h, w), teacher = node["licence"], pool.shape, node["parents"][0]
    header: dict[str, Any] = {"pretty_name": name, **hub_fields(licence["id"])}
    header["task_categories"] = ["image-classification"]
    header["tags"] = ["upcycle", "synthetic", node["method"]]
    # Named, because the JSON files beside it would be taken for data otherwise.
    header["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": TABLE}]}]
    counts = torch.bincount(pool.labels[pool.labels >= 0], minlength=len(classes)).tolist()
    sections = [
        f"# {name}",
        f"{len(pool):,} images of {h} x {w} pixels ({'colour' if c == 3 else 'grey'}) that {node['method']} made from "
        f"the weights of {teacher['name']} (sha256 {teacher['digest'][:16]}). They are no photographs. A label is the "
        "class that an image was made for, which need not be what it shows; -1 is none.",
        note,
        "| class | images |\n|---|---:|\n"
        + "\n".join(f"| {k.replace('|', '/')} | {n:,} |" for k, n in zip(classes, counts, strict=True)),
        "## How it was made",
        f"```\n{lineage.tree(node)}\n```",
        "## Privacy",
        PRIVACY,
        "## Use",
        f"`upcycle distill --data pool:PATH`, with that same teacher, or\n\n```python\n{_USE}\n```",
        "## Licence",
        f"**{licence['id']}**. {licence['why']}",
        "\n".join(f"- {duty}" for duty in licence["obligations"]),
        NOTICE,
    ]
    head = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=110)
    return f"---\n{head}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


# -- from disk --------------------------------------------------------------------------------------------------


def load_pool(directory: str | Path, form: Form | None = None) -> Images:
    """Read a saved pool: all its images to train on, with their labels; its lineage is that of the images.

    Nothing was held out of it: validation and test are a tenth and a fifth of the very same images, at most 5,000
    each, drawn with a fixed seed. Their labels are -1, because the class that an image was made for is no truth to
    measure against.

    Args:
        directory: a pool, or a run that left one.
        form: that images are brought to.

    Raises:
        UserError: no pool there, or damage, naming the file.
    """
    directory = pool_directory(directory)
    node = lineage_of(directory)
    content = store.verify_manifest(directory, lambda name: name == TABLE)
    require(TABLE in content, f"{directory} is damaged: its manifest does not name {TABLE}.")
    labels, pixels, classes = _read(content[TABLE], directory / TABLE, form or Form())
    ids = torch.arange(len(labels))
    train = ImageSplit.plain(pixels.images, labels, ids)
    order = uniform(SPLIT_SEED, 0, ids, "pool")[:, 0].argsort(stable=True)
    sizes = [max(1, min(len(ids) // share, MAX_VALIDATION)) for share in (10, 5)]
    held = [train.subset(part.sort().values) for part in (order[: sizes[0]], order[-sizes[1] :])]
    for split in held:
        split.labels = torch.full_like(split.labels, -1)
    note = f"The {len(labels):,} images of this pool were made from {node['parents'][0]['name']} by {node['method']}."
    return Images(
        name=node["name"],
        classes=classes,
        train=train,
        validation=held[0],
        test=held[1],
        licence=node["licence"]["id"],
        notes=[note],
        lineage=node,
        reading=pixels.reading,
        reshaped=pixels.reshaped,
    )


def _read(content: bytes, file: Path, form: Form) -> tuple[Tensor, Pixels, tuple[str, ...]]:
    """Labels int64 (n,), pixels and class names of a pool's Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        at_once = require_honest(content, table.metadata, ("image", "label"), str(file))
        labels = torch.from_numpy(table.read(columns=["label"]).column(0).to_numpy().astype(np.int64))
        classes = class_names(table.schema_arrow, "label", str(file))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no table of an image pool: {one_line(error)}.") from error
    require(len(labels) >= 2, f"{file} holds fewer than two images.")
    require(int(labels.min()) >= -1 and int(labels.max()) < len(classes),
            f"{file} has labels that are not among its {len(classes)} classes.")  # fmt: skip

    def items() -> Iterator[Item]:
        found = values(table, "image", at_once, len(content), str(file))
        rows = (value for batch in found for value in batch.to_pylist())
        return ((i, f"row {i} of {file}", (value or {}).get("bytes") or b"") for i, value in enumerate(rows))

    return labels, decode(items, len(labels), form), classes
