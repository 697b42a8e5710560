"""GFKD: the invariants of structure and features, on graphs of a few nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from upcycle.distillation.graph_free.blocks import Blocks, Places
from upcycle.distillation.graph_free.structure import (
    Made,
    antithetic,
    balanced,
    degree_features,
    one_hot_entropy,
    structure_gradient,
)

SIZES = torch.tensor([3, 1, 4])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expected_gradient(f: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
    """d E[f(A)] / dφ by going through all A of two nodes."""
    phi = phi.double().requires_grad_()
    p, total = torch.sigmoid(phi), torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=phi.numel()):
        A = torch.tensor(bits, dtype=torch.float64).view_as(phi)
        total = total + torch.where(A > 0, p, 1 - p).prod() * f(A[None])[0]
    (found,) = torch.autograd.grad(total, phi)
    return found


def odd(A: Tensor) -> Tensor:
    """A function of edges that is neither linear nor symmetric."""
    return (A[:, 0, 1] * 2.0 - A[:, 1, 0] * A[:, 0, 0] + 0.5 * A[:, 1, 1] - 1.0) ** 2


def draws(f: Callable[[Tensor], Tensor], phi: Tensor, n: int = 200_000) -> Tensor:
    u = torch.rand(n, *phi.shape, generator=generator())
    first, second = antithetic(phi.expand_as(u).contiguous(), u)
    return structure_gradient(f(first), f(second), u).double()


@pytest.mark.parametrize("f", [odd, lambda A: A[:, 0, 1]])
def test_the_estimate_is_unbiased(f: Callable[[Tensor], Tensor]) -> None:
    phi = torch.tensor([[0.3, -1.2], [2.0, 0.0]])
    found = draws(f, phi)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected_gradient(f, phi)).abs() <= 3 * error + 1e-9).all()


def test_of_a_single_edge_it_is_the_slope_of_its_probability_and_of_a_constant_nothing() -> None:
    phi = torch.tensor([[0.3, -1.2], [2.0, 0.0]])
    found = draws(lambda A: A[:, 0, 1], phi)
    p = torch.sigmoid(phi.double())
    slope = torch.zeros(2, 2, dtype=torch.float64)
    slope[0, 1] = (p * (1 - p))[0, 1]
    assert ((found.mean(0) - slope).abs() <= 3 * found.std(0) / len(found) ** 0.5).all()
    assert not draws(lambda A: torch.full((len(A),), 7.0), phi, 100).any()


def test_both_samples_have_the_probability_of_the_logit() -> None:
    phi = torch.tensor([-2.0, 0.0, 1.5])
    u = torch.rand(200_000, 3, generator=generator())
    for sample in antithetic(phi.expand_as(u).contiguous(), u):
        assert torch.allclose(sample.mean(0), torch.sigmoid(phi), atol=0.005)


def test_entropy_of_rows() -> None:
    assert one_hot_entropy(torch.eye(4)) == 0
    assert torch.allclose(one_hot_entropy(torch.full((5, 4), 0.25)), torch.tensor(4.0).log())


def test_places_and_blocks_are_a_list_of_edges() -> None:
    places = Places(SIZES)
    assert places.n == 4 and places.batch.tolist() == [0, 0, 0, 1, 2, 2, 2, 2] and places.first.tolist() == [0, 3, 4]
    assert places.pairs.sum((1, 2)).tolist() == [6, 0, 12]
    A = (torch.rand(3, 4, 4, generator=generator()) < 0.5).float() * places.pairs
    source, target = places.edges(A)
    assert (target.diff() >= 0).all() and (places.batch[source] == places.batch[target]).all()
    h = torch.randn(8, 5, generator=generator(1))
    blocks = Blocks(A, places)
    assert torch.allclose(blocks.sum(h), torch.zeros(8, 5).index_add(0, target, h[source]), atol=1e-6)
    assert torch.equal(blocks.sum(torch.ones(8, 1))[:, 0], torch.bincount(target, minlength=8).float())
    degrees = torch.bincount(target, minlength=8)
    assert degree_features(A, places, 3).argmax(1).tolist() == degrees.clamp_max(2).tolist()
    for loops in (False, True):  # D^-1/2 (A + I) D^-1/2 h, of degrees that may be 0 without loops
        scale = torch.where(degrees + loops > 0, (degrees + loops).float().rsqrt(), 0)[:, None]
        expected = scale * (blocks.sum(scale * h) + loops * scale * h)
        assert torch.allclose(blocks.mean(h, loops), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["one_hot", "real", "degree"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_made_has_no_loops_and_features_as_asked(kind: str, symmetric: bool) -> None:
    places = Places(SIZES)
    made = Made(places, 3, kind, symmetric=symmetric, random=generator())  # type: ignore[arg-type]
    assert not made.phi.requires_grad and made.V.requires_grad == (kind != "degree")
    A = made.structure()
    X = made.features(A)
    for sample in (A, *made.samples(made.draw(generator(1)))):
        assert not (sample * (1 - places.pairs)).any() and set(sample.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(sample, sample.mT) or not symmetric
    assert kind == "real" or torch.allclose(X.sum(1), torch.ones(8))
    found = made.result()
    source, target = found["edge_index"]
    assert (source != target).all()
    if kind != "real":
        assert ((found["x"] == 0) | (found["x"] == 1)).all() and (found["x"].sum(1) == 1).all()


def test_edges_and_features_of_the_best_step_are_kept_together() -> None:
    places = Places(SIZES)
    made = Made(places, 3, "real", symmetric=False, random=generator())
    states = []
    for loss in (3.0, 1.0, 2.0):
        with torch.no_grad():
            made.phi.normal_(generator=generator(int(loss)))
            made.V.normal_(generator=generator(int(loss)))
        states.append((made.structure(), made.V.detach().clone()))
        made.keep(torch.tensor(loss), *states[-1])
    assert (
        torch.equal(made.best_edges, states[1][0])
        and torch.equal(made.best_features, states[1][1])
        and made.lowest == 1
    )


@pytest.mark.parametrize(("n", "k"), [(131, 2), (7, 3), (2, 2)])
def test_classes_are_balanced(n: int, k: int) -> None:
    counts = torch.bincount(balanced(n, k, generator()), minlength=k)
    assert counts.sum() == n and counts.max() - counts.min() <= 1
