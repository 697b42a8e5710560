"""The networks of TisODE's authors: a residual block, an ODE with time, an ODE without, and their published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from upcycle import zoo
from upcycle.core.euler import euler
from upcycle.core.references import resolve
from upcycle.zoo.odenet import Field, OdeNet, TimedConv2d

KINDS = ("cnn", "odenet", "tisode")


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def published() -> Path:
    from tests.conftest import DATA

    if DATA is None or not (DATA / "weights" / "mnist_tisode_yan.safetensors").is_file():
        pytest.skip("UPCYCLE_DATA is not set, so the networks of TisODE's authors are not at hand")
    return DATA / "weights"


def test_the_time_is_the_first_channel() -> None:
    torch.manual_seed(0)
    conv, x = TimedConv2d(5).double(), torch.randn(2, 5, 6, 7).double()
    for t in (0.0, 0.3, 1.0):
        whole = F.conv2d(F.pad(x, (0, 0, 0, 0, 1, 0), value=t), conv.weight, conv.bias, padding=1)
        assert torch.allclose(conv(x, t), whole, atol=1e-12)


def test_one_step_of_the_ode_without_time_is_the_residual_block() -> None:
    torch.manual_seed(0)
    cnn = OdeNet("cnn", 10).eval()
    one = OdeNet("tisode", 10, step=1.0).eval()
    one.load_state_dict(cnn.state_dict())
    z = cnn.stem(images())
    assert z.shape == (3, 64, 13, 13)
    expected = cnn.linear((z + cnn.field(0.0, z)).mean(dim=(2, 3)))
    assert torch.equal(cnn(images()), expected) and torch.equal(one(images()), expected)


def test_f_is_never_negative_so_that_states_only_grow() -> None:
    torch.manual_seed(0)
    net = OdeNet("tisode", 10)
    z = net.stem(images())
    assert (net.field(0.0, z) >= 0).all()
    assert (euler(net.field, z, 0.05) >= z).all()


def test_the_time_enters_the_odenet_alone() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 8, 6, 7)
    timed, still = Field(8, timed=True), Field(8, timed=False)
    assert torch.equal(still(0.0, z), still(0.7, z)) and not torch.allclose(timed(0.0, z), timed(0.7, z), atol=1e-4)


def test_logits_and_the_term_come_from_one_trajectory() -> None:
    torch.manual_seed(0)
    net = OdeNet("tisode", 10, channels=16, halvings=2, step=0.1, window=(0.8, 1.4))
    assert net.stem(images()).shape == (3, 16, 7, 7)
    z, moved = net.forward_to_rest(images())
    assert torch.equal(z, net(images())) and moved > 0
    moved.backward()
    assert net.field.conv1.weight.grad is not None and net.linear.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_published_weights_fit_by_their_names_and_none_is_left(kind: str, published: Path) -> None:
    file = published / f"mnist_{kind}_yan.safetensors"
    model, fresh = resolve(f"zoo:mnist_{kind}"), resolve(f"zoo:mnist_{kind}", pretrained=False, weights=file)
    state, tensors = model.module.state_dict(), load_file(file)
    assert len(state) == len(tensors)
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for t in tensors.values())
    assert {t.data_ptr() for t in state.values()} == {t.data_ptr() for t in model.module.parameters()}
    assert all(torch.equal(state[key], fresh.module.state_dict()[key]) for key in state)
    assert (model.mean, model.std, model.licence) == ((0.0,), (1.0,), "unknown")
    assert "HanshuYAN/TisODE" in (zoo.ENTRIES[f"mnist_{kind}"].trained.origin or "")  # type: ignore[union-attr]
    theirs = next(t for key, t in tensors.items() if "conv1" in key and key.endswith("weight"))
    assert torch.equal(state["field.conv1.weight"], theirs)
