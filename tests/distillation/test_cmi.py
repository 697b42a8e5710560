"""CMI: the contrastive loss, the bank of earlier images, and who gets whose gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distillation.test_fastdfkd import Watched, nothing, owner
from tests.settings import seen, tiny_model
from upcycle.core.errors import UserError
from upcycle.core.losses import contrastive_loss
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import cmi
from upcycle.distillation.cmi import CMI, Bank, Head
from upcycle.distillation.data_free.inversion import Normalise, Statistics, bn_loss, crop_flip, decision_adversarial
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.zoo.generator import Generator


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(n: int, d: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=torch.float64))


def tiny(**options: Any) -> CMI:
    making = {"rounds": 3, "batch": 16, "kd_steps": 2, "capacity": 64}
    making |= {name: options.pop(name) for name in dataclasses.asdict(Making()) if name in options}
    own = {"g_steps": 3, "nz": 8, "ngf": 4, "n_neg": 8, "bank": 32, "bank_every": 1}
    options = {**own, "recipe": Recipe(epochs=3, batch_size=16, lr=0.05), **options, "making": Making(**making)}
    return CMI(teacher=seen(tiny_model("teacher", 7)), student=tiny_model("student", 1), **options)


def fit(method: CMI, on_update: Callable[[Watched, Any], None] | None = None, **options: Any) -> Watched:
    run = Watched(**options)
    if on_update is not None:
        run.on_update = lambda optimizer: on_update(run, optimizer)
    method.fit(run, nothing())
    return run


def trains_images(optimizer: Any, run: Watched) -> bool:
    return owner(optimizer, run.generator_module)


# -- the contrastive loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_of_identical_images_it_is_log_n(n: int, tau: float) -> None:
    u = units(1, 5).expand(n, -1)
    assert abs(float(contrastive_loss(u, u, tau)) - math.log(n)) < 1e-12


@pytest.mark.parametrize("n", [2, 7, 16])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_of_orthogonal_images_that_match_it_is_as_small_as_it_should_be(n: int, tau: float) -> None:
    u = torch.linalg.qr(torch.randn(16, 16, generator=seeded(0), dtype=torch.float64))[0][:n]
    expected = math.log(1 + (n - 1) * math.exp(-1 / tau))
    assert abs(float(contrastive_loss(u, u, tau)) - expected) < 1e-12


def test_each_row_finds_its_own_key_among_all() -> None:
    u, w = units(4, 6, 1), units(11, 6, 2)
    for first in (0, 7):
        expected = torch.zeros((), dtype=torch.float64)
        for i in range(4):
            similar = torch.exp(u[i] @ w.T / 0.3)
            expected = expected - torch.log(similar[first + i] / similar.sum()) / 4
        torch.testing.assert_close(contrastive_loss(u, w, 0.3, first=first), expected)


def test_keys_get_no_gradient() -> None:
    u, w = (units(5, 6, i).requires_grad_() for i in (1, 2))
    contrastive_loss(u, w, 0.1).backward()
    assert w.grad is None and u.grad is not None and u.grad.any()


def test_the_head_projects_to_unit_length() -> None:
    torch.manual_seed(0)
    h = Head(12)
    out = h(torch.randn(5, 12))
    assert out.shape == (5, 256) and out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert [tuple(p.shape) for p in h.parameters()] == [(12, 12), (12,), (256, 12), (256,)]
    assert h.double()(torch.randn(5, 12).double()).dtype == torch.float64


# -- the bank ---------------------------------------------------------------------------------------------------


def pairs(i: int, n: int = 4) -> tuple[Tensor, Tensor]:
    """n pairs that say which round they are of."""
    return torch.full((n, 3), float(i)), torch.full((n, 3), i + 0.5)


def held(bank: Bank) -> list[float]:
    """The local features that it holds, one number each."""
    v_loc, v_glo = bank.draw(10**6, seeded(0)).float()
    assert torch.equal(v_glo, v_loc + 0.5)  # pairs stay pairs
    return sorted(v_loc[:, 0].tolist())


def test_the_bank_replaces_the_oldest() -> None:
    bank = Bank(12, 3)
    for i in range(3):
        bank.append(*pairs(i + 1))
        assert len(bank) == 4 * (i + 1)
    assert held(bank) == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    bank.append(*pairs(4))  # bank/N + 1 rounds
    assert len(bank) == 12 and held(bank) == [2.0] * 4 + [3.0] * 4 + [4.0] * 4
    bank.append(*pairs(5, n=3))  # no multiple of N
    assert held(bank) == [2.0] + [3.0] * 4 + [4.0] * 4 + [5.0] * 3


def test_the_bank_never_returns_what_it_does_not_hold() -> None:
    bank = Bank(100, 3)
    bank._pairs.fill_(float("nan"))
    assert len(bank) == 0 and bank.draw(5, seeded(0)).shape == (2, 0, 3)
    for i in range(3):
        bank.append(*pairs(i))
        for n in (1, 4, 50):
            drawn = bank.draw(n, seeded(n))
            assert drawn.shape == (2, min(n, 4 * (i + 1)), 3) and drawn.isfinite().all()


def test_the_bank_draws_without_replacement_and_detaches() -> None:
    bank, v = Bank(50, 1), torch.arange(40.0)[:, None].requires_grad_()
    bank.append(v, v)
    v_loc, v_glo = bank.draw(30, seeded(1))
    assert torch.equal(v_loc, v_glo) and v_loc.unique().numel() == 30 and not v_loc.requires_grad
    assert torch.equal(bank.draw(30, seeded(1))[0], v_loc) and not torch.equal(bank.draw(30, seeded(2))[0], v_loc)


@pytest.mark.parametrize("rounds", [0, 2, 4])
def test_the_state_of_the_bank_comes_back(rounds: int) -> None:
    bank, again = Bank(12, 3), Bank(12, 3)
    for i in range(rounds):
        bank.append(*pairs(i))
    again.load_state_dict(bank.state_dict())
    for one in (bank, again):
        one.append(*pairs(9, n=3))
    assert len(again) == len(bank) and held(again) == held(bank)


# -- who gets whose gradients -----------------------------------------------------------------------------------


def first_gradients(
    monkeypatch: pytest.MonkeyPatch, rows: float, **options: Any
) -> tuple[dict[tuple[int, int], list[Tensor]], dict[tuple[int, int], list[Tensor]]]:  # fmt: skip
    """What generator (with noise) and head are given at each step, the earlier images' rows times ``rows``."""
    images: dict[tuple[int, int], list[Tensor]] = {}
    head: dict[tuple[int, int], list[Tensor]] = {}

    def loss(u: Tensor, w: Tensor, tau: float, first: int = 0) -> Tensor:
        return contrastive_loss(u, w, tau, first) * (rows if first else 1.0)

    def on_update(run: Watched, optimizer: Any) -> None:
        grads = [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if trains_images(optimizer, run):
            images[run.round, len(run.losses)] = grads
        elif not owner(optimizer, run.things["module0"]):
            head[run.round, len(run.losses)] = grads

    monkeypatch.setattr(cmi, "contrastive_loss", loss)
    fit(tiny(rounds=2, g_steps=1, adv=0.0, **options), on_update)
    return images, head


def test_the_rows_of_earlier_images_train_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images, head = first_gradients(monkeypatch, 1.0)
    images_without, head_without = first_gradients(monkeypatch, 0.0)
    assert set(images) == set(head) == {(0, 1), (1, 1)}
    for at in images:  # the second round is the first with a bank
        assert any(g.any() for g in images[at])
        assert at[0] == 1 or all(torch.equal(a, b) for a, b in zip(head[at], head_without[at], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(images[0, 1], images_without[0, 1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(images[1, 1], images_without[1, 1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(head[1, 1], head_without[1, 1], strict=True))


def test_images_get_gradients_of_the_contrastive_loss_through_the_local_view_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[bool] = []
    whole = cmi.resized_crop

    def on_update(run: Watched, optimizer: Any) -> None:
        if trains_images(optimizer, run):
            found.append(any(p.grad is not None and bool(p.grad.any())
                             for p in optimizer.param_groups[0]["params"]))  # fmt: skip

    method = {"bn": 0.0, "oh": 0.0, "adv": 0.0, "rounds": 1, "recipe": Recipe(epochs=1, batch_size=16)}
    fit(tiny(**method), on_update)
    assert found == [True] * 3
    found.clear()
    monkeypatch.setattr(cmi, "resized_crop", lambda x, *rest: whole(x.detach(), *rest))
    fit(tiny(**method), on_update)
    assert found == [False] * 3


def test_rows_of_earlier_images_are_taken_every_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Watched()
    calls: list[tuple[int, int, int, int]] = []

    def loss(u: Tensor, w: Tensor, tau: float, first: int = 0) -> Tensor:
        calls.append((run.round, len(run.losses), len(u), len(w)))
        return contrastive_loss(u, w, tau, first)

    monkeypatch.setattr(cmi, "contrastive_loss", loss)
    tiny(rounds=2, g_steps=5, bank_every=2, recipe=Recipe(epochs=2, batch_size=16)).fit(run, nothing())
    rows = [(e, i) for e, i, n, _ in calls if n == 8]
    assert rows == [(1, 0), (1, 2), (1, 4)]
    own = [(e, i, m) for e, i, n, m in calls if n == 16]  # told from all of the batch, and from the bank when there
    assert own == [(0, i, 16) for i in range(5)] + [(1, i, 24) for i in range(5)]


def test_the_statistics_are_those_of_the_global_view(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(cr: float) -> list[tuple[Tensor, Tensor]]:
        batches: list[Any] = []

        def loss(batch: Any, running: Any) -> Tensor:
            batches.append([(mean.detach(), var.detach()) for mean, var in batch])
            return bn_loss(batch, running)

        monkeypatch.setattr(cmi, "bn_loss", loss)
        fit(tiny(cr=cr, rounds=1, g_steps=1, recipe=Recipe(epochs=1, batch_size=16)))
        return batches[0]

    for with_local, without in zip(first(0.8), first(0.0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(with_local, without, strict=True))


# -- the whole --------------------------------------------------------------------------------------------------


def test_without_contrast_and_adversary_it_is_plain_inversion_with_a_generator() -> None:
    method = tiny(cr=0.0, adv=0.0, rounds=1, g_steps=4, recipe=Recipe(epochs=1, batch_size=16))
    kept = fit(method, seed=5, precision="64-true").made.pool

    run = Run(None, seed=5, precision="64-true")
    model = method.model("teacher", None)
    teacher = run.frozen(model, None, input_grad=True, keep_bn=True)
    g = Generator((1, 8, 8), 8, 4)
    best, lowest = torch.empty(0), math.inf
    for _ in run.epochs(1):
        g.reset(run.generator("weights"))
        g.double()
        z = torch.nn.Parameter(torch.randn(16, 8, generator=run.generator("noise")).double())
        y = torch.randint(10, (16,), generator=run.generator("classes"))
        random = run.generator("views")
        optimizer = torch.optim.Adam([*g.parameters(), z], lr=1e-3, betas=(0.5, 0.999))
        for _ in range(4):
            x = g(z)
            with Statistics(teacher, run.gather) as statistics:
                logits = teacher(Normalise(model.mean, model.std)(crop_flip(x, random, torch.arange(16), 16)))
                L = bn_loss(statistics.read(), statistics.running()) + F.cross_entropy(logits, y)
            if float(L.detach()) < lowest:
                best, lowest = x.detach(), float(L.detach())
            optimizer.zero_grad()
            L.backward()
            optimizer.step()
    assert torch.equal(kept.labels, y)
    assert torch.equal(kept.images, best.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1))


def test_kept_images_have_the_lowest_loss_and_their_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    run, which = Watched(), []
    append, features = Synthesis.append, Statistics.features
    seen_features: list[Tensor] = []

    def featured(self: Statistics) -> Tensor:
        found = features(self)
        seen_features.append(found.detach())
        return found

    def appended(self: Synthesis, x: Tensor, y: Tensor) -> None:
        lowest = [i for i, output in enumerate(run.outputs) if torch.equal(x, output)]
        assert len(run.outputs) == 6 and len(lowest) == 1
        which.append(lowest[0])
        bank = run.things["bank"]
        v_glo, v_loc = seen_features[2 * lowest[0] : 2 * lowest[0] + 2]
        seen_features.clear()
        assert torch.equal(bank._pairs[:, 16 * run.round :][:, :16], torch.stack([v_loc, v_glo]).half())
        if run.round == 0:  # later the head's rows are part of what backward is given
            assert run.losses.index(min(run.losses)) == lowest[0]
        append(self, x, y)

    monkeypatch.setattr(Statistics, "features", featured)
    monkeypatch.setattr(Synthesis, "append", appended)
    tiny(g_steps=6, lr_g=0.3, rounds=4, bank=64, recipe=Recipe(epochs=4, batch_size=16)).fit(run, nothing())
    assert len(which) == 4 and len(set(which)) > 1  # with so large a rate not always the last


def test_each_round_begins_with_a_fresh_generator_and_an_older_head() -> None:
    generators: dict[int, str] = {}
    heads: list[str] = []

    def on_update(run: Watched, optimizer: Any) -> None:
        if trains_images(optimizer, run):
            if run.round not in generators:
                weights = {str(i): p for i, p in enumerate(run.generator_module.parameters())}
                generators[run.round] = tensor_digest(weights)
                assert not optimizer.state  # Adam is fresh too
            head = next(thing for thing in run.things.values() if isinstance(thing, Head))
            heads.append(tensor_digest(head.state_dict()))

    fit(tiny(), on_update)
    run = Run(None)
    for e in run.epochs(3):
        g = Generator((1, 8, 8), 8, 4)
        g.reset(run.generator("weights"))
        assert generators[e] == tensor_digest({str(i): p for i, p in enumerate(g.parameters())})
    assert len(set(heads)) == len(heads) == 9


@pytest.mark.parametrize("cr", [0.0, 0.8])
def test_synthesis_leaves_teacher_and_student_as_they_were(cr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Synthesis, "distil", lambda self, student, *rest: student.train())
    method = tiny(cr=cr, adv=1.0)
    teacher, student = method.model("teacher", None).module, method.model("student", None).module
    before = tensor_digest(teacher.state_dict()), tensor_digest(student.state_dict())
    run = Watched()
    net = method.fit(run, nothing())
    assert (tensor_digest(teacher.state_dict()), tensor_digest(net.state_dict())) == before
    assert all(p.requires_grad for p in net.parameters()) and run.made.pool.made == 48


def test_nothing_of_the_student_before_the_warm_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    trained: list[int] = []
    run = Watched()

    def adversarial(z_t: Tensor, z_s: Tensor) -> Tensor:
        asked.append(run.round)
        return decision_adversarial(z_t, z_s)

    def on_update(optimizer: Any) -> None:
        if owner(optimizer, run.things["module0"]):
            trained.append(run.round)

    monkeypatch.setattr(cmi, "decision_adversarial", adversarial)
    run.on_update = on_update
    tiny(rounds=3, warmup=2, recipe=Recipe(epochs=2, batch_size=16)).fit(run, nothing())
    assert asked == [2] * 3 and trained == [2, 2, 3, 3]


def test_same_seed_same_images() -> None:
    pools = [fit(tiny(), seed=seed).made.pool for seed in (1, 1, 2)]
    assert pools[0].digest == pools[1].digest != pools[2].digest and len(pools[0]) == 48


def test_contrast_changes_the_images() -> None:
    assert len({fit(tiny(cr=cr), seed=1).made.pool.digest for cr in (0.0, 0.8)}) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"g_steps": 0}, "g_steps must be at least 1"),
        ({"n_neg": 0}, "n_neg must be at least 1"),
        ({"cr": -0.1}, "cr must not be negative"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"batch": 33}, "at most bank"),
        ({"warmup": 4}, "warmup must lie between"),
        ({"views": -1}, "views must not be negative"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**options)
