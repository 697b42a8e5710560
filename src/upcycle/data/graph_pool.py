"""A pool of made graphs on disk: tensors that know which network they were made from.

A saved pool is a directory: ``graphs.safetensors`` (``x``, ``edge_index``, ``batch``, ``labels``), ``pool.json`` with
the names, ``lineage.json``, and ``manifest.json`` with the digest of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from upcycle.core import lineage, store
from upcycle.core.errors import require
from upcycle.core.graphs import Graphs, GraphTakes
from upcycle.core.read import checked, parsed
from upcycle.core.seeds import uniform
from upcycle.data.graphs import GraphSet, GraphSplit
from upcycle.data.parts import SPLIT_SEED
from upcycle.data.pool_files import GRAPHS as TENSORS
from upcycle.data.pool_files import LINEAGE, pool_directory

NAMES = "pool.json"


class Names(TypedDict):
    """``pool.json``."""

    name: str
    classes: Annotated[list[str], Meta(min_length=1)]
    graphs: Annotated[int, Meta(ge=1, le=2**31)]
    note: str


def tensors_of(graphs: Graphs, labels: Tensor) -> dict[str, Tensor]:
    """The tensors that a pool is."""
    return {"x": graphs.x, "edge_index": graphs.edge_index, "batch": graphs.batch, "labels": labels}


def save_graph_pool(
    graphs: Graphs,
    labels: Tensor,
    directory: str | Path,
    *,
    classes: tuple[str, ...],
    name: str,
    lineage: lineage.Node,
    note: str = "",
) -> None:
    """Write graphs and labels as data; call it on one process only.

    The directory appears complete or not at all; a pool that is there already is replaced.

    Args:
        graphs: with dense features and without features of edges.
        labels: the class that each was made for, int64 (n,).
        directory: for the files that this module's docstring lists.
        classes: the teacher's class names, which the labels count.
        name: how tables call it.
        lineage: of the graphs, whose parent is the network that they were made from.
        note: how they were made.

    Raises:
        UserError: the directory holds something else, or it cannot be written.
    """
    names: dict[str, Any] = {"name": name, "classes": list(classes), "graphs": graphs.n, "note": note}
    with store.new_directory(Path(directory), "pool of graphs", is_graph_pool) as fresh:
        record = store.save_tensors(fresh / TENSORS, tensors_of(graphs, labels))
        store.write_json(fresh / NAMES, names)
        store.write_json(fresh / LINEAGE, lineage)
        store.write_manifest(fresh, {TENSORS: record})


def is_graph_pool(directory: str | Path) -> bool:
    """Whether a pool is one of graphs."""
    return (Path(directory) / TENSORS).is_file()


def load_graph_pool(path: str | Path) -> GraphSet:
    """Read a saved pool: all its graphs to train on, with the classes that they were made for.

    Nothing was held out of it: validation and test are a tenth and a fifth of the very same graphs, without labels.

    Args:
        path: a pool, or a run that left one, with or without ``pool:``.

    Raises:
        UserError: no pool there, or damage, naming the file.
    """
    graphs, labels, classes, node = read_graph_pool(path)
    ids, sizes = torch.arange(graphs.n), torch.bincount(graphs.batch, minlength=graphs.n)
    order = uniform(SPLIT_SEED, 0, ids, "pool")[:, 0].argsort(stable=True)
    unknown = torch.full((graphs.n,), -1)

    def of(which: Tensor, labels: Tensor) -> GraphSplit:
        return GraphSplit(union=graphs, labels=labels[which], ids=which.sort().values)

    note = f"The {graphs.n:,} graphs of this pool were made from {node['parents'][0]['name']} by {node['method']}."
    return GraphSet(
        name=node["name"],
        classes=classes,
        train=of(ids, labels),
        validation=of(order[: max(1, graphs.n // 10)], unknown),
        test=of(order[-max(1, graphs.n // 5) :], unknown),
        described=GraphTakes(graphs.x.shape[1], 0, (int(sizes.min()), int(sizes.max())), "graph"),
        licence=node["licence"]["id"],
        notes=[note],
        lineage=node,
    )


def read_graph_pool(path: str | Path) -> tuple[Graphs, Tensor, tuple[str, ...], lineage.Node]:
    """Graphs, labels, class names and lineage of a saved pool; see :func:`load_graph_pool`."""
    directory = pool_directory(path)
    files = store.verify_manifest(directory, lambda file: file in (TENSORS, NAMES, LINEAGE))
    for file in (TENSORS, NAMES, LINEAGE):
        require(file in files, f"{directory} is damaged: its manifest does not name {file}.")
    names = checked(parsed(files[NAMES], directory / NAMES), Names, directory / NAMES)
    node = lineage.read(directory / LINEAGE, files[LINEAGE])
    found_tensors = store.parse_tensors(files[TENSORS], directory / TENSORS)
    graphs, labels = _graphs(found_tensors, names, directory / TENSORS)
    return graphs, labels, tuple(names["classes"]), node


def _graphs(tensors: dict[str, Tensor], names: Names, file: Path) -> tuple[Graphs, Tensor]:
    """The tensors as graphs, whatever a stranger wrote into the file."""
    wanted = {"x": 2, "edge_index": 2, "batch": 1, "labels": 1}
    shaped = set(tensors) == set(wanted) and all(tensors[key].ndim == dim for key, dim in wanted.items())
    whole = shaped and all(tensors[key].dtype == torch.int64 for key in wanted if key != "x")
    require(whole and tensors["x"].is_floating_point(), f"{file} is damaged: it holds no graphs.")
    x, edges, batch, labels = (tensors[key] for key in wanted)
    n, k = names["graphs"], len(names["classes"])
    require(
        bool(x.isfinite().all())
        and len(batch) == len(x) > 0
        and edges.shape[0] == 2
        and len(labels) == n
        and bool((batch.diff() >= 0).all())
        and bool((torch.bincount(batch.clamp(0, n - 1), minlength=n) > 0).all())
        and (not edges.numel() or 0 <= int(edges.min()) <= int(edges.max()) < len(x))
        and bool((edges[1].diff() >= 0).all())
        and -1 <= int(labels.min()) <= int(labels.max()) < k
        and int(batch.min()) >= 0
        and int(batch.max()) < n,
        f"{file} is damaged: nodes, edges and labels do not fit together.",
    )
    return Graphs(x=x, edge_index=edges, batch=batch, n=n), labels
