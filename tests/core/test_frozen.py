"""A frozen teacher answers like the original, gives gradients where asked, and leaves the original alone."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from upcycle.core import frozen as frozen_module
from upcycle.core.errors import UserError
from upcycle.core.frozen import fast_bf16, fold_batchnorm, folds_across, frozen


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Shared(nn.Module):
    """One BatchNorm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head((self.bn(self.a(x)) + self.bn(self.b(x))).mean((2, 3)))


class TwoReaders(nn.Module):
    """A convolution read by a BatchNorm and by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        y = self.conv(x)
        return self.head((self.bn(y) * y.sigmoid()).mean((2, 3)))


class Tied(nn.Module):
    """Two convolutions with one weight, a BatchNorm behind only one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.b.weight = self.a.weight
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head((self.bn(self.a(x)) + self.b(x)).mean((2, 3)))


class Branching(nn.Module):
    """Its forward asks about values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.head((y if y.mean() > 0 else -y).mean((2, 3)))


class Optional(nn.Module):
    """An optional argument, and a forward that keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.seen: object = None

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        self.seen = self.bn(self.conv(x))
        return self.head(self.seen.mean((2, 3)))


class NearConstant(nn.Module):
    """Logits that differ in the fifth digit: fine in float32, ties in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return 1 + 1e-4 * self.head(x.flatten(1))


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with weights, BatchNorm statistics and affine parameters far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                n = m.num_features
                m.running_mean.copy_(torch.randn(n, generator=generator))
                m.running_var.copy_(torch.rand(n, generator=generator) * 3 + 0.2)
                if m.affine:
                    m.weight.copy_(torch.randn(n, generator=generator))
                    m.bias.copy_(torch.randn(n, generator=generator))
    return module


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, affine=False),
        *(Residual(8) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 5),
    )


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6, 5))


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 8, 5))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (64, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def snapshot(module: nn.Module) -> tuple[dict, dict, dict]:
    return (
        {name: t.clone() for name, t in module.state_dict().items()},
        {name: m.training for name, m in module.named_modules()},
        {name: (p.requires_grad, p.grad) for name, p in module.named_parameters()},
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("build", "shape", "folds"),
    [
        (plain, (64, 3, 8, 8), 1),
        (residual, (64, 3, 8, 8), 8),
        (signals, (64, 3, 8), 1),
        (volumes, (64, 3, 4, 4, 4), 1),
        (Optional, (64, 3, 8, 8), 1),
        (Shared, (64, 3, 8, 8), 0),
        (TwoReaders, (64, 3, 8, 8), 0),
        (Tied, (64, 3, 8, 8), 0),
        (Branching, (64, 3, 8, 8), 0),
    ],
)
def test_answers_like_the_original(build, shape, folds) -> None:
    net, x = awake(build()).eval(), images(*shape)
    fast = frozen(net, x, precision="32-true")
    assert fast.folded == folds
    expected = net(x)
    assert (fast(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert fast.error <= 1e-5
    assert fast.agreement == 1
    # Other batch sizes too: nothing of the example is baked in.
    assert torch.allclose(fast(x[:3]), net(x[:3]), rtol=1e-4, atol=1e-5)


def test_folding_is_exact_in_float64() -> None:
    net, x = awake(residual()).eval(), images()
    fast = frozen(net, x, precision="64-true")
    assert (fast.precision, fast.folded) == ("float64", 8)
    expected = copy.deepcopy(net).double()(x.double())
    out = fast(x.double())
    assert out.dtype == torch.float64
    assert (out - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert fast(x).dtype == torch.float32


def test_torchvision_resnet18() -> None:
    models = pytest.importorskip("torchvision.models")
    net, x = awake(models.resnet18(num_classes=10)).eval(), images(2, 3, 64, 64)
    with torch.no_grad():
        for m in net.modules():  # random affine values blow up through 18 layers
            if isinstance(m, nn.BatchNorm2d):
                m.weight.fill_(0.7)
    fast = frozen(net, x, precision="32-true")
    assert fast.folded == 20
    with torch.no_grad():
        expected = net(x)
    assert (fast(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_keep_bn() -> None:
    net = awake(plain()).eval()
    fast = frozen(net, images(), precision="32-true", keep_bn=True, keep_modules=True)
    assert fast.folded == 0
    assert torch.equal(fast.network[1].running_mean, net[1].running_mean)


def test_where_folding_changes_what_a_submodule_gives() -> None:
    net = awake(plain()).eval()  # a convolution, its BatchNorm, ...
    assert folds_across(net, ["0"]) and folds_across(net, ["2", "0"])
    assert not folds_across(net, ["1"]) and not folds_across(net, [""]) and not folds_across(net, [])
    whole = nn.Sequential(net, nn.Identity())
    assert folds_across(whole, ["0.0"]) and not folds_across(whole, ["0"])
    apart = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    assert folds_across(apart, ["0"])


def test_batch_statistics_are_not_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    assert fold_batchnorm(net)[1] == 0


def test_a_wrong_fold_is_refused(monkeypatch) -> None:
    net, x = awake(plain()).eval(), images()

    def wrong(layer, norm) -> None:
        layer.weight = nn.Parameter(layer.weight * 1.001)

    monkeypatch.setattr(frozen_module, "_fold", wrong)
    fast = frozen(net, x, precision="32-true")
    assert (fast.folded, fast.error) == (0, 0.0)
    assert torch.allclose(fast(x), net(x), atol=1e-5)


def test_the_original_is_untouched() -> None:
    net = awake(residual()).train()
    net[2].eval()
    net(images())[0, 0].backward()
    before = snapshot(net)
    fast = frozen(net, images(), precision="bf16", input_grad=True)
    x = images().requires_grad_()
    fast(x).sum().backward()
    after = snapshot(net)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(before[2].values(), after[2].values(), strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16"])
def test_gradients_reach_the_input_and_no_parameter(precision) -> None:
    net, x = awake(plain()).eval(), images().requires_grad_()
    assert not frozen(net, images(), precision=precision)(x).requires_grad

    fast = frozen(net, images(), precision=precision, input_grad=True)
    (grad,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    tolerance = 1e-4 if precision == "32-true" else 5e-2
    assert (grad - expected).norm() <= tolerance * expected.norm()
    assert not any(p.requires_grad or p.grad is not None for p in fast.parameters())


def test_outputs_re_enter_autograd() -> None:
    fast = frozen(awake(plain()), images())
    weight = torch.ones(5, requires_grad=True)
    (fast(images()) * weight).sum().backward()
    assert weight.grad is not None


def test_stays_asleep_inside_a_training_module() -> None:
    parent = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": frozen(awake(plain()), images())})
    parent.train()
    assert not any(m.training for m in parent["teacher"].modules())
    assert [name for name, p in parent.named_parameters() if p.requires_grad] == [
        "student.weight",
        "student.bias",
    ]
    before = parent["teacher"](images())
    parent.to(torch.float64)
    assert torch.equal(parent["teacher"](images()), before)


def test_autocast_outside_does_not_reach_it() -> None:
    fast, x = frozen(awake(plain()), images(), precision="32-true"), images()
    expected = fast(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x), expected)


def test_renormalises_inputs() -> None:
    mine, theirs = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)), ((0.48, 0.45, 0.4), (0.22, 0.24, 0.26))
    pixels = torch.rand(64, 3, 8, 8, dtype=torch.float64)

    def normalised(by) -> torch.Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in by)
        return (pixels - mean) / std

    net = awake(plain()).double().eval()
    fast = frozen(net, normalised(mine), precision="64-true", renormalise=(mine, theirs))
    assert torch.allclose(fast(normalised(mine)), net(normalised(theirs)), rtol=1e-12, atol=1e-12)

    same = frozen(net, normalised(mine), precision="64-true", renormalise=(mine, mine))
    assert same._scale is None
    assert torch.allclose(same(normalised(mine)), net(normalised(mine)), rtol=1e-12, atol=1e-12)


def test_auto_takes_bf16_where_answers_stay(monkeypatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(5, 12))
        net[1].bias.zero_()
    x = F.one_hot(torch.arange(64) % 5, 12).float().view(64, 3, 2, 2)
    monkeypatch.setattr(frozen_module, "fast_bf16", lambda device: True)
    fast = frozen(net, x)
    assert (fast.precision, fast.agreement) == ("bf16", 1.0)
    assert fast(x).dtype == torch.float32
    monkeypatch.setattr(frozen_module, "fast_bf16", lambda device: False)
    assert frozen(net, x).precision == "float32"


def test_auto_falls_back_when_answers_change(monkeypatch) -> None:
    monkeypatch.setattr(frozen_module, "fast_bf16", lambda device: True)
    net, x = NearConstant().eval(), images(64, 3, 2, 2)
    assert frozen(net, x, precision="bf16").agreement < 0.9
    fast = frozen(net, x)
    assert (fast.precision, fast.agreement) == ("float32", 1.0)
    assert torch.equal(fast(x), net(x))


def test_without_an_example_nothing_is_assumed(monkeypatch) -> None:
    monkeypatch.setattr(frozen_module, "fast_bf16", lambda device: True)
    net, x = awake(plain()).eval(), images()
    fast = frozen(net)
    assert (fast.precision, fast.folded) == ("float32", 0)
    assert torch.allclose(fast(x), net(x), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("", False)],
)
def test_fast_bf16_follows_from_the_flags(monkeypatch, flags, fast) -> None:
    monkeypatch.setattr(frozen_module, "_cpu_flags", lambda: frozenset(flags.split()))
    assert fast_bf16("cpu") is fast


def test_broken_networks_and_options_are_named() -> None:
    net = plain()
    with pytest.raises(UserError, match="precision must be one of"):
        frozen(net, images(), precision="fp8")  # type: ignore[arg-type]
    net[4].weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="Sequential gives NaN"):
        frozen(net, images())
    with pytest.raises(UserError, match="gives a tuple"):
        frozen(nn.LSTM(3, 4), images(2, 5, 3))


class _Through(torch.autograd.Function):
    """Signs, with the gradient of the identity: a backward of its author's own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _Signs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.relu(_Through.apply(self.conv(x))).mean((2, 3)))


def test_a_backward_of_its_authors_own_is_kept() -> None:
    torch.manual_seed(0)
    module, x = _Signs(), torch.randn(4, 1, 6, 6)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(leaf).sum(), leaf)
    assert expected.abs().max() > 0
    leaf = x.clone().requires_grad_()
    teacher = frozen(module, x, input_grad=True, precision="32-true")
    (found,) = torch.autograd.grad(teacher(leaf).sum(), leaf)
    torch.testing.assert_close(found, expected)
