"""Descriptions of the graphs that a network takes, and a wrapper that calls any network over graphs."""

from __future__ import annotations

import copy
import inspect
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.graph_inputs import Graphs, sorted_by_target, table
from upcycle.core.outputs import Around, called
from upcycle.core.undisturbed import undisturbed

Level = Literal["graph", "node"]


@dataclass(frozen=True)
class GraphTakes:
    """A description of the graphs that a network takes.

    Args:
        features: of a node.
        edges: features of an edge; 0 for none.
        nodes: the fewest and the most nodes of a graph, which examples are made by.
        level: ``graph``: an answer for each graph, ``node``: for each node that is asked for.
    """

    features: int
    edges: int = 0
    nodes: tuple[int, int] = (4, 30)
    level: Level = "graph"

    kind: ClassVar[str] = "graphs"
    LARGEST: ClassVar[int] = 64  # nodes of an example, however large the graphs of the data are

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))

    @property
    def noun(self) -> str:
        """The name of its samples: graphs, or the nodes of one."""
        return "nodes" if self.level == "node" else "graphs"

    def check(self) -> None:
        """Raise :class:`UserError` where the description itself is wrong."""
        whole = all(isinstance(n, int) for n in (self.features, self.edges, *self.nodes))
        require(
            whole and self.features >= 1 and self.edges >= 0,
            f"Graphs have 1 or more features a node and 0 or more an edge, not {self.features} and {self.edges}.",
        )
        require(
            len(self.nodes) == 2 and 1 <= self.nodes[0] <= self.nodes[1],
            f"nodes must be the fewest and the most nodes of a graph, not {self.nodes}.",
        )
        require(self.level in ("graph", "node"), f"level must be graph or node, not '{self.level}'.")

    def example(self, n: int) -> Graphs:
        """Fixed pseudo-random graphs with ``n`` answers to give, the first node of which has no edge.

        Each graph is a path with as many chords; at node level there is one graph, whose first ``n`` nodes are asked
        for.
        """
        chance = torch.Generator().manual_seed(0)
        low, high = self.nodes[0], max(self.nodes[0], min(self.nodes[1], self.LARGEST))
        if self.level == "node":
            sizes = [max(n, high)]
        else:
            drawn = torch.randint(low, high + 1, (n,), generator=chance).tolist()
            sizes = [(low + high) // 2, *drawn[1:]][:n]
        edges, before = [], 0
        for i, size in enumerate(sizes):
            first = 1 if i == 0 else 0  # the first node of all stays alone
            path = torch.arange(first, size)
            chords = torch.randint(first, size, (2, size), generator=chance) if size > first else path.new_empty(2, 0)
            there = torch.cat([torch.stack([path[:-1], path[1:]]), chords[:, chords[0] != chords[1]]], 1)
            edges.append(torch.cat([there, there.flip(0)], 1).unique(dim=1) + before)
            before += size
        x = torch.rand(before, self.features, generator=chance)
        edge_index = torch.cat(edges, 1) if edges else torch.empty(2, 0, dtype=torch.long)
        edge_attr = torch.rand(edge_index.shape[1], self.edges, generator=chance) if self.edges else None
        edge_index, edge_attr = sorted_by_target(edge_index, edge_attr)
        if self.level == "node":
            batch = torch.zeros(before, dtype=torch.long)
            return Graphs(x, edge_index, batch, n=1, edge_attr=edge_attr, at=torch.arange(n))
        batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
        return Graphs(x, edge_index, batch, n=len(sizes), edge_attr=edge_attr)

    def adapted(self, module: nn.Module) -> nn.Module:
        """A network that takes :class:`Graphs`: ``module`` itself where it does, else in :class:`OnGraphs`.

        Raises:
            UserError: naming what its forward asks for that graphs do not have.
        """
        return adapted(module, self.example(3))

    def problems(self, data: Any) -> list[str]:
        """The reasons why data do not fit, in words that end a sentence about a network.

        Args:
            data: what they are described as, of any kind.
        """
        if data.kind != self.kind:
            return [f"it takes {self}, and not {data}"]
        found = []
        if data.features != self.features:
            found.append(f"it takes {_count(self.features, 'feature')} a node, and the data have {data.features}")
        if self.edges and data.edges != self.edges:
            found.append(f"it takes {_count(self.edges, 'feature')} an edge, and the data have {data.edges or 'none'}")
        if data.level != self.level:
            words = {"graph": "whole graphs", "node": "single nodes"}
            found.append(f"it answers about {words[self.level]}, and the data have labels of {words[data.level]}")
        return found

    def plain(self) -> dict[str, Any]:
        """Plain data that ``GraphTakes(**plain)`` takes."""
        return {**asdict(self), "nodes": list(self.nodes)}

    def __str__(self) -> str:
        edges = f" and {self.edges} an edge" if self.edges else ""
        of = "nodes of a graph" if self.level == "node" else "graphs"
        return f"{of} with {_count(self.features, 'feature')} a node{edges}"


# -- how a network is called ------------------------------------------------------------------------------------------


class OnGraphs(Around):
    """Any network over graphs, called by the names of its forward's parameters.

    These may be ``x``, ``edge_index``, ``edge_attr``, ``edge_weight``, ``batch`` and ``batch_size`` (the number of
    graphs), as in PyTorch Geometric, or one ``data``, which gets a ``Data``. Others must have defaults. What the
    network answers has a row for each graph, or for each node, of which those that are asked for are taken; a ``batch``
    among the parameters does not tell which, since networks that answer about nodes take it too.

    Args:
        network: answers with logits, or with a tuple or an object whose first part or ``logits`` they are.

    Attributes:
        dense: the network cannot take sparse features, and gets them as a table.

    Raises:
        UserError: naming parameters of its forward that are neither known nor optional.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        parameters = [p for p in _parameters(network) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        required = [p.name for p in parameters if p.default is p.empty]
        self.data = required == ["data"]
        self.dense = False
        if self.data:
            self.names: tuple[str, ...] = ()
            return
        if strange := [f"'{name}'" for name in required if name not in _PARTS]:
            raise UserError(
                f"The forward of {called(network)} asks for {' and '.join(strange)}; a network over graphs is "
                f"called with {', '.join(_PARTS)}, each by its name, or with one 'data'."
            )
        self.needed = tuple(required)
        self.names = tuple(p.name for p in parameters if p.name in _PARTS and _supports(network, p.name))
        require(
            "x" in self.names and "edge_index" in self.names,
            f"The forward of {called(network)} takes no 'x' and 'edge_index', so it is no network over graphs.",
        )

    def forward(self, graphs: Graphs) -> Tensor:  # type: ignore[override]  # no images
        """Logits (len(graphs), k)."""
        if self.dense or torch.is_autocast_enabled(graphs.device.type):  # there are no sparse products in bf16
            graphs = graphs.dense()
        if self.data:
            answer = self.network(graphs.data())
        else:
            answer = self.network(**self._arguments(graphs))
        return self._asked(_first(answer), graphs)

    def _arguments(self, graphs: Graphs) -> dict[str, Any]:
        known = {
            "x": graphs.x,
            "edge_index": graphs.edge_index,
            "batch": graphs.batch,
            "batch_size": graphs.n,
            "edge_attr": graphs.edge_attr,
            "edge_weight": _weights(graphs.edge_attr),
        }
        given = {name: known[name] for name in self.names if known[name] is not None}
        for name in self.needed:
            if name not in given:
                what = "one weight an edge" if name == "edge_weight" else "features of edges"
                raise UserError(f"{called(self.network)} needs {name}, and the graphs do not have {what}.")
        return given

    def _asked(self, answer: Any, graphs: Graphs) -> Any:
        """The rows of an answer that are asked for."""
        if not isinstance(answer, Tensor) or not answer.ndim:
            return answer  # whoever asked says what is wrong with it
        # Not len(), so that a program of torch.export takes any number of nodes.
        rows, nodes, wanted = answer.shape[0], graphs.x.shape[0], "node" if graphs.at is not None else "graph"
        if wanted == "node" and rows == nodes:
            return answer[graphs.at]
        if wanted == "graph" and rows == graphs.n:
            return answer
        name, k = called(self.network), graphs.n
        if wanted == "graph" and rows == nodes:
            raise UserError(
                f"{name} answers about each of {nodes} nodes, and labels are those of {_count(k, 'graph')}: it has to "
                "pool its nodes, by global_add_pool(x, batch) for example."
            )
        if wanted == "node" and rows == graphs.n:
            raise UserError(
                f"{name} answers about a graph as a whole, and labels are those of its nodes: it must not pool them."
            )
        about = f"{nodes} nodes" if wanted == "node" else _count(k, "graph")
        raise UserError(
            f"{name} gives {_count(rows, 'row')} for {about} ({_count(nodes, 'node')} in all); one for each is needed."
        )

    def extra_repr(self) -> str:
        return "data" if self.data else ", ".join(self.names)


_PARTS = ("x", "edge_index", "edge_attr", "edge_weight", "batch", "batch_size")


def adapted(module: nn.Module, graphs: Graphs) -> nn.Module:
    """A network that takes :class:`Graphs`: ``module`` itself where it does already.

    Args:
        module: any network over graphs.
        graphs: like those that it will be called with; features that may be sparse are those of nodes.

    Raises:
        UserError: see :class:`OnGraphs`.
    """
    if isinstance(module, OnGraphs) or takes_graphs(module):
        return module
    made = OnGraphs(module)
    if graphs.at is not None and not made.data:
        made.dense = not _takes_sparse(made, graphs)
    return made


def takes_graphs(module: nn.Module) -> bool:
    """Whether a network's forward takes :class:`Graphs` by itself: one parameter that is needed, called ``graphs``."""
    return [p.name for p in _parameters(module) if p.default is p.empty] == ["graphs"]


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(f"The forward of {called(module)} does not say what it takes ({one_line(error)}).") from error


def _supports(network: nn.Module, name: str) -> bool:
    """Whether a network can use a part that its forward names: PyG's models refuse what their layers do not take."""
    return bool(getattr(network, f"supports_{name}", True))


def _weights(edge_attr: Tensor | None) -> Tensor | None:
    """One weight an edge, (E,), where the edges have one feature."""
    return edge_attr[:, 0] if edge_attr is not None and edge_attr.ndim == 2 and edge_attr.shape[1] == 1 else None


def _first(answer: Any) -> Any:
    """The logits of an answer that has several parts."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, dict):
        return answer.get("logits", answer)
    if isinstance(answer, tuple | list) and answer:
        return answer[0]
    return getattr(answer, "logits", answer)


def _takes_sparse(made: OnGraphs, graphs: Graphs) -> bool:
    """Whether a network takes sparse features forwards and backwards in training; a copy of it is tried."""
    sparse = replace(graphs, x=table(graphs.x))
    try:
        trial = copy.deepcopy(made)
        like = next((p for p in trial.parameters() if p.is_floating_point()), sparse.values)
        with undisturbed(trial), torch.enable_grad():
            out = trial.train()(sparse.to(like))
            out.float().sum().backward()
    except UserError:
        raise
    except Exception:  # layers refuse them in many ways
        return False
    return True


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else noun + 's'}"
