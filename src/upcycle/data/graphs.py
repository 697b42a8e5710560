"""Sets of graphs, and one graph whose nodes are the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from upcycle.core.batches import Batch
from upcycle.core.errors import require
from upcycle.core.graph_inputs import Graphs, table
from upcycle.core.graphs import GraphTakes
from upcycle.core.task import CLASSIFICATION, MULTILABEL, Task
from upcycle.data import graph_objects, graph_shares
from upcycle.data.collection import Collection, Samples, counted
from upcycle.data.graph_checks import of_parts, require_labels


@dataclass(eq=False, kw_only=True, repr=False)
class GraphSplit(Samples):
    """Some graphs of a set, each with a label.

    All splits of a set share its graphs, which lie in memory as one. A batch is gathered from there, without Python a
    graph.

    Args:
        labels, augment, ordered: see :class:`upcycle.data.collection.Samples`.
        ids: int64 (n,), which graphs of the set these are.
        union: all graphs of the set.
        task: that the labels are of; of several yes-or-no labels a graph they are float (n, k).
        columns: further facts about each graph of the set, by name, (number of them, ...). ``ids`` are positions in
            them.
    """

    union: Graphs
    task: Task = CLASSIFICATION
    columns: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`; the inputs are :class:`upcycle.core.graphs.Graphs`."""
        graphs = self.union[self.ids.index_select(0, index)].to(device, non_blocking=True)
        return Batch(graphs, self.labels.index_select(0, index).to(device), index.to(device))

    def degrees(self) -> Tensor:
        """How many neighbours a node of each graph has on average, float32 (n,)."""
        edges = torch.bincount(self.union.batch[self.union.edge_index[1]], minlength=self.union.n)
        nodes = torch.bincount(self.union.batch, minlength=self.union.n)
        return (edges / nodes)[self.ids]

    def with_others(self, others: Sequence[Self]) -> Self:
        """See :meth:`Samples.with_others`."""
        require(all(o.union is self.union for o in others), "Graphs of several sets cannot be joined.")
        return super().with_others(others)

    def contents(self) -> tuple[Tensor, ...]:
        """The graphs of the whole set; which of them these are, ``ids`` says."""
        return _tensors_of(self.union)


