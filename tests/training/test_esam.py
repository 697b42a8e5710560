"""ESAM: invariants of its card, in a loop of one's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.training.esam import Sharp, perturbation, sharpest


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int, n: int = 16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def step(model: nn.Module, optimizer: Sharp, x: Tensor, y: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """The loop of the docstring; returns the chosen samples."""
    optimizer.prepare(draw)
    before = losses(model, x, y)
    before.mean().backward()
    optimizer.ascend()
    optimizer.zero_grad()
    with torch.no_grad():
        after = losses(model, x, y)
    part = optimizer.sharpest(before.detach(), after)
    losses(model, x[part], y[part]).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return part


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def grads(seed: int, n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, i + 1, generator=g) for i in range(n)]


# -- the ascent -------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.floats(1e-3, 2.0), st.floats(0.1, 1.0))
def test_the_ascent_is_as_long_as_it_says(seed: int, rho: float, keep: float) -> None:
    g = grads(seed, 5)
    kept = [i % 2 == 0 for i in range(5)]
    eps = perturbation(g, kept, rho, keep)
    assert [e is not None for e in eps] == kept  # 0 on dropped tensors
    long = torch.cat([e.flatten() for e in eps if e is not None])
    assert float(long.norm()) == pytest.approx(rho / keep, rel=1e-6)
    along = torch.cat([x.flatten() for x, k in zip(g, kept, strict=True) if k])
    assert torch.allclose(long / long.norm(), along / along.norm(), atol=1e-6)


def test_the_ascent_of_asam_follows_the_size_of_weights() -> None:
    g, w = grads(0, 3), grads(1, 3)
    eps = perturbation(g, [True] * 3, 0.5, 1.0, w)
    norm = math.sqrt(sum(float((x.abs() * y).square().sum()) for x, y in zip(w, g, strict=True)))
    for e, x, y in zip(eps, w, g, strict=True):
        assert e is not None and torch.allclose(e, 0.5 * x.square() * y / norm, atol=1e-6)
    unscaled = [e / x.abs() for e, x in zip(eps, w, strict=True) if e is not None]  # ‖ε / |w|‖ = ρ
    assert float(torch.cat([u.flatten() for u in unscaled]).norm()) == pytest.approx(0.5, rel=1e-5)


def test_gradients_of_nought_and_missing_ones_move_nothing() -> None:
    (zero,) = perturbation([torch.zeros(4)], [True], 0.05)
    assert zero is not None and not zero.any()
    assert perturbation([None, None], [True, True], 0.05) == [None, None]
    half = perturbation([torch.full((4,), 1e-6, dtype=torch.bfloat16)], [True], 0.05)[0]
    assert half is not None and half.dtype == torch.float32 and float(half.norm()) == pytest.approx(0.05, rel=1e-4)


# -- the choice of samples --------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 9))
def test_the_sharpest_samples(b: int, select: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    before, after = torch.rand(b, generator=g), torch.rand(b, generator=g)
    part = sharpest(before, after, select)
    assert len(part) == max(1, round(select * b)) == len(set(part.tolist()))
    assert int((after - before).argmax()) in part.tolist()
    assert part.tolist() == sorted(part.tolist())
    left = [i for i in range(b) if i not in part.tolist()]
    rise = after - before
    assert not left or float(rise[left].max()) <= float(rise[part].min())
    assert len(sharpest(before, after, select, least=2)) == min(b, max(2, round(select * b)))


def test_equal_rises_give_as_many_samples() -> None:
    assert len(sharpest(torch.zeros(8), torch.zeros(8), 0.5)) == 4  # a threshold would leave none


# -- steps ------------------------------------------------------------------------------------------------------


def trained(optimizer: Sharp | torch.optim.Optimizer, model: nn.Module, steps: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    for i in range(steps):
        x, y = batch(i)
        if isinstance(optimizer, Sharp):
            step(model, optimizer, x, y, draw)
        else:
            losses(model, x, y).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_radius_of_nought_is_the_optimiser_inside(keep: float, adaptive: bool) -> None:
    ours, theirs = net(), net()
    sharp = Sharp(sgd(ours), rho=0.0, keep=keep, adaptive=adaptive)
    assert torch.equal(trained(sharp, ours), trained(sgd(theirs), theirs))


def test_all_weights_and_samples_are_sam() -> None:
    ours, theirs = net(), net()
    optimizer = sgd(theirs)
    for i in range(12):
        x, y = batch(i)
        losses(theirs, x, y).mean().backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()  # type: ignore[union-attr]
        saved = [p.detach().clone() for p in theirs.parameters()]
        with torch.no_grad():
            for p in theirs.parameters():
                p.add_(p.grad * (0.05 / (norm + 1e-12)))  # type: ignore[operator]
        optimizer.zero_grad()
        losses(theirs, x, y).mean().backward()
        with torch.no_grad():
            for p, w in zip(theirs.parameters(), saved, strict=True):
                p.copy_(w)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(trained(Sharp(sgd(ours), rho=0.05), ours), weights(theirs))


def test_the_step_is_taken_from_where_the_weights_were() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    flags, before = [p.requires_grad for p in model.parameters()], weights(model)
    optimizer = Sharp(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0), rho=3.0, keep=0.5)
    draw = torch.Generator().manual_seed(0)
    for i in range(6):
        step(model, optimizer, *batch(i), draw)
        assert torch.equal(weights(model), before)
        assert [p.requires_grad for p in model.parameters()] == flags and not optimizer.ascended


def test_dropped_weights_have_no_gradient_in_the_first_pass_only() -> None:
    model, draw, seen = net(), torch.Generator().manual_seed(0), set()
    optimizer = Sharp(sgd(model), rho=0.05, keep=0.5)
    for i in range(20):
        optimizer.prepare(draw)
        kept = [p.requires_grad for p in model.parameters()]
        seen.add(tuple(kept))
        x, y = batch(i)
        losses(model, x, y).mean().backward()
        assert [p.grad is not None for p in model.parameters()] == kept
        optimizer.ascend()
        assert all(p.requires_grad for p in model.parameters())
        optimizer.zero_grad()
        losses(model, x, y).mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) > 5


def test_the_same_weights_ascend_where_gradients_are_not_spared() -> None:
    ours, theirs = net(), net()
    sparing, wasteful = Sharp(sgd(ours), keep=0.5, select=0.5), Sharp(sgd(theirs), keep=0.5, select=0.5)
    wasteful.spares = False
    assert torch.equal(trained(sparing, ours), trained(wasteful, theirs))


def test_as_many_tensors_are_kept_as_asked_and_never_none() -> None:
    model, draw, kept = net(), torch.Generator().manual_seed(0), 0
    n = len(list(model.parameters()))
    optimizer = Sharp(sgd(model), keep=0.6)
    for _ in range(1000):
        optimizer.prepare(draw)
        kept += sum(p.requires_grad for p in model.parameters())
    optimizer.restore()
    assert abs(kept - 1000 * n * 0.6) < 3 * math.sqrt(1000 * n * 0.6 * 0.4) + 1000 * n * 0.4**n
    for keep in (0.01, 1e-30):  # the second one at once too
        rare = Sharp(sgd(model), keep=keep)
        for _ in range(50):
            rare.prepare(draw)
            assert any(p.requires_grad for p in model.parameters())
        rare.restore()


def test_its_state_is_that_of_the_optimiser_inside() -> None:
    whole, halved = net(), net()
    first = Sharp(sgd(whole), select=0.5)
    for i in range(6):
        step(whole, first, *batch(i))
    state = copy.deepcopy(first.state_dict())
    assert state.keys() == sgd(halved).state_dict().keys() and first.state is first.base.state
    halved.load_state_dict(whole.state_dict())
    second = Sharp(sgd(halved), select=0.5)
    second.load_state_dict(state)
    for i in range(6, 12):
        step(whole, first, *batch(i))
        step(halved, second, *batch(i))
    assert torch.equal(weights(whole), weights(halved))
    second.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.5})
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.5]
    torch.optim.lr_scheduler.StepLR(second, 1, 0.1).step()
    assert second.param_groups[0]["lr"] == pytest.approx(0.01)


def test_what_is_misused_says_so() -> None:
    model = net()
    optimizer = Sharp(sgd(model))
    losses(model, *batch(0)).mean().backward()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match="ascended already"):
        optimizer.ascend()
    with pytest.raises(TypeError, match="no closure"):
        optimizer.step(lambda: None)
    for wrong in ({"rho": -1.0}, {"rho": math.nan}, {"keep": 0.0}, {"select": 0.0}, {"keep": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Sharp(sgd(model), **wrong)
