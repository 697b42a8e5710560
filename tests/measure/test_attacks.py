"""Attacks: within epsilon and [0, 1], known in closed form on linear networks, and without a trace on the network."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.store import tensor_digest
from upcycle.data import load
from upcycle.measure.attacks import Attack, accuracy, ascent_signs, attacks, fgsm, on_pixels, pgd

EPSILONS = (0.0, 0.1, 0.5)


def images(n: int = 40, c: int = 1, side: int = 8) -> Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(0))


def linear(c: int = 1, side: int = 8, classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(c * side * side, classes))


def some() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = resolve("zoo:digits_teacher")
    data = load("digits").test
    batch = data.batch(torch.arange(100), device=torch.device("cpu"))
    return on_pixels(model), batch.images, batch.labels


@pytest.mark.parametrize("attack", [partial(fgsm, epsilon=0.2), partial(pgd, epsilon=0.2, steps=4, restarts=2)])
def test_no_pixel_moves_further_than_epsilon_or_out_of_range(attack: Attack) -> None:
    network, x, y = some()
    made = attack(network, x, y)
    assert made.shape == x.shape and made.dtype == x.dtype
    assert (made - x).abs().max() <= 0.2 + 1e-6 and made.min() >= 0 and made.max() <= 1
    assert (made != x).any() and accuracy(network, made, y) < accuracy(network, x, y)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_of_a_linear_network_fgsm_is_known(epsilon: float) -> None:
    network, x = linear(), images()
    y = torch.arange(len(x)) % 2
    weight = network[1].weight.detach()
    # dL/dx = p_other (w_other - w_y), so its sign is that of a difference of rows, whatever the image.
    sign = torch.stack([(weight[1 - k] - weight[k]).sign().view(1, 8, 8) for k in (0, 1)])[y]
    assert torch.equal(ascent_signs(network, x, y), sign)
    expected = (x + epsilon * sign).clamp(0, 1)
    assert torch.allclose(fgsm(network, x, y, epsilon), expected, atol=1e-7)
    # The loss is monotone along it, so PGD of enough steps ends in the same corner.
    ends = pgd(network, x, y, epsilon, steps=10, restarts=1)
    never = network(ends).argmax(1) == y
    assert torch.allclose(ends[never], expected[never], atol=1e-6)


def test_of_a_network_with_normalisation_the_chain_rule_holds() -> None:
    torch.manual_seed(0)
    inner = linear(3, 4)
    model = Model(module=inner, input_shape=(3, 4, 4), mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 2.0), classes=("a", "b"))
    network, x, y = on_pixels(model), images(6, 3, 4), torch.zeros(6, dtype=torch.long)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.mean, model.std))
    assert torch.allclose(network(x), inner((x - mean) / std), atol=1e-6)
    normalised = ((x - mean) / std).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(inner(normalised), y, reduction="sum"), normalised)
    assert torch.equal(ascent_signs(network, x, y), (gradient / std).sign())
    moved = (fgsm(network, x, y, 0.05) - x).abs()  # epsilon is in pixels, not in normalised units
    assert torch.isclose(moved.max(), torch.tensor(0.05), atol=1e-6)


def test_epsilon_of_nought_changes_nothing() -> None:
    network, x, y = some()
    assert torch.equal(fgsm(network, x, y, 0.0), x)
    assert torch.allclose(pgd(network, x, y, 0.0, steps=2), x)


def test_a_network_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = resolve("zoo:resnet8", pretrained=False)
    network, x, y = on_pixels(model), images(20, 3, 12), torch.arange(20) % 10
    model.module.train()
    model.module.layer1.eval()
    first = next(model.module.parameters())
    first.requires_grad_(False)
    model.module.linear.weight.grad = torch.ones_like(model.module.linear.weight)
    before, state = tensor_digest(model.module.state_dict()), torch.random.get_rng_state()
    modes = [m.training for m in model.module.modules()]
    for attack in attacks(0.1, steps=2, restarts=2).values():
        accuracy(network, x, y, attack)
    assert tensor_digest(model.module.state_dict()) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model.module.modules()] == modes
    assert not first.requires_grad and first.grad is None
    assert all(p.grad is None for p in model.module.parameters() if p is not model.module.linear.weight)
    assert torch.equal(model.module.linear.weight.grad, torch.ones_like(model.module.linear.weight))
    assert float(torch.tensor(1e-39) * 1) > 0  # denormal numbers count again


@pytest.mark.parametrize("attack", [partial(fgsm, epsilon=0.1), partial(pgd, epsilon=0.1, steps=3, restarts=2)])
def test_what_is_made_of_an_image_does_not_depend_on_its_batch(attack: Attack) -> None:
    network, x, y = some()
    whole, first = attack(network, x, y), attack(network, x[:30], y[:30])
    assert ((whole[:30] - first).abs() > 1e-5).float().mean() < 1e-3  # signs of gradients next to 0 may differ
    big = nn.Sequential(nn.Conv2d(1, 600, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(600 * 64, 10))
    torch.manual_seed(0)
    many, labels = images(400), torch.arange(400) % 10  # in several portions
    together = fgsm(big, many, labels, 0.1)
    apart = torch.cat([fgsm(big, a, b, 0.1) for a, b in zip(many.split(100), labels.split(100), strict=True)])
    assert ((together - apart).abs() > 1e-5).float().mean() < 1e-3


def test_restarts_only_fool_more() -> None:
    network, x, y = some()
    fooled = [1 - accuracy(network, x, y, partial(pgd, epsilon=0.1, steps=2, restarts=n)) for n in (1, 2, 5)]
    assert fooled[0] <= fooled[1] <= fooled[2]
    assert fooled[2] > 0


def test_pgd_fools_more_than_fgsm_does_and_a_seed_repeats_it() -> None:
    network, x, y = some()
    found = {name: accuracy(network, x, y, attack) for name, attack in attacks(0.2, steps=10, restarts=3).items()}
    assert found["PGD"] <= found["FGSM"]
    a, b, c = (pgd(network, x, y, 0.2, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_images_made_on_another_network_are_a_transfer_attack() -> None:
    network, x, y = some()
    torch.manual_seed(1)
    stranger = on_pixels(resolve("zoo:convnet_small", pretrained=False, input_shape=(1, 8, 8)))
    own, foreign = (accuracy(network, fgsm(made_on, x, y, 0.2), y) for made_on in (network, stranger))
    assert own < foreign < accuracy(network, x, y) + 1e-9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x, y, 1.5), "epsilon must lie between 0 and 1"),
        (lambda x, y: (x, y, -0.1), "epsilon must lie between 0 and 1"),
        (lambda x, y: (2 * x - 1, y, 0.1), r"must lie in \[0, 1\].*leave out their normalisation"),
        (lambda x, y: (x, y[:3], 0.1), "40 images have 3 labels"),
        (lambda x, y: (x, y - 1, 0.1), "needs a label"),
    ],
)
def test_mistakes_are_named(change: object, says: str) -> None:
    x, y, epsilon = change(images(), torch.arange(40) % 2)  # type: ignore[operator]
    for attack in (fgsm, pgd):
        with pytest.raises(UserError, match=says):
            attack(linear(), x, y, epsilon)


def test_steps_and_restarts_are_at_least_one() -> None:
    with pytest.raises(UserError, match="at least 1, not 0 and 1"):
        pgd(linear(), images(), torch.zeros(40, dtype=torch.long), 0.1, steps=0)
