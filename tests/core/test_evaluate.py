"""Evaluation against torchmetrics and by hand, without a trace on modes or randomness."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.task import CLASSIFICATION


class Fake:
    """A split of given vectors and labels."""

    augment, together, task = (), False, CLASSIFICATION

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        assert view is None
        assert index.dtype == torch.int64
        return Batch(self.images[index].to(device), self.labels[index].to(device), index)


def given(n: int = 200, k: int = 7, seed: int = 0) -> Fake:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator)
    noisy = logits + 4 * torch.randn(n, k, generator=generator)
    return Fake(logits, noisy.argmax(1))


def test_agrees_with_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    split, k = given(), 7
    result = evaluate(nn.Identity(), split, num_classes=k)
    p, y = split.images, split.labels
    assert result.count == 200
    assert result.accuracy == pytest.approx(metrics.multiclass_accuracy(p, y, k, average="micro").item())
    assert result.per_class == pytest.approx(metrics.multiclass_accuracy(p, y, k, average=None).tolist())
    assert result.confusion == metrics.multiclass_confusion_matrix(p, y, k).tolist()
    ece = metrics.multiclass_calibration_error(p.softmax(1), y, k, n_bins=15, norm="l1").item()
    assert result.ece == pytest.approx(ece, abs=1e-6)
    assert result.loss == pytest.approx(F.cross_entropy(p, y).item(), rel=1e-6)


def test_reliability_diagram_adds_up() -> None:
    result = evaluate(nn.Identity(), given())
    bins = result.confidence
    assert {len(values) for values in bins.values()} == {15}
    assert sum(bins["count"]) == 200
    weight = torch.tensor(bins["count"]) / 200
    assert (weight @ torch.tensor(bins["accuracy"])).item() == pytest.approx(result.accuracy, rel=1e-5)
    for i, (mean, n) in enumerate(zip(bins["confidence"], bins["count"], strict=True)):
        assert n == 0 or i / 15 <= mean <= (i + 1) / 15
    json.dumps(asdict(result), allow_nan=False)


def test_a_perfect_and_certain_network() -> None:
    y = torch.arange(30) % 3
    result = evaluate(nn.Identity(), Fake(100.0 * F.one_hot(y, 3), y))
    assert (result.accuracy, result.ece) == (1.0, 0.0)
    assert result.confusion == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]


def test_unknown_labels_are_left_out_and_empty_classes_said() -> None:
    split = given()
    part = Fake(split.images[:80].clone(), split.labels[:80].clone())
    whole = Fake(split.images, split.labels.clone())
    whole.labels[80:] = -1
    assert evaluate(nn.Identity(), whole) == evaluate(nn.Identity(), part)

    part.labels[part.labels == 3] = 2
    result = evaluate(nn.Identity(), part)
    assert result.per_class[3] is None
    assert sum(map(sum, result.confusion)) == 80


def test_modes_and_randomness_are_as_before() -> None:
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand(1) + np.random.rand() + random.random()

    net = nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Dropout(), Noisy()).train()
    net[1].eval()
    statistics = net[1].running_mean.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with torch.enable_grad():
        evaluate(net, given())
        assert torch.is_grad_enabled()
    assert [m.training for m in net.modules()] == [True, True, False, True, True]
    assert torch.equal(net[1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_modes_come_back_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    with pytest.raises(RuntimeError):
        evaluate(net, given())
    assert all(m.training for m in net.modules())


def test_float64_networks_take_float32_images() -> None:
    net = nn.Linear(7, 7)
    single = evaluate(net, given())
    assert evaluate(net.double(), given()).loss == pytest.approx(single.loss, rel=1e-5)


def test_mistakes_are_named() -> None:
    split = given()
    broken = Fake(split.images.clone(), split.labels)
    broken.images[5, 2] = float("nan")
    with pytest.raises(UserError, match="teacher gives NaN or infinite outputs for 1 of 200 samples"):
        evaluate(nn.Identity(), broken, name="teacher")
    with pytest.raises(UserError, match="Identity gives 7 logits, but the data have 10 classes"):
        evaluate(nn.Identity(), split, num_classes=10)
    with pytest.raises(UserError, match="label 9"):
        evaluate(nn.Identity(), Fake(split.images, torch.full((200,), 9)))
    with pytest.raises(UserError, match="no labelled sample"):
        evaluate(nn.Identity(), Fake(split.images, torch.full((200,), -1)))
    with pytest.raises(UserError, match="split is empty"):
        evaluate(nn.Identity(), Fake(split.images[:0], split.labels[:0]))
    with pytest.raises(UserError, match=r"shape \(16, 7, 1\)"):
        evaluate(nn.Unflatten(1, (7, 1)), split)
