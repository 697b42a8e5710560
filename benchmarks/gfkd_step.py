"""An iteration of GFKD: messages through dense blocks against PyTorch Geometric's layers over lists of edges.

131 graphs of 10 to 29 nodes with 7 features, teacher GCN-5-64 (MUTAG's setting): a step of features, forwards and
backwards, and two forwards for edges, with both steps of Adam. The blocks become a list of edges for the layers, as
for any other teacher. Each figure is the minimum of many rounds, in which both take turns, on one thread. Run from
the repository: ``python -m benchmarks.gfkd_step``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import alternate, record
from upcycle.core.graphs import GraphTakes
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.distillation.graph_free.answers import Answers
from upcycle.distillation.graph_free.blocks import Places
from upcycle.distillation.graph_free.structure import Made, one_hot_entropy, structure_gradient

GRAPHS, SIZES, FEATURES, ROUNDS = 131, (10, 29), 7, 12
GATE = 0.4
"""The share of the time over lists of edges that dense blocks may take."""


def iteration(answers: Answers) -> Callable[[], Any]:
    """One step of features and one of edges, on graphs of its own."""
    chance = torch.Generator().manual_seed(0)
    sizes = torch.randint(SIZES[0], SIZES[1] + 1, (GRAPHS,), generator=chance)
    places, y = Places(sizes), torch.arange(GRAPHS) % 2
    made = Made(places, FEATURES, "one_hot", symmetric=False, random=chance)
    features = torch.optim.Adam([made.V], 0.01, fused=True)
    structure = torch.optim.Adam([made.phi], 1.0, fused=True)

    def step() -> None:
        A = made.structure()
        X = made.features(A)
        z, L_bn = answers(A, X, places)
        L = F.cross_entropy(z, y) + 0.01 * L_bn + 1e-6 * one_hot_entropy(X)
        made.keep(L, A, X)
        L.backward()
        features.step()
        features.zero_grad()
        u, f = made.draw(chance), []
        with torch.no_grad():
            for A in made.samples(u):
                z, L_bn = answers(A, made.features(A), places)
                f.append(F.cross_entropy(z, y, reduction="none") + 0.01 * L_bn)
        made.phi.grad = structure_gradient(*f, u) * places.pairs
        structure.step()

    return step


def main() -> None:
    """Time both, and write the record."""
    torch.set_num_threads(1)
    teacher = resolve("zoo:gcn_5_64", pretrained=False, num_classes=2, takes=GraphTakes(FEATURES, 0, SIZES))
    dense, edges = (Answers(Run(None, quiet=True), teacher) for _ in range(2))
    edges.over_edges()
    times = alternate({"dense blocks": iteration(dense), "lists of edges": iteration(edges)}, ROUNDS)
    best = {name: min(seconds) for name, seconds in times.items()}
    share = best["dense blocks"] / best["lists of edges"]
    figures = {
        "milliseconds": {name: round(1e3 * value, 1) for name, value in best.items()},
        "share of the time": round(share, 3),
        "gate held": share <= GATE,
    }
    file = record("gfkd_step", figures, graphs=GRAPHS, nodes="10 to 29", teacher="gcn_5_64", rounds=ROUNDS, threads=1)
    print(figures, file)
    if share > GATE:
        raise SystemExit(f"dense blocks take {share:.2f} of the time over lists of edges, and {GATE} is allowed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
