"""The learned propagation rule: the invariants of its card."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.diagnosis.attribution import explain
from upcycle.diagnosis.attribution.gradients import gradient
from upcycle.diagnosis.attribution.learned_rule import (
    Rule,
    evidence,
    gated,
    learned,
    modified_gradient,
    normalised,
    objective,
    plugins,
)
from upcycle.zoo.vit import ViT


class Functional(nn.Module):
    """One nn.ReLU called twice, one in place, F.relu, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        x = self.relu(self.b(x)) + x
        x = F.relu(self.b(F.max_pool2d(x, 2)), inplace=True)
        return self.linear(self.inplace(x - 0.1).mean((2, 3)))


def _net(make: Callable[[], nn.Module] = Functional, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype).eval().requires_grad_(False)


def _x(b: int = 3, c: int = 2, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(b, c, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


Y = torch.tensor([0, 2, 1])


def _log_p(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(net(x), 1).gather(1, y[:, None])[:, 0]


def test_with_all_factors_one_it_is_the_gradient() -> None:
    net, x = _net(), _x()
    ones = [torch.ones_like(p) for p in plugins(net, x)]
    found = modified_gradient(net, x, Y, ones)
    assert torch.allclose(found, gradient(net, x, Y), atol=1e-6) and found.abs().max() > 1e-3
    one_half = modified_gradient(net, x, Y, [0.5 * t for t in ones])
    assert not torch.allclose(one_half, found, atol=1e-3)


def test_every_call_has_its_own_factors_of_its_own_shape() -> None:
    net, x = _net(), _x()
    assert [tuple(p.shape) for p in plugins(net, x)] == [(3, 4, 8, 8), (3, 4, 8, 8), (3, 4, 4, 4), (3, 4, 4, 4)]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Hardswish(), nn.PReLU()])
def test_the_forward_is_the_same_to_the_bit_and_the_gate_is_the_derivative(activation: nn.Module) -> None:
    activation = activation.double().requires_grad_(False)
    u = _x().requires_grad_()
    theta = torch.rand(u.shape, generator=torch.Generator().manual_seed(2), dtype=u.dtype).requires_grad_()
    calls = []

    def rule(i: int, f: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        calls.append(i)
        return gated(f, u, theta)

    with Rule(rule):
        y = activation(u)
    assert calls == [0] and torch.equal(y, activation(u))
    r = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, u, r, create_graph=True)
    (plain,) = torch.autograd.grad(activation(u), u, r)
    assert torch.allclose(back, theta * plain, atol=1e-12)
    # Twice differentiable in θ, and θ has no direct part in the output.
    (through,) = torch.autograd.grad(back.sum(), theta, retain_graph=True)
    assert torch.allclose(through, plain, atol=1e-12)
    assert not torch.autograd.grad(y.sum(), theta)[0].any()


def test_the_gradient_of_j_agrees_with_finite_differences() -> None:
    # LayerNorm and GELU make the modified gradient depend on the values too, which must not depend on θ.
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 4), nn.GELU(),
                        nn.Linear(4, 3)).double().eval().requires_grad_(False)  # fmt: skip
    x, y = _x(2), torch.tensor([0, 2])
    log_p = _log_p(net, x, y)
    start = plugins(net, x)
    # The 99th percentile is detached: J is compared with its value held, and clamping apart.
    scale = evidence(modified_gradient(net, x, y, [2 * p.sigmoid() for p in start]), x).detach().amax((1, 2)) * 2

    def j(phi: list[Tensor]) -> Tensor:
        m = evidence(modified_gradient(net, x, y, [2 * p.sigmoid() for p in phi]), x) / scale[:, None, None]
        return objective(log_p + 9, _log_p(net, m[:, None] * x, y), m, lambda1=0.5, lambda2=0.3)

    grads = torch.autograd.grad(j(start), start)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in start]
        up, down = (
            j([(p + e * d).detach().requires_grad_() for p, d in zip(start, direction, strict=True)])
            for e in (1e-6, -1e-6)
        )
        expected = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        assert (up - down).item() / 2e-6 == pytest.approx(float(expected), rel=1e-4)


def test_a_batch_is_its_images_one_by_one() -> None:
    net, x = _net(), _x()
    together, _ = learned(net, x, Y, chunk=12, iterations=5)
    alone = torch.cat([learned(net, x[i : i + 1], Y[i : i + 1], chunk=12, iterations=5)[0] for i in range(3)])
    chunked, _ = learned(net, x, Y, chunk=4, iterations=5)
    top = float(together.max())
    assert torch.allclose(together, alone, atol=1e-9 * top) and torch.allclose(together, chunked, atol=1e-9 * top)
    assert not torch.allclose(together, learned(net, x, Y, chunk=12, iterations=0)[0], atol=1e-2 * top)


