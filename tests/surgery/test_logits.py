"""Logits by class, and their scales."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.assembly.networks import CPU, model, part_of
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.data import Images
from upcycle.surgery.logits import class_positions, logit_scales, scale_logits


def test_after_scaling_the_mean_winning_logit_is_one(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("1", "4", "7"))
    r = logit_scales(part, digits, per_class=40)
    made = scale_logits(part, r)
    split = digits.train.normalised(part.mean, part.std)
    for c, label in enumerate((1, 4, 7)):
        index = (split.labels == label).nonzero().flatten()[:40]
        images = split.batch(index, device=CPU).images
        with torch.no_grad():
            z, right = made.module(images), part.module(images).argmax(1) == c
        assert z[right, c].mean() == pytest.approx(1.0, abs=1e-4)
    x = split.batch(torch.arange(200), device=CPU).images
    with torch.no_grad():
        assert torch.allclose(made.module(x), part.module(x) * r, atol=1e-4)
        assert torch.equal(scale_logits(part, 3 * r).module(x).argmax(1), made.module(x).argmax(1))


def test_a_class_without_a_positive_mean_is_not_scaled(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("1", "4"))
    last = [m for m in part.module.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] -= 1000.0  # never wins
        last.bias[1] -= 500.0  # wins with a negative logit
    assert logit_scales(part, digits).tolist() == [1.0, 1.0]
    strange = dataclasses.replace(part, classes=("1", "no digit"))
    assert logit_scales(strange, digits).tolist() == [1.0, 1.0]


def test_logits_behind_a_norm_are_not_scaled() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2)).eval()
    with pytest.raises(UserError, match="cannot be scaled"):
        scale_logits(model(net, "ab"), torch.ones(2))


def test_classes_are_found_by_name() -> None:
    assert class_positions(("b", "z", "a"), ("a", "b")).tolist() == [1, -1, 0]
