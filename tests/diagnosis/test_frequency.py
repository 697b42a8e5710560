"""Whether recall and the norms of a classifier go with the number of training images."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import nn

from tests.settings import tiny_model
from upcycle.diagnosis.errors.frequency import following, pearson, spearman

COUNTS = [5400, 3237, 1941, 1163, 697, 418, 251, 150, 90, 54]


def test_correlations_are_those_of_scipy() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 6, (20,), generator=g).double().tolist() for _ in range(2))  # with ties
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_what_has_no_correlation() -> None:
    assert spearman([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert pearson([1.0, 2.0, 3.0, 4.0], [0.5] * 4) is None


def test_recall_that_follows_the_counts_and_a_classifier_that_does() -> None:
    model = tiny_model("source", 0)
    layer = model.module.linear
    with torch.no_grad():
        unit = nn.functional.normalize(layer.weight, dim=1)
        layer.weight.copy_(unit * torch.tensor([math.log(n) for n in COUNTS])[:, None])  # type: ignore[operator]
    before = layer.weight.clone()  # type: ignore[operator]
    found = following(model, [1 - k / 20 for k in range(10)], COUNTS)
    assert found.recall == pytest.approx(1.0) and found.norms == pytest.approx(1.0) and found.follows
    assert torch.equal(layer.weight, before)  # type: ignore[arg-type]
    turned = following(model, [0.5 + k / 20 for k in range(10)], COUNTS)
    assert turned.recall == pytest.approx(-1.0) and not turned.follows


def test_classes_without_images_are_left_out_and_other_classifiers_have_no_norms() -> None:
    model = tiny_model("source", 0)
    recall = [0.9, 0.8, None, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1]
    found = following(model, recall, [50, 40, 30, 20, 10, 0, 0, 0, 0, 0])
    assert found.recall == pytest.approx(1.0)
    squared = dataclasses.replace(model, module=nn.Sequential(model.module, nn.Softplus()))
    assert following(squared, recall, COUNTS).norms is None
    assert not following(model, [0.5] * 10, COUNTS).follows
