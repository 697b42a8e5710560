"""FastDFKD: the meta-generator's gradients, the stream's statistics, what begins when, and what nothing changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import seen, tiny_model
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data import Images
from upcycle.distillation import fastdfkd
from upcycle.distillation.data_free.inversion import (
    Normalise,
    Statistics,
    bn_loss,
    crop_flip,
    decision_adversarial,
)
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.distillation.fastdfkd import FastDFKD, Momentum, copy_state
from upcycle.zoo.generator import Generator


class Watched(Run):
    """A run that shows what happens: who is set up and registered, which round it is, what each update is given.

    Attributes:
        round: the number of the epoch that runs.
        things: what was registered, by name.
        outputs: what the generator gave, forward by forward, in this round.
        losses: what backward was called with, in this round.
        on_update: called with the optimiser before each update.
    """

    def __init__(self, on_update: Callable[[Any], None] = lambda _: None, **options: Any) -> None:
        self.round, self.things, self.outputs, self.losses = -1, {}, [], []
        self.on_update = on_update
        super().__init__(None, **options)

    def register(self, name: str, thing: Any) -> None:
        self.things[name] = thing
        if isinstance(thing, Generator):
            outputs = self.outputs
            thing.register_forward_hook(lambda m, args, x: outputs.append(x.detach().clone()))
        super().register(name, thing)

    def epochs(self, n: int) -> Iterator[int]:
        for self.round in super().epochs(n):
            self.outputs.clear()
            self.losses.clear()
            yield self.round

    def backward(self, loss: Tensor, reduction: Any = "mean") -> None:
        self.losses.append(float(loss.detach()))
        super().backward(loss, reduction)

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        self.on_update(optimizer)
        super().update(optimizer, clip)

    @property
    def generator_module(self) -> Generator:
        return next(thing for thing in self.things.values() if isinstance(thing, Generator))

    @property
    def made(self) -> Synthesis:
        return self.things["synthesis"]


def owner(optimizer: Any, module: nn.Module) -> bool:
    """Whether ``optimizer`` trains ``module``."""
    return optimizer.param_groups[0]["params"][0] is next(module.parameters())


def nothing() -> Images:
    model = tiny_model("teacher", 7)
    return Images.none((1, 8, 8), model.classes, model.mean, model.std)


def tiny(**options: Any) -> FastDFKD:
    making = {"rounds": 3, "warmup": 1, "batch": 16, "kd_steps": 2, "capacity": 64, "views": 12}
    making |= {name: options.pop(name) for name in dataclasses.asdict(Making()) if name in options}
    options = {"k": 3, "nz": 8, "ngf": 4, "recipe": Recipe(epochs=2, batch_size=16, lr=0.05), **options}
    options["making"] = Making(**making)
    return FastDFKD(teacher=seen(tiny_model("teacher", 7)), student=tiny_model("student", 1), **options)


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def of(optimizer: Any) -> list[Tensor]:
    """The gradients of the first group's parameters: those of theta'."""
    return [p.grad.clone() for p in optimizer.param_groups[0]["params"]]


def fit(method: FastDFKD, on_update: Callable[[Watched, Any], None] | None = None, **options: Any) -> Watched:
    run = Watched(**options)
    if on_update is not None:
        run.on_update = lambda optimizer: on_update(run, optimizer)
    method.fit(run, nothing())
    return run


def is_inner(run: Watched, optimizer: Any) -> bool:
    return not any(owner(optimizer, thing) for thing in run.things.values() if isinstance(thing, nn.Module))


# -- the meta-gradient ------------------------------------------------------------------------------------------


def test_with_one_step_the_meta_gradient_is_the_plain_one_at_theta() -> None:
    method, found = tiny(k=1, warmup=0, rounds=1, oh=0.7, bn=2.0, adv=0.5), []

    def on_update(run: Watched, optimizer: Any) -> None:
        if owner(optimizer, run.generator_module):
            found.append(gradients(run.generator_module))

    fit(method, on_update, seed=5, precision="64-true")

    run = Run(None, seed=5, precision="64-true")
    teacher, student = method.model("teacher", None), tiny_model("student", 1).module.double().eval()
    frozen = run.frozen(teacher, None, input_grad=True, keep_bn=True)
    G = Generator((1, 8, 8), 8, 4)
    G.reset(run.generator("weights"))
    for _ in run.epochs(1):
        G.double()
        z = torch.randn(16, 8, generator=run.generator("noise")).double()
        y = torch.randint(10, (16,), generator=run.generator("classes"))
        view = crop_flip(G(z), run.generator("views"), torch.arange(16), 16)
        view = Normalise(teacher.mean, teacher.std)(view)
        with Statistics(frozen, run.gather) as statistics:
            z_t = frozen(view)
            L = 2.0 * bn_loss(statistics.read(), statistics.running()) + 0.7 * F.cross_entropy(z_t, y)
            (L + 0.5 * decision_adversarial(z_t, student(view))).backward()
    assert len(found) == 1 and any(g.any() for g in found[0])
    for ours, p in zip(found[0], G.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-10, atol=1e-14)


def test_the_meta_gradient_is_the_sum_over_the_inner_steps() -> None:
    inner: list[list[Tensor]] = []
    checked = []

    def on_update(run: Watched, optimizer: Any) -> None:
        if is_inner(run, optimizer):
            inner.append(of(optimizer))
        elif owner(optimizer, run.generator_module):
            assert len(inner) == 3
            for parts, total in zip(zip(*inner, strict=True), gradients(run.generator_module), strict=True):
                torch.testing.assert_close(sum(parts), total, rtol=1e-5, atol=1e-8)
            checked.append(run.round)
            inner.clear()

    fit(tiny(), on_update)
    assert checked == [0, 1, 2]


def test_the_meta_rate_is_k_times_the_inner_one() -> None:
    rates = set()

    def on_update(run: Watched, optimizer: Any) -> None:
        if is_inner(run, optimizer):
            rates.add(("inner", *(group["lr"] for group in optimizer.param_groups), *optimizer.defaults["betas"]))
        elif owner(optimizer, run.generator_module):
            rates.add(("meta", optimizer.param_groups[0]["lr"], *optimizer.param_groups[0]["betas"]))

    fit(tiny(k=3, lr_g=0.002, lr_z=0.03), on_update)
    assert rates == {("inner", 0.002, 0.03, 0.5, 0.999), ("meta", 0.006, 0.5, 0.999)}


@pytest.mark.parametrize("reuse", ["meta", "reptile"])
def test_theta_stays_until_the_meta_step_and_each_round_begins_there(reuse: str) -> None:
    digests: list[tuple[int, str, str, str]] = []

    def on_update(run: Watched, optimizer: Any) -> None:
        theta = tensor_digest(run.generator_module.state_dict())
        if is_inner(run, optimizer):
            inner = tensor_digest({str(i): p for i, p in enumerate(optimizer.param_groups[0]["params"])})
            own = tensor_digest({str(i): p for i, p in enumerate(run.generator_module.parameters())})
            digests.append((run.round, theta, inner, own))
        elif owner(optimizer, run.generator_module):
            digests.append((run.round, theta, "meta", ""))

    fit(tiny(reuse=reuse), on_update)
    for e in range(3):
        this = [d for d in digests if d[0] == e]
        assert len(this) == 4 and len({theta for _, theta, _, _ in this}) == 1  # all before the meta step
        assert this[0][2] == this[0][3] and this[1][2] != this[0][2]  # theta' begins at theta, then leaves it
    assert len({theta for _, theta, _, _ in digests}) == 3


def test_theta_and_theta_prime_share_nothing() -> None:
    G = Generator((1, 8, 8), 8, 4)
    G_i = copy.deepcopy(G)
    G(torch.randn(4, 8))
    copy_state(G, G_i)
    assert tensor_digest(G.state_dict()) == tensor_digest(G_i.state_dict())
    assert all(p.is_leaf and p.requires_grad for p in G_i.parameters())
    before = tensor_digest(G.state_dict())
    G_i(torch.randn(4, 8)).sum().backward()
    torch.optim.SGD(G_i.parameters(), lr=1.0).step()
    assert tensor_digest(G.state_dict()) == before != tensor_digest(G_i.state_dict())
    assert all(p.grad is None for p in G.parameters())


@pytest.mark.parametrize("lr_g", [0.0, 0.01])
def test_the_gradient_of_reptile_is_the_way_that_the_inner_loop_went(lr_g: float) -> None:
    inner: list[Any] = []
    checked = []

    def on_update(run: Watched, optimizer: Any) -> None:
        if is_inner(run, optimizer):
            inner.append(optimizer)
        elif owner(optimizer, run.generator_module):
            ours = list(run.generator_module.parameters())
            for p, q, g in zip(ours, inner[-1].param_groups[0]["params"], gradients(run.generator_module), strict=True):
                assert torch.equal(g, p.detach() - q.detach())
            checked.append(any(bool(g.any()) for g in gradients(run.generator_module)))

    fit(tiny(reuse="reptile", lr_g=lr_g), on_update)
    assert checked == [lr_g > 0] * 3


def test_what_is_carried_from_batch_to_batch() -> None:
    def generators(reuse: str) -> list[str]:
        """theta' as each round's first step finds it."""
        digests: dict[int, str] = {}

        def on_update(run: Watched, optimizer: Any) -> None:
            if is_inner(run, optimizer):
                weights = {str(i): p for i, p in enumerate(optimizer.param_groups[0]["params"])}
                digests.setdefault(run.round, tensor_digest(weights))

        fit(tiny(reuse=reuse, reset=-1), on_update)
        return list(digests.values())

    meta, reptile, sequential, none = (generators(reuse) for reuse in ("meta", "reptile", "sequential", "none"))
    assert len({found[0] for found in (meta, reptile, sequential, none)}) == 1  # all begin at the same weights
    assert len({found[1] for found in (meta, reptile, sequential, none)}) == 4
    assert len(set(none)) == 3
    run = Run(None)
    fresh = []
    for _ in run.epochs(3):
        G = Generator((1, 8, 8), 8, 4)
        G.reset(run.generator("weights"))
        fresh.append(tensor_digest({str(i): p for i, p in enumerate(G.parameters())}))
    assert none == fresh


def test_sequential_trains_the_same_generator_on() -> None:
    ends: dict[int, list[Tensor]] = {}
    begins: dict[int, list[Tensor]] = {}

    def on_update(run: Watched, optimizer: Any) -> None:
        if is_inner(run, optimizer):
            parameters = optimizer.param_groups[0]["params"]
            begins.setdefault(run.round, [p.detach().clone() for p in parameters])
            ends[run.round] = parameters  # read when the round is over
        elif run.round in ends and isinstance(ends[run.round][0], nn.Parameter):
            ends[run.round] = [p.detach().clone() for p in ends[run.round]]

    fit(tiny(reuse="sequential", warmup=0, recipe=Recipe(epochs=3, batch_size=16)), on_update)
    for e in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(ends[e], begins[e + 1], strict=True))


# -- the momentum of the statistics -----------------------------------------------------------------------------


def statistics_of(seed: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(c, generator=g), torch.rand(c, generator=g)) for c in (3, 5)]


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_the_first_batch_is_taken_as_it_is(m: float) -> None:
    momentum, batch = Momentum(m, statistics_of(0)), statistics_of(1)
    assert float(bn_loss(momentum.blend(batch), statistics_of(0))) == float(bn_loss(batch, statistics_of(0)))
    momentum.update(batch)
    assert all(torch.equal(a, b) for one, two in zip(momentum.stream, batch, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip


def test_without_momentum_every_batch_stands_alone() -> None:
    momentum, running = Momentum(0.0, statistics_of(0)), statistics_of(0)
    for seed in range(1, 5):
        batch = statistics_of(seed)
        assert float(bn_loss(momentum.blend(batch), running)) == float(bn_loss(batch, running))
        momentum.update(batch)


def test_the_stream_is_a_moving_average() -> None:
    momentum, running = Momentum(0.9, statistics_of(0)), statistics_of(0)
    first, second = statistics_of(1), statistics_of(2)
    momentum.update(first)
    ((mean, var), _) = momentum.blend(second)
    torch.testing.assert_close(mean, 0.1 * second[0][0] + 0.9 * first[0][0])
    torch.testing.assert_close(var, 0.1 * second[0][1] + 0.9 * first[0][1])
    momentum.update(second)
    torch.testing.assert_close(momentum.stream[0][0], mean)
    matching = Momentum(0.9, running)
    matching.update(running)
    assert float(bn_loss(matching.blend(running), running)) < 1e-6
    assert float(bn_loss(matching.blend(first), running)) > 0.1


def test_gradients_go_to_the_batch_alone_and_the_state_comes_back() -> None:
    momentum = Momentum(0.9, statistics_of(0))
    batch = [(mean.requires_grad_(), var.requires_grad_()) for mean, var in statistics_of(1)]
    momentum.update(batch)
    assert not any(t.requires_grad for pair in momentum.stream for t in pair)
    bn_loss(momentum.blend(batch), statistics_of(0)).backward()
    again = Momentum(0.9, statistics_of(0))
    again.load_state_dict(momentum.state_dict())
    fresh = statistics_of(3)
    assert float(bn_loss(again.blend(fresh), fresh)) == float(bn_loss(momentum.blend(fresh), fresh)) > 0
    full = Momentum(0.0, statistics_of(0))
    full.update(batch)
    gradient = batch[0][0].grad
    assert gradient is not None
    (plain,) = torch.autograd.grad(bn_loss(full.blend(batch), statistics_of(0)), batch[0][0])
    scale = float(gradient.norm() / plain.norm())
    assert abs(scale - 0.1) < 1e-5  # only a tenth is the batch's


@pytest.mark.parametrize("m", [0.0, 0.9])
def test_the_stream_takes_in_the_last_batch_of_each_round(m: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    taken: list[int] = []
    run = Watched()
    blend, update = Momentum.blend, Momentum.update

    def blended(self: Momentum, batch: Any) -> Any:
        found = blend(self, batch)
        plain = all(torch.equal(a, b) for p, q in zip(found, batch, strict=True) for a, b in zip(p, q, strict=True))
        calls.append((run.round, plain))
        return found

    def updated(self: Momentum, batch: Any) -> None:
        assert len(run.losses) == 3  # after the last of k backward passes
        taken.append(run.round)
        monkeypatch.setattr(Momentum, "blend", blend)
        update(self, batch)
        monkeypatch.setattr(Momentum, "blend", blended)

    monkeypatch.setattr(Momentum, "blend", blended)
    monkeypatch.setattr(Momentum, "update", updated)
    tiny(bn_mmt=m).fit(run, nothing())
    assert taken == [0, 1, 2]
    assert calls == [(e, e == 0 or m == 0) for e in range(3) for _ in range(3)]


# -- what begins when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 2])
def test_nothing_of_the_student_before_the_warm_up_ends(warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    trained: list[int] = []
    run = Watched()

    def adversarial(z_t: Tensor, z_s: Tensor) -> Tensor:
        asked.append(run.round)
        return decision_adversarial(z_t, z_s)

    monkeypatch.setattr(fastdfkd, "decision_adversarial", adversarial)
    student = tiny_model("student", 1).module
    first = tensor_digest(student.state_dict())

    def on_update(optimizer: Any) -> None:
        if owner(optimizer, run.things["module0"]):
            trained.append(run.round)
        elif run.round < warmup or (run.round == 0 and not trained):
            assert tensor_digest(run.things["module0"].state_dict()) == first

    run.on_update = on_update
    tiny(rounds=4, warmup=warmup, recipe=Recipe(epochs=4, batch_size=16)).fit(run, nothing())
    rounds = range(warmup, 4)
    assert asked == [e for e in rounds for _ in range(3)]
    assert trained == [e for e in range(warmup, warmup + 4) for _ in range(2)]  # on after the last round, too


@pytest.mark.parametrize(("reset", "expected"), [(0, [1]), (1, [2]), (-1, []), (120, [])])
def test_the_first_layers_are_drawn_anew_once(
    reset: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    found: list[int] = []
    run = Watched()
    monkeypatch.setattr(Generator, "reset_first", lambda self, random: found.append(run.round))
    tiny(reset=reset).fit(run, nothing())
    assert found == expected


# -- what is kept, and what nothing changes ---------------------------------------------------------------------


@pytest.mark.parametrize("adv", [0.0, 1.0])
def test_the_images_with_the_lowest_loss_are_kept(adv: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run, which = Watched(), []
    append = Synthesis.append

    def appended(self: Synthesis, x: Tensor, y: Tensor) -> None:
        lowest = run.losses.index(min(run.losses))
        assert len(run.outputs) == len(run.losses) == 6 and torch.equal(x, run.outputs[lowest])
        which.append(lowest)
        append(self, x, y)

    monkeypatch.setattr(Synthesis, "append", appended)
    tiny(k=6, lr_g=1.0, adv=adv, warmup=0, rounds=4, recipe=Recipe(epochs=4, batch_size=16)).fit(run, nothing())
    assert len(which) == 4 and len(set(which)) > 1  # with so large a rate not always the last


@pytest.mark.parametrize("reuse", ["meta", "reptile", "sequential", "none"])
def test_synthesis_leaves_teacher_and_student_as_they_were(reuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Synthesis, "distil", lambda self, student, *rest: student.train())
    method = tiny(reuse=reuse, warmup=0)
    teacher, student = method.model("teacher", None).module, method.model("student", None).module
    before = tensor_digest(teacher.state_dict()), tensor_digest(student.state_dict())
    run = Watched()
    net = method.fit(run, nothing())
    assert (tensor_digest(teacher.state_dict()), tensor_digest(net.state_dict())) == before
    assert all(p.requires_grad for p in net.parameters()) and run.made.pool.made > 0
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_same_seed_same_images() -> None:
    pools = [fit(tiny(), seed=seed).made.pool for seed in (1, 1, 2)]
    assert pools[0].digest == pools[1].digest != pools[2].digest
    assert len(pools[0]) == 48 and pools[0].labels.unique().numel() > 5


def test_the_losses_go_down() -> None:
    losses: list[list[float]] = []

    class Kept(Watched):
        def _end_epoch(self) -> None:
            losses.append(list(self.losses[:40]))
            super()._end_epoch()

    tiny(k=40, rounds=1, warmup=0, adv=0.0, recipe=Recipe(epochs=1, batch_size=16)).fit(Kept(), nothing())
    assert losses[0][-1] < 0.8 * losses[0][0]


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"bn": -1.0}, "bn must not be negative"),
        ({"adv": float("nan")}, "adv must not be negative"),
        ({"bn_mmt": 1.0}, "bn_mmt must be at least 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"batch": 100}, "at most capacity"),
        ({"warmup": 4}, "warmup must lie between"),
        ({"reset": -2}, "reset must be at least -1"),
        ({"views": -1}, "views must not be negative"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**options)


def test_estimates_count_every_update_of_the_student() -> None:
    run, trained = Watched(), []
    run.on_update = lambda optimizer: trained.append(owner(optimizer, run.things["module0"]))
    method = tiny()
    method.fit(run, nothing())
    assert sum(trained) == method.steps(0) == 4
