"""The cover set of blocks: every partition is one, J never falls, the optimum of small cases, known structure."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upcycle.assembly.reassembly.partition import (
    Ascent,
    Partition,
    _table,
    assembles,
    block_values,
    partition,
    size_limit,
)
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.similarity import similarity_map


def _similarity(total: int, seed: int = 0) -> np.ndarray:
    """A table such as CKA gives: symmetric, 1 on the diagonal, some values below 0."""
    x = np.random.default_rng(seed).normal(size=(total, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def _depth_similarity(lengths: tuple[int, ...]) -> np.ndarray:
    """Nodes are alike where their networks are equally far."""
    depth = np.concatenate([(np.arange(n) + 1) / n for n in lengths])
    return np.exp(-8 * np.abs(depth[:, None] - depth))


def _recomputed(similarity: np.ndarray, lengths: tuple[int, ...], made: Partition) -> list[list[float]]:
    """S of each block with its anchor, from the definition."""
    start = np.cumsum([0, *lengths])

    def s(i: int, a: int, j: int, b: int) -> float:
        """Between the outputs of nodes a - 1 and b - 1 of two networks; 0 is the image."""
        if (i, a) == (j, b) or a == b == 0:
            return 1.0
        if a == 0 or b == 0:
            return 0.0
        return float(np.clip(similarity[start[i] + a - 1, start[j] + b - 1], 0, 1))

    return [
        [
            s(i, cuts[k], (anchor := made.anchors[sets[k]])[0], anchor[1]) + s(i, cuts[k + 1], anchor[0], anchor[2])
            for k in range(len(sets))
        ]
        for i, (cuts, sets) in enumerate(zip(made.cuts, made.sets, strict=True))
    ]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    K=st.integers(1, 5),
    eps=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    stage_rule=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_partition_covers_each_network_in_order_within_the_limit(
    lengths: tuple[int, ...], K: int, eps: float, stage_rule: bool, seed: int
) -> None:
    lengths = tuple(max(n, K) for n in lengths)
    similarity = _similarity(sum(lengths), seed)
    made = partition(similarity, lengths, K, eps, runs=5, seed=seed, stage_rule=stage_rule)
    for n, cuts, sets in zip(lengths, made.cuts, made.sets, strict=True):
        assert cuts[0] == 0 and cuts[-1] == n and len(cuts) == K + 1
        assert all(0 < b - a <= size_limit(n, K, eps) for a, b in itertools.pairwise(cuts))
        assert len(sets) == K
        assert not stage_rule or sets == tuple(range(K))
    assert {c for sets in made.sets for c in sets} == set(range(K))
    assert all(0 <= a < b <= lengths[i] for i, a, b in made.anchors)
    np.testing.assert_allclose(made.fit, _recomputed(similarity, lengths, made), atol=1e-12)
    assert made.score == pytest.approx(sum(map(sum, made.fit)))


@pytest.mark.parametrize("stage_rule", [False, True])
def test_no_step_lowers_j(stage_rule: bool) -> None:
    lengths = (9, 15, 21, 27, 6)
    random = np.random.default_rng(1)
    ascent = Ascent(*_table(_similarity(sum(lengths)), lengths), lengths, 4, 0.2, 100, stage_rule, random)
    scores = [ascent.score()]
    for _ in range(15):
        for step in (ascent.repartition, ascent.reanchor, ascent.reassign):
            step()
            scores.append(ascent.score())
            assert (scores[-1] >= scores[-2] - 1e-9).all(), step
    assert scores[-1].mean() > scores[0].mean() + 1
    np.testing.assert_array_equal(scores[-1], scores[-4])


@pytest.mark.parametrize("seed", range(6))
def test_reaches_the_optimum_of_small_cases(seed: int) -> None:
    """At least the best with anchors among the blocks, as starts are; at most the best with any anchors."""
    lengths, K = (3, 4), 2
    similarity = _similarity(7, seed)
    best = {"blocks": 0.0, "any": 0.0}
    for one, two in itertools.product(range(1, 3), range(1, 4)):
        cuts = ((0, one, 3), (0, two, 4))
        blocks = {(i, *pair) for i, ends in enumerate(cuts) for pair in itertools.pairwise(ends)}
        runs = [(i, a, b) for i, n in enumerate(lengths) for a, b in itertools.combinations(range(n + 1), 2)]
        for anchors in itertools.combinations(runs, K):
            made = [Partition(cuts=cuts, sets=((c, c),) * 2, anchors=anchors, fit=(), history=()) for c in range(K)]
            fits = np.array([_recomputed(similarity, lengths, m) for m in made])
            if assembles(fits.argmax(0)):
                kind = "blocks" if blocks.issuperset(anchors) else "any"
                best[kind] = max(best[kind], fits.max(0).sum())
    score = partition(similarity, lengths, K, eps=1.0, runs=400).score
    assert best["blocks"] - 1e-9 <= score <= max(best.values()) + 1e-9


def test_networks_that_agree_by_depth_are_cut_at_like_depth() -> None:
    lengths = (9, 18, 27)
    made = partition(_depth_similarity(lengths), lengths, 3, runs=50)
    assert made.sets == ((0, 1, 2),) * 3
    assert made.cuts == ((0, 3, 6, 9), (0, 6, 12, 18), (0, 9, 18, 27))
    assert made.score == pytest.approx(2 * 9)


def test_one_network_twice_gives_the_same_blocks_in_pairs() -> None:
    once = _similarity(12, 5)
    made = partition(np.tile(once, (2, 2)), (12, 12), 4, runs=50)
    assert made.cuts[0] == made.cuts[1]
    assert made.sets[0] == made.sets[1]
    assert made.score == pytest.approx(16)


def test_more_runs_never_lower_j_and_the_seed_decides() -> None:
    lengths = (9, 15, 21)
    similarity = _depth_similarity(lengths) * (0.8 + 0.2 * _similarity(45))
    a, b = partition(similarity, lengths, runs=20, seed=3), partition(similarity, lengths, runs=20, seed=3)
    assert a == b
    assert all(later > earlier for earlier, later in itertools.pairwise(a.history))
    assert partition(similarity, lengths, runs=200).score >= partition(similarity, lengths, runs=1).score


def test_a_run_from_which_nothing_can_be_assembled_yields_to_one_that_can() -> None:
    assert assembles(np.array([[0, 1], [1, 0]]))
    assert assembles(np.array([[0, 0], [0, 1]]))
    assert not assembles(np.array([[0, 0, 1], [0, 0, 2]]))
    lengths = (4, 5, 6, 7)
    for seed in range(20):
        made = partition(_similarity(22, seed), lengths, 3, runs=30, seed=seed)
        assert assembles(np.array(made.sets))


def test_values_for_the_search() -> None:
    lengths = (5, 7)
    similarity = _similarity(12)
    made = partition(similarity, lengths, 3, runs=10)
    unary, pairwise = block_values(similarity, lengths, made)
    np.testing.assert_allclose(unary, np.ravel(made.fit))
    assert pairwise.shape == (6, 6)
    assert [pairwise[0, 1], pairwise[1, 2], pairwise[3, 4], pairwise[4, 5]] == [1.0] * 4
    given, taken = made.cuts[0][1] - 1, 5 + made.cuts[1][1] - 1
    assert pairwise[0, 4] == pytest.approx(np.clip(similarity[given, taken], 0, 1))
    assert (pairwise[:, [0, 3]] == 0).all()


def test_the_limit_is_strict_but_an_even_cut_is_always_allowed() -> None:
    assert size_limit(10, 2, 0.2) == 5
    assert size_limit(10, 1, 0.1) == 10
    assert size_limit(30, 3, 0.1) == 10
    assert size_limit(30, 3, 0.2) == 11
    assert size_limit(9, 4, 0.2) == 3


def test_every_start_within_the_limit_is_as_likely_as_any_other() -> None:
    start = Ascent(*_table(np.eye(5), (5,)), (5,), 3, 0.5, 6000, True, np.random.default_rng(0))
    ways, counts = np.unique(start.cuts[:, 0], axis=0, return_counts=True)
    assert ways.tolist() == [[0, 1, 3, 5], [0, 2, 3, 5], [0, 2, 4, 5]]
    assert (np.abs(counts - 2000) < 150).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"similarity": np.eye(5)}, r"Networks of 3, 3 nodes need a table of 6 x 6 similarities, not one of shape"),
        ({"similarity": np.full((6, 6), np.nan)}, "NaN"),
        ({"K": 4}, "Network 0 has 3 nodes, too few for 4 blocks"),
        ({"K": 0}, "blocks must be at least 1"),
        ({"runs": 0}, "runs must be at least 1"),
        ({"eps": -0.1}, "eps must be 0 or more"),
        ({"lengths": ()}, "no networks"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        partition(**{"similarity": np.eye(6), "lengths": (3, 3), "K": 2} | arguments)


def test_cifar10_resnets_agree_by_depth_and_are_cut_by_stage(cifar10: Path) -> None:
    """Residual blocks of ResNet-20 and 32, without the stage rule."""
    split = load("cifar10").train
    layers, lengths = [], []
    for depth in (20, 32):
        model = resolve(f"zoo:cifar10_resnet{depth}")
        blocks = [m for name, m in model.module.named_modules() if re.fullmatch(r"layer\d\.\d+", name)]
        found: list[torch.Tensor] = []
        for m in blocks:
            m.register_forward_hook(lambda _, __, out, found=found: found.append(out.mean((2, 3))))
        images = split.normalised(model.mean, model.std).batch(torch.arange(256), device=torch.device("cpu")).images
        with torch.no_grad():
            model.module(images)
        layers, lengths = layers + found, [*lengths, len(found)]
    assert lengths == [9, 15]
    s = similarity_map(layers)
    at = np.concatenate([(np.arange(n) + 1) / n for n in lengths])
    apart = np.abs(at[:9, None] - at[None, 9:])
    across = s[:9, 9:].numpy()
    assert across[apart < 0.04].mean() - across[apart > 1 / 3].mean() >= 0.15
    sets = np.array(partition(s, lengths, 3, runs=20).sets)
    assert all(np.bincount(np.nonzero(sets == c)[1]).max() >= 0.8 * (sets == c).sum() for c in range(3))
