"""Candidates of DeRy judged a second: from tables of blocks, and by building each network and counting it.

Ten networks of the zoo for 32 x 32 images, untrained, since costs do not ask for weights. Each is cut into K = 4 blocks
of equal length, block k of each belongs to set k, and the values are random. A candidate is judged when its score,
parameters and multiply-adds are known. The other side instantiates the stitched network and counts it by a forward,
as the authors' code does for each candidate; ours must give the same two numbers. The tables are timed too, and
the exact search, which judges all networks of the space at once, most of them through bounds.
Run from the repository: ``python -m benchmarks.dery_search``.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from benchmarks.common import alternate, record
from upcycle.assembly.reassembly.partition import partition
from upcycle.assembly.reassembly.search import Candidate, Search
from upcycle.assembly.reassembly.zoo import block_table, used_chains
from upcycle.core.references import resolve
from upcycle.measure.cost import Budget, count
from upcycle.surgery.blocks import Chain, chain
from upcycle.surgery.stitch import plan, stitched

ZOO = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet20_projection", "vgg", "mobilenetv2",
       "densenet", "vit")  # fmt: skip
K, CLASSES, BEST, BUILT, TABLED, REPETITIONS, SEED = 4, 10, 50, 20, 2000, 5, 0


def tables(chains: list[Chain]) -> tuple[Search, list[tuple[int, int, int]]]:
    """The search over equal blocks with random values, and (network, first node, last node) of each block."""
    lengths = [len(c) for c in chains]
    depth = np.concatenate([(np.arange(n) + 1) / n for n in lengths])
    made = partition(-np.abs(depth[:, None] - depth), lengths, K, eps=0, runs=1, stage_rule=True)
    choices, blocks = block_table(chains, made)
    values = np.random.default_rng(SEED).random((len(blocks) + 1, len(blocks)))
    return Search(blocks, values[0], values[1:], input_size=chains[0].model.input_shape[1:], classes=CLASSES), choices


def main() -> None:
    torch.set_num_threads(2)
    chains = [chain(resolve(f"zoo:{name}", pretrained=False)) for name in ZOO]
    start = time.perf_counter()
    search, choices = tables(chains)
    everything = search.sample(search.count, SEED)
    filled = time.perf_counter() - start
    budget = Budget(params=float(np.median([c.params for c in everything])),
                    macs=float(np.median([c.macs for c in everything])))  # fmt: skip
    some, few = search.sample(TABLED, SEED), search.sample(BUILT, SEED)

    def built(candidate: Candidate) -> tuple[int, int]:
        own, blocks = used_chains(chains, [choices[i] for i in candidate.blocks])
        cost = count(stitched(plan(own, blocks, CLASSES), own), chains[0].model.input_shape)
        return cost.parameters, cost.macs

    for c in few:
        if built(c) != (c.params, c.macs):
            sys.exit(f"Tables say {c.params}, {c.macs} for {c.blocks} and counting says {built(c)}.")
    times = alternate({
        "upcycle, one by one from tables": lambda: [search.judge(c.blocks) for c in some],
        f"upcycle, exact search for the {BEST} best": lambda: search.best(BEST, budget),
        "each network built and counted": lambda: [built(c) for c in few],
    }, REPETITIONS)  # fmt: skip
    candidates = dict(zip(times, (len(some), search.count, len(few)), strict=True))
    rates = {name: candidates[name] / min(seconds) for name, seconds in times.items()}
    *_, peer = rates.values()
    print(f"{'':44}{'candidates/s':>14}{'times':>10}")
    for name, rate in rates.items():
        print(f"{name:44}{rate:14,.0f}{rate / peer:10,.0f}")
    print(f"{search.count:,} networks; tables filled in {filled:.2f} s")
    figures = {
        name: {
            "candidates_per_second": round(rates[name], 1),
            "times_built_and_counted": round(rates[name] / peer, 1),
            "seconds": [round(s, 5) for s in times[name]],
        }
        for name in times
    }
    path = record("dery_search", figures | {"space": search.count, "tables_seconds": round(filled, 3)}, zoo=list(ZOO),
                  blocks=K, repetitions=REPETITIONS, threads=torch.get_num_threads(),
                  statistic="minimum")  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
