"""Taps capture the very tensors that flow, replace them on request, and leave no hook behind."""

import pytest
import torch
from torch import nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.taps import Taps, observed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(6, 6))
        self.memory = nn.GRU(6, 6, batch_first=True)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        x = self.body(self.body(self.stem(x)))
        return self.memory(x.unsqueeze(1))[0].squeeze(1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_captures_outputs_and_inputs_with_their_graph(net) -> None:
    x = torch.randn(3, 4)
    with Taps(net, ["stem", "body", "memory", ""]) as taps:
        out = net(x)
    stem = net.stem(x)
    assert torch.equal(taps["stem"], stem)
    assert torch.equal(taps["body"], net.body(net.body(stem)))  # the last call
    assert taps["memory"].shape == (3, 1, 6)  # of a tuple, the first
    assert taps[""] is out
    (grad,) = torch.autograd.grad(taps["body"].sum(), net.stem.weight)
    assert grad.abs().sum() > 0

    with Taps(net, ["body", "memory"], kind="input") as taps:
        net(x)
    assert torch.equal(taps["body"], net.body(stem))
    assert torch.equal(taps["memory"], net.body(net.body(stem)).unsqueeze(1))


def test_replaces_what_flows(net) -> None:
    x, z = torch.randn(3, 4), torch.randn(3, 6)
    with Taps(net, ["stem"], replace={"stem": lambda t: z, "memory": lambda t: t * 2}) as taps:
        out = net(x)
    assert taps["stem"] is z
    expected = net.memory(net.body(net.body(z)).unsqueeze(1))[0].squeeze(1) * 2
    assert torch.equal(out, expected)


def test_apart_from_the_network_nothing_overwrites_what_is_captured() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    with Taps(net, ["0"]) as overwritten:
        expected = net(x)
    with Taps(net, ["0"], apart=True) as taps:
        out = net(x)
    assert torch.equal(out, expected) and torch.equal(taps["0"], net[0](x)) and (taps["0"] < 0).any()
    assert torch.equal(overwritten["0"], taps["0"].relu())
    (taps["0"].square().sum() + out.sum()).backward()  # which would fail on an overwritten one
    assert net[0].weight.grad is not None

    gru = nn.Sequential(nn.GRU(4, 6, batch_first=True))
    with Taps(gru, ["0"], apart=True) as taps:
        first, state = gru(x[None])
    assert torch.equal(first, taps["0"]) and first is not taps["0"] and state.shape == (1, 1, 6)


def test_gradients_start_at_a_replacement(net) -> None:
    leaf = lambda t: t.detach().requires_grad_()  # noqa: E731
    with Taps(net, ["stem"], replace={"stem": leaf}) as taps:
        net(torch.randn(3, 4)).sum().backward()
    assert taps["stem"].grad is not None
    assert net.stem.weight.grad is None


def test_hooks_go_when_the_block_ends(net) -> None:
    with Taps(net, ["stem"], replace={"body": lambda t: t}):
        assert hooks(net) == 2
    assert hooks(net) == 0
    with pytest.raises(ZeroDivisionError), Taps(net, ["stem"], replace={"body": lambda t: 1 / 0}):
        net(torch.randn(3, 4))
    assert hooks(net) == 0


def test_outputs_are_the_same_with_and_without(net) -> None:
    x = torch.randn(3, 4)
    with Taps(net, ["stem", "body.1"]):
        tapped = net(x)
    assert torch.equal(tapped, net(x))


def test_mistakes_are_named(net) -> None:
    with pytest.raises(UserError, match=r"no submodule of Net 'bodi\.1'. Did you mean 'body\.1'"):
        Taps(net, ["bodi.1"])
    with pytest.raises(UserError, match="Did you mean 'stem'"):
        Taps(net, replace={"stern": lambda t: t})
    assert hooks(net) == 0
    with Taps(net, ["unused"]) as taps:
        net(torch.randn(3, 4))
    with pytest.raises(UserError, match="'unused' was not called"):
        taps["unused"]
    with pytest.raises(UserError, match="no tap 'unuse'"):
        taps["unuse"]


def test_observed_lists_every_call_in_order_and_leaves_no_trace() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.Dropout(0.9), nn.BatchNorm1d(4), shared, nn.Linear(4, 2)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = Model(module=net, input_shape=(1, 1, 4), mean=(0.0,), std=(1.0,), classes=("a", "b"), name="n")
    x = torch.randn(3, 4)
    calls = observed(model, x, kind=nn.Linear)
    assert [c.name for c in calls] == ["0", "0", "4", ""]
    assert torch.equal(calls[0].input, x) and torch.equal(calls[-1].output, calls[-2].output)
    assert net.training and not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_forward_that_is_stopped_runs_nothing_behind_its_last_tap(net) -> None:
    x, ran = torch.randn(3, 4), []
    for name, m in net.named_modules():
        m.register_forward_pre_hook(lambda m, args, name=name: ran.append(name))
    with Taps(net, ["stem", "body.0"], stop=True) as taps:
        net(x)
        raise AssertionError("the forward came to its end")
    assert ran == ["", "stem", "body", "body.0"]
    assert torch.equal(taps["body.0"], net.stem(x).relu())
    (grad,) = torch.autograd.grad(taps["body.0"].sum(), net.stem.weight)
    assert grad.abs().sum() > 0
    ran.clear()
    with Taps(net, ["memory"], kind="input", stop=True) as taps:  # before it runs, its own parts too
        net(x)
    assert ran[-1] == "memory" and taps["memory"].shape == (3, 1, 6)


def test_a_stopped_forward_can_be_asked_again_and_other_errors_pass(net) -> None:
    a, b = torch.randn(2, 3, 4)
    taps = Taps(net, ["stem"], stop=True)
    for x in (a, b):
        with taps:
            net(x)
        assert torch.equal(taps["stem"], net.stem(x))
    with pytest.raises(RuntimeError), taps:
        net(torch.randn(3, 5))
    with pytest.raises(UserError, match="was not called"):
        taps["stem"]
    with Taps(net, ["unused"], stop=True) as idle:  # never reached, so the network comes to its end
        assert net(a).shape == (3, 6)
    with pytest.raises(UserError, match="was not called"):
        idle["unused"]
    assert hooks(net) == 0
