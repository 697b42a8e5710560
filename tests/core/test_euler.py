"""Euler's steps: a residual block is one, they converge at first order, and rest is measured along the trajectory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.euler import euler, euler_to_rest, steps_in


def state(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed)).double()


def smooth(t: float, z: Tensor) -> Tensor:
    return torch.sin(2 * z) - 0.3 * z


def test_one_step_of_one_is_a_residual_block() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()).double()
    z = state()
    assert torch.equal(euler(lambda t, x: body(x), z, 1.0), z + body(z))


def test_nothing_moves_without_a_field() -> None:
    z = state()
    end, moved = euler_to_rest(lambda t, x: torch.zeros_like(x), z, 0.1, (0.9, 1.5))
    assert torch.equal(end, z) and moved == 0
    assert torch.equal(euler(lambda t, x: torch.zeros_like(x), z, 0.1), z)


def test_a_field_without_time_does_not_know_when_it_began() -> None:
    z = state()
    assert torch.equal(euler(smooth, z, 0.1), euler(smooth, z, 0.1, start=7.0))
    timed = euler(lambda t, x: torch.full_like(x, t), z, 0.1) - z
    assert torch.allclose(timed, torch.full_like(z, 0.45))  # 0.1 (0 + 0.1 + ... + 0.9)
    later = euler(lambda t, x: torch.full_like(x, t), z, 0.1, start=2.0) - z
    assert torch.allclose(later, torch.full_like(z, 2.45))


def test_the_term_is_no_less_than_what_was_moved_and_equal_where_the_sign_stays() -> None:
    z, h, (first, last) = state(), 0.1, (0.8, 1.4)
    swinging = lambda t, x: 5 * (x.roll(1, 3) - x.roll(-1, 3))  # noqa: E731
    for f, equal in ((swinging, False), (lambda t, x: x.square() + 1, True), (lambda t, x: -x.abs(), True)):
        _, moved = euler_to_rest(f, z, h, (first, last))
        begin = euler(f, z, h, first)
        end = euler(f, begin, h, last - first, start=first)
        net = (end - begin).abs().mean()
        assert moved >= net - 1e-12
        assert torch.isclose(moved, net, rtol=1e-10) == equal
    _, moved = euler_to_rest(lambda t, x: torch.full_like(x, 1.0 if t < 1.05 else -1.0), z, h, (first, last))
    assert torch.isclose(moved, torch.tensor(0.6).double())  # there and back again, although nothing is moved by it


def test_the_state_is_read_at_its_time_wherever_the_window_lies() -> None:
    z = state()
    expected = euler(smooth, z, 0.1)
    for window in ((0.9, 1.5), (0.2, 0.6), (1.0, 2.0), (0.9, 1.0), (1.2, 1.4)):
        assert torch.equal(euler_to_rest(smooth, z, 0.1, window)[0], expected)


def test_the_term_is_what_the_published_two_loops_give() -> None:
    z, h = state(), 0.05
    at = z
    kept: dict[int, Tensor] = {}
    for k in range(20):
        if k == 18:
            kept[18] = at
        at = at + h * smooth(0, at)
    y, a = kept[18], torch.zeros_like(z)
    for _ in range(12):
        a, y = a + h * smooth(0, y).abs(), y + h * smooth(0, y)
    end, moved = euler_to_rest(smooth, z, h, (0.9, 1.5))
    assert torch.allclose(end, at, atol=1e-13) and torch.isclose(moved, a.mean(), rtol=1e-12)


def test_halving_the_step_halves_the_error() -> None:
    z = state()
    exact = euler(smooth, z, 1 / 4096)
    errors = [(euler(smooth, z, h) - exact).norm() for h in (1 / 32, 1 / 64, 1 / 128)]
    for coarse, fine in itertools.pairwise(errors):
        assert 0.45 < float(fine / coarse) < 0.52


def test_a_linear_field_decays_as_it_should() -> None:
    z = state()
    exact = math.exp(-1.7) * z
    errors = [float((euler(lambda t, x: -1.7 * x, z, h) - exact).norm() / exact.norm()) for h in (0.1, 0.01, 0.001)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2e-3


def test_without_weight_the_term_changes_no_gradient() -> None:
    torch.manual_seed(0)
    body, z = nn.Linear(6, 6).double(), state()
    grads = []
    for weight in (None, 0.0, 0.01):
        end, moved = euler_to_rest(lambda t, x: body(x).tanh(), z, 0.1, (0.9, 1.5))
        if weight is None:
            end = euler(lambda t, x: body(x).tanh(), z, 0.1)
        loss = end.square().mean() + (weight or 0.0) * moved
        grads.append(torch.autograd.grad(loss, body.weight)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-14)
    assert not torch.allclose(grads[0], grads[2], atol=1e-6)


def test_it_is_torchdiffeqs() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    z = state()

    def timed(t: float, x: Tensor) -> Tensor:
        return smooth(t, x) * (1 + t)

    for h in (1.0, 0.1, 0.05):
        theirs = torchdiffeq.odeint(
            timed, z, torch.tensor([0.0, 1.0]).double(), method="euler", options={"step_size": h}
        )[1]
        assert (euler(timed, z, h) - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(("time", "h", "steps"), [(1.0, 0.1, 10), (0.3, 0.1, 3), (1.5, 0.05, 30), (0.0, 0.1, 0)])
def test_times_on_the_grid(time: float, h: float, steps: int) -> None:
    assert steps_in(time, h) == steps


@pytest.mark.parametrize(
    ("window", "h", "says"),
    [
        ((0.9, 1.5), 0.2, "T1 0.9 is no multiple of the step 0.2"),
        ((0.8, 1.5), 0.2, "T2 1.5 is no multiple of the step 0.2"),
        ((1.0, 1.0), 0.1, "must end behind its beginning"),
        ((0.9, 1.5), 0.0, "must be positive"),
        ((0.6, 1.2), 0.3, "time 1 is no multiple"),
    ],
)
def test_windows_that_cannot_be(window: tuple[float, float], h: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        euler_to_rest(smooth, state(), h, window)
