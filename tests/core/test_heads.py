"""The classifier of a network: one linear layer or the mean of several, replaced and grown; others are refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.assembly.networks import model, run
from upcycle.adaptation.probe import LinearProbe
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.heads import classifier, classifiers, grow_classifier, with_classes
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import load


class TwoHeads(nn.Module):
    """A mean of two classifiers of different features; in training with distillation it answers with both."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.conv, self.idle = nn.Conv2d(1, 6, 3), nn.Linear(6, k)
        self.head, self.head_dist = nn.Linear(6, k), nn.Linear(6, k)
        self.weight = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.weight * (self.head(x.mean((2, 3))) + self.head_dist(x.amax((2, 3))))


class Cosine(nn.Linear):
    """Logits are cosines: rows of the weight are normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


def two(k: int = 4) -> Model:
    torch.manual_seed(0)
    return model(TwoHeads(k), "abcdefghij"[:k])


def test_both_of_two_averaged_layers_are_the_classifier() -> None:
    net = two()
    assert classifiers(net) == ("head", "head_dist")
    with pytest.raises(UserError, match=r"mean of 2 linear layers \(head, head_dist\)"):
        classifier(net)
    fresh = with_classes(net, ("x", "y", "z"))  # whose layers answer zero, all of them
    assert classifiers(fresh) == ("head", "head_dist")
    assert torch.equal(fresh.module(net.example(3)), torch.zeros(3, 3))
    assert torch.equal(fresh.module.idle.weight, net.module.idle.weight)
    one = model(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    assert classifiers(with_classes(one, ("x", "y"))) == ("1",) == (classifier(one),)


def test_grown_networks_answer_for_old_classes_as_they_did() -> None:
    net = two()
    grown = grow_classifier(net, ("e", "d", "a", "b"))
    x = net.example(3)
    old, new = net.module(x), grown.module(x)
    torch.testing.assert_close(new[:, 1:], old[:, [3, 0, 1]])
    assert torch.equal(new[:, 0], torch.zeros(3))


def test_a_sum_that_is_no_mean_and_a_cosine_are_refused() -> None:
    net = two()
    net.module.weight = 0.7
    with pytest.raises(UserError, match="does not end in a linear layer"):
        classifiers(net)
    odd = model(nn.Sequential(nn.Flatten(), Cosine(64, 4)))
    with pytest.raises(UserError, match=r"ends in '1' \(Cosine\), which computes something else"):
        grow_classifier(odd, ("a", "b"))


def test_a_probe_trains_both_heads() -> None:
    digits, net = load("digits"), two(10)
    probe = LinearProbe(source=net, recipe=Recipe(epochs=2, batch_size=64, lr=0.5))
    probe.require(digits)
    made = probe.fit(run(), digits)
    for name in ("head", "head_dist"):
        assert made.get_submodule(name).weight.abs().max() > 0
    assert torch.equal(made.conv.weight, net.module.conv.weight)
    assert evaluate(made, digits.validation.normalised(net.mean, net.std)).loss < 2.25 < math.log(10)


@pytest.mark.parametrize("name", ["levit_128s", "deit_tiny_distilled_patch16_224"])
def test_distilled_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5).eval()
    net = Model(module=module, input_shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, classes=tuple("abcde"))
    assert [n.split(".")[0] for n in classifiers(net)] == ["head", "head_dist"]
    x = net.example(2)
    with torch.no_grad():
        torch.testing.assert_close(
            grow_classifier(net, tuple("cdeabf")).module.eval()(x)[:, :5], module(x)[:, [2, 3, 4, 0, 1]]
        )
