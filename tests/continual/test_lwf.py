"""LwF: the invariants of its loss, and its limits."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.settings import fitted, tiny_data, tiny_net, tiny_stream
from upcycle.continual.baselines import Finetune
from upcycle.continual.lwf import LwF, old_loss, record_logits
from upcycle.continual.protocol.past import Past
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.method import Method
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")
G = torch.Generator().manual_seed(0)
Z, OLD = (torch.randn(6, 8, generator=G, dtype=torch.float64) for _ in range(2))


def ran(method: Method, data: Stream) -> dict[str, Tensor]:
    return method.fit(Run(None, seed=1, precision="32-true"), data).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_equal_answers_cost_nothing_and_pull_nowhere() -> None:
    z = OLD.clone()
    z[:, :2] += 3.0  # the same number on all outputs of a head changes no probability
    z[:, 5:] = Z[:, 5:]  # outputs that are new
    z.requires_grad_()
    loss = old_loss(z, OLD, [(0, 1), (2, 3, 4)], 2.0, 6)
    (grad,) = torch.autograd.grad(loss, z)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12) and float(grad.abs().max()) < 1e-12


def test_the_gradient_is_the_papers() -> None:
    z, heads, t = Z.clone().requires_grad_(), [(0, 1), (2, 3, 4)], 2.0
    (grad,) = torch.autograd.grad(old_loss(z, OLD, heads, t, 12), z)
    assert (grad[:, 5:] == 0).all()
    for columns in map(list, heads):
        expected = ((Z[:, columns] / t).softmax(1) - (OLD[:, columns] / t).softmax(1)) / (12 * t)
        assert torch.allclose(grad[:, columns], expected, rtol=1e-10)
    # Equation 2 with y'^(1/T) normalised, less its smallest value.
    p, q = (x[:, :5].softmax(1) ** (1 / t) for x in (OLD, Z))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    found = old_loss(Z, OLD, [range(5)], t, 6)
    assert float(found) == pytest.approx(float((p * (p.log() - q.log())).sum() / 6), rel=1e-10)
    assert float(old_loss(Z, OLD, [], t, 6)) == 0


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_without_weight_or_earlier_tasks_it_is_fine_tuning(scenario: str) -> None:
    data = tiny_stream(scenario=scenario)(160)
    plain = ran(Finetune(student=tiny_net(1), recipe=RECIPE), data)
    assert same(ran(LwF(student=tiny_net(1), recipe=RECIPE, alpha=0.0), data), plain)
    assert not same(ran(LwF(student=tiny_net(1), recipe=RECIPE), data), plain)
    first = dataclasses.replace(data, tasks=data.tasks[:1])
    plain = ran(Finetune(student=tiny_net(1), recipe=RECIPE), first)
    assert same(ran(LwF(student=tiny_net(1), recipe=RECIPE), first), plain)


def test_which_outputs_compete() -> None:
    method = LwF(student=tiny_net())
    by_class, by_task = tiny_stream("2+4", "class")(160), tiny_stream("2+4", "task")(160)
    assert method.heads(by_class, 0) == [] and method.heads(by_class, 2) == [(0, 1, 2, 3, 4, 5)]
    assert method.heads(by_task, 0) == [] and method.heads(by_task, 2) == [(0, 1), (2, 3, 4, 5)]
    again = LwF(student=tiny_net(), past=Past(method="lwf", classes=tuple("ab"), tasks=((0, 1),)))
    after = by_task.after(("a", "b"))
    assert again.heads(after, 0) == [(0, 1)] and again.heads(after, 1) == [(0, 1), (2, 3)]
    assert again.heads(by_class.after(("a", "b")), 1) == [(0, 1, 2, 3)]


def test_what_is_recorded_are_the_answers_in_the_order_of_the_images() -> None:
    data, net = tiny_data(), fitted("network", 7).module
    found = record_logits(Run(None, precision="32-true"), net, data)
    assert found.shape == (160, 10) and torch.equal(found, predict_logits(net, data.train))


def test_a_heavier_weight_leaves_the_old_answers_nearer_to_what_they_were() -> None:
    """Of five networks, weight 10 divided the distance by 2.6 to 6.3, and 30 once more by 1.6 to 3.3."""
    data, recipe = stream(tiny_data(), tasks="5,5"), dataclasses.replace(RECIPE, epochs=10)
    first = Finetune(student=tiny_net(1), recipe=recipe)
    split = data.task(1).train
    run = Run(None, seed=1, precision="32-true")
    before = predict_logits(first.fit(run, dataclasses.replace(data, tasks=data.tasks[:1])), split)
    apart = []
    for alpha in (0.0, 10.0, 30.0):
        method = LwF(student=tiny_net(1), recipe=recipe, alpha=alpha)
        run = Run(None, seed=1, precision="32-true")
        z = predict_logits(method.fit(run, data), split)
        apart.append(float(F.kl_div((z[:, :5] / 2).log_softmax(1), (before[:, :5] / 2).softmax(1), reduction="sum")))
        assert run.left["scores"].held == [0, 0]
    assert apart[0] > 3 * apart[1] and apart[1] > 1.5 * apart[2], apart


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"temperature": 0.0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        LwF(student=tiny_net(), **options)
