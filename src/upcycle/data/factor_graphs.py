"""Graphs that hide several relations behind one kind of edge: the synthetic set of FactorGCN, ``factors:F``.

Yang, Feng, Song, Wang; arXiv:2010.05421. Made with networkx when it is asked for.
"""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.seeds import seed_of
from upcycle.core.task import MULTILABEL
from upcycle.data.graph_checks import Parts, of_parts
from upcycle.data.graphs import GraphSet
from upcycle.measure.factors import TRUTH

PREFIX = "factors:"
NODES = 15
SIZES = {"train": 4_000, "validation": 500, "test": 1_000}
KINDS = ("Turán", "house", "tree", "grid", "cube", "octahedron")
"""The relations, in the order in which ``factors:F`` takes the first F."""
LICENCE = "Apache-2.0"


def asked(reference: str) -> tuple[int, bool]:
    """Read ``factors:F`` or ``factors:F,binary``: the number of relations, and whether features are binary.

    Raises:
        UserError: it is neither, or there are not so many relations.
    """
    found = re.fullmatch(r"(\d+)(,binary)?", reference.removeprefix(PREFIX))
    if found is None:
        raise UserError(
            f"'{reference}' should read factors:F, with the number of relations F, or factors:F,binary; for example "
            "factors:4."
        )
    F = int(found[1])
    require(2 <= F <= len(KINDS), f"factors:F has 2 to {len(KINDS)} relations, not {F}.")
    return F, found[2] is not None


def load_factors(reference: str, seed: int = 0) -> GraphSet:
    """Make the set: 4,000 graphs to train on, 500 to validate and 1,000 to test, each of 15 nodes.

    A graph takes ⌈F/2⌉ of the first F of these, drawn without replacement, each on nodes of its own choice, all
    orders equally likely: the Turán graph of 5 nodes in 2 parts (K_{2,3}), a house with both diagonals, a balanced tree
    (13 nodes, 3 branches, height 2), a grid of 3 x 3, a cube, an octahedron. The graph is their union, its labels say
    which are in it, and the features of a node are its row of the sum of their adjacency matrices, 15 numbers.

    Where relations overlap that sum is above 1, so the features tell how many are on an edge, as in the authors' code;
    ``,binary`` takes the union's row in their place. ``columns`` has the graph of each relation, all false where a
    graph has not got it.

    Args:
        reference: ``factors:F`` or ``factors:F,binary``.
        seed: of all draws; another seed gives another set.

    Raises:
        UserError: see :func:`asked`.
    """
    F, binary = asked(reference)
    n = sum(SIZES.values())
    chance = torch.Generator().manual_seed(seed_of("factors", F, seed))
    kinds = torch.rand(n, F, generator=chance).argsort(1)[:, : (F + 1) // 2]
    order = torch.rand(n, kinds.shape[1], NODES, generator=chance).argsort(2)
    placed = relations()[kinds[:, :, None, None], order[:, :, :, None], order[:, :, None, :]]
    truth = torch.zeros(n, F, NODES, NODES, dtype=torch.bool)
    truth[torch.arange(n)[:, None], kinds] = placed
    union = placed.any(1)
    where = union.nonzero()
    x = (union if binary else placed.sum(1)).float().reshape(-1, NODES)
    parts = Parts(x=x, edge_index=where[:, 1:].T, sizes=torch.full((n,), NODES), edges=union.sum((1, 2)))
    labels = torch.zeros(n, F).scatter_(1, kinds, 1.0)
    split = dict(zip(SIZES, torch.arange(n).split([*SIZES.values()]), strict=True))
    name = reference if not seed else f"{reference} (set {seed})"
    notes = [f"The graphs of {name} are made by us, with seed {seed}: {', '.join(KINDS[:F])} on nodes drawn at random."]
    graphs = of_parts(name, parts)
    return GraphSet.of_graphs(
        name,
        graphs,
        labels,
        KINDS[:F],
        split,
        licence=LICENCE,
        notes=notes,
        task=MULTILABEL,
        columns={TRUTH: truth},
    )


@cache
def relations() -> Tensor:
    """The adjacency matrices of all relations, bool (6, 15, 15), on their first nodes."""
    import networkx as nx

    made = (
        nx.turan_graph(5, 2),
        nx.house_x_graph(),
        nx.balanced_tree(3, 2),
        nx.grid_2d_graph(3, 3),
        nx.hypercube_graph(3),
        nx.octahedral_graph(),
    )
    found = torch.zeros(len(made), NODES, NODES, dtype=torch.bool)
    for matrix, graph in zip(found, made, strict=True):
        size = graph.number_of_nodes()
        matrix[:size, :size] = torch.from_numpy(nx.to_numpy_array(graph)) > 0
    return found
