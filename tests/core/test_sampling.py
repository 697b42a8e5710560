"""Samplers: their distribution, which is all that they promise, and that it depends on the generator alone."""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from upcycle.core.errors import UserError
from upcycle.core.sampling import order, probabilities

COUNTS = torch.tensor([540, 200, 50, 10])
LABELS = torch.repeat_interleave(torch.arange(4), COUNTS)[
    torch.randperm(800, generator=torch.Generator().manual_seed(1))
]


def _drawn(labels: Tensor, sampler: str, progress: float = 0.0, passes: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([order(labels, sampler, progress, generator) for _ in range(passes)])


def test_what_each_sampler_is() -> None:
    n = COUNTS.double()
    assert torch.equal(probabilities(COUNTS, "class", 0.3), torch.full((4,), 0.25, dtype=torch.float64))
    assert torch.allclose(probabilities(COUNTS, "sqrt", 0.3), n.sqrt() / n.sqrt().sum())
    assert torch.allclose(probabilities(COUNTS, "progressive", 0.3), 0.7 * n / 800 + 0.3 / 4)


def test_progressive_goes_from_instance_to_class() -> None:
    assert torch.allclose(probabilities(COUNTS, "progressive", 0.0), COUNTS.double() / 800)
    assert torch.allclose(probabilities(COUNTS, "progressive", 1.0), probabilities(COUNTS, "class", 0.0))


@pytest.mark.parametrize(("sampler", "progress"), [("class", 0.0), ("sqrt", 0.0), ("progressive", 0.5)])
def test_classes_come_as_often_as_their_probability_says(sampler: str, progress: float) -> None:
    found = torch.bincount(LABELS[_drawn(LABELS, sampler, progress)], minlength=4)
    expected = probabilities(COUNTS, sampler, progress) * found.sum()
    assert found.sum() == 160_000
    assert chisquare(found.numpy(), expected.numpy()).pvalue > 0.01
    assert bool(((found - expected).abs() < 3 * expected.sqrt()).all())


def test_the_samples_of_a_class_come_equally_often() -> None:
    places = _drawn(LABELS, "class")
    for k in range(4):
        own = (k == LABELS).nonzero()[:, 0]
        assert chisquare(torch.bincount(places, minlength=800)[own].numpy()).pvalue > 0.01


@pytest.mark.parametrize("sampler", ["class", "sqrt", "progressive"])
def test_on_balanced_data_all_are_the_same_distribution(sampler: str) -> None:
    assert torch.allclose(probabilities(torch.full((5,), 70), sampler, 0.4), torch.full((5,), 0.2, dtype=torch.float64))


def test_samples_without_a_label_are_a_class_of_their_own() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [-1])
    places = _drawn(labels, "class")
    share = [float((labels[places] == k).double().mean()) for k in (-1, 0, 1)]
    assert share == pytest.approx([1 / 3] * 3, abs=0.02)
    assert set(order(torch.full((20,), -1), "class", 0.0, torch.Generator().manual_seed(0)).tolist()) <= set(range(20))


def test_an_epoch_keeps_its_length_and_is_drawn_with_replacement() -> None:
    places = order(LABELS, "sqrt", 0.0, torch.Generator().manual_seed(3))
    assert places.shape == (800,)
    assert places.dtype == torch.int64
    assert 0 <= int(places.min()) <= int(places.max()) < 800
    assert len(places.unique()) < 800


def test_the_generator_alone_decides_and_the_labels_stay() -> None:
    before, noise = LABELS.clone(), torch.get_rng_state()
    one, two, other = (order(LABELS, "class", 0.0, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(LABELS, before)
    assert torch.equal(torch.get_rng_state(), noise)


def test_no_such_sampler() -> None:
    with pytest.raises(UserError, match=r"'sqr'.*sqrt"):
        order(LABELS, "sqr", 0.0, torch.Generator())
