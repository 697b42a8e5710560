"""Graphs of PyTorch Geometric taken apart, without importing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from upcycle.core.errors import UserError, require
from upcycle.data.graph_checks import Parts, degree_note, degrees

MASKS = {"train": "train_mask", "validation": "val_mask", "test": "test_mask"}


def is_graph_object(thing: Any) -> bool:
    """Whether a thing is a ``Data``, a ``Dataset`` or a list of ``Data`` of PyTorch Geometric."""
    first = thing[0] if isinstance(thing, list | tuple) and thing else thing
    return any(kind.__module__.partition(".")[0] == "torch_geometric" for kind in type(first).__mro__)


def graphs_of(pyg: Any) -> list[Any]:
    """Each graph of a ``Data``, a batch, a list or a ``Dataset``."""
    if hasattr(type(pyg), "to_data_list"):
        return list(pyg.to_data_list())
    if hasattr(pyg, "edge_index") and not isinstance(pyg, list | tuple | Dataset):
        return [pyg]
    if not isinstance(pyg, list | tuple | Dataset):
        raise UserError(
            f"Graphs are given as a torch_geometric Data, a list of them or a Dataset, not as a {type(pyg).__name__}."
        )
    return [pyg[i] for i in range(len(pyg))]  # type: ignore[arg-type]  # Datasets of PyG have a length


def parts_of(graphs: list[Any], name: str) -> tuple[Parts, list[str]]:
    """Join graphs to parts.

    Args:
        graphs: see :func:`graphs_of`.
        name: of the set, for errors.

    Returns:
        the parts, and what must be said of them.

    Raises:
        UserError: a graph that lacks what others have, or has other features.
    """
    require(bool(graphs), f"{name} has no graphs.")
    notes: list[str] = []
    for i, g in enumerate(graphs):
        edges = getattr(g, "edge_index", None)
        if not isinstance(edges, Tensor):
            raise UserError(f"Graph {i} of {name} has no edge_index.")
        require(
            edges.ndim == 2 and len(edges) == 2,
            f"The edge_index of graph {i} of {name} has shape {tuple(edges.shape)}, not two rows, sources and targets.",
        )
    sizes = torch.tensor([nodes_of(g) for g in graphs])
    edge_index = torch.cat([g.edge_index for g in graphs], 1)
    counts = torch.tensor([g.edge_index.shape[1] for g in graphs])
    x = _column(graphs, "x", "a node", name)
    if x is None:
        # Edges have to be right before they can be counted; whatever is wrong is said when the parts are joined.
        counted = edge_index.clamp(min=0).minimum(torch.repeat_interleave(sizes - 1, counts).clamp_min(0))
        x = degrees(counted, sizes, counts)
        notes.append(degree_note(name, x))
    edge_attr = _column(graphs, "edge_attr", "an edge", name)
    return Parts(x=x, edge_index=edge_index, sizes=sizes, edges=counts, edge_attr=edge_attr), notes


def labels_of(graphs: list[Any], name: str) -> tuple[Tensor | None, bool]:
    """The labels of graphs or, where there is one graph with several, of its nodes; and whether it is of nodes.

    Graphs that have a row (1, k) of several 0 and 1 each, NaN where it is unknown, give float (n, k).

    Args:
        graphs: see :func:`graphs_of`.
        name: of the set, for errors.

    Raises:
        UserError: graphs with more or fewer labels than others, or a graph with another number than its nodes.
    """
    ys = [getattr(g, "y", None) for g in graphs]
    if all(y is None for y in ys):
        return None, len(graphs) == 1
    missing = [i for i, y in enumerate(ys) if y is None]
    require(not missing, f"Graph {missing[0] if missing else 0} of {name} has no label y, and others have one.")
    found = [torch.as_tensor(y) for y in ys]
    if len(found) == 1:
        y, n = found[0], nodes_of(graphs[0])
        require(y.numel() == n, f"{name} has {n:,} nodes and {y.numel():,} labels; each node needs one.")
        return y.reshape(-1), True
    if found[0].ndim == 2 and len(found[0]) == 1 and found[0].numel() > 1:
        return _several(found, name), False
    for i, (y, g) in enumerate(zip(found, graphs, strict=True)):
        if y.numel() == nodes_of(g) != 1:
            raise UserError(
                f"Graph {i} of {name} has a label for each of its nodes, and there are several graphs: join them to "
                "one (torch_geometric.data.Batch), whose masks say which nodes are trained on."
            )
        require(
            y.numel() == 1,
            f"Graph {i} of {name} has labels of shape {tuple(y.shape)}; each graph has the number of one class, or a "
            "row of shape (1, k) of 0 and 1.",
        )
    return torch.cat([y.reshape(-1) for y in found]), False


def _several(found: list[Tensor], name: str) -> Tensor:
    """Labels (n, k) of graphs with a row of yes and no each."""
    for i, y in enumerate(found):
        require(
            y.shape == found[0].shape,
            f"Graph 0 of {name} has labels of shape {tuple(found[0].shape)} and graph {i} of {tuple(y.shape)}; all "
            "graphs of a set have as many.",
        )
    rows = torch.cat(found).float()
    wrong = ((rows != 0) & (rows != 1) & ~rows.isnan()).nonzero()
    if len(wrong):
        i, label = wrong[0].tolist()
        raise UserError(
            f"Label {label} of graph {i} of {name} is {rows[i, label].item():g}; of several labels each is 0 or 1, or "
            "NaN where it is unknown."
        )
    return rows


def masks_of(graph: Any, name: str) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The split that a graph's own masks say, and what must be said of it; ``None`` where it has no masks.

    Args:
        graph: a ``Data``.
        name: of the set, for errors.
    """
    found = {split: mask for split, key in MASKS.items() if isinstance(mask := getattr(graph, key, None), Tensor)}
    if not found:
        return None, []
    notes = []
    if several := next((mask.shape[1] for mask in found.values() if mask.ndim == 2), 0):
        notes.append(f"{name} comes with {several} splits, of which the first is used.")
    return {split: mask[:, 0] if mask.ndim == 2 else mask for split, mask in found.items()}, notes


def nodes_of(graph: Any) -> int:
    """How many nodes a graph has."""
    x = getattr(graph, "x", None)
    return len(x) if isinstance(x, Tensor) else int(getattr(graph, "num_nodes", None) or 0)


def _column(graphs: list[Any], key: str, each: str, name: str) -> Tensor | None:
    """Give what graphs have of one kind, (number, width), or ``None`` where none has it."""
    found = [getattr(g, key, None) for g in graphs]
    if all(t is None for t in found):
        return None
    tables = [t if t is None or t.ndim == 2 else t.reshape(len(t), -1) for t in found]
    widths = [0 if t is None else t.shape[1] for t in tables]
    if len(set(widths)) > 1:
        odd = next(i for i, w in enumerate(widths) if w != widths[0])
        raise UserError(
            f"Graph 0 of {name} has {widths[0]} features {each} and graph {odd} has {widths[odd]}; all graphs of a set "
            "have as many."
        )
    return torch.cat([t for t in tables if t is not None])
