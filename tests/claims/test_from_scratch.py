"""Claims about architectures: arms of equal size, and rates that were chosen for the baseline."""

from __future__ import annotations

import pytest
import torch

from upcycle.claims import emo, from_scratch, shunted
from upcycle.data import load
from upcycle.measure.cost import count
from upcycle.zoo.emo import WindowAttention


@pytest.mark.parametrize(("arms", "within"), [(emo.ARMS, 0.01), (shunted.ARMS, 0.02)])
def test_arms_have_as_many_parameters(arms: dict[str, from_scratch.Make], within: float) -> None:
    product, baseline = (count(make(), (3, 32, 32)).parameters for make in arms.values())
    assert abs(product / baseline - 1) < within


def test_attention_is_what_the_arms_of_emo_differ_by() -> None:
    found = [sum(isinstance(m, WindowAttention) for m in make().modules()) for make in emo.ARMS.values()]
    assert found == [3, 0]


def test_the_rate_is_the_best_of_the_baseline() -> None:
    assert emo.RATE == 3e-3 and shunted.RATE == 1e-3
    for claim in (emo, shunted):
        assert set(claim.TRIED) == {claim.CLAIM.headline.baseline.removesuffix(" (%)")}


def test_weights_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained for nothing, two networks of one seed are equal, and those of two seeds are not."""
    monkeypatch.setattr(from_scratch, "train", lambda method, data, seed: method.student.module)
    images = load("digits")
    first, again, other = (from_scratch.trained(emo.ARMS["EMO"], images, seed, True, 1e-3) for seed in (1, 1, 2))
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)
