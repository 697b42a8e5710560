"""GED_E and C-Score on cases made by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from upcycle.measure.factors import disentanglement, edit_distances, match, matrices, random_factors


def graph(size: int, *edges: tuple[int, int]) -> Tensor:
    found = torch.zeros(size, size, dtype=torch.bool)
    for i, j in edges:
        found[i, j] = found[j, i] = True
    return found


PATH, STAR, TRIANGLE = (
    graph(4, (0, 1), (1, 2), (2, 3)),
    graph(4, (0, 1), (0, 2), (0, 3)),
    graph(4, (1, 2), (2, 3), (1, 3)),
)


def random_case(b: int = 6, F: int = 3, L: int = 4, s: int = 7) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    truth = torch.rand(b, F, s, s, generator=chance).triu(1) > 0.6
    weights = torch.rand(b, L, s, s, generator=chance)
    return truth | truth.transpose(2, 3), weights + weights.transpose(2, 3)


def test_perfect_factors_have_no_distance_and_full_consistency() -> None:
    truth = torch.stack([PATH, STAR])[None].repeat(5, 1, 1, 1)
    found = disentanglement(truth, torch.stack([STAR, torch.zeros(4, 4), PATH]).float()[None].repeat(5, 1, 1, 1))
    assert (found.c_score, found.ged, found.spread) == (1.0, 0.0, 0.0)
    assert found.shares == [[0, 0, 1], [1, 0, 0]]


def test_a_wrong_edge_counts_twice_and_so_does_the_one_that_it_stands_for() -> None:
    weights = torch.zeros(4, 4)
    for value, (i, j) in zip((0.9, 0.8, 0.7, 0.6), ((0, 1), (1, 2), (0, 3), (2, 3)), strict=True):
        weights[i, j] = weights[j, i] = value
    assert edit_distances(PATH[None, None], weights[None, None]).tolist() == [[[4]]]
    weights[2, 3] = weights[3, 2] = 0.75
    assert edit_distances(PATH[None, None], weights[None, None]).tolist() == [[[0]]]


def test_distances_are_those_of_matrices() -> None:
    truth, weights = random_case()
    found = edit_distances(truth, weights)
    for b, f, e in itertools.product(range(6), range(3), range(4)):
        n = int(truth[b, f].sum())
        values = weights[b, e].clone().fill_diagonal_(-1)
        binary = torch.zeros(49, dtype=torch.bool).index_fill(0, values.flatten().topk(n).indices, True).view(7, 7)
        assert int((binary != truth[b, f]).sum()) == int(found[b, f, e])


def test_matching_is_the_best_of_all_and_each_relation_has_a_factor_of_its_own() -> None:
    truth, weights = random_case()
    present = torch.ones(6, 3, dtype=torch.bool)
    present[2, 1] = False
    distances = edit_distances(truth, weights)
    for costs, there, got in zip(distances, present, match(distances, present), strict=True):
        which = there.nonzero()[:, 0].tolist()
        best = min(
            sum(int(costs[f, e]) for f, e in zip(which, order, strict=True))
            for order in itertools.permutations(range(4), len(which))
        )
        assert sum(int(costs[f, got[f]]) for f in which) == best
        assert len({int(got[f]) for f in which}) == len(which) and all(got[f] == -1 for f in range(3) if f not in which)


def test_the_order_of_factors_does_not_matter() -> None:
    truth, weights = random_case()
    one, other = disentanglement(truth, weights), disentanglement(truth, weights[:, [2, 0, 3, 1]])
    assert (one.ged, one.spread) == (other.ged, other.spread)  # matches that are as good may be others


def test_consistency_by_hand() -> None:
    """Two graphs of the path, matched with factor 1 and 2; three of the star, always with factor 2."""
    none = torch.zeros(4, 4, dtype=torch.bool)
    truth = torch.stack([torch.stack([PATH, none])] * 2 + [torch.stack([none, STAR])] * 3)
    predicted = torch.stack(
        [torch.stack([PATH, STAR])] + [torch.stack([TRIANGLE, PATH])] + [torch.stack([PATH, STAR])] * 3
    )
    found = disentanglement(truth, predicted.float())
    assert found.c_score == pytest.approx((0.5 + 1.0) / 2) and found.ged == 0.0
    assert found.shares == [[0.5, 0.5], [0.0, 1.0]]


def test_more_relations_than_factors_cannot_be_matched() -> None:
    truth, weights = random_case()
    with pytest.raises(ValueError, match="2 factors cannot stand for 3 relations"):
        disentanglement(truth, weights[:, :2])


def test_weights_become_symmetric_matrices_without_a_diagonal() -> None:
    source, target = torch.tensor([0, 1, 0, 1, 2, 3]), torch.tensor([1, 0, 0, 1, 3, 2])
    weight = torch.tensor([[0.2, 1.0], [0.4, 0.0], [0.9, 0.9], [0.9, 0.9], [0.5, 0.5], [0.7, 0.1]])
    made = matrices(weight, source, target, torch.tensor([0, 0, 1, 1, 1]), 2, 3)
    assert made.shape == (2, 2, 3, 3) and torch.equal(made, made.transpose(2, 3))
    assert made[0, :, 0, 1].tolist() == pytest.approx([0.3, 0.5]) and made[1, :, 0, 1].tolist() == pytest.approx(
        [0.6, 0.3]
    )
    assert int((made != 0).sum()) == 8


def test_random_factors_keep_the_edges() -> None:
    like = torch.stack([PATH, STAR]).float()[None]
    drawn = random_factors(like, torch.Generator().manual_seed(0))
    assert torch.equal(drawn != 0, like != 0) and torch.equal(drawn, drawn.transpose(2, 3)) and drawn.max() <= 1
