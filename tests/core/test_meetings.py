"""Meetings: an optimiser that asks for it meets the same batch again, with the same random numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_model, tiny_net
from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms, ce_loss
from upcycle.core.norms import unrecorded
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation import KD

PLAIN = Recipe(epochs=2, batch_size=32, lr=0.05)
SAM = dataclasses.replace(PLAIN, sharpness="sam")
ESAM = dataclasses.replace(PLAIN, sharpness="esam")


def train(run: Run, net: nn.Module, recipe: Recipe, n: int = 160) -> Iterator[Batch]:
    """Plain training; yields each batch as it is met, before the body."""
    net, optimizer = run.setup(net, recipe)
    for _ in run.epochs(recipe.epochs):
        net.train()
        for batch in run.batches(tiny_data(n).train, recipe):
            yield batch
            run.step(ce_loss(net(batch.images), batch.labels, reduction=run.reduction), optimizer, recipe)


def test_sam_in_kd_has_the_bits_of_a_loop_by_hand() -> None:
    student, teacher, data = tiny_model("student", 1), tiny_model("teacher", 2), tiny_data()
    ours = KD(teacher=teacher, student=dataclasses.replace(student, module=tiny_net(1)), cache="off", recipe=SAM)
    found = ours.fit(Run(None, seed=3), data).state_dict()

    run, terms = Run(None, seed=3), Terms()
    frozen = run.frozen(teacher, data.validation)
    net, optimizer = run.setup(student.module, PLAIN)
    for _ in run.epochs(PLAIN.epochs):
        net.train()
        for images, labels, _ in run.batches(data.train, PLAIN.batch_size):
            PLAIN.schedule_rate(optimizer, run.progress)
            terms(net(images), frozen(images), labels).backward()
            ps = list(net.parameters())
            norm = nn.utils.get_total_norm([p.grad for p in ps])
            saved = [p.detach().clone() for p in ps]
            with torch.no_grad():
                for p in ps:
                    p.add_(p.grad * (SAM.rho / (norm + 1e-12)))  # type: ignore[operator]
            optimizer.zero_grad()
            with unrecorded(net):
                terms(net(images), frozen(images), labels).backward()
            with torch.no_grad():
                for p, w in zip(ps, saved, strict=True):
                    p.copy_(w)
            optimizer.step()
            optimizer.zero_grad()
    for key, value in run.plain(net).state_dict().items():
        assert torch.equal(value, found[key]), key


def test_each_meeting_has_the_same_batch_and_the_same_random_numbers() -> None:
    run, seen = Run(None, seed=1), []
    for batch in train(run, tiny_net(), SAM):
        seen.append((batch.index.tolist(), float(torch.rand(())), run.updates, run.progress, run.count))
    assert len(seen) == 2 * 10 and run.updates == 10
    assert all(a == b for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert len({a[1] for a in seen}) == 10


def test_esam_meets_a_batch_thrice_and_in_the_end_its_sharpest_part() -> None:
    run, sizes, graph = Run(None, seed=1), [], []
    for batch in train(run, tiny_net(), ESAM, n=90):
        sizes.append((len(batch.images), len(batch.labels), len(batch.index), run.count))
        graph.append(torch.is_grad_enabled())
        assert torch.equal(batch.labels, tiny_data(90).train.labels[batch.index])
    one = [(32,) * 4, (32,) * 4, (16,) * 4]
    assert sizes == 2 * [*one, *one, (26,) * 4, (26,) * 4, (13,) * 4]
    assert graph == [True, False, True] * 6 and torch.is_grad_enabled() and run.updates == 6


def test_statistics_and_reported_losses_are_those_of_the_first_meeting() -> None:
    """Of one batch: the statistics do not depend on what came of the weights."""
    one, figures = dataclasses.replace(PLAIN, epochs=1, batch_size=0), []
    buffers = []
    for recipe in (one, dataclasses.replace(one, sharpness="sam"), dataclasses.replace(one, sharpness="esam", rho=2.0)):
        run, net = Run(None, seed=1), tiny_net()
        run.log = lambda **values: figures.append({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
        for _ in train(run, net, recipe):
            pass
        buffers.append(dict(net.named_buffers()))
    assert figures[0] == figures[1] and figures[0]["loss"] == pytest.approx(figures[2]["loss"], rel=1e-6)
    for found in buffers[1:]:
        assert all(torch.equal(found[key], value) for key, value in buffers[0].items())


def units(recipe: Recipe) -> float:
    """Forwards and backwards of samples, of activations and of weights, for each sample of each batch."""
    run, counts, now = Run(None, seed=0), Counter[str](), [0]
    net = tiny_net()
    ps = list(net.parameters())
    for p in ps:
        p.register_post_accumulate_grad_hook(lambda p: counts.update(weights=now[0]))

    def forward(module: nn.Module, args: Any, out: Tensor) -> None:
        counts.update(forward=len(out))
        if out.requires_grad:
            out.register_hook(lambda g: counts.update(activations=len(g)))

    net.register_forward_hook(forward)
    for batch in train(run, net, recipe):
        now[0] = len(batch.images)
        counts.update(met=0 if run._meetings.again else now[0])
    return (counts["forward"] + counts["activations"] + counts["weights"] / len(ps)) / counts["met"]


def test_counted_samples_are_those_of_the_formula() -> None:
    long = dataclasses.replace(PLAIN, epochs=8)
    assert units(long) == 3
    assert units(dataclasses.replace(long, sharpness="sam")) == 6
    for keep, select in ((0.6, 0.5), (0.3, 0.25)):
        recipe = dataclasses.replace(long, sharpness="esam", keep=keep, select=select)
        assert units(recipe) == pytest.approx(3 + keep + 3 * select, rel=0.02)


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_a_loop_that_is_left_early_leaves_weights_and_flags_as_they_were() -> None:
    class Left(Exception):
        pass

    for when in (1, 2, 3):
        run, net = Run(None, seed=1), tiny_net()
        before = [p.detach().clone() for p in net.parameters()]
        with contextlib.suppress(Left):
            for i, _ in enumerate(train(run, net, dataclasses.replace(ESAM, rho=1.0)), 1):
                if i == when:
                    raise Left
        assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True)), when
        assert all(p.requires_grad for p in net.parameters()) and torch.is_grad_enabled()


@pytest.mark.parametrize("sharpness", ["sam", "esam"])
def test_a_bad_gradient_up_there_leaves_the_weights_down_here(sharpness: Any) -> None:
    recipe = dataclasses.replace(PLAIN, sharpness=sharpness, rho=1.0)
    run, net = Run(None, seed=1), tiny_net()
    net, optimizer = run.setup(net, recipe)
    before = [p.detach().clone() for p in net.parameters()]
    batches = run.batches(tiny_data().train, recipe)  # held, so that nothing closes it
    with pytest.raises(UserError, match="not touched"):
        for images, y, _ in batches:
            loss = ce_loss(net(images), y, reduction=run.reduction)
            run.step(loss * (float("nan") if run._meetings.meeting == "last" else 1.0), optimizer, recipe)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
    assert all(p.requires_grad for p in net.parameters())


def test_a_wrong_admits_is_found() -> None:
    data = tiny_data().train

    def loop(body: Any, batches: Any = None, recipe: Recipe = SAM) -> None:
        run = Run(None, seed=1)
        net, optimizer = run.setup(tiny_net(), recipe)
        other = torch.optim.SGD(net.parameters(), lr=0.1)
        beside = run.others(data, 8, "beside")
        for batch in run.batches(data, recipe) if batches is None else batches(run):
            body(run, net, optimizer, other, beside, batch)

    def two(run: Run, net: Any, optimizer: Any, other: Any, beside: Any, batch: Batch) -> None:
        run.step(ce_loss(net(batch.images), batch.labels), other)
        run.step(ce_loss(net(batch.images), batch.labels), optimizer)

    def draws(run: Run, net: Any, optimizer: Any, other: Any, beside: Any, batch: Batch) -> None:
        next(beside)
        run.step(ce_loss(net(batch.images), batch.labels), optimizer)

    def one(run: Run, net: Any, optimizer: Any, other: Any, beside: Any, batch: Batch) -> None:
        run.step(ce_loss(net(batch.images), batch.labels), optimizer)

    def twice(run: Run, net: Any, optimizer: Any, other: Any, beside: Any, batch: Batch) -> None:
        one(run, net, optimizer, other, beside, batch)
        one(run, net, optimizer, other, beside, batch)

    with pytest.raises(RuntimeError, match="updates by an optimiser that does not ascend"):
        loop(two)
    with pytest.raises(RuntimeError, match=r"takes batches of run\.others"):
        loop(draws)
    with pytest.raises(RuntimeError, match="updates twice with one batch"):
        loop(twice)
    with pytest.raises(RuntimeError, match="batch_size"):
        loop(one, lambda run: run.batches(data, 32))
    with pytest.raises(RuntimeError, match="the loss of each sample"):
        loop(one, recipe=ESAM)
    loop(one)


def test_the_gradient_that_is_clipped_is_the_second() -> None:
    run, recipe = Run(None, seed=1), dataclasses.replace(SAM, epochs=1, momentum=0.0, weight_decay=0.0, lr=1.0)
    net, optimizer = run.setup(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), recipe)
    before: list[Tensor] = []
    for images, y, _ in run.batches(tiny_data().train, recipe):
        ascended = run._meetings.again
        before = before if ascended else [p.detach().clone() for p in net.parameters()]
        run.backward(ce_loss(net(images), y))
        run.update(optimizer, clip=1e-3)
        if ascended:
            break
    moved = torch.cat([(p - w).flatten() for p, w in zip(net.parameters(), before, strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


# -- several processes ------------------------------------------------------------------------------------------


def _few(ranks: int, local: bool = False) -> tuple[Tensor, list[str]]:
    """Batches of four, so that often none of the two sharpest lies on a process."""
    recipe = dataclasses.replace(ESAM, batch_size=4, epochs=1, rho=0.5, local=local)
    run = Run(None, seed=3, devices=ranks, accelerator="cpu", precision="64-true")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for _ in train(run, net, recipe, n=64):
        pass
    return run.plain(net)[1].weight.detach(), run.notes


@pytest.mark.xdist_group("ranks")
def test_the_sharpest_part_of_two_processes_is_that_of_one(ranks: Any) -> None:
    one, _ = _few(1)
    for found, notes in ranks(_few, 2):
        assert float((found - one).abs().max()) <= 1e-10 and not notes


@pytest.mark.xdist_group("ranks")
def test_ascending_alone_is_said(ranks: Any) -> None:
    one, notes = _few(1, True)
    assert not notes
    (a, said), (b, _) = ranks(_few, 2, True)
    assert torch.equal(a, b) and float((a - one).abs().max()) > 1e-6
    assert "along its own gradient" in said[0]


# -- compiled ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_network_is_met_again() -> None:
    recipe = dataclasses.replace(PLAIN, sharpness="esam")
    found = []
    for compiled in (False, True):
        run, net = Run(None, seed=1, compile=compiled, precision="32-true"), tiny_net()
        for _ in train(run, net, recipe):
            pass
        found.append(run.plain(net).state_dict())
    assert any("compiled for its second form" in note for note in run.notes)
    images = tiny_data().test.batch(torch.arange(50), device=torch.device("cpu")).images
    answers = []
    for state in found:
        net = tiny_net().eval()
        net.load_state_dict(state)
        answers.append(net(images))
    assert F.mse_loss(*answers) < 1e-4 * answers[0].square().mean()
