"""The files of Planetoid (Yang, Cohen, Salakhutdinov; arXiv:1603.08861), whose pickles are read as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.limits import most_from
from upcycle.core.read import bytes_of
from upcycle.data.pickles import Rows, array_of, unpickle

VALIDATION = 500
"""Nodes behind the training nodes that the public split validates on (Kipf, Welling; arXiv:1609.02907)."""
LARGEST = 2**28
"""Bytes of a file above which it is none of Planetoid's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Citations:
    """A graph of papers that cite each other.

    Args:
        x: which words a paper has, float32 (N, d).
        edge_index: int64 (2, E), both directions of each citation once, without loops.
        labels: int64 (N,), -1 for the papers that only the graph knows.
        split: positions of train, validation and test, the public split.
    """

    x: Tensor
    edge_index: Tensor
    labels: Tensor
    split: dict[str, Tensor]


def read_citations(folder: Path, name: str) -> Citations:
    """Read ``ind.NAME.x`` and its seven companions.

    Args:
        folder: where they lie.
        name: ``cora`` or ``citeseer``.

    Raises:
        UserError: a file that is missing, damaged, or no data.
    """
    stem = folder / f"ind.{name}"
    allx, tx = (_table(Path(f"{stem}.{part}")) for part in ("allx", "tx"))
    y, ally, ty = (_one_hot(Path(f"{stem}.{part}")) for part in ("y", "ally", "ty"))
    test = _numbers(Path(f"{stem}.test.index"))
    n = int(test.max()) + 1
    agree = len(allx) == len(ally) and len(tx) == len(ty) == len(test) and allx.shape[1] == tx.shape[1]
    require(
        agree
        and int(test.min()) >= len(allx)
        and len(test.unique()) == len(test)
        and n <= 2 * (len(allx) + len(tx))
        and len(y) + VALIDATION <= len(allx),
        f"The files {stem}.* do not belong together: their numbers of nodes differ.",
    )
    x, labels = torch.zeros(n, allx.shape[1]), torch.full((n,), -1)
    x[: len(allx)], x[test] = allx, tx
    labels[: len(ally)], labels[test] = ally, ty
    train = torch.arange(len(y))
    split = {"train": train, "validation": train[-1] + 1 + torch.arange(VALIDATION), "test": test.sort().values}
    return Citations(x=x, edge_index=_edges(Path(f"{stem}.graph"), n), labels=labels, split=split)


def unpickled(file: Path) -> Any:
    """Read a pickle of arrays, tables and lists of numbers; an array comes as what stands for it.

    Args:
        file: written by Python 2 or 3.

    Raises:
        UserError: it is missing, damaged, or asks for anything else to be made or called.
    """
    try:
        require(file.stat().st_size <= LARGEST, f"{file} is too large to be a file of Planetoid.")
        return unpickle(bytes_of(file))
    except FileNotFoundError:
        raise UserError(f"There is no file {file}.") from None
    except UserError:
        raise
    except Exception as error:  # whatever bytes can do to an unpickler
        raise UserError(f"{file} is no file of Planetoid, or damaged: {one_line(error)}.") from error


def _table(file: Path) -> Tensor:
    """A table of features, float32 (n, d); its arrays are checked before anything is looked up by them."""
    found = unpickled(file)
    parts = vars(found) if isinstance(found, Rows) else {}
    data, columns, starts = (array_of(parts.get(name)) for name in ("data", "indices", "indptr"))
    shape: Any = parts.get("_shape")
    flat = data.ndim == columns.ndim == starts.ndim == 1
    numbers = flat and data.dtype.kind in "fiu" and columns.dtype.kind == starts.dtype.kind == "i"
    sized = isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(s, int) and 0 < s <= 2**24 for s in shape)
    require(numbers and sized, f"{file} is no table of features.")
    rows, width = shape
    inside = (
        len(starts) == rows + 1
        and starts[0] == 0
        and starts[-1] == len(data) == len(columns)
        and bool((np.diff(starts) >= 0).all())
        and (not len(columns) or 0 <= columns.min() <= columns.max() < width)
    )
    require(inside, f"{file} is damaged: its values do not lie in its table.")
    size = file.stat().st_size
    require(
        4 * rows * width <= most_from(size),
        f"{file} has {size:,} bytes and announces a table of {rows:,} x {width:,}, which is none of words in papers.",
    )
    owners = torch.repeat_interleave(torch.arange(rows), torch.from_numpy(np.diff(starts).astype(np.int64)))
    made = torch.zeros(rows, width)
    made[owners, torch.from_numpy(columns.astype(np.int64))] = torch.from_numpy(data.astype(np.float32))
    return made


def _one_hot(file: Path) -> Tensor:
    """Class numbers, int64 (n,), from rows with a one at the class; -1 for a row of zeros."""
    found = array_of(unpickled(file))
    require(found.ndim == 2 and found.dtype.kind in "iuf" and found.size > 0, f"{file} is no table of labels.")
    rows = torch.from_numpy(found.astype(np.int64))
    return torch.where(rows.any(1), rows.argmax(1), -1)


def _numbers(file: Path) -> Tensor:
    try:
        return torch.tensor([int(line) for line in bytes_of(file).decode().split()] or [-1])
    except FileNotFoundError:
        raise UserError(f"There is no file {file}.") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: it holds more than numbers of nodes ({one_line(error)}).") from error


def _edges(file: Path, n: int) -> Tensor:
    found = unpickled(file)
    try:
        # Each neighbour takes a byte and more, but many nodes can name one list.
        require(
            sum(map(len, found.values())) <= file.stat().st_size,
            f"{file} is damaged: it has more edges than it has bytes.",
        )
        pairs = [(int(node), int(other)) for node, others in found.items() for other in others]
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: it does not hold the neighbours of each node.") from error
    edges = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    wrong = edges[(edges < 0) | (edges >= n)]
    require(not len(wrong), f"{file} is damaged: it has an edge to node {int(wrong[0]) if len(wrong) else 0} of {n:,}.")
    return undirected(edges, n)


def undirected(edges: Tensor, n: int) -> Tensor:
    """Both directions of each edge once, without loops, int64 (2, E).

    Args:
        edges: int64 (2, m), in any direction, also several times.
        n: number of nodes.
    """
    source, target = torch.cat([edges, edges.flip(0)], 1)
    keys = (target * n + source)[source != target].unique()
    return torch.stack([keys % n, keys // n])
