"""Tf-KD: the invariants of its card."""

import pytest
import torch
import torch.nn.functional as F

from tests.settings import tiny_data, tiny_net
from upcycle.core.errors import UserError
from upcycle.core.losses import kd_loss, kd_objective
from upcycle.core.models import fresh_copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.tfkd import TfKD, reg_loss, virtual_teacher

Y = torch.tensor([0, 3, 9, 3])
Z = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * 2


def test_the_virtual_teacher() -> None:
    p = virtual_teacher(Y, 10, 20.0)
    assert torch.allclose(p.sum(1), torch.ones(4)) and torch.equal(p.argmax(1), Y)
    others = p.masked_select(~F.one_hot(Y, 10).bool()).view(4, 9)
    assert torch.equal(others, others[:, :1].expand_as(others))
    assert abs(float(virtual_teacher(torch.tensor([5]), 100, 20.0).max()) - 0.010502) < 1e-6


def test_without_soft_targets_both_are_cross_entropy() -> None:
    assert torch.allclose(reg_loss(Z, Y, a=0.0, temperature=20.0), F.cross_entropy(Z, Y), atol=1e-6)
    found = kd_objective(Z, Z, Y, temperature=4.0, w_kd=0.0, w_ce=1.0)
    assert torch.allclose(found, F.cross_entropy(Z, Y), atol=1e-6)


def test_reg_at_infinite_temperature_is_label_smoothing() -> None:
    uniform = F.kl_div(Z.log_softmax(1), torch.full((4, 10), 0.1), reduction="batchmean")
    expected = 0.9 * F.cross_entropy(Z, Y) + 0.1 * uniform
    found = reg_loss(Z, Y, a=0.1, temperature=1e7)
    assert torch.allclose(found, expected, atol=1e-6)
    smoothed = F.cross_entropy(Z, Y, label_smoothing=0.1)
    constant = 0.1 * torch.log(torch.tensor(0.1))  # minus the entropy of the uniform target
    assert torch.allclose(found, smoothed + constant, atol=1e-5)


def test_elementwise_mean_times_classes_is_the_sum_over_classes() -> None:
    t = Z.roll(1, 0)
    elementwise = F.kl_div((Z / 4).log_softmax(1), (t / 4).softmax(1), reduction="mean")
    assert torch.allclose(16 * elementwise * 10, kd_loss(Z, t, 4.0), atol=1e-6)


def test_a_network_teaches_its_copy_nothing() -> None:
    net = tiny_net().eval()
    x = torch.randn(4, 1, 8, 8)
    assert float(kd_loss(net(x), net(x), 4.0)) == pytest.approx(0.0, abs=1e-7)


def test_fresh_weights_differ_everywhere_but_in_shape() -> None:
    net = tiny_net()
    made = fresh_copy_of(net)
    for (name, p), q in zip(net.named_parameters(), made.parameters(), strict=True):
        assert p.shape == q.shape
        assert "conv" not in name or not torch.equal(p, q)


def test_it_refuses_missing_labels() -> None:
    data = tiny_data().hide_labels(2, seed=0)
    with pytest.raises(UserError, match="kd works without labels"):
        TfKD(student=tiny_net()).require(data)


@pytest.mark.parametrize("variant", ["self", "reg"])
def test_it_learns(variant: str) -> None:
    data = tiny_data()
    method = TfKD(student=tiny_net(), variant=variant, recipe=Recipe(epochs=12, batch_size=32, lr=0.1))
    run = Run(None, precision="32-true")
    net = method.fit(run, data)
    assert run.evaluate(net, data.train).accuracy > 0.5


@pytest.mark.parametrize("options", [{"a": 1.5}, {"temperature": -1.0},
                                     {"student_temperature": 0.0}])  # fmt: skip
def test_impossible_options(options: dict) -> None:
    with pytest.raises(UserError):
        TfKD(student=tiny_net(), **options)
