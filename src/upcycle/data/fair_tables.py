"""Tables of persons with a sensitive column, and the graphs that fairness papers make of them.

The tables are those of NIFTY (Agarwal, Lakkaraju, Zitnik; arXiv:2102.13186). An edge joins two persons whose
similarity, 1 / (1 + distance) of their rows, is above a share of the largest similarity that either of them has to
anyone.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.limits import gunzip
from upcycle.core.read import bytes_of
from upcycle.data.graph_checks import Parts
from upcycle.data.planetoid import undirected


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a table becomes a graph.

    Args:
        label: the column that is predicted.
        classes: of its smaller and its larger value.
        sensitive: the binary column that fairness is about.
        left_out: columns that are neither features nor part of the similarity.
        share: of the largest similarity; 0 where edges come in a file.
    """

    label: str
    classes: tuple[str, str]
    sensitive: str
    left_out: tuple[str, ...] = ()
    share: float = 0.0


TABLES = {
    "credit": Table(
        label="NoDefaultNextMonth", classes=("default", "no default"), sensitive="Age", left_out=("Single",), share=0.7
    ),
    "bail": Table(label="RECID", classes=("no recidivism", "recidivism"), sensitive="WHITE", share=0.6),
    "german": Table(
        label="GoodCustomer",
        classes=("bad customer", "good customer"),
        sensitive="Gender",
        left_out=("OtherLoansAtStore", "PurposeOfLoan"),
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Persons:
    """A table as a graph.

    Args:
        parts: one graph; features are standardised columns.
        labels: int64 (N,), 0 or 1.
        columns: every column of numbers or of words (as their places in alphabetical order), (N,).
    """

    parts: Parts
    labels: Tensor
    columns: dict[str, Tensor]


def read_persons(folder: Path, name: str) -> Persons:
    """Read ``NAME.csv.gz`` (or ``NAME.csv``), and make its edges or read them from ``NAME_edges.txt.gz``.

    Args:
        folder: where they lie.
        name: a key of :data:`TABLES`.

    Raises:
        UserError: a file that is missing or damaged, or a column that lacks.
    """
    known = TABLES[name]
    file = _file(folder, f"{name}.csv")
    columns = _columns(file)
    for column in (known.label, known.sensitive, *known.left_out):
        require(column in columns, f"{file} has no column {column}; its columns are {', '.join(columns)}.")
    for column in (known.label, known.sensitive):
        values = len(np.unique(columns[column]))
        require(values == 2, f"The column {column} of {file} has {values} different values, not 2.")
    chosen = [column for column in columns if column not in (known.label, *known.left_out)]
    table = np.stack([columns[column] for column in chosen], 1)
    edges = similar(table, known.share) if known.share else _edges(_file(folder, f"{name}_edges.txt"), len(table))
    std = table.std(0)
    x = torch.from_numpy((table - table.mean(0)) / np.where(std > 0, std, 1)).float()
    labels = torch.from_numpy(columns[known.label] > columns[known.label].min()).long()
    parts = Parts(x=x, edge_index=edges, sizes=torch.tensor([len(x)]), edges=torch.tensor([edges.shape[1]]))
    return Persons(
        parts=parts, labels=labels, columns={key: torch.from_numpy(value).float() for key, value in columns.items()}
    )


def similar(table: np.ndarray, share: float) -> Tensor:
    """Edges between rows whose similarity s = 1 / (1 + distance) is above ``share`` times the best of either row.

    For row i, whose nearest other row is at distance d_i, these are the rows within (1 + d_i) / share - 1. A k-d tree
    finds both, in memory that grows with the edges; the matrix of all similarities takes 7.2 GB for 30,000 rows.

    Args:
        table: float64 (n, d).
        share: between 0 and 1.

    Returns:
        both directions of each edge, int64 (2, E).
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(table)
    distance, who = tree.query(table, k=2)
    best = _similarity(table, np.arange(len(table)), who[:, 1])
    radius = ((1 + distance[:, 1]) / share - 1) * (1 + 1e-9)  # what is at the border is looked at once more
    pairs = []
    for rows in np.array_split(np.arange(len(table)), max(1, len(table) // 4096)):
        found = tree.query_ball_point(table[rows], radius[rows], return_sorted=False)
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(rows))
        others = np.concatenate([np.asarray(ball, dtype=np.int64) for ball in found])
        own = np.repeat(rows, lengths)
        near = _similarity(table, own, others) > share * best[own] * (
            1 + 1e-12
        )  # a tie is no edge, however it is rounded
        pairs.append(np.stack([others[near], own[near]]))
    return undirected(torch.from_numpy(np.concatenate(pairs, 1)), len(table))


def _similarity(table: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """That of pairs of rows, rounded alike wherever it is computed."""
    return 1 / (1 + np.sqrt(np.square(table[rows] - table[others]).sum(1)))


def _file(folder: Path, name: str) -> Path:
    return found if (found := folder / f"{name}.gz").is_file() else folder / name


def _columns(file: Path) -> dict[str, np.ndarray]:
    """The columns of a table, float64 each; words become their places in alphabetical order."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        table = csv.read_csv(io.BytesIO(_content(file)))
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0].rstrip('.')}.") from error
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise UserError(f"{file} has no value of {name} in {column.null_count:,} rows.")
        if pa.types.is_string(column.type):
            found[name] = np.unique(column.to_numpy(), return_inverse=True)[1].astype(np.float64)
        else:
            found[name] = column.to_numpy().astype(np.float64)
        bad = (~np.isfinite(found[name])).nonzero()[0]
        require(not len(bad), f"{file} has no finite number of {name} in row {bad[0] + 1 if len(bad) else 0}.")
    return found


def _edges(file: Path, n: int) -> Tensor:
    try:
        numbers = np.array(_content(file).split(), dtype=np.float64)
        pairs = torch.from_numpy(numbers.reshape(-1, 2).astype(np.int64)).T
    except ValueError as error:
        raise UserError(f"{file} is damaged: {str(error).rstrip('.')}.") from error
    wrong = pairs[(pairs < 0) | (pairs >= n)]
    require(
        not len(wrong), f"{file} has an edge to node {int(wrong[0]) if len(wrong) else 0}, and there are 0 to {n - 1}."
    )
    return undirected(pairs, n)


def _content(file: Path) -> bytes:
    try:
        content = bytes_of(file)
        return gunzip(content, file) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError:
        raise UserError(f"There is no file {file}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is damaged: {str(error).rstrip('.')}.") from error
