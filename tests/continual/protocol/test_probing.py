"""Probes of an encoder: minima of their objective, BatchNorm's statistics, flatness."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.settings import TinyNet, tiny_data, tiny_stream
from upcycle.continual.protocol.probing import (
    Probing,
    concatenate,
    features,
    flatness,
    recalibrate_batchnorm,
)
from upcycle.core.errors import UserError
from upcycle.data.images import Images
from upcycle.data.stream_kinds import portions
from upcycle.data.streams import Stream
from upcycle.measure.similarity import linear_cka
from upcycle.training.linear_probe import linear_probe


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole() -> Stream:
    """All digits as one chunk."""
    return portions("whole", tiny_data(), 1)


def mixed(data: Stream, hide: bool = False) -> Stream:
    """The same images with labels permuted within each task, or with none."""
    make = data.make

    def of(t: int) -> Images:
        images = make(t)
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(t))
        labels = torch.full_like(images.train.labels, -1) if hide else images.train.labels[order]
        return dataclasses.replace(images, train=dataclasses.replace(images.train, labels=labels))

    return dataclasses.replace(data, make=of)


def blobs(n: int, seed: int, k: int = 3) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % k
    return 3 * torch.eye(k, 4, dtype=torch.float64)[y] + normal(n, 4, seed=seed), y


def test_a_probe_is_the_minimum_of_its_objective() -> None:
    (x, y), strength = blobs(90, 0), 0.1
    probe = linear_probe(x, y, 3, strengths=(strength,))
    mean, std = x.mean(0), x.std(0, correction=0)
    weight = (probe.weight * std).requires_grad_()
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    z = ((x - mean) / std) @ weight.T + bias
    (nn.functional.cross_entropy(z, y) + strength / 2 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-3 and float(bias.grad.abs().max()) < 1e-3  # type: ignore[union-attr]


def test_a_probe_chooses_on_validation_and_ignores_scale() -> None:
    (x, y), (held, its) = blobs(90, 0), blobs(300, 1)
    probe = linear_probe(x, y, 3, (held, its))
    each = [linear_probe(x, y, 3, (held, its), strengths=(s,)).validation for s in (1e-3, 1e-2, 1e-1, 1.0, 10.0)]
    assert probe.validation == max(each) and probe.validation == probe.accuracy(held, its) > 0.9  # type: ignore[type-var]
    scale = torch.tensor([1e-3, 1.0, 1e3, 10.0], dtype=torch.float64)
    other = linear_probe(x * scale + 5, y, 3, (held * scale + 5, its))
    assert torch.allclose(other(held * scale + 5), probe(held), atol=1e-2)


def test_a_probe_of_two_classes_and_of_classes_it_did_not_see() -> None:
    x, y = blobs(80, 0, 2)
    probe = linear_probe(x, 3 * y, 5)
    assert set(probe(x).argmax(1).tolist()) == {0, 3} and probe.accuracy(x, 3 * y) > 0.9
    with pytest.raises(UserError, match="two classes"):
        linear_probe(x, torch.zeros(80, dtype=torch.int64), 5)


def test_a_probe_learns_from_equally_many_images_of_each_task() -> None:
    data = tiny_stream()(160)
    probing = Probing(TinyNet().eval(), data, 40)
    train, _ = probing._labelled
    assert train is not None
    assert [int(torch.isin(train.labels, torch.tensor(c)).sum()) for c in data.tasks] == [8] * 5


def test_features_are_those_of_evaluation() -> None:
    encoder, data = TinyNet(), tiny_data()
    encoder.linear = nn.Identity()  # type: ignore[assignment]
    encoder.train()
    x = features(encoder, data.test)
    assert encoder.training and torch.equal(x, features(encoder.eval(), data.test))
    assert torch.allclose(features(encoder.double(), data.test), x, atol=1e-5)
    encoder.conv1.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        features(encoder, data.test)


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    encoder, data = TinyNet(), tiny_data()
    made = recalibrate_batchnorm(encoder, data.test, 25)
    x = data.test.batch(torch.arange(50), device=torch.device("cpu")).images
    assert torch.allclose(made.bn1.running_mean, encoder.conv1(x).mean((0, 2, 3)), atol=1e-5)
    assert made.bn1.momentum == 0.1 and not torch.equal(made.bn1.running_mean, encoder.bn1.running_mean)
    assert not bool(encoder.bn1.running_mean.any())  # the network itself is left alone


def test_cka_of_features() -> None:
    k = normal(60, 5)
    q = torch.linalg.qr(normal(5, 5, seed=2)).Q
    assert float(linear_cka(k, k)) == pytest.approx(1.0)
    assert float(linear_cka(k, 7 * k @ q)) == pytest.approx(1.0)
    assert 0 <= float(linear_cka(k, normal(60, 5, seed=3))) <= 1


def test_flatness_of_a_bowl() -> None:
    line = nn.Linear(4, 3).double()
    with torch.no_grad():
        line.weight.copy_(normal(3, 4))
    before = line.weight.clone()

    def loss(m: nn.Module) -> Tensor:
        return (m.weight - before).square().sum()  # type: ignore[union-attr,operator]

    found = flatness(line, loss, (0.0, 0.5, 1.0), 3, torch.Generator().manual_seed(0))
    norm = before.square().sum().item()  # steps are as long as each filter: the loss at ε is ε² |W|²
    assert found == pytest.approx([0.0, 0.25 * norm, norm])
    assert torch.equal(line.weight, before)
    with pytest.raises(UserError, match="direction"):
        flatness(line, loss, (0.1,), 0, torch.Generator())


def test_concatenation_keeps_order() -> None:
    split = tiny_data().train
    both = concatenate([split.subset(torch.tensor([3, 1])), split.subset(torch.tensor([2]))])
    assert torch.equal(both.ids, split.ids[[3, 1, 2]]) and torch.equal(both.images, split.images[[3, 1, 2]])
