"""Shortest paths of up to three nodes: on Cora, and on a random graph of 20,000 nodes of PubMed's degree.

Cora's costs are those of a GAT with fresh weights. The random graph has 45,000 edges, each both ways, whose ends are
drawn with weights that fall as a power, so that there are hubs as in PubMed; its attention is a softmax of normal
numbers over each node's edges. Peaks of memory are those of processes of their own, all imports included. Run from the
repository: ``python -m benchmarks.graph_paths``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import record

NODES, EDGES, REPETITIONS = 20_000, 45_000, 3
CORA, LARGE, GIB = 1.5, 20.0, 1.0
"""Seconds on Cora and on the random graph that are aimed at, and the memory of the random one that is allowed."""

START = "import resource, time, torch; torch.set_num_threads(1)\n"
IMPORTS = "from upcycle.distillation.paths.shortest import costs_of, shortest_paths\n"
OF_CORA = """
from upcycle.core.references import resolve
from upcycle.data.graph_sources import load_graphs
from upcycle.distillation.paths.attention import first_attention
data = load_graphs("cora")
torch.manual_seed(0)
model = resolve("zoo:gat", pretrained=False, num_classes=7, takes=data.takes)
graph = data.train.batch(torch.arange(1), device=torch.device("cpu")).inputs
start = time.perf_counter()
edges, attention = first_attention(model, graph)
n, depth_limit = len(graph.batch), False
"""
OF_RANDOM = """
n, m, depth_limit = {nodes}, {edges}, {depth_limit}
chance = torch.Generator().manual_seed(0)
weight = torch.arange(1, n + 1).double() ** -0.6
ends = torch.multinomial(weight, 2 * m, replacement=True, generator=chance).view(2, m)
ends = torch.randperm(n, generator=chance)[ends]
edges = torch.cat([ends, ends.flip(0)], 1)
score = torch.randn(2 * m, generator=chance).double().exp()
attention = score / torch.zeros(n).double().index_add(0, edges[1], score)[edges[1]]
start = time.perf_counter()
"""
END = """
pairs, triples = shortest_paths(costs_of(edges, attention, n), 1.0, depth_limit)
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, pairs.shape[1], triples.shape[1])
"""


def measured(text: str) -> dict[str, Any]:
    """The least time and the least peak of some processes that run ``text``."""
    found = []
    for _ in range(REPETITIONS):
        whole = START + IMPORTS + text + END
        done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
        found.append([float(word) for word in done.stdout.split()])
    return {
        "seconds": round(min(s for s, *_ in found), 3),
        "peak_gib_with_imports": round(min(m for _, m, *_ in found), 3),
        "paths_of_two_nodes": int(found[0][2]),
        "paths_of_three_nodes": int(found[0][3]),
    }


def main() -> None:
    """Time all, and write the record."""
    figures: dict[str, Any] = {}
    if (Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs").is_dir():
        figures["cora"] = measured(OF_CORA)
    else:
        print("Cora is left out: set UPCYCLE_DATA to the folder that has it.")
    for name, limit in (("random", False), ("random, depth limit", True)):
        figures[name] = measured(OF_RANDOM.format(nodes=NODES, edges=EDGES, depth_limit=limit))
    holds = {
        f"paths of {NODES:,} nodes within {GIB:g} GiB, imports included": (
            figures["random"]["peak_gib_with_imports"] <= GIB
        ),
        f"in {LARGE:g} s (reported)": figures["random"]["seconds"] <= LARGE,
    }
    if "cora" in figures:
        holds[f"Cora in {CORA:g} s, its attention included (reported)"] = figures["cora"]["seconds"] <= CORA
    for gate, fine in holds.items():
        print("holds" if fine else "does not hold", gate, sep=": ")
    file = record(
        "graph_paths", {**figures, "holds": holds}, nodes=NODES, edges=EDGES, repetitions=REPETITIONS, threads=1
    )
    print(figures, file)
    if not next(iter(holds.values())):
        raise SystemExit("the paths of the random graph take more memory than is allowed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
