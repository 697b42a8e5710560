"""Online EWC and SI: the invariants of the protocols' page."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_model, tiny_net, tiny_stream
from upcycle.continual.finetune import Finetune
from upcycle.continual.fisher import fisher
from upcycle.continual.penalties import EWC, SI, Beside, clip, omega, pull
from upcycle.continual.tasks import of_task
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


def test_the_pull_is_the_gradient_of_the_penalty_and_makes_no_graph() -> None:
    net = tiny_net().double()
    net.conv1.weight.requires_grad_(False)
    parameters = [p for p in net.parameters() if p.requires_grad]
    g = torch.Generator().manual_seed(0)
    importance, anchor, loss = ([torch.rand(p.shape, generator=g, dtype=p.dtype) for p in parameters] for _ in range(3))
    for p, own in zip(parameters[1:], loss[1:], strict=True):  # the loss does not reach the first
        p.grad = own.clone()
    terms = [(w * (p - a).square()).sum() for p, w, a in zip(parameters, importance, anchor, strict=True)]
    expected = torch.autograd.grad(3.0 * torch.stack(terms).sum(), parameters)
    pull(parameters, importance, anchor, 3.0)
    for i, (p, e) in enumerate(zip(parameters, expected, strict=True)):
        assert torch.allclose(p.grad, e + (loss[i] if i else 0), rtol=1e-12) and p.grad.grad_fn is None
    assert net.conv1.weight.grad is None


def test_clipping_holds_each_number_and_hides_no_bad_one() -> None:
    a, b = torch.tensor([-3.0, 0.25, 1.5]), torch.tensor([[0.5, torch.inf], [-torch.inf, torch.nan]])
    clip([a, b])
    assert a.tolist() == [-1.0, 0.25, 1.0]
    assert b.isnan().tolist() == [[False, True], [True, True]] and float(b[0, 0]) == 0.5


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_without_weight_ewc_is_fine_tuning(scenario: str) -> None:
    data = tiny_stream(scenario=scenario)(160)
    plain = ran(Finetune(student=tiny_net(1), recipe=RECIPE), data)
    assert same(ran(EWC(student=tiny_net(1), recipe=RECIPE, lam=0.0), data), plain)
    assert not same(ran(EWC(student=tiny_net(1), recipe=RECIPE, lam=10.0), data), plain)


def test_without_weight_si_is_fine_tuning_where_no_gradient_is_clipped() -> None:
    gentle = dataclasses.replace(RECIPE, lr=1e-3)
    plain = ran(Finetune(student=tiny_net(1), recipe=gentle))
    assert same(ran(SI(student=tiny_net(1), recipe=gentle, c=0.0)), plain)
    assert not same(ran(SI(student=tiny_net(1), recipe=gentle, c=10.0)), plain)


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
        found[gamma] = method.kept.state["beside"]
        assert all(torch.equal(a, net.state_dict()[k]) for k, a in found[gamma]["anchor"].items())
    last = fisher(run, net, data.task(2).train, lambda z, y: of_task(z, y, data, 2))
    first_two = EWC(student=tiny_net(1), recipe=RECIPE, lam=0.0, gamma=0.5)
    shorter = dataclasses.replace(data, tasks=data.tasks[:2])
    first_two.fit(Run(None, seed=1, precision="64-true"), shorter)
    before = first_two.kept.state["beside"]["importance"]
    for (name, f), own in zip(found[0.0]["importance"].items(), last, strict=True):
        assert torch.allclose(f, own, rtol=1e-9, atol=1e-15), name
        assert torch.allclose(found[0.5]["importance"][name], 0.5 * before[name] + own, rtol=1e-9, atol=1e-15), name


@pytest.mark.parametrize("method", [EWC, SI])
def test_what_is_kept_does_not_grow_with_the_tasks(method: type) -> None:
    made = method(student=tiny_net(1), recipe=RECIPE)
    ran(made)
    lists = 2 if method is EWC else 3
    assert made.scores.held == [4 * lists * sum(p.numel() for p in tiny_net().parameters())] * 5
    assert all((v >= 0).all() for v in made.kept.state["beside"]["importance"].values()) or method is SI


def test_a_heavier_weight_holds_the_weights_that_matter() -> None:
    data, recipe = stream(tiny_data(), tasks="5,5"), dataclasses.replace(RECIPE, epochs=10)
    away = []
    first = EWC(student=tiny_net(1), recipe=recipe)
    ran(first, dataclasses.replace(data, tasks=data.tasks[:1]))
    for lam in (0.0, 5.0, 30.0):
        away.append(distance(ran(EWC(student=tiny_net(1), recipe=recipe, lam=lam), data), first.kept.state["beside"]))
    assert away[0] > 1.2 * away[1] > 2 * away[2], away


def test_the_path_adds_up_to_the_fall_of_the_loss() -> None:
    data = stream(tiny_data(), tasks="1")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    start = {k: v.double() for k, v in net.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, batch_size=160, epochs=40, lr=0.01)
    method = SI(student=net, recipe=recipe, xi=0.3)
    end = method.fit(Run(None, precision="64-true"), data)
    images, labels, _ = data.task(0).train.batch(torch.arange(160), device=torch.device("cpu"))

    def loss(state: dict[str, Tensor]) -> float:
        z = torch.func.functional_call(end, state, (images.double(),))
        return float(nn.functional.cross_entropy(z, labels))

    kept = method.kept.state["beside"]
    path = {k: o * ((kept["anchor"][k] - start[k]).square() + 0.3) for k, o in kept["importance"].items()}
    fall = loss(start) - loss(kept["anchor"])
    assert fall > 0.1 and sum(float(w.sum()) for w in path.values()) == pytest.approx(fall, rel=0.05)
    assert all((v == 0).all() for v in kept["path"].values())  # begun anew for the next task


def test_omega_is_the_formula() -> None:
    (found,) = omega([torch.tensor([1.0, 2.0])], [torch.tensor([0.3, -0.1])], [torch.tensor([0.0, 2.0])], 0.5)
    assert torch.allclose(found, torch.tensor([1.6, 2.0 - 0.1 / 4.5]))


@pytest.mark.parametrize("method", [EWC, SI])
def test_a_network_that_grows_keeps_its_importances_and_has_none_for_new_outputs(method: type) -> None:
    whole = tiny_data()
    first = stream(whole.only(tuple("01234")), tasks="1")
    model = dataclasses.replace(tiny_model("student", 1), classes=())
    one = method(student=dataclasses.replace(model, classes=tuple("0123456789")), recipe=RECIPE)
    net = one.fit(Run(None, precision="32-true"), first)
    second = stream(whole.only(tuple("567")), tasks="1").after(first.classes)
    student = dataclasses.replace(model, module=net, classes=first.classes)
    made, seen = method(student=student, past=one.kept, recipe=RECIPE), []
    arrange = Beside.arrange

    def watched(self: Beside) -> None:
        arrange(self)
        seen.append({k: {n: t.clone() for n, t in v.items()} for k, v in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Beside, "arrange", watched)
        made.fit(Run(None, precision="32-true"), second)
    for kind, before in one.kept.state["beside"].items():
        for name, value in before.items():
            now = seen[0][kind][name]
            rows = len(value)
            assert torch.equal(now[:rows], value) and (now[rows:] == 0).all(), (kind, name)
    assert made.kept.state["beside"]["importance"]["linear.weight"].shape == (8, 16)
    assert float(made.kept.state["beside"]["importance"]["linear.weight"][5:].abs().sum()) > 0
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(UserError, match="another network"):
        method(student=dataclasses.replace(student, module=other), past=one.kept).fit(Run(None), second)


@pytest.mark.parametrize("options", [{"lam": -1.0}, {"gamma": 1.5}, {"samples": -1}])
def test_bad_options_of_ewc_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        EWC(student=tiny_net(), **options)


@pytest.mark.parametrize("options", [{"c": -1.0}, {"xi": 0.0}])
def test_bad_options_of_si_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        SI(student=tiny_net(), **options)