@dataclass(eq=False, kw_only=True, repr=False)
class NodeSplit(Samples):
    """Some nodes of one graph, each with a label.

    A batch brings the whole graph, and which of its nodes are asked for: each answer needs the neighbours.

    Args:
        labels, augment, ordered: see :class:`upcycle.data.collection.Samples`.
        ids: int64 (n,), which nodes of the graph these are.
        graph: the whole graph.
        placed: the graph where batches were wanted, by device; splits of one graph share it.
        columns: further facts about each node of the graph, by name, (N, ...): a sensitive attribute, say. ``ids`` are
            positions in them.
    """

    together: ClassVar[bool] = True

    graph: Graphs
    placed: dict[str, Graphs] = field(default_factory=dict, repr=False)
    columns: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`; the inputs are the whole graph and the nodes that are asked for."""
        there = str(device)
        if there not in self.placed:
            self.placed[there] = self.graph.to(device)
        graph = replace(self.placed[there], at=self.ids.index_select(0, index).to(device))
        return Batch(graph, self.labels.index_select(0, index).to(device), index.to(device))

    def degrees(self) -> Tensor:
        """How many neighbours each node has, float32 (n,)."""
        return torch.bincount(self.graph.edge_index[1], minlength=len(self.graph.batch)).float()[self.ids]

    def with_others(self, others: Sequence[Self]) -> Self:
        """See :meth:`Samples.with_others`."""
        require(all(o.graph is self.graph for o in others), "Nodes of several graphs cannot be joined.")
        return super().with_others(others)

    def contents(self) -> tuple[Tensor, ...]:
        """The whole graph; which of its nodes these are, ``ids`` says."""
        return _tensors_of(self.graph)


@dataclass(eq=False, kw_only=True, repr=False)
class GraphSet(Collection):
    """Graphs, or the nodes of one graph, with train, validation and test splits.

    Args:
        name, classes, licence, notes, chosen, measured, lineage, reading, answered: see
            :class:`upcycle.data.collection.Collection`.
        described: what a network for them takes.
    """

    train: GraphSplit | NodeSplit
    validation: GraphSplit | NodeSplit
    test: GraphSplit | NodeSplit
    described: GraphTakes

    @property
    def columns(self) -> dict[str, Tensor]:
        """Further facts about the set that is trained on; test samples of another set have their own."""
        return self.train.columns

    @property
    def takes(self) -> GraphTakes:
        """Graphs with as many features."""
        return self.described

    @property
    def form(self) -> str:
        """The features of a node, and for nodes the graph that they are in."""
        features = f"{counted(self.described.features, 'feature')} a node"
        if not isinstance(self.train, NodeSplit):
            return features
        graph = self.train.graph
        return f"{features}, in a graph of {len(graph.batch):,} nodes and {graph.edge_index.shape[1]:,} edges"

    @classmethod
    def of(
        cls,
        pyg: Any,
        *,
        split: dict[str, Tensor] | None = None,
        name: str = "graphs",
        classes: Sequence[str] | None = None,
        licence: str = "unknown",
    ) -> GraphSet:
        """Take graphs of PyTorch Geometric.

        Args:
            pyg: one ``Data`` with a label for each node; or a list of ``Data`` or a ``Dataset``, each with one label,
                or with a row (1, k) of 0 and 1, several yes-or-no labels (NaN: unknown).
            split: positions (int64) or masks (bool) of ``train``, ``validation`` and ``test``; ``None`` for the masks
                that a ``Data`` has (of several columns the first), or else a draw: of graphs by what they hold and of
                nodes by their numbers, so that none moves when others are added. A validation split that lacks is drawn
                from ``train``.
            name: names the set in every figure.
            classes: class names; the numbers 0, 1, ... when not given.
            licence: of the data.

        Raises:
            UserError: graphs, labels or splits that are wrong, naming them.
        """
        graphs = graph_objects.graphs_of(pyg)
        parts, notes = graph_objects.parts_of(graphs, name)
        y, about_nodes = graph_objects.labels_of(graphs, name)
        noun = "node" if about_nodes else "graph"
        joined = of_parts(name, parts)
        task: Task = CLASSIFICATION
        if y is not None and y.ndim == 2:
            labels, names, task = y, tuple(classes or map(str, range(y.shape[1]))), MULTILABEL
            require(len(names) == y.shape[1], f"{name} has {y.shape[1]} labels a graph and {len(names)} names of them.")
        else:
            labels, names = require_labels(name, y, len(joined.batch) if about_nodes else joined.n, classes, noun)
        if split is None and about_nodes:
            split, more = graph_objects.masks_of(graphs[0], name)
            notes += more
        if about_nodes:
            return cls.of_nodes(name, joined, labels, names, split, licence=licence, notes=notes)
        return cls.of_graphs(name, joined, labels, names, split, licence=licence, notes=notes, task=task)

    @classmethod
    def of_graphs(
        cls,
        name: str,
        graphs: Graphs,
        labels: Tensor,
        classes: tuple[str, ...],
        split: dict[str, Tensor] | None,
        *,
        licence: str = "unknown",
        notes: Sequence[str] = (),
        task: Task = CLASSIFICATION,
        columns: dict[str, Tensor] | None = None,
    ) -> GraphSet:
        """A set whose samples are graphs.

        Args:
            name: names the set.
            graphs: all of them.
            labels: int64 (n,), -1 where unknown; of another task what that asks for.
            classes: class names.
            split: as in :meth:`of`.
            licence: of the data.
            notes: what must be said about them.
            task: that the labels are of.
            columns: further facts about each graph.
        """
        orders, said = _orders(name, split, lambda: graph_shares.of_graphs(graphs), "graph", graphs.n)
        if task == CLASSIFICATION:
            graph_shares.require_trained(name, orders["train"], labels, classes, "graph")

        def of(order: Tensor) -> GraphSplit:
            return GraphSplit(union=graphs, labels=labels[order], ids=order, task=task, columns=columns or {})

        sizes = graphs.starts[0].diff()
        takes = GraphTakes(_width(graphs.x), _width(graphs.edge_attr), (int(sizes.min()), int(sizes.max())), "graph")
        return cls._divided(name, of, orders, takes, classes, licence, [*notes, *said])

    @classmethod
    def of_nodes(
        cls,
        name: str,
        graph: Graphs,
        labels: Tensor,
        classes: tuple[str, ...],
        split: dict[str, Tensor] | None,
        *,
        licence: str = "unknown",
        notes: Sequence[str] = (),
        columns: dict[str, Tensor] | None = None,
    ) -> GraphSet:
        """A set whose samples are the nodes of one graph; features that are nearly all zero are kept sparse.

        Args:
            name: names the set.
            graph: the whole graph.
            labels: int64 (N,), -1 where unknown.
            classes: class names.
            split: as in :meth:`of`.
            licence: of the data.
            notes: what must be said about them.
            columns: further facts about each node.
        """
        orders, said = _orders(name, split, lambda: graph_shares.of_nodes(len(labels)), "node", len(labels))
        graph_shares.require_trained(name, orders["train"], labels, classes, "node")
        graph = replace(graph, x=table(graph.x)) if _sparse_pays(graph.x) else graph
        placed: dict[str, Graphs] = {}

        def of(order: Tensor) -> NodeSplit:
            return NodeSplit(graph=graph, labels=labels[order], ids=order, placed=placed, columns=columns or {})

        takes = GraphTakes(_width(graph.x), _width(graph.edge_attr), (len(labels), len(labels)), "node")
        return cls._divided(name, of, orders, takes, classes, licence, [*notes, *said])

    @classmethod
    def _divided(
        cls,
        name: str,
        of: Callable[[Tensor], GraphSplit | NodeSplit],
        orders: dict[str, Tensor],
        takes: GraphTakes,
        classes: tuple[str, ...],
        licence: str,
        notes: list[str],
    ) -> GraphSet:
        train, validation, test = (of(orders[part]) for part in ("train", "validation", "test"))
        return cls(
            name=name,
            classes=classes,
            train=train,
            validation=validation,
            test=test,
            described=takes,
            licence=licence,
            notes=notes,
        )

    @classmethod
    def none(cls, takes: GraphTakes, classes: tuple[str, ...]) -> GraphSet:
        """No graphs at all, for methods that make their own: empty splits that say what graphs would be like.

        Args:
            takes: what a network for them takes.
            classes: class names.
        """
        nothing, no_edges = torch.empty(0, dtype=torch.long), torch.empty(2, 0, dtype=torch.long)
        edge_attr = torch.empty(0, takes.edges) if takes.edges else None
        empty = Graphs(torch.empty(0, takes.features), no_edges, nothing, n=0, edge_attr=edge_attr)
        split = GraphSplit(union=empty, labels=nothing, ids=nothing)
        return cls(name="none", classes=classes, train=split, validation=split, test=split, described=takes)


def _orders(
    name: str, split: dict[str, Tensor] | None, shares: Callable[[], Tensor], noun: str, n: int
) -> tuple[dict[str, Tensor], list[str]]:
    if split is None:
        return graph_shares.by_content(name, shares(), noun)
    return graph_shares.brought(name, split, n, noun, shares)


def _width(features: Tensor | None) -> int:
    return 0 if features is None else features.shape[1]


def _sparse_pays(x: Tensor) -> bool:
    """Whether products with these features are faster in CSR layout, as those of Cora are, 1.3 % of values."""
    return x.layout == torch.strided and x.numel() >= 2**18 and int((x != 0).sum()) < 0.05 * x.numel()


def _tensors_of(graphs: Graphs) -> tuple[Tensor, ...]:
    table = (graphs.x.crow_indices(), graphs.x.col_indices()) if graphs.sparse else ()
    of_edges = () if graphs.edge_attr is None else (graphs.edge_attr,)
    return (graphs.values, *table, graphs.edge_index, graphs.batch, *of_edges)
