"""BLIP: the invariants of its card."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_net, tiny_stream
from upcycle.continual.blip import BLIP, MOST, frozen_bits, information_gain, limits, quantise, sample_labels
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.augment import uniform
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream
from upcycle.zoo.convnet import MLP, ConvNet

BOUND = torch.tensor(0.75, dtype=torch.float64)
TASKS = tiny_stream("5", "task")


def weights(n: int = 4000) -> tuple[Tensor, Tensor]:
    """Weights within the bound, and bits from 0 to 20."""
    g = torch.Generator().manual_seed(0)
    w = (2 * torch.rand(n, generator=g, dtype=torch.float64) - 1) * BOUND
    return w, torch.randint(MOST + 1, (n,), generator=g, dtype=torch.int8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet((4, 4, 8), 10, 1, groups=2)


def mlp(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return MLP(64, (32,), classes, dropout=0.0)


def blip(student: Any = None, **options: Any) -> BLIP:
    recipe = Recipe(**{"epochs": 2, "batch_size": 8, "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0,
                       **options.pop("recipe", {})})  # fmt: skip
    return BLIP(student=mlp() if student is None else student, recipe=recipe, **options)


class Watched(Run):
    """Calls ``see(stage, optimizer)`` as each step begins, so after the weights of the last one were clipped."""

    see: Any = None

    def backward(self, *args: Any, **kwargs: Any) -> None:
        self.see(self._stages.path.rpartition("/")[2])
        super().backward(*args, **kwargs)


# -- the grid ------------------------------------------------------------------------------------------------


def test_quantising_twice_is_quantising_once() -> None:
    for dtype in (torch.float64, torch.float32):
        w, bits = weights()
        once = quantise(w.to(dtype), bits, BOUND.to(dtype))
        assert quantise(once, bits, BOUND.to(dtype)).equal(once)
        assert once[bits == 0].count_nonzero() == 0 and once[bits == 1].count_nonzero() > 0


def test_quantising_moves_no_weight_by_more_than_half_a_step() -> None:
    w, bits = weights()
    some = bits > 0  # no bits, no weight
    moved = (quantise(w, bits, BOUND) - w).abs()
    half = BOUND / 2.0 ** (bits.double() + 1)
    assert bool((moved <= half * (1 + 1e-9))[some].all())
    assert float((moved / half)[some].max()) > 0.99


def test_the_way_to_go_is_one_step_of_the_grid_and_ends_at_the_bound() -> None:
    w, bits = weights()
    before = quantise(w, bits, BOUND)
    low, high = limits(before, bits, BOUND)
    step = BOUND / 2.0 ** bits.double()
    assert bool((low <= high).all()) and bool((low > -BOUND).all()) and bool((high < BOUND).all())
    assert bool((high - before <= step * (1 + 1e-12)).all()) and bool((before - low <= step * (1 + 1e-12)).all())
    inside = before.abs() + step < BOUND * (1 - 2.0**-MOST)
    assert torch.allclose((high - low)[inside], 2 * step[inside])
    full = bits == MOST
    assert bool(((high - low)[full] <= 2 * BOUND * 2.0**-MOST * (1 + 1e-9)).all())


# -- bits and information ------------------------------------------------------------------------------------


def test_information_gain_of_the_first_task() -> None:
    f, prior = torch.rand(50, dtype=torch.float64) * 9, torch.full((50,), 0.3, dtype=torch.float64)
    assert torch.allclose(information_gain(f, prior, 0), 0.5 * ((f + prior) / (2 * prior)).log2())
    assert information_gain(prior, prior, 7).abs().max() < 1e-12
    # Of precisions that are 16 times larger, half of log2(16) bits.
    assert float(information_gain(31 * prior, prior, 0)[0]) == pytest.approx(2)


def test_bits_never_get_fewer_and_are_twenty_at_most() -> None:
    gain = torch.tensor([-3.0, 0.0, 5e-7, 0.1, 1.0, 2.4, 100.0, torch.inf])
    assert frozen_bits(torch.full((8,), 3, dtype=torch.int8), gain).tolist() == [3, 3, 3, 4, 4, 6, 20, 20]
    assert frozen_bits(torch.full((8,), 20, dtype=torch.int8), gain).tolist() == [20] * 8
    f, prior = torch.rand(100), torch.rand(100)
    less = f < prior
    added = frozen_bits(torch.zeros(100, dtype=torch.int8), information_gain(f, prior, 2))
    assert added[less].max() == 0 and added[~less].min() == 1


def test_labels_are_drawn_with_their_probabilities() -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    u = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    shares = sample_labels(p.expand(20000, 4), u).bincount(minlength=4) / 20000
    assert torch.allclose(shares, p[0], atol=0.01) and shares[1] == 0
    assert sample_labels(p, torch.tensor([[0.99999999]])).tolist() == [3] and sample_labels(
        p, torch.zeros(1, 1)
    ).tolist() == [0]


@pytest.mark.parametrize("make", [mlp, net])
def test_fisher_is_the_mean_of_squared_gradients_of_one_image_at_a_time(make: Any) -> None:
    student, split, run, t = make(), tiny_data(3).train, Run(None, seed=5), 2
    names = [n for n, p in student.named_parameters() if p.dim() > 1]
    found = blip(student).fisher(run, student, names, split, slice(4, 7), t)
    expected = {name: torch.zeros_like(student.get_parameter(name)) for name in names}
    for i in range(3):
        index = torch.tensor([i])
        z = student(split.batch(index, device=run.device).images)[:, 4:7]
        y = sample_labels(z.softmax(1), uniform(5, t, index, "blip").float())
        g = torch.autograd.grad(F.cross_entropy(z, y), [student.get_parameter(name) for name in names])
        for name, part in zip(names, g, strict=True):
            expected[name] += part.square() / 3
    for name in names:
        assert expected[name].max() > 0
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-9)
    assert all(p.grad is None for p in student.parameters())


# -- a stream ------------------------------------------------------------------------------------------------


def test_after_each_step_weights_lie_within_their_limits() -> None:
    data, run, method = TASKS(160), Watched(None, precision="64-true"), blip(recipe={"lr": 3.0})
    seen: list[tuple[str, Tensor]] = []
    modules: list[nn.Module] = []
    setup = run.setup

    def keep(module: Any, *args: Any) -> Any:
        modules.append(module)
        return setup(module, *args)

    run.setup = keep  # type: ignore[method-assign]
    run.see = lambda stage: seen.append((stage, modules[-1][1].weight.detach().clone()))  # type: ignore[index]
    bits: dict[str, Tensor] = {"task0": torch.zeros(32, 64, dtype=torch.int8)}
    opened = run.open_stage

    @contextlib.contextmanager
    def open_stage(name: str) -> Iterator[dict[str, Any]]:
        with opened(name) as found:
            yield found
        bits[f"task{int(name[4:]) + 1}"] = found["keep"]["bits 1.weight"]

    run.open_stage = open_stage  # type: ignore[method-assign]
    method.fit(run, data)
    bound = run.left["kept"].state["bound 1.weight"]
    assert float(bound) == pytest.approx(6 / 8)
    reached = 0.0
    for name in ("task1", "task2", "task3", "task4"):
        steps = [w for task, w in seen if task == name]
        before, step = steps[0], bound * 2.0 ** -bits[name].double()
        assert before.equal(quantise(before, bits[name], bound)) and len(steps) > 2
        for w in steps[1:]:
            assert bool(((w - before).abs() <= step * (1 + 1e-9)).all()) and float(w.abs().max()) < bound
            reached = max(reached, float(((w - before).abs() / step).max()))
        assert bool((bits[name] >= bits[f"task{int(name[4:]) - 1}"]).all())
    assert reached == pytest.approx(1)  # so that the limits were of use
    assert bits["task5"].max() <= MOST and bits["task1"].max() > 0


def test_only_the_head_of_the_task_at_hand_moves() -> None:
    data, run = TASKS(160), Watched(None)
    seen: list[tuple[int, Tensor]] = []
    student = mlp()
    method = blip(student)
    setup, modules = run.setup, []

    def keep(module: Any, *args: Any) -> Any:
        modules.append(module)
        return setup(module, *args)

    run.setup = keep  # type: ignore[method-assign]
    run.see = lambda stage: seen.append((int(stage[4:]), modules[-1][-1].weight.detach().clone()))
    after = method.fit(run, data)[-1].weight  # type: ignore[index]
    ends = [*[next(w for t, w in seen if t == task) for task in range(5)], after]
    for task in range(5):
        rows = torch.arange(10)
        own = (rows >= 2 * task) & (rows < 2 * task + 2)
        assert ends[task + 1][~own].equal(ends[task][~own])
        assert not ends[task + 1][own].equal(ends[task][own])


def test_the_prior_is_the_mean_of_the_first_one_and_all_fishers(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    fisher = BLIP.fisher

    def noted(self: BLIP, *args: Any) -> dict[str, Tensor]:
        result = fisher(self, *args)
        found.append(result["1.weight"].clone())
        return result

    monkeypatch.setattr(BLIP, "fisher", noted)
    run = Run(None, precision="64-true")
    blip(f0=1e-6).fit(run, TASKS(160))
    assert len(found) == 5 and all(f.max() > 1e-6 for f in found)
    mean = torch.stack([torch.full_like(found[0], 64 * 1e-6), *found]).mean(0)
    assert torch.allclose(run.left["kept"].state["prior 1.weight"], mean, rtol=1e-9)


def test_what_is_returned_lies_on_the_grid_and_other_layers_stand_still_after_the_first_task() -> None:
    data, method = TASKS(160), blip(net())
    first = dataclasses.replace(data, tasks=data.tasks[:1])
    alone = blip(net())
    run = Run(None)
    one, all_five = alone.fit(Run(None), first), method.fit(run, data)
    state = run.left["kept"].state
    for name, p in all_five.named_parameters():
        if f"bits {name}" in state:
            assert quantise(p, state[f"bits {name}"], state[f"bound {name}"]).equal(p)
    assert {k for k in state if k.startswith("bits")} == {
        f"bits block{i}.{j}.weight" for i, j in ((1, 0), (2, 1), (3, 1))
    }
    norm = "block1.1.weight"
    assert all_five.get_parameter(norm).equal(one.get_parameter(norm))
    assert not one.get_parameter(norm).equal(net().get_parameter(norm))
    used = state["used"]
    assert used.shape == (3, 5) and bool((used.diff(dim=1) >= 0).all()) and float(used[:, -1].min()) > 0
    assert float(used.max()) < 1


def test_a_trained_network_is_not_cut() -> None:
    student = mlp()
    with torch.no_grad():
        # The corner is dark in every image, -0.75 when normalised, so the unit is always active.
        student[1].weight[0, 0], student[1].bias[1] = -5.0, -3.0  # type: ignore[index]
    run = Run(None)
    after = blip(student, recipe={"lr": 1e-8, "epochs": 1}).fit(run, TASKS(160))
    assert run.left["kept"].state["bound 1.weight"] == 5 and run.left["kept"].state["bound 1.bias"] == 3
    assert float(after[1].weight[0, 0].detach()) == pytest.approx(-5, rel=1e-2)  # type: ignore[index]


def test_fresh_weights_have_the_spread_of_the_paper() -> None:
    method = blip(fresh=True, f0=1e-30, recipe={"lr": 1e-8, "epochs": 1})
    after = method.fit(Run(None), TASKS(160))
    w = after[1].weight.detach()  # type: ignore[index]
    assert float(w.std()) == pytest.approx(1 / 8, rel=0.1) and float(after[1].bias.detach().abs().max()) < 1e-5  # type: ignore[index]


def test_the_stream_goes_on_where_it_ended() -> None:
    whole = TASKS(160)
    first = stream(tiny_data().only(tuple("0123")), tasks="2", scenario="task")
    then = stream(tiny_data().only(tuple("4567")), tasks="2", scenario="task").after(first.classes)
    begun, again = Run(None), Run(None)
    one = blip(mlp(4)).fit(begun, first)
    known = Model(module=one, input_shape=whole.shape, mean=(0.3,), std=(0.4,), classes=first.classes)
    two = blip(known, past=begun.left["kept"]).fit(again, then)
    old, new = begun.left["kept"].state, again.left["kept"].state
    assert len(again.left["kept"].tasks) == 4 and two[-1].weight.shape == (8, 32)  # type: ignore[index]
    assert bool((new["bits 1.weight"] >= old["bits 1.weight"]).all()) and new["used"].shape == (2, 4)
    assert new["used"][:, :2].equal(old["used"]) and new["bound 1.weight"] == old["bound 1.weight"]
    step = old["bound 1.weight"] / 2.0 ** old["bits 1.weight"].float()
    assert bool(((two[1].weight - one[1].weight).abs() <= 2.5 * step).all())  # type: ignore[index]
    assert two[-1].weight[:4].equal(one[-1].weight)  # type: ignore[index]
    assert any("fresh" in problem for problem in blip(known, past=begun.left["kept"], fresh=True).check(then))


def test_layers_that_lose_every_weight_are_told() -> None:
    run = Run(None)
    blip(f0=1.0).fit(run, TASKS(160))
    assert any("lower --f0" in note and "1.weight" in note for note in run.notes)
    calm = Run(None)
    blip().fit(calm, TASKS(160))
    assert not calm.notes


def test_what_it_cannot_learn_is_refused() -> None:
    with pytest.raises(UserError, match="task-incremental"):
        blip().require(tiny_stream("5", "class")(160))
    with pytest.raises(UserError, match="GroupNorm"):
        blip(tiny_net()).require(TASKS(160))
    with pytest.raises(UserError, match="no linear or convolution"):
        blip(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).require(TASKS(160))
    for wrong in ({"momentum": 0.9}, {"weight_decay": 1e-4}, {"optimizer": "adam"}):
        with pytest.raises(UserError, match="momentum 0"):
            blip(recipe=wrong)
    for option in ({"f0": 0.0}, {"samples": 0}):
        with pytest.raises(UserError, match=next(iter(option))):
            blip(**option)
    assert blip(net()).check(TASKS(160)) == []


def test_less_is_forgotten_than_by_plain_training() -> None:
    from upcycle.continual import Finetune

    data: Stream = stream("splits:digits/5", scenario="task").normalised((0.3,), (0.4,))
    recipe = {"epochs": 8, "batch_size": 16, "lr": 0.2}
    scores = []
    for method in (Finetune(student=mlp(), recipe=blip(recipe=recipe).recipe), blip(recipe=recipe)):
        run = Run(None, quiet=True)
        method.fit(run, data)
        scores.append(run.left["scores"].summary())
    before, after = scores
    assert after["backward transfer"] > before["backward transfer"] and after["backward transfer"] > -0.02
    assert after["average accuracy"] > 0.95
