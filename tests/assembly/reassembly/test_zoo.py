"""A zoo as tables: costs and scores are those of the networks that are built; real networks agree by depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.assembly.test_dery import tables
from tests.settings import tiny_data
from upcycle.assembly.reassembly.naswot import naswot
from upcycle.assembly.reassembly.partition import block_values, partition
from upcycle.assembly.reassembly.search import Search
from upcycle.assembly.reassembly.zoo import block_table, score_candidates, score_zoo, similarities, used_chains
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.cost import Budget, count
from upcycle.surgery.blocks import chain, node_features
from upcycle.surgery.stitch import plan, stitched


def test_candidates_keep_the_rules_and_cost_what_the_tables_say() -> None:
    chains, s, made = tables()
    choices, table = block_table(chains, made)
    search = Search(table, *block_values(s, [len(c) for c in chains], made), input_size=(8, 8), classes=10)
    for candidate in search.sample(12, seed=1, budget=Budget(params=120_000)):
        picked = [table[i] for i in candidate.blocks]
        assert [b.stage for b in picked] == [0, 1, 2]
        assert {b.equivalence for b in picked} == {0, 1, 2}
        own, blocks = used_chains(chains, [choices[i] for i in candidate.blocks])
        cost = count(stitched(plan(own, blocks, 10), own), (1, 8, 8))
        assert (cost.parameters, cost.macs) == (candidate.params, candidate.macs)
        assert cost.parameters <= 120_000


def test_scores_are_those_of_the_networks_that_are_built() -> None:
    chains, _, made = tables()
    choices, _ = block_table(chains, made)
    candidates = [
        [choices[i], choices[j], choices[k]] for i, j, k in [(0, 1, 2), (0, 4, 8), (0, 4, 2), (3, 1, 8), (6, 7, 2)]
    ]
    split = tiny_data().train
    found = score_candidates(chains, candidates, 10, split, 5, 2)
    for blocks, score in zip(candidates, found, strict=True):
        own, choice = used_chains(chains, blocks)
        network = stitched(plan(own, choice, 10), own, 5)
        data = split.normalised(own[0].model.mean, own[0].model.std)
        batches = [data.batch(index, device=torch.device("cpu")).images for index in torch.arange(64).split(32)]
        assert score == pytest.approx(naswot(network, batches), rel=1e-9)


def test_real_networks_agree_where_they_are_equally_deep(cifar10: Path) -> None:
    """Of ResNet-20 and ResNet-32, trained apart: CKA at equal depth is well above that of distant nodes."""
    chains = [chain(resolve(f"zoo:cifar10_resnet{depth}")) for depth in (20, 32)]
    images = load("cifar10").train.subset(torch.arange(192))
    s = similarities(chains, images, "debiased")
    between = s[:10, 10:]
    a, b = torch.arange(10)[:, None] / 9, torch.arange(16)[None] / 15
    near, far = between[(a - b).abs() < 0.06].mean(), between[(a - b).abs() > 1 / 3].mean()
    assert near - far > 0.15
    made = partition(s, [10, 16], 3, 0.2, runs=20, seed=0)
    assert made.sets == ((0, 1, 2), (0, 1, 2))
    own, blocks = used_chains(chains, [(0, 0, 3), (1, 6, 10), (0, 7, 9)])
    network = stitched(plan(own, blocks, 10), own)
    assert isinstance(network.stitches[0], nn.Module) and len(list(node_features(chains[0], images))) == 1
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_zoo_is_scored_in_each_networks_own_normalisation() -> None:
    chains, _, _ = tables()
    split = tiny_data().train
    for own, score in zip(chains, score_zoo(chains, split, 2), strict=True):
        data = split.normalised(own.model.mean, own.model.std)
        batches = [data.batch(index, device=torch.device("cpu")).images for index in torch.arange(64).split(32)]
        assert score == naswot(own.root, batches)
