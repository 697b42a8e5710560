"""Online EWC, and what it has in common with SI: the invariants of the protocols' page."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_model, tiny_net, tiny_stream
from upcycle.continual.baselines import Finetune
from upcycle.continual.oewc import EWC
from upcycle.continual.protocol.tasks import of_task
from upcycle.continual.si import SI
from upcycle.continual.weights.fisher import fisher
from upcycle.continual.weights.penalty import ParameterState
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


def distance(state: dict[str, Tensor], kept: dict[str, dict[str, Tensor]]) -> float:
    """Σ Ω (θ - θ*)²."""
    return sum(float((w * (state[k] - kept["anchor"][k]).square()).sum()) for k, w in kept["importance"].items())


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_without_weight_ewc_is_fine_tuning(scenario: str) -> None:
    data = tiny_stream(scenario=scenario)(160)
    plain = ran(Finetune(student=tiny_net(1), recipe=RECIPE), data)
    assert same(ran(EWC(student=tiny_net(1), recipe=RECIPE, lam=0.0), data), plain)
    assert not same(ran(EWC(student=tiny_net(1), recipe=RECIPE, lam=10.0), data), plain)


def test_the_first_task_is_free() -> None:
    one = stream(tiny_data(), tasks="1")
    plain = ran(Finetune(student=tiny_net(1), recipe=RECIPE), one)
    assert same(ran(EWC(student=tiny_net(1), recipe=RECIPE, lam=100.0), one), plain)


def test_importances_are_of_the_end_of_each_task_and_fade_by_gamma() -> None:
    data = tiny_stream("2+4", "task")(160)
    found = {}
    for gamma in (0.0, 0.5):
        method = EWC(student=tiny_net(1), recipe=RECIPE, lam=0.0, gamma=gamma)  # the same network with any gamma
        run = Run(None, seed=1, precision="64-true")
        net = method.fit(run, data)
        found[gamma] = run.left["kept"].state["beside"]
        assert all(torch.equal(a, net.state_dict()[k]) for k, a in found[gamma]["anchor"].items())
    last = fisher(run, net, data.task(2).train, lambda z, y: of_task(z, y, data, 2))
    first_two = EWC(student=tiny_net(1), recipe=RECIPE, lam=0.0, gamma=0.5)
    shorter = dataclasses.replace(data, tasks=data.tasks[:2])
    run_two = Run(None, seed=1, precision="64-true")
    first_two.fit(run_two, shorter)
    before = run_two.left["kept"].state["beside"]["importance"]
    for (name, f), own in zip(found[0.0]["importance"].items(), last, strict=True):
        assert torch.allclose(f, own, rtol=1e-9, atol=1e-15), name
        assert torch.allclose(found[0.5]["importance"][name], 0.5 * before[name] + own, rtol=1e-9, atol=1e-15), name


@pytest.mark.parametrize("method", [EWC, SI])
def test_what_is_kept_does_not_grow_with_the_tasks(method: type) -> None:
    made = method(student=tiny_net(1), recipe=RECIPE)
    run = Run(None, seed=1, precision="32-true")
    made.fit(run, tiny_stream()(160))
    lists = 2 if method is EWC else 3
    assert run.left["scores"].held == [4 * lists * sum(p.numel() for p in tiny_net().parameters())] * 5
    assert all((v >= 0).all() for v in run.left["kept"].state["beside"]["importance"].values()) or method is SI


def test_a_heavier_weight_holds_the_weights_that_matter() -> None:
    data, recipe = stream(tiny_data(), tasks="5,5"), dataclasses.replace(RECIPE, epochs=10)
    away = []
    first = EWC(student=tiny_net(1), recipe=recipe)
    run = Run(None, seed=1, precision="32-true")
    first.fit(run, dataclasses.replace(data, tasks=data.tasks[:1]))
    for lam in (0.0, 5.0, 30.0):
        away.append(
            distance(ran(EWC(student=tiny_net(1), recipe=recipe, lam=lam), data), run.left["kept"].state["beside"])
        )
    assert away[0] > 1.2 * away[1] > 2 * away[2], away


@pytest.mark.parametrize("method", [EWC, SI])
def test_a_network_that_grows_keeps_its_importances_and_has_none_for_new_outputs(method: type) -> None:
    whole = tiny_data()
    first = stream(whole.only(tuple("01234")), tasks="1")
    model = dataclasses.replace(tiny_model("student", 1), classes=())
    one = method(student=dataclasses.replace(model, classes=tuple("0123456789")), recipe=RECIPE)
    before_run, after_run = Run(None, precision="32-true"), Run(None, precision="32-true")
    net = one.fit(before_run, first)
    second = stream(whole.only(tuple("567")), tasks="1").after(first.classes)
    student = dataclasses.replace(model, module=net, classes=first.classes)
    made, seen = method(student=student, past=before_run.left["kept"], recipe=RECIPE), []
    match = ParameterState.match

    def watched(self: ParameterState) -> None:
        match(self)
        seen.append({k: {n: t.clone() for n, t in v.items()} for k, v in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterState, "match", watched)
        made.fit(after_run, second)
    for kind, before in before_run.left["kept"].state["beside"].items():
        for name, value in before.items():
            now = seen[0][kind][name]
            rows = len(value)
            assert torch.equal(now[:rows], value) and (now[rows:] == 0).all(), (kind, name)
    assert after_run.left["kept"].state["beside"]["importance"]["linear.weight"].shape == (8, 16)
    assert float(after_run.left["kept"].state["beside"]["importance"]["linear.weight"][5:].abs().sum()) > 0
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(UserError, match="another network"):
        method(student=dataclasses.replace(student, module=other), past=before_run.left["kept"]).fit(Run(None), second)


@pytest.mark.parametrize("options", [{"lam": -1.0}, {"gamma": 1.5}, {"samples": -1}])
def test_bad_options_of_ewc_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EWC(student=tiny_net(), **options)
