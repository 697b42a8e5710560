"""Sets of graphs in text: the TU layout of several files, and the form of one file that GIN and DGCNN use.

The TU layout: https://chrsmrrs.github.io/datasets/docs/format. One file: the number of graphs; then for each graph a
line ``nodes label`` and for each of its nodes a line ``tag k`` with k numbers of neighbours and, where there are any,
attributes (Zhang et al., AAAI 2018, ``muhanzhang/pytorch_DGCNN``).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.limits import gunzip, most_from
from upcycle.core.read import bytes_of
from upcycle.data.graph_checks import DEGREES, Parts, degree_note, degrees
from upcycle.data.planetoid import undirected

MOST = 2**26
"""Nodes that a file may announce."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """Contents of files with graphs.

    Args:
        parts: the graphs.
        labels: int64 (n,), places in ``classes``.
        classes: the labels as they stand in the file, in ascending order.
        notes: what was put in the place of features that there are none of.
    """

    parts: Parts
    labels: Tensor
    classes: tuple[str, ...]
    notes: list[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Raw:
    """Graphs as files have them: edges count through all nodes, tags and labels are any numbers.

    Args:
        sizes: nodes of each graph, int64 (n,).
        pairs: int64 (2, E).
        labels: (n,).
        tags: (N,); ``None`` where there are none, as with the next two.
        attributes: of nodes, float32 (N, k).
        kinds: labels of edges, (E,).
        edge_attributes: float32 (E, k).
        held: bytes of the files.
    """

    sizes: Tensor
    pairs: Tensor
    labels: np.ndarray
    tags: np.ndarray | None
    attributes: Tensor
    kinds: np.ndarray | None = None
    edge_attributes: Tensor | None = None
    held: int = 0


def read_graphs(folder: Path, name: str) -> Found:
    """Read a folder in TU layout or with one text file, or such a file.

    Args:
        folder: see above.
        name: of the set, for notes.

    Raises:
        UserError: neither is there, or a file that is damaged or contradicts itself, with the line.
    """
    return _found(name, _read(folder))


def read_sets(folders: Sequence[Path], name: str) -> tuple[Found, list[int]]:
    """Read several sets as one, in which a tag, a label and an attribute mean the same throughout.

    Args:
        folders: see :func:`read_graphs`.
        name: of all together, for notes.

    Returns:
        all graphs, those of the first folder first, and how many each folder has.

    Raises:
        UserError: see :func:`read_graphs`; or sets with other features.
    """
    raws = [_read(folder) for folder in folders]
    for folder, raw in zip(folders, raws, strict=True):
        for what, ours, theirs in zip(_FEATURES, _features(raws[0]), _features(raw), strict=True):
            require(
                ours == theirs,
                f"{folders[0]} has {ours or 'no'} {what}, and {folder} has {theirs or 'none'}; sets that are one "
                "stream have the same features.",
            )
    before = [0, *itertools.accumulate(int(raw.sizes.sum()) for raw in raws)]
    of_edges = [raw.edge_attributes for raw in raws if raw.edge_attributes is not None]
    together = _Raw(
        sizes=torch.cat([raw.sizes for raw in raws]),
        pairs=torch.cat([raw.pairs + start for raw, start in zip(raws, before, strict=False)], 1),
        labels=np.concatenate([raw.labels for raw in raws]),
        tags=_joined(raws, "tags"),
        attributes=torch.cat([raw.attributes for raw in raws]),
        kinds=_joined(raws, "kinds"),
        edge_attributes=torch.cat(of_edges) if of_edges else None,
        held=sum(raw.held for raw in raws),
    )
    return _found(name, together), [len(raw.sizes) for raw in raws]


def _joined(raws: Sequence[_Raw], part: str) -> np.ndarray | None:
    """The labels of nodes or edges of all, where they have any."""
    return None if getattr(raws[0], part) is None else np.concatenate([getattr(raw, part) for raw in raws])


_FEATURES = ("labels of nodes", "attributes a node", "labels of edges", "attributes an edge")


def _features(raw: _Raw) -> tuple[int | str, ...]:
    """Which features there are, and how many."""
    edges = 0 if raw.edge_attributes is None else raw.edge_attributes.shape[1]
    return "" if raw.tags is None else "some", raw.attributes.shape[1], "" if raw.kinds is None else "some", edges


def _read(folder: Path) -> _Raw:
    """What lies in a folder, or in a file."""
    if folder.is_file():
        return _read_text(folder)
    require(folder.is_dir(), f"There is no folder {folder}; graphs:PATH names a folder of graphs or one text file.")
    indicators = sorted(folder.glob("*_graph_indicator.txt"))
    if len(indicators) == 1:
        return _read_tu(folder, indicators[0].name.removesuffix("_graph_indicator.txt"))
    texts = sorted(file for file in folder.iterdir() if file.name.endswith((".txt", ".txt.gz")))
    if len(indicators) > 1 or len(texts) != 1:
        sets = ", ".join(file.name for file in (indicators or texts)[:3])
        raise UserError(
            f"{folder} holds no set of graphs, which would be NAME_A.txt, NAME_graph_indicator.txt and "
            "NAME_graph_labels.txt or one text file" + (f", but {sets}." if sets else ".")
        )
    return _read_text(texts[0])


# -- one file ---------------------------------------------------------------------------------------------------------


def read_text(file: Path, name: str) -> Found:
    """Read the form of one file; neighbours are neighbours in both directions.

    Args:
        file: text, or gzipped text.
        name: of the set, for notes.
    """
    return _found(name, _read_text(file))


def _read_text(file: Path) -> _Raw:
    lines = text_of(file).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    place = 0

    def numbers(what: str) -> list[int]:
        nonlocal place
        if place >= len(lines):
            raise UserError(f"{file} is damaged: it ends where {what} should come.")
        place += 1
        try:
            return [int(word) for word in lines[place - 1].split()]
        except ValueError:
            raise UserError(
                f"{file} is damaged: line {place} should be {what}, not '{lines[place - 1][:40]}'."
            ) from None

    (count, *more) = numbers("the number of graphs") or [0]
    require(count > 0 and not more, f"{file} is damaged: line 1 should be the number of graphs.")
    sizes: list[int] = []
    labels, tags = [], []
    attributes: list[list[float]] = []
    pairs: list[list[int]] = [[], []]
    nodes = 0
    for i in range(count):
        header = numbers(f"the number of nodes and the label of graph {i}")
        require(
            len(header) == 2 and 0 <= header[0] <= MOST,
            f"{file} is damaged: line {place} should be the number of nodes and the label of graph {i}.",
        )
        size, label = header
        require(abs(label) < 2**63, f"{file} is damaged: the label of graph {i} in line {place} is too large.")
        for node in range(size):
            if place >= len(lines):
                raise UserError(
                    f"{file} is damaged: it ends at node {node} of graph {i}, which should have {size} nodes."
                )
            place += 1
            words = lines[place - 1].split()
            try:
                tag, k = int(words[0]), int(words[1])
                neighbours = [int(word) for word in words[2 : 2 + k]]
                attribute = [float(word) for word in words[2 + k :]]
            except (ValueError, IndexError):
                raise UserError(
                    f"{file} is damaged: line {place} is not a tag, a number of neighbours and these."
                ) from None
            if k < 0 or len(neighbours) != k or (attributes and len(attribute) != len(attributes[0])):
                raise UserError(
                    f"{file} contradicts itself: line {place} announces {k} neighbours, and "
                    f"{len(words) - 2} numbers follow."
                )
            if wrong := [j for j in neighbours if not 0 <= j < size]:
                raise UserError(
                    f"{file} has an edge from node {node} to node {wrong[0]} in graph {i}, "
                    f"whose nodes are 0 to {size - 1} (line {place})."
                )
            tags.append(tag)
            attributes.append(attribute)
            pairs[0] += [nodes + node] * k
            pairs[1] += [nodes + j for j in neighbours]
        sizes.append(size)
        labels.append(label)
        nodes += size
    require(
        place == len(lines),
        f"{file} contradicts itself: it announces {count} graphs, and more follow (line {place + 1}).",
    )
    return _Raw(
        sizes=torch.tensor(sizes),
        pairs=undirected(torch.tensor(pairs, dtype=torch.long), max(nodes, 1)),
        labels=np.array(labels),
        tags=np.array(tags),
        attributes=torch.tensor(attributes).view(nodes, -1),
        held=file.stat().st_size,
    )


def text_of(file: Path) -> str:
    """The text of a file, unpacked where it is gzipped.

    Args:
        file: its path.

    Raises:
        UserError: missing, cut off, damaged, or no text.
    """
    try:
        content = bytes_of(file)
        return (gunzip(content, file) if content[:2] == b"\x1f\x8b" else content).decode()
    except FileNotFoundError:
        raise UserError(f"There is no file {file}.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {str(error).rstrip('.')}.") from error


# -- TU layout --------------------------------------------------------------------------------------------------------


def _read_tu(folder: Path, stem: str) -> _Raw:
    """Read ``STEM_A.txt`` and its companions; labels and attributes of nodes and edges where they are.

    Args:
        folder: where they lie.
        stem: of their names.
    """

    def table(part: str, needed: bool = False) -> np.ndarray | None:
        file = folder / f"{stem}_{part}.txt"
        return _table(file) if needed or file.is_file() else None

    edges, owners, labels = table("A", True), table("graph_indicator", True), table("graph_labels", True)
    assert edges is not None and owners is not None and labels is not None
    for part, numbers in (("A", edges), ("graph_indicator", owners)):
        odd = numbers[numbers != np.floor(numbers)]
        require(
            not odd.size, f"{folder / f'{stem}_{part}.txt'} must have whole numbers, not {odd[0] if odd.size else 0:g}."
        )
    graph = owners[:, 0].astype(np.int64) - 1
    n, nodes = len(labels), len(graph)
    file = folder / f"{stem}_graph_indicator.txt"
    require(
        bool((np.diff(graph) >= 0).all()) and nodes > 0 and graph[0] >= 0 and graph[-1] < n,
        f"{file} must name the graphs 1 to {n} in ascending order.",
    )
    file = folder / f"{stem}_A.txt"
    require(edges.shape[1] == 2, f"{file} must have two numbers in each line, not {edges.shape[1]}.")
    pairs = torch.from_numpy(edges.astype(np.int64)).T - 1
    if (wrong := ((pairs < 0) | (pairs >= nodes)).any(0).nonzero().flatten()).numel():
        i = int(wrong[0])
        source, target = (pairs[:, i] + 1).tolist()
        raise UserError(
            f"{file} has an edge from node {source} to node {target} (line {i + 1}), and there are 1 to {nodes:,}."
        )
    of = torch.from_numpy(graph)
    if (apart := (of[pairs[0]] != of[pairs[1]]).nonzero().flatten()).numel():
        raise UserError(f"{file} has an edge between two graphs (line {int(apart[0]) + 1}).")
    for part, count in (
        ("node_labels", nodes),
        ("node_attributes", nodes),
        ("edge_labels", len(edges)),
        ("edge_attributes", len(edges)),
    ):
        found = table(part)
        require(
            found is None or len(found) == count,
            f"{folder / f'{stem}_{part}.txt'} has {0 if found is None else len(found):,} lines and not {count:,}.",
        )
    tags, attributes, kinds, more = map(table, ("node_labels", "node_attributes", "edge_labels", "edge_attributes"))
    return _Raw(
        sizes=torch.bincount(of, minlength=n),
        pairs=pairs,
        labels=labels[:, 0],
        tags=None if tags is None else tags[:, 0],
        attributes=torch.empty(nodes, 0) if attributes is None else torch.from_numpy(attributes).float(),
        kinds=None if kinds is None else kinds[:, 0],
        edge_attributes=None if more is None else torch.from_numpy(more).float(),
        held=sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(f"{stem}_")),
    )


def _table(file: Path) -> np.ndarray:
    """Numbers separated by commas or blanks, as many in each line; float64 (n, k)."""
    rows = [line.replace(",", " ").split() for line in text_of(file).split("\n") if line.strip()]
    require(bool(rows), f"{file} is empty.")
    if len({len(row) for row in rows}) > 1:
        odd = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise UserError(
            f"{file} is damaged: line {odd + 1} has {len(rows[odd])} numbers and line 1 has {len(rows[0])}."
        )
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {str(error).rstrip('.')}.") from error


# -- both -------------------------------------------------------------------------------------------------------------


def _found(name: str, raw: _Raw) -> Found:
    """Sets of graphs, whose edges count within each.

    Features are attributes and the one-hot tag; degrees where there are no attributes and all tags are the same.
    """
    sizes, pairs = raw.sizes, raw.pairs
    starts = sizes.cumsum(0)
    first = torch.cat([starts.new_zeros(1), starts])
    owners = torch.searchsorted(starts, pairs[1].contiguous(), right=True)
    order = owners.argsort(stable=True)
    edge_index, edges = (pairs - first[owners])[:, order], torch.bincount(owners, minlength=len(sizes))
    notes, features = [], [raw.attributes]
    if raw.tags is not None and len(np.unique(raw.tags)) > 1:
        features.append(_one_hot(raw.tags, raw.held, f"labels of the nodes of {name}"))
    elif not raw.attributes.shape[1]:
        most = int(torch.bincount(pairs[1]).max()) if pairs.numel() else 0
        _require_room(int(sizes.sum()), min(most, DEGREES) + 1, raw.held, f"degrees of the nodes of {name}")
        features = [degrees(edge_index, sizes, edges)]
        notes.append(degree_note(name, features[0]))
    of_edges = [] if raw.kinds is None else [_one_hot(raw.kinds, raw.held, f"labels of the edges of {name}")]
    of_edges += [] if raw.edge_attributes is None else [raw.edge_attributes]
    edge_attr = torch.cat(of_edges, 1)[order] if of_edges else None
    values, places = np.unique(raw.labels, return_inverse=True)
    parts = Parts(x=torch.cat(features, 1), edge_index=edge_index, sizes=sizes, edges=edges, edge_attr=edge_attr)
    classes = tuple(f"{value:g}" for value in values)
    return Found(parts=parts, labels=torch.from_numpy(places.reshape(-1)).long(), classes=classes, notes=notes)


def _one_hot(tags: np.ndarray, held: int, what: str) -> Tensor:
    """A row for each tag with a one in the place of its kind; see :func:`_require_room`."""
    kinds, places = np.unique(tags, return_inverse=True)
    _require_room(len(tags), len(kinds), held, what)
    return torch.zeros(len(tags), len(kinds)).scatter_(1, torch.from_numpy(places.reshape(-1, 1)).long(), 1.0)


def _require_room(rows: int, kinds: int, held: int, what: str) -> None:
    """Raise :class:`UserError` if a feature for each kind is out of all proportion to the files.

    Args:
        rows: of a table.
        kinds: its columns.
        held: bytes of the files.
        what: has these kinds, in words.
    """
    require(
        4 * rows * kinds <= most_from(held),
        f"The {rows:,} {what} are of {kinds:,} kinds, each of which becomes a feature: give attributes in their place.",
    )
