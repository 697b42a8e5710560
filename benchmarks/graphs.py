"""Graphs against PyTorch Geometric, side by side in one run: collating, a step of GAT on Cora, and the graph of Credit.

- Collating 131 graphs of MUTAG: a batch of a split, against ``Batch.from_data_list`` of the same graphs.
- A training step of GAT (8 heads of 8, dropout 0.6, Adam) on Cora: a batch of a split, whose features are sparse,
  against a loop as PyG's examples have it, on the dense table that its reader gives. And ours on that table too.
- The edges of Credit, by the rule of the papers: seconds, and the peak memory of a process that does nothing else.

Each figure is the minimum of many rounds, in which all functions take turns. Run from the repository:
``python -m benchmarks.graphs``. The record also holds whether each gate held.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.graph_inputs import Graphs
from upcycle.core.graphs import GraphTakes
from upcycle.data import GraphSet, load
from upcycle.zoo import gnn

GRAPHS, COLLATIONS, STEPS = 131, 200, 30
COLLATING, SPARSE, DENSE, SECONDS = 5.0, 2.5, 1.1, 3.0
"""The gates: times as fast, times as fast, share of the time, seconds (reported)."""
CPU = torch.device("cpu")


class Plain(nn.Module):
    """GAT as PyG's example for Planetoid has it."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv

        self.conv1 = GATConv(features, 8, heads=8, dropout=0.6)
        self.conv2 = GATConv(64, classes, heads=1, concat=False, dropout=0.6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.elu(self.conv1(F.dropout(x, 0.6, self.training), edge_index))
        return self.conv2(F.dropout(x, 0.6, self.training), edge_index)


def collating() -> dict[str, Callable[[], Any]]:
    from torch_geometric.data import Batch, Data

    split = load("mutag").train
    union = split.union
    index = torch.randperm(union.n, generator=torch.Generator().manual_seed(0))[:GRAPHS]
    ones = [union[i : i + 1] for i in index.tolist()]
    peers = [Data(x=g.x, edge_index=g.edge_index, y=torch.tensor([0])) for g in ones]
    whole = type(split)(union=union, ids=torch.arange(union.n), labels=torch.zeros(union.n, dtype=torch.long))
    ours, theirs = whole.batch(index, device=CPU).inputs, Batch.from_data_list(peers)
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.edge_index, theirs.edge_index)
    return {
        "upcycle": lambda: whole.batch(index, device=CPU),
        "torch_geometric": lambda: Batch.from_data_list(peers),
    }


def steps() -> dict[str, Callable[[], Any]]:
    data: GraphSet = load("cora")
    sparse = data.train.batch(torch.arange(len(data.train)), device=CPU).inputs
    features, classes = data.takes.features, len(data.classes)

    def training(network: nn.Module, inputs: Callable[[], tuple[Any, ...]]) -> Callable[[], None]:
        network.train()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.005, weight_decay=5e-4)
        labels, mask = data.train.labels, data.train.ids

        def step() -> None:
            answer = network(*inputs())
            loss = F.cross_entropy(answer if len(answer) == len(labels) else answer[mask], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    def batch(dense: bool) -> tuple[Graphs]:
        graphs = data.train.batch(torch.arange(len(data.train)), device=CPU).inputs
        return (Graphs(table, graphs.edge_index, graphs.batch, n=1, at=graphs.at) if dense else graphs,)

    table = sparse.x.to_dense()
    takes = GraphTakes(features, level="node")
    own, dense = (takes.adapted(gnn.make("gat", features, classes, "node")) for _ in range(2))
    return {
        "upcycle, sparse": training(own, lambda: batch(dense=False)),
        "upcycle, dense": training(dense, lambda: batch(dense=True)),
        "torch_geometric, dense": training(Plain(features, classes), lambda: (table, sparse.edge_index)),
    }


CREDIT = """
import os, resource, time
from pathlib import Path
from upcycle.data.fair_tables import TABLES, _columns, similar
import numpy as np
known = TABLES["credit"]
columns = _columns(Path(os.environ["UPCYCLE_DATA"]) / "graphs" / "fair" / "credit.csv.gz")
table = np.stack([columns[c] for c in columns if c not in (known.label, *known.left_out)], 1)
start = time.perf_counter()
edges = similar(table, known.share)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, edges.shape[1] // 2)
"""


def credit(repetitions: int) -> dict[str, Any]:
    found = []
    for _ in range(repetitions):
        done = subprocess.run([sys.executable, "-c", CREDIT], capture_output=True, text=True, check=True)
        found.append([float(word) for word in done.stdout.split()])
    return {
        "seconds": round(min(s for s, _, _ in found), 3),
        "peak_gib_with_imports": round(min(m for _, m, _ in found), 3),
        "undirected_edges": int(found[0][2]),
    }


def main() -> None:
    if not (Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs").is_dir():
        sys.exit("Skipped: this benchmark needs graphs; set UPCYCLE_DATA to the folder that has them.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, Any] = {}
    for name, functions, rounds in (("collating", collating(), COLLATIONS), ("gat_step", steps(), STEPS)):
        best = {key: min(times) for key, times in alternate(functions, rounds).items()}
        figures[name] = {key: round(1000 * seconds, 3) for key, seconds in best.items()}
        print(name, {key: f"{1000 * seconds:.3f} ms" for key, seconds in best.items()})
    figures["credit"] = credit(3)
    print("credit", figures["credit"])
    of, step = figures["collating"], figures["gat_step"]
    peer = step["torch_geometric, dense"]
    figures["times_as_fast"] = {
        "collating": round(of["torch_geometric"] / of["upcycle"], 2),
        "gat_step": round(peer / step["upcycle, sparse"], 2),
        "gat_step_dense_share": round(step["upcycle, dense"] / peer, 2),
    }
    ratios = figures["times_as_fast"]
    figures["holds"] = {
        f"collating at least {COLLATING} times as fast": ratios["collating"] >= COLLATING,
        f"a step of GAT at least {SPARSE} times as fast": ratios["gat_step"] >= SPARSE,
        f"on dense features at most {DENSE} of its time": ratios["gat_step_dense_share"] <= DENSE,
        f"the graph of Credit in {SECONDS} s (reported)": figures["credit"]["seconds"] <= SECONDS,
    }
    for gate, holds in figures["holds"].items():
        print("holds" if holds else "does not hold", gate, sep=": ")
    path = record(
        "graphs",
        figures,
        graphs=GRAPHS,
        rounds={"collating": COLLATIONS, "gat_step": STEPS},
        threads=torch.get_num_threads(),
        statistic="minimum, milliseconds",
    )
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
