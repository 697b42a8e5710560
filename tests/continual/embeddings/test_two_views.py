"""Objectives on two views: their formulas, and what a view may show."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.settings import tiny_data
from upcycle.continual.embeddings.two_views import (
    Projection,
    Views,
    barlow_twins_loss,
    simsiam_loss,
)
from upcycle.data.windows import resized_crop, windows


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_barlow_twins() -> None:
    z = normal(64, 5)
    q = torch.linalg.qr(z - z.mean(0)).Q * 8  # uncorrelated, of variance 1
    assert float(barlow_twins_loss(q, q)) == pytest.approx(0.0, abs=1e-6)
    assert float(barlow_twins_loss(3 * q + 1, q)) == pytest.approx(0.0, abs=1e-6)  # scale and mean do not matter
    assert float(barlow_twins_loss(-q, q)) == pytest.approx(4 * 5, rel=1e-4)
    one = q[:, :1].expand(-1, 5)  # all dimensions alike: C is all ones
    assert float(barlow_twins_loss(one, one, 0.1)) == pytest.approx(0.1 * 20, rel=1e-4)
    a, b = normal(64, 5), normal(64, 5, seed=1)
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:5, 5:]
    expected = (1 - c.diagonal()).square().sum() + 0.5 * (c - c.diagonal().diag()).square().sum()
    assert float(barlow_twins_loss(a, b, 0.5)) == pytest.approx(float(expected), rel=1e-3)


def test_simsiam() -> None:
    p = [normal(8, 5, seed=i).requires_grad_() for i in range(4)]
    assert simsiam_loss(p[0], p[1], p[1], p[0]).item() == pytest.approx(-1.0)
    simsiam_loss(p[0], p[1], p[2], p[3]).backward()
    assert p[1].grad is None and p[3].grad is None  # gradients stop at the projections
    assert p[0].grad is not None and p[2].grad is not None
    assert simsiam_loss(*p).item() == pytest.approx(simsiam_loss(p[2], p[3], p[0], p[1]).item())


def test_a_projection_keeps_apart_what_it_projects_and_predicts() -> None:
    head, x, y = Projection("simsiam", 6, 8), normal(16, 6, dtype=torch.float32), normal(16, 6, 1, 1, seed=1).float()
    z = head.projector(x)
    assert torch.equal(head(x)[:, :8], z) and torch.equal(head(x)[:, 8:], head.predictor(z))
    second = y.flatten(1)
    expected = simsiam_loss(head(x)[:, 8:], head(x)[:, :8], head(second)[:, 8:], head(second)[:, :8])
    assert torch.allclose(head.loss(head(x), head(second)), expected)
    barlow = Projection("barlow", 6, 8)
    assert barlow(x).shape == (16, 8)
    assert torch.equal(barlow.loss(barlow(x), barlow(second)), barlow_twins_loss(barlow(x), barlow(second)))


def test_a_window_of_the_whole_image_is_the_image() -> None:
    x = normal(3, 2, 8, 6)
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(3, -1).double()
    assert torch.allclose(resized_crop(x, whole), x, atol=1e-6)
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    lower = resized_crop(ramp, torch.tensor([[0.5, 1.0, 0.5, 0.0]]))  # rows 4 to 7
    assert lower[0, 0, :, 0].tolist() == [3.75, 4.25, 4.75, 5.25, 5.75, 6.25, 6.75, 7.0]  # the border repeats
    assert torch.equal(lower, resized_crop(ramp.mT, torch.tensor([[1.0, 0.5, 0.0, 0.5]])).mT)


def test_windows_lie_inside_and_have_their_share() -> None:
    ids = torch.arange(2000)
    height, width, row, column = windows((0, 0), ids, 0.4).double().unbind(1)
    assert float((row.abs() + height).max()) <= 1 + 1e-6 and float((column.abs() + width).max()) <= 1 + 1e-6
    area = height * width
    assert 0.35 < float(area.min()) < 0.45 and 0.9 < float(area.max()) <= 1
    assert float(area.mean()) == pytest.approx(0.69, abs=0.03)
    assert not torch.equal(windows((0, 0), ids, 0.4), windows((0, 1), ids, 0.4))


def test_two_views_differ_and_repeat() -> None:
    split = dataclasses.replace(tiny_data().train, augment=("flip", "color"))
    views, index, cpu = Views(split, 0.4), torch.arange(10, 30), torch.device("cpu")
    batch = views.batch(index, device=cpu, view=(1, 2))
    first, second = batch.images.unbind(1)
    assert batch.images.shape == (20, 2, 1, 8, 8) and bool((first != second).flatten(1).any(1).all())
    assert torch.equal(views.batch(index, device=cpu, view=(1, 2)).images, batch.images)
    assert not torch.equal(views.batch(index, device=cpu, view=(1, 3)).images, batch.images)
    assert torch.equal(views.batch(index[5:9], device=cpu, view=(1, 2)).images, batch.images[5:9])
    still = Views(dataclasses.replace(split, augment=()), 1.0).batch(index, device=cpu, view=(1, 2)).images
    assert torch.equal(still[:, 0], split.batch(index, device=cpu).images) and torch.equal(still[:, 0], still[:, 1])
