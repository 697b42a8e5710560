"""SPAGAN: a network over the nodes of a graph that attends along shortest paths, which it takes from a trained GAT."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.graphs import Graphs
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, source_of
from upcycle.core.outputs import own
from upcycle.core.patterns import Values
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.paths.attention import first_attention
from upcycle.distillation.paths.pictures import picture, walks_of
from upcycle.distillation.paths.shortest import costs_of, shortest_paths
from upcycle.surgery.one_graph import REFERENCE, OnOneGraph, same_graph
from upcycle.training.patience import Patience

if TYPE_CHECKING:
    from upcycle.data.graphs import GraphSet

LARGEST = 200_000
"""Nodes up to which distances between all of them are looked at."""
EXPLAINED = 12
"""So many nodes are drawn at most."""
NOT_BEATEN = (
    "On Cora a GAT of the same size is not beaten (upcycle prove spagan): take spagan to see which far nodes decide, "
    "and not for accuracy."
)


@dataclass(kw_only=True, eq=False, repr=False)
class SPAGAN(Method):
    """SPAGAN: Shortest Path Graph Attention Network (Yang, Wang, Song, Yuan, Tao; IJCAI 2019; arXiv:2101.03464).

    1. ā_ij is the attention of the teacher's first layer, the mean over its heads, of centre i on its neighbour j.
    2. The edge from i to j costs w_ij = 1 - ā_ij / max ā. P_2(i) are the nodes whose shortest path from i is the edge
       to them, and P_3(i) those whose shortest path has one node between; of P_3(i) the cheapest r |P_2(i)| are kept.
    3. The student attends along these paths (see :class:`upcycle.zoo.spagan.PathAttention`) and descends the
       cross-entropy of the labelled nodes, from weights of its own. Of the teacher nothing but the paths is used.

    So a node sees nodes that are two steps away within one layer, and the way to each. The product keeps the paths, and
    is for this graph alone.

    Paths are found once, as in the authors' code; the paper's further rounds, from the student's own attention, are not
    built.

    Departures: patience looks at nothing before ``patience_after``, where the authors' code counts from the
    start, when the loss on validation nodes is lower than on the plateau that follows; ties are broken by the
    numbers of nodes; logits have no ELU.

    Args:
        teacher: a trained network over this graph with an attention layer; only the attention of its first is used.
        student: a network that attends along paths, such as zoo:spagan.
        r: how many paths of three nodes a node may have for each of two; at 0 there are no long paths.
        depth_limit: let no path of four nodes and more beat a shorter one, which spares distances between all nodes.
        patience: epochs without a lower loss on validation nodes after which training ends, and the weights of the
            lowest come back; at 0 the last epoch counts.
        patience_after: the epoch from which on patience counts; where there are fewer, the last one counts.
        explain_nodes: numbers of nodes whose paths, and edges with attention, the report draws.
        recipe: training of the student.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    r: float = 0.5
    depth_limit: bool = False
    patience: int = 50
    patience_after: int = 500
    explain_nodes: tuple[int, ...] = ()
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=1000, batch_size=0, optimizer="adam", lr=0.005, schedule="constant")
    )

    card = Card(
        name="spagan",
        title="SPAGAN: Shortest Path Graph Attention Network",
        paper="Yang, Wang, Song, Yuan, Tao; IJCAI 2019; arXiv:2101.03464",
        verb="distill",
        needs=Needs(
            data="labelled",
            teacher="features",
            architectures="a network with attention over edges, and zoo:spagan as its student",
            inputs=("graphs",),
        ),
        summary="A network over a graph's nodes that attends along shortest paths, and says which far nodes decide.",
        cost="student training, and the shortest paths once",
        published="Cora: GAT 83.0 ± 0.7, SPAGAN 83.6 ± 0.5 (from memory, unchecked)",
    )

    admits = frozenset({"sharpness", "dropping"})
    refuses = {"any": "all nodes are one batch"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To see which far nodes decide."""
        if have.goal != "explain":
            return None
        reason = (
            "for the nodes of a graph: paths of two and three nodes with their weights, found by the attention of a "
            "trained GAT. A GAT of the same size is not beaten."
        )
        return Fit(10, reason, "--explain_nodes 17,42")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("r", "patience", "patience_after", "explain_nodes"))
        self.explain_nodes = tuple(self.explain_nodes)
        number = len(self.explain_nodes)
        require(number <= EXPLAINED, f"explain_nodes can draw {EXPLAINED} nodes, and these are {number}.")

    def check(self, data: GraphSet) -> list[str]:
        """One graph with labels of nodes, attention to take costs from, and a student that takes paths."""
        student = self.model("student", data)
        problems = []
        if data.takes.level != "node":
            return ["it is about the nodes of one graph, and the data have labels of whole graphs"]
        if not _takes_paths(student.module):
            problems.append(f"{student.name} does not attend along paths; take zoo:spagan as the student")
        graph, nodes = _graph_of(data), _nodes_of(data)
        if nodes > LARGEST and not self.depth_limit:
            problems.append(
                f"the graph has {nodes:,} nodes, and paths that any longer way may beat take {nodes**2:,} distances "
                f"({8 * nodes**2 / 2**30:,.0f} GiB in all); give --depth_limit, which takes memory for the ways of two "
                "steps alone"
            )
        for name, split in (("validation", data.validation), ("test", data.test)):
            if len(split) and not same_graph(split.graph, nodes, graph.edge_index):  # type: ignore[union-attr]
                problems.append(f"the {name} nodes are those of another graph, and paths are through one graph alone")
        if self.patience and not data.validation.labelled:
            problems.append("patience looks at validation nodes, and none has a label; give --patience 0")
        if unknown := [node for node in self.explain_nodes if node >= nodes]:
            problems.append(f"explain_nodes names node {unknown[0]}, and the graph has the nodes 0 to {nodes - 1}")
        return problems or self._attention_problems(data)

    def _attention_problems(self, data: GraphSet) -> list[str]:
        """List why the teacher gives no attention, in words."""
        try:
            first_attention(self.model("teacher", data), _graph_of(data))
        except UserError as error:
            return [str(error).rstrip(".?")]
        return []

    def controls(self) -> dict[str, Control]:
        """The same student without long paths."""
        if not self.r:
            return {}
        return {"no long paths": Control(method=replace(self, r=0.0, explain_nodes=()), words="without long paths")}

    def fit(self, run: Run, data: GraphSet) -> nn.Module:
        """The algorithm; returns the student with its paths."""
        run.note(NOT_BEATEN)
        graph, n = _graph_of(data), _nodes_of(data)
        kept = {c: Values((c, None), low=0, high=n - 1, whole=True) for c in (2, 3)}
        paths = run.stage("paths", partial(self._paths, data), (kept[2], kept[3]))
        student = OnOneGraph(self.model("student", data).module, n, graph.edge_index, paths)
        student, optimizer = run.setup(student, self.recipe)
        patience = Patience(student.network, self.patience, self.patience_after)
        run.register("patience", patience)
        for epoch in run.epochs(self.recipe.epochs):
            if patience.over:
                continue
            student.train()
            for graphs, labels, _ in run.batches(data.train, self.recipe):
                run.step(ce_loss(student(graphs), labels), optimizer, self.recipe)
            found = run.evaluate(student, data.validation)
            patience.see(epoch, found.figures["loss"] if found is not None else 0.0)
        patience.restore()
        made = run.plain(student)
        if self.explain_nodes and run.rank == 0:
            self._draw(run, data, made)
        return made

    def _paths(self, data: GraphSet) -> tuple[Tensor, Tensor]:
        """P_2 and P_3 of all nodes."""
        edge_index, attention = first_attention(self.model("teacher", data), _graph_of(data))
        w = costs_of(edge_index, attention, _nodes_of(data))
        return shortest_paths(w, self.r, self.depth_limit)

    def product(self, module: nn.Module, data: GraphSet) -> Model:
        """The student with the paths kept in it, which is for this graph alone."""
        made, source = super().product(module, data), source_of(self.model("student", data))
        if source is None:
            return made
        assert isinstance(module, OnOneGraph)
        sizes = [list(p.shape) for p in module.paths]
        options = {"source": source, "nodes": module.nodes, "edges": module.edge_index.shape[1], "paths": sizes}
        return replace(made, reference=REFERENCE, options=options)

    def _draw(self, run: Run, data: GraphSet, student: Any) -> None:
        """Leave the paths and the edges of chosen nodes with their weights."""
        graph = _graph_of(data).to(run.dtype)
        with torch.no_grad():
            decided = student(replace(graph, at=torch.arange(_nodes_of(data)))).argmax(1)
            attended = own(student.network).attended(graph, student.paths)  # type: ignore[operator]
        edge_index, attention = first_attention(self.model("teacher", data), _graph_of(data))
        far, near = {}, {}
        for node in self.explain_nodes:
            far[node] = [walk for p, weight in attended for walk in walks_of(node, p, weight)]
            near[node] = walks_of(node, edge_index.flip(0), attention)
        run.picture("paths", picture("Paths with their weights", PATHS, far, decided, data.classes))
        run.picture("edges", picture("Edges with their attention", EDGES, near, decided, data.classes))


PATHS = (
    "The paths that each node attends along in the first layer, the mean over heads; all of a node sum to 100 %. The "
    "tone of a node is the class that is decided for it."
)
EDGES = "The attention of the teacher's first layer on the edges of the same nodes, the mean over heads."


def _takes_paths(module: nn.Module) -> bool:
    """Whether a network attends along paths that it is given, and says with what weights."""
    network = own(module)
    return "paths" in inspect.signature(network.forward).parameters and hasattr(network, "attended")


def _graph_of(data: GraphSet) -> Graphs:
    """The graph that the nodes are of."""
    return data.train.batch(torch.arange(len(data.train)), device=torch.device("cpu")).inputs


def _nodes_of(data: GraphSet) -> int:
    return len(_graph_of(data).batch)
