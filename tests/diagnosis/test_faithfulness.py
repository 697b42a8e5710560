"""Deletion, insertion, the pointing game and the check against random weights."""

import pytest
import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.diagnosis.attribution.faithfulness import (
    deletion,
    insertion,
    pointing_game,
    randomisation_check,
    rank_correlation,
)
from upcycle.zoo.convnet import ConvNet


def _net() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet((6, 8, 8), 4, 3).eval()


X = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_deletion_begins_and_insertion_ends_at_the_whole_image() -> None:
    net, y = _net(), torch.tensor([0, 3, 1])
    p = net(X).softmax(1).gather(1, y[:, None])[:, 0]
    gone, back = deletion(net, X, MAPS, y), insertion(net, X, MAPS, y, chunk=7)
    assert gone.probability.shape == back.probability.shape == (3, 101)
    assert torch.allclose(gone.probability[:, 0], p, atol=1e-6) and torch.allclose(
        back.probability[:, -1], p, atol=1e-6
    )
    blank = net(torch.zeros_like(X)).softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(gone.probability[:, -1], blank, atol=1e-6)
    # The other way round from the same reference is the same curve, backwards.
    mirrored = insertion(net, X, -MAPS, y, reference=0.0)
    assert torch.allclose(gone.probability.flip(1), mirrored.probability, atol=1e-5)


def test_the_area_under_a_constant_curve_is_the_constant() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    nn.init.zeros_(net[1].weight)
    p = float(net[1].bias.softmax(0)[2])
    for curve in (deletion(net, X, MAPS, 2), insertion(net, X, MAPS, 2, steps=7)):
        assert curve.auc.tolist() == pytest.approx([p] * 3)


def test_pixels_go_in_the_order_of_the_map() -> None:
    class Two(nn.Module):  # class 1 as long as pixel (0, 0) or (1, 1) is there
        def forward(self, x: Tensor) -> Tensor:
            z = 40 * (x[:, 0, 0, 0] + x[:, 0, 1, 1])
            return torch.stack([torch.full_like(z, 20.0), z], 1)

    x, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 2.0], [1.0, 3.0]]])
    assert deletion(Two(), x, maps, 1, steps=4).probability.round()[0].tolist() == [1, 1, 0, 0, 0]
    assert insertion(Two(), x, maps, 1, steps=4, reference=0.0).probability.round()[0].tolist() == [0, 1, 1, 1, 1]


def test_pointing() -> None:
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, 10:15, 10:15] = True

    def hit(row: int, column: int, tolerance: float) -> bool:
        maps = torch.zeros(1, 40, 40)
        maps[0, row, column] = 1
        return bool(pointing_game(maps, mask, float(tolerance))[0])

    assert hit(12, 12, 3) and hit(12, 12, 0)  # its own centre
    assert hit(12, 16, 3) and not hit(12, 17, 3) and not hit(12, 18, 3)  # 2, 3 and 4 from the edge; strictly less
    assert not hit(17, 17, 3) and hit(17, 17, 5)  # the diagonal
    assert hit(12, 28, 15) and not hit(30, 30, 15)
    assert not pointing_game(torch.ones(1, 40, 40), mask, 3.0)  # a constant map points nowhere
    assert not pointing_game(torch.rand(1, 40, 40), torch.zeros_like(mask), 100.0)


def test_random_weights_change_an_honest_map_and_not_one_of_the_image() -> None:
    net, x = _net(), X.double()
    same = randomisation_check(net.double(), x, method="saliency", seed=3)
    assert same.shape == (3,) and same.abs().max() < 0.9
    before = [p.clone() for p in net.parameters()]
    again = randomisation_check(net, x, method="saliency", seed=3)
    assert torch.equal(same, again)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    ones = nn.Sequential(nn.Flatten(), nn.Linear(432, 2, bias=False))
    nn.init.ones_(ones[1].weight)  # shuffled, these weights are what they were
    assert randomisation_check(ones, x.float(), method="gradient_x_input").tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(5, (4, 30), generator=generator).float() for _ in range(2))
    expected = [float(stats.spearmanr(p, q)[0]) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(a, a**3).tolist() == pytest.approx([1] * 4, abs=1e-6)
    assert rank_correlation(a, torch.ones(4, 30)).tolist() == [0] * 4


def test_mistakes_are_named() -> None:
    for maps, options, words in ((MAPS[:2], {}, "maps must be of shape"), (MAPS / 0, {}, "NaN or infinite"),
                                 (MAPS, {"steps": 0}, "steps"), (MAPS, {"steps": 145}, "144 pixels")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            deletion(_net(), X, maps, 0, **options)