def test_learning_lowers_j() -> None:
    net, x = _net(), _x()
    log_p = _log_p(net, x, Y)

    def j(a: Tensor) -> float:
        m = normalised(a)
        return float(objective(log_p, _log_p(net, m[:, None] * x, Y), m, lambda1=0.05, lambda2=0.01))

    before, after = (j(learned(net, x, Y, chunk=12, iterations=n, noise=0.0)[0]) for n in (0, 30))
    assert after < before


def test_it_starts_at_gradient_x_input() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net = _net(lambda: net)
    x = _x()
    a, _ = learned(net, x, Y, chunk=12, iterations=0)
    expected = evidence(gradient(net, x, Y), x)
    assert torch.allclose(a / a.amax(), expected / expected.amax(), atol=1e-9)


def test_a_mask_lies_in_0_1_and_what_has_no_gradient_gets_0() -> None:
    net = _net(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)))
    net[3].weight.view(3, 4, 14, 14)[..., 7:] = 0  # nothing beyond column 9 is looked at
    a, _ = learned(net, _x(side=16), Y, chunk=12, iterations=5)
    m = normalised(a)
    assert m.min() >= 0 and m.max() == pytest.approx(1, abs=1e-6) and m[:, :, :8].std() > 0.01
    assert not m[:, :, 9:].any()
    assert not normalised(torch.zeros(2, 4, 4)).any()
    sparse = torch.zeros(1, 20, 20)
    sparse[0, 3, 3] = 5.0
    assert normalised(sparse)[0, 3, 3] == pytest.approx(1)


def test_j_is_a_sum_over_samples_and_0_for_an_empty_price() -> None:
    log_p = F.log_softmax(_x(4).flatten(1)[:, :5], 1)[:, 0]
    m = torch.rand(4, 6, 6, dtype=torch.float64)
    assert float(objective(log_p, log_p, m, lambda1=0.0, lambda2=0.0)) == pytest.approx(0, abs=1e-12)
    parts = [objective(log_p[i : i + 1], log_p.flip(0)[i : i + 1], m[i : i + 1], lambda1=0.3, lambda2=0.2)
             for i in range(4)]  # fmt: skip
    whole = objective(log_p, log_p.flip(0), m, lambda1=0.3, lambda2=0.2)
    assert float(whole) == pytest.approx(float(sum(parts)))


def test_the_network_is_left_as_it_was() -> None:
    net = Functional().train()
    net.b.weight.requires_grad_(False)
    net.a.weight.grad = torch.ones_like(net.a.weight)
    net.relu.register_forward_hook(lambda m, a, o: None)
    state, before = copy.deepcopy(net.state_dict()), _marks(net)
    with torch.no_grad():
        explain(net, _x(dtype=torch.float32), iterations=2)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert _marks(net) == before and bool((net.a.weight.grad == 1).all())


def _marks(net: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), len(m._backward_hooks), m.training, type(m)) for m in net.modules()]
    return [*hooks, *((p.requires_grad, id(p)) for p in net.parameters())]


def test_it_works_on_a_vision_transformer_and_on_fused_attention() -> None:
    x = _x(1, c=1, side=16, dtype=torch.float32)
    net = _net(lambda: ViT((1, 16, 16), 5, width=12, depth=1, heads=2), torch.float32)
    maps = explain(net, x, iterations=2).maps
    assert maps.shape == (1, 16, 16) and maps.max() == 1

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            t = F.gelu(self.conv(x)).flatten(2).transpose(1, 2)[:, None]
            return self.linear(F.scaled_dot_product_attention(t, t, t)[:, 0].mean(1))

    assert explain(_net(Fused, torch.float32), x, iterations=2).maps.max() == 1


def test_what_it_cannot_do_it_refuses_and_names_what_serves() -> None:
    x = _x(1, dtype=torch.float32)
    with pytest.raises(UserError, match=r"no activation.*integrated_gradients"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), x)

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, r: Tensor) -> Tensor:
            return r * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.linear(x.flatten(1))).relu()

    with pytest.raises(UserError, match=r"not twice differentiable.*integrated_gradients"):
        explain(Net(), x)

    class Overwritten(Net):
        def forward(self, x: Tensor) -> Tensor:
            u = self.linear(x.flatten(1))
            F.relu(u, inplace=True)
            return u

    with pytest.raises(UserError, match="overwritten"):
        explain(Overwritten(), x)
    with pytest.raises(UserError, match="iterations"):
        explain(Functional(), x, iterations=-1)
