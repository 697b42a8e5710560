"""BatchNorm over two processes against torch's on the whole batch: answers, gradients, and gradients of these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upcycle.core.collective import sync_batchnorm


def _derivatives(x: Tensor, affine: bool, synced: bool) -> list[Tensor]:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3, affine=affine).double()
    if affine:
        nn.init.uniform_(norm.weight)
    if synced:
        sync_batchnorm(norm)
    x = x.clone().requires_grad_()
    y = norm(x)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, retain_graph=True)
    (twice,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(twice.square().sum(), x)
    assert norm.running_mean is not None and norm.running_var is not None
    return [y.detach(), first, twice.detach(), second, norm.running_mean, norm.running_var]


def _batch() -> Tensor:
    return torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double() + 3


def _half(affine: bool) -> list[Tensor]:
    return _derivatives(_batch().tensor_split(2)[torch.distributed.get_rank()], affine, True)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_of_two_processes_is_that_of_the_whole_batch(affine: bool, ranks: Any) -> None:
    one = _derivatives(_batch(), affine, False)
    both = ranks(_half, affine)
    for i, (whole, first, second) in enumerate(zip(one, *both, strict=True)):
        found = torch.cat([first, second]) if i < 4 else first
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
