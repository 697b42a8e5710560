"""Spiking networks: their neurons, their gradients, what they answer, and what becomes of them in files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings_spiking import SHAPE, TINY, model, tiny_capped, tiny_spiking
from upcycle import zoo
from upcycle.core import saved, store
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.core.spikes import sends_spikes
from upcycle.measure.cost import count
from upcycle.measure.export import write_export
from upcycle.zoo.spiking import LIF, VGG11, Capped, Spiking, spiking

LEAK = math.exp(-0.1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Boxcar(torch.autograd.Function):
    """A spike with its surrogate gradient, for one step."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: float, window: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.facts = theta, window
        return (u > theta).to(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (u,), (theta, window) = ctx.saved_tensors, ctx.facts
        return grad * ((u - theta).abs() < window), None, None


def by_autograd(current: Tensor, neurons: LIF, through_time: bool) -> Tensor:
    """The equations as they are written, (T, b, ...) to (T, b, ...)."""
    u = s = torch.zeros_like(current[0])
    spikes = []
    for I in current:  # noqa: E741
        if not through_time:
            u, s = u.detach(), s.detach()
        if neurons.reset == "zero":
            u = neurons.decay * u * (1 - s) + I
        else:
            u = neurons.decay * (u - neurons.theta * s) + I
        s = Boxcar.apply(u, neurons.theta, neurons.window)
        spikes.append(s)
    return torch.stack(spikes)


# -- neurons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_time", [True, False])
@pytest.mark.parametrize("options", [{}, {"tau": math.inf, "theta": 1.0}, {"reset": "subtract"}])
def test_spikes_and_gradients_are_those_of_the_equations(options: dict[str, Any], through_time: bool) -> None:
    neurons, weights = LIF(**options), drawn(9, 5, 7, seed=1)
    current = (0.2 + 0.5 * drawn(9, 5, 7)).requires_grad_()
    expected = by_autograd(current, neurons, through_time)
    (slope,) = torch.autograd.grad((expected * weights).sum(), current)
    found = neurons(current.flatten(0, 1), 9, through_time=through_time)
    assert torch.equal(found.unflatten(0, (9, 5)), expected) and 0.05 < float(expected.detach().mean()) < 0.6
    (ours,) = torch.autograd.grad((found * weights.flatten(0, 1)).sum(), current)
    torch.testing.assert_close(ours, slope, rtol=0, atol=1e-12)
    assert float(slope.abs().sum()) > 0


def test_the_reset_carries_gradient_through_time() -> None:
    """The second potential is λ u (1 - s) + I, so its spike looks at the first current through u and through s."""
    neurons = LIF()
    current = torch.tensor([[0.7], [0.65]], dtype=torch.float64, requires_grad=True)
    neurons(current, 2)[1].sum().backward()
    assert current.grad is not None
    torch.testing.assert_close(current.grad[:, 0], torch.tensor([-LEAK * 0.7, 1.0], dtype=torch.float64))


def test_a_constant_current_is_the_same_current_at_every_step() -> None:
    neurons, weights, one = LIF(), drawn(24, 7, seed=1), (0.5 * drawn(4, 7)).requires_grad_()
    once, often = neurons(one, 6, constant=True), neurons(one.repeat(6, 1), 6)
    assert torch.equal(once, often) and 0 < float(once.detach().mean()) < 1
    slopes = [torch.autograd.grad((s * weights).sum(), one)[0] for s in (once, often)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", [0.125, 0.25, 0.375, 0.5, 1.0])
def test_without_a_leak_the_first_spike_comes_when_the_sum_is_above_the_threshold(c: float) -> None:
    """Exact in binary: a sum that equals the threshold is not above it."""
    neurons, T = LIF(tau=math.inf, theta=1.0), 40
    spikes = neurons(torch.full((1, 1), c), T, constant=True)[:, 0].tolist()
    period = math.floor(1 / c) + 1
    assert [t for t in range(1, T + 1) if spikes[t - 1]] == list(range(period, T + 1, period))


def test_a_current_that_is_not_positive_gives_no_spike_and_rates_are_parts_of_t() -> None:
    current = -drawn(3, 50).abs()
    current[:, 0] = 0
    assert not LIF()(current, 8, constant=True).any()
    rates = LIF()(drawn(8 * 3, 50), 8).unflatten(0, (8, 3)).mean(0)
    assert set((rates * 8).unique().tolist()) <= set(range(9)) and len(rates.unique()) > 3


def test_the_surrogate_is_one_inside_its_window_and_zero_outside() -> None:
    theta = 0.5  # with 0.25 exact in binary, so that the edges are what they are
    u = torch.tensor([0.25, 0.2500001, 0.49, 0.5, 0.51, 0.7499999, 0.75, 2.0], requires_grad=True)
    LIF(theta=theta, window=0.25)(u, 1).sum().backward()
    assert u.grad is not None and u.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_without_gradients_spikes_are_the_same() -> None:
    current = drawn(12, 5).requires_grad_()
    with torch.no_grad():
        quiet = LIF()(current, 4)
    assert torch.equal(quiet, LIF()(current, 4))


def test_half_precision_is_summed_in_float32() -> None:
    current = drawn(12, 5).bfloat16()
    assert torch.equal(LIF()(current, 4), LIF()(current.float(), 4)) and LIF()(current, 4).dtype == torch.float32


# -- networks ---------------------------------------------------------------------------------------------------------


def test_it_is_snntorchs_on_the_same_weights() -> None:
    snntorch = pytest.importorskip("snntorch")
    net, images = tiny_spiking(time_steps=12).double().eval(), drawn(6, *SHAPE)
    leaky = [snntorch.Leaky(beta=layer.decay, threshold=layer.theta, reset_mechanism="zero") for layer in net.neurons]
    memories, summed, rates = [layer.init_leaky() for layer in leaky], 0, [0] * len(leaky)
    with torch.no_grad():
        for _ in range(12):
            s = images
            for i, (synapses, neurons) in enumerate(zip(net.synapses, leaky, strict=True)):
                s, memories[i] = neurons(synapses(s.double()), memories[i])  # its spikes are float32
                rates[i] = rates[i] + s / 12
            summed = summed + net.readout(s.double()) / 12
        y, spikes = net.simulate(images)
        torch.testing.assert_close(net(images), summed, rtol=0, atol=1e-6)
    torch.testing.assert_close(y.mean(0), summed, rtol=0, atol=1e-6)
    for ours, theirs in zip(spikes, rates, strict=True):
        torch.testing.assert_close(ours.mean(0), theirs.double(), rtol=0, atol=1e-6)
        assert 0.01 < float(theirs.mean()) < 0.9


def test_the_answer_is_read_from_the_sums_behind_the_first_steps() -> None:
    net, images = tiny_spiking(time_steps=5, warmup_steps=2).double(), drawn(3, *SHAPE)
    y, _ = net.simulate(images)
    Y = [y[:t].sum(0) for t in range(1, 6)]
    torch.testing.assert_close(net(images), (Y[2] + Y[3] + Y[4]) / 12)
    net.run_for(5)
    torch.testing.assert_close(net(images), y.mean(0))


def test_layers_are_cut_off_from_one_another_where_that_is_asked() -> None:
    net, images = tiny_spiking(), drawn(8, *SHAPE).float()
    for number in range(len(net.neurons)):
        net.zero_grad()
        _, spikes = net.simulate(images, blocked=True)
        spikes[number].mean().backward()
        touched = {name for name, p in net.named_parameters() if p.grad is not None}
        assert touched == {name for name, _ in net.named_parameters() if name.startswith(f"synapses.{number}.")}
    net.zero_grad()
    net.simulate(images, blocked=True)[0].sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"readout.weight", "readout.bias"}
    net(images).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_its_multiply_adds_are_those_of_all_steps_but_for_the_current_of_the_image() -> None:
    first, rest = 8 * 8 * 4 * 9, 4 * 4 * 8 * 36 + 128 * 12 + 12 * 10
    for T in (1, 4):
        assert count(tiny_spiking(time_steps=T), SHAPE).macs == first + T * rest
    assert count(tiny_capped(), SHAPE).macs == first + rest


def test_the_shapes_are_those_of_the_card() -> None:
    net = zoo.build("spiking", pretrained=False).module
    _, spikes = net.simulate(torch.zeros(2, 1, 28, 28))
    assert [tuple(s.shape) for s in spikes] == [
        (16, 2, 16, 28, 28),
        (16, 2, 32, 14, 14),
        (16, 2, 64, 7, 7),
        (16, 2, 128),
    ]
    assert 2.2e6 < count(zoo.build("capped", pretrained=False).module, (1, 28, 28)).macs < 2.4e6
    vgg = spiking((3, 32, 32), 10, VGG11)
    widths = [m.weight.shape[0] for m in vgg.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert widths == [64, 128, 256, 256, 512, 512, 512, 512, 512, 512, 10]
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in vgg.modules())


def test_a_capped_network_stays_between_zero_and_two_and_rests_its_dropout() -> None:
    net, images, seen = tiny_capped(), 5 * drawn(16, *SHAPE).float(), []
    for block in net.blocks:
        block.register_forward_hook(lambda m, x, a: seen.append(a.detach()))
    assert torch.equal(net(images), net(images))
    assert all(float(a.min()) == 0 and float(a.max()) <= 2 for a in seen) and max(float(a.max()) for a in seen) == 2
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == 2
    assert not sends_spikes(net) and sends_spikes(tiny_spiking())


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"time_steps": 0}, "time_steps must be at least 1, and it is 0"),
        ({"time_steps": 4, "warmup_steps": 4}, "warmup_steps must be below time_steps, 4, and it is 4"),
        ({"time_steps": 4, "warmup_steps": -1}, "warmup_steps must not be negative"),
    ],
)
def test_numbers_of_steps_that_cannot_be(steps: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny_spiking(**steps)
    with pytest.raises(UserError, match=says):
        zoo.build("spiking", pretrained=False, **steps)
    with pytest.raises(UserError, match="zoo:capped has no time steps"):
        zoo.build("capped", pretrained=False, time_steps=4)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_network_has_its_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = zoo.build("spiking", pretrained=False, input_shape=SHAPE, time_steps=6, warmup_steps=3)
    assert made.options["time_steps"] == 6
    saved.save(made, tmp_path / "net")
    back = saved.load(tmp_path / "net")
    assert isinstance(back.module, Spiking) and back.module.steps() == {"time_steps": 6, "warmup_steps": 3}
    x = made.example(3)
    with torch.no_grad():
        assert torch.equal(back.module(x), made.module.eval()(x))
    assert resolve(str(tmp_path / "net"), pretrained=False).module.time_steps == 6


@pytest.mark.parametrize("value", [0, -3, 2**70, 1.5, "many", None])
def test_a_forged_number_of_steps_is_refused(value: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved.save(zoo.build("spiking", pretrained=False, input_shape=SHAPE), tmp_path / "net")
    file = tmp_path / "net" / saved.ARCHITECTURE
    record = store.read_json(file)
    record["options"] |= {"time_steps": value} if value is not None else {"time_step": 3}
    store.write_json(file, record)
    store.write_manifest(tmp_path / "net")
    with pytest.raises(UserError):
        saved.load(tmp_path / "net")


@pytest.mark.parametrize("seed", range(6))
def test_rounding_does_not_keep_a_network_from_being_taken(seed: int) -> None:
    """Its answers jump where a potential crosses the threshold, and kernels differ by the order of memory."""
    torch.manual_seed(seed)
    made = resolve("zoo:spiking", pretrained=False)
    assert not made.notes and {p.dtype for p in made.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_it_is_exported(format: str, suffix: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    for seed in range(2):
        made = model(tiny_spiking(seed, warmup_steps=1), "net")
        assert write_export(made, tmp_path / f"net{seed}{suffix}", format) <= 1e-4
    wrong = model(tiny_spiking(), "net")
    exported = torch.export.load(tmp_path / "net0.pt2").module() if format == "torch" else None
    assert exported is None or exported(wrong.example(5)).shape == (5, 10)


def test_a_wrong_export_of_a_spiking_network_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import upcycle.measure.export as export_module

    honest = export_module._to_torch
    monkeypatch.setattr(export_module, "_to_torch", lambda *all: honest(*all) * 1.01)
    with pytest.raises(UserError, match="differs from the original"):
        write_export(model(tiny_spiking(), "net"), tmp_path / "net.pt2", "torch")

    def one_jumps(*everything: Any) -> Tensor:
        answer = honest(*everything)
        answer[0] += 1
        return answer

    monkeypatch.setattr(export_module, "_to_torch", one_jumps)
    assert write_export(model(tiny_spiking(), "net"), tmp_path / "net.pt2", "torch") <= 1e-4


def test_the_plan_of_both_is_the_same() -> None:
    ours = [m.weight.shape for m in spiking(SHAPE, 10, TINY).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    theirs = [m.weight.shape for m in Capped(SHAPE, 10, TINY).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert ours == theirs and len(ours) == 4


def test_quiet_steps_keep_no_gradient_and_change_no_spike() -> None:
    net, images = tiny_spiking(time_steps=6).double(), drawn(5, *SHAPE)
    found = {}
    for quiet in (0, 4):
        net.zero_grad()
        y, spikes = net.simulate(images, blocked=True, through_time=False, quiet=quiet)
        (y[4:].square().sum() + sum(s[4:].sum() for s in spikes)).backward()
        found[quiet] = [y.detach(), *spikes, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
    assert len(found[0]) == len(found[4]) == 1 + 3 + 8
    for a, b in zip(found[0], found[4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
