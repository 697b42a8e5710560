"""VAM: the invariants of its card."""

import copy

import pytest
import torch
from torch import nn

from tests.settings import tiny_data, tiny_net
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.kd import KD
from upcycle.distillation.vam import VAM, attach, fold

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_at_the_start_nothing_changes() -> None:
    net = tiny_net().eval()
    before = net(X)
    attentions = attach(net, 8)
    assert attentions and torch.allclose(net(X), before, atol=1e-6)


def test_folding_keeps_the_function_and_the_shapes() -> None:
    net = tiny_net().eval()
    shapes = {k: v.shape for k, v in net.state_dict().items()}
    attentions = attach(net, 8)
    with torch.no_grad():
        for a in attentions:
            a.s.normal_()
        attentions[0].theta.fill_(-0.5)
    before = net(X)
    fold(net)
    assert torch.allclose(net(X), before, atol=1e-5)
    assert {k: v.shape for k, v in net.state_dict().items()} == shapes


def test_rows_sum_to_one_and_entropy_lies_between_nought_and_one() -> None:
    a = attach(tiny_net(), 8)[0]
    assert float(a.entropy()) == pytest.approx(1.0)
    with torch.no_grad():
        a.s.mul_(0).add_(torch.eye(*a.s.shape) * 50)
    assert torch.allclose(a.attention().sum(1), torch.ones(a.s.shape[0]))
    assert float(a.entropy()) == pytest.approx(0.0, abs=1e-4)


def test_permuting_input_blocks_with_their_columns_changes_nothing() -> None:
    net = tiny_net().eval()
    a = attach(net, 8)[0]
    weight = torch.randn(16, 16, 3, 3)
    with torch.no_grad():
        a.s.normal_()
    expected = a(weight)
    order = torch.tensor([1, 0])
    swapped = weight.view(16, 2, 8, 3, 3)[:, order].reshape(16, 16, 3, 3)
    with torch.no_grad():
        a.s.copy_(a.s[:, order])
    assert torch.allclose(a(swapped).view(16, 2, 8, 3, 3)[:, order].reshape(16, 16, 3, 3), expected)


def test_without_entropy_and_with_frozen_attention_it_is_kd() -> None:
    data, recipe = tiny_data(), Recipe(epochs=1, batch_size=64, lr=0.05)
    kd = KD(teacher=tiny_net(1), student=tiny_net(2), recipe=recipe, cache="off")
    expected = kd.fit(Run(None, precision="32-true"), data)
    method = VAM(teacher=tiny_net(1), student=tiny_net(2), recipe=recipe, gamma=0.0, block=8)
    made = recipe.make

    def frozen_attention(groups):  # type: ignore[no-untyped-def]
        return made([groups[0], {**groups[1], "lr": 0.0}])

    method.recipe = copy.copy(recipe)
    method.recipe.make = frozen_attention  # type: ignore[method-assign]
    found = method.fit(Run(None, precision="32-true"), data)
    for p, q in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_a_student_without_two_blocks_is_refused() -> None:
    data = tiny_data()
    with pytest.raises(UserError, match="no convolution"):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        VAM(teacher=tiny_net(), student=flat).require(data)
    with pytest.raises(UserError, match="smaller --block"):
        VAM(teacher=tiny_net(), student=tiny_net(), block=64).fit(Run(None), data)
