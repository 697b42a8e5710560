"""Synaptic intelligence: the invariants of the protocols' page."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_net, tiny_stream
from upcycle.continual.baselines import Finetune
from upcycle.continual.si import SI, omega
from upcycle.core.errors import UserError
from upcycle.core.method import Method
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def ran(method: Method, data: Stream | None = None) -> dict[str, Tensor]:
    return method.fit(Run(None, seed=1, precision="32-true"), data or tiny_stream()(160)).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_without_weight_si_is_fine_tuning_where_no_gradient_is_clipped() -> None:
    gentle = dataclasses.replace(RECIPE, lr=1e-3)
    plain = ran(Finetune(student=tiny_net(1), recipe=gentle))
    assert same(ran(SI(student=tiny_net(1), recipe=gentle, c=0.0)), plain)
    assert not same(ran(SI(student=tiny_net(1), recipe=gentle, c=10.0)), plain)


def test_the_path_adds_up_to_the_fall_of_the_loss() -> None:
    data = stream(tiny_data(), tasks="1")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    start = {k: v.double() for k, v in net.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, batch_size=160, epochs=40, lr=0.01)
    method = SI(student=net, recipe=recipe, xi=0.3)
    run = Run(None, precision="64-true")
    end = method.fit(run, data)
    images, labels, _ = data.task(0).train.batch(torch.arange(160), device=torch.device("cpu"))

    def loss(state: dict[str, Tensor]) -> float:
        z = torch.func.functional_call(end, state, (images.double(),))
        return float(nn.functional.cross_entropy(z, labels))

    kept = run.left["kept"].state["beside"]
    path = {k: o * ((kept["anchor"][k] - start[k]).square() + 0.3) for k, o in kept["importance"].items()}
    fall = loss(start) - loss(kept["anchor"])
    assert fall > 0.1 and sum(float(w.sum()) for w in path.values()) == pytest.approx(fall, rel=0.05)
    assert all((v == 0).all() for v in kept["path"].values())  # begun anew for the next task


def test_omega_is_the_formula() -> None:
    (found,) = omega([torch.tensor([1.0, 2.0])], [torch.tensor([0.3, -0.1])], [torch.tensor([0.0, 2.0])], 0.5)
    assert torch.allclose(found, torch.tensor([1.6, 2.0 - 0.1 / 4.5]))


@pytest.mark.parametrize("options", [{"c": -1.0}, {"xi": 0.0}])
def test_bad_options_of_si_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        SI(student=tiny_net(), **options)
