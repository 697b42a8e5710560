"""BA3US: the invariants of its card."""

import csv
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_model, tiny_net
from upcycle.adaptation.ba3us import (
    BA3US,
    Discriminator,
    alignment_loss,
    balance_weights,
    certainty,
    class_weights,
    complement,
    doubt,
    middle_size,
    suppression_loss,
)
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import WithBottleneck
from upcycle.core.losses import entropy
from upcycle.core.reversal import grad_reverse, ramp
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data import Images
from upcycle.reports import pictures

G = torch.Generator().manual_seed(0)
P_S = torch.randn(13, 10, generator=G, dtype=torch.float64).softmax(1)
P_T = torch.randn(9, 10, generator=G, dtype=torch.float64).softmax(1)
Y = torch.randint(10, (13,), generator=G)
M = torch.rand(10, generator=G, dtype=torch.float64).softmax(0)
TINY: dict[str, Any] = {
    "iterations": 30,
    "batch_size": 16,
    "hidden": 16,
    "bottleneck": Bottleneck(width=16, backbone_rate=1.0),
}
DANN: dict[str, Any] = {"mu": 0, "class_weights": False, "conditioning": False, "eta_t": 0.0, "eta_a": 0.0}


def method(source: Images | None = None, **options: Any) -> BA3US:
    return BA3US(student=tiny_model("student", 1), source_data=source or tiny_data(), **{**TINY, **options})


def some(data: Images, classes: int) -> Images:
    """With training images of the first classes alone, none of which is labelled."""
    train = data.train.subset((data.train.labels < classes).nonzero()[:, 0])
    return dataclasses.replace(data, train=dataclasses.replace(train, labels=torch.full_like(train.labels, -1)))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- 1: a limit case is DANN ---------------------------------------------------------------------------------------


def test_uniform_weights_are_the_mean_of_both_domains() -> None:
    z_s, z_t, uniform = torch.randn(9, 4, generator=G), torch.randn(9, 4, generator=G), torch.full((9,), 0.1)
    weight = torch.randn(4, generator=G)
    omega = balance_weights(torch.ones(9), uniform, torch.ones(9))
    found = alignment_loss(lambda z: z @ weight, z_s, z_t, *omega, kappa=1.0)
    d = torch.cat([torch.ones(9), torch.zeros(9)])
    assert torch.allclose(found, F.binary_cross_entropy_with_logits(torch.cat([z_s, z_t]) @ weight, d))


def dann(run: Run, data: Images, source_data: Images, I: int, B: int) -> nn.Module:  # noqa: E741
    """DANN as one would write it, on the same batches."""
    student = tiny_model("student", 1)
    seed_everything(run.seed, "head")
    net, D = (
        WithBottleneck(student, 10, 16, norm=False, weight_norm=False).double(),
        Discriminator(16, 16, 0.0).double(),
    )
    both = [*net.parameters(), *D.parameters()]
    optimizer = torch.optim.SGD(both, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for e in run.epochs(10):
        net.train()
        batches = zip(run.others(source_data.train, B, "source"), run.others(data.train, B, "target"), strict=True)
        for i in range(e * I // 10, (e + 1) * I // 10):
            (x_s, y, _), (x_t, _, _) = next(batches)
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + 0.001 * i) ** -0.75
            (z_s, logits), (z_t, _) = net.parts(x_s), net.parts(x_t)
            told = D(grad_reverse(torch.cat([z_s, z_t]), ramp(i / I)), torch.Generator())
            truth = torch.cat([torch.ones(B), torch.zeros(B)]).double()
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + F.binary_cross_entropy_with_logits(told, truth)).backward()
            optimizer.step()
    return net.folded()


def test_with_everything_off_it_is_dann() -> None:
    data = some(tiny_data(), 5)
    found = method(**DANN, dropout=0.0).fit(Run(None, precision="64-true"), data)
    expected = dann(Run(None, precision="64-true"), data, tiny_data(), TINY["iterations"], TINY["batch_size"])
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-10)


def by_the_card(run: Run, data: Images, source_data: Images, I: int, B: int) -> nn.Module:  # noqa: E741
    """The whole method, its gradients reversed by hooks and its sums written out, on the same batches."""
    student = tiny_model("student", 1)
    seed_everything(run.seed, "head")
    net, D = (
        WithBottleneck(student, 10, 16, norm=False, weight_norm=False).double(),
        Discriminator(16, 16, 0.0).double(),
    )
    both, m = [*net.parameters(), *D.parameters()], torch.full((10,), 0.1).double()
    optimizer = torch.optim.SGD(both, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for e in run.epochs(10):
        net.train()
        rho = B // 4 * (10 - e) // 10
        batches = zip(
            run.others(source_data.train, B + rho, "source"), run.others(data.train, B, "target"), strict=True
        )
        for i in range(e * I // 10, (e + 1) * I // 10):
            (x_s, y, _), (x_t, _, _) = next(batches)
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + 0.001 * i) ** -0.75
            back = partial(torch.mul, -(2 / (1 + math.exp(-10 * i / I)) - 1))
            (z_s, l_s), (z_t, l_t) = net.parts(x_s), net.parts(x_t)
            z, H, p = torch.cat([z_s, z_t]), entropy(torch.cat([l_s, l_t]).softmax(1)), l_s[:B].softmax(1)
            L_t = entropy(l_t.softmax(1)).mean()
            z.register_hook(back)
            H.register_hook(back)
            w = (1 + (-H).exp()) * torch.cat([m[y], torch.ones(B).double()])
            w = torch.cat([(1 + rho / B) * w[: B + rho] / w[: B + rho].sum().item(), w[-B:] / w[-B:].sum().item()])
            truth = torch.cat([torch.ones(B), torch.zeros(rho + B)]).double()
            told = F.binary_cross_entropy_with_logits(D(z, torch.Generator()), truth, reduction="none")
            L_adv = (w * told).sum() / w.sum().item()
            L_s = (m[y[:B]] * F.cross_entropy(l_s[:B], y[:B], reduction="none")).sum() / m[y[:B]].sum()
            p_y = p[range(B), y[:B]]
            a = m[y[:B]] * (1 - p_y.detach())
            wrong = (p / (1 - p_y + 1e-7)[:, None])[F.one_hot(y[:B], 10) == 0].view(B, 9)
            L_aus = (a * (wrong * (wrong + 1e-10).log()).sum(1)).sum() / a.sum() / math.log(9)
            optimizer.zero_grad()
            (L_s + L_adv + 0.1 * L_t + L_aus).backward()
            optimizer.step()
        m = predict_logits(net, data.train).double().softmax(1).mean(0)
    return net.folded()


def test_the_whole_is_what_the_card_says() -> None:
    data = some(tiny_data(), 5)
    found = method(dropout=0.0).fit(Run(None, precision="64-true"), data)
    expected = by_the_card(Run(None, precision="64-true"), data, tiny_data(), TINY["iterations"], TINY["batch_size"])
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-10)


def test_without_reversal_the_target_teaches_nothing() -> None:
    """gamma = 0 besides is training on the source alone: other target images change no weight."""
    data = tiny_data()
    a, b = (method(**DANN, gamma=0.0).fit(Run(None), some(data, k)) for k in (5, 7))
    c, d = (method(**DANN).fit(Run(None), some(data, k)) for k in (5, 7))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.allclose(p, q, atol=1e-6) for p, q in zip(c.parameters(), d.parameters(), strict=True))


# -- 2 and 3: weights and numbers of images ------------------------------------------------------------------------


def test_weights_sum_to_one_and_the_share_of_the_source() -> None:
    omega_s, omega_t = balance_weights(certainty(P_S, 0.3), M[Y], certainty(P_T, 0.3))
    assert float(omega_s.sum()) == pytest.approx(1 + 4 / 9, abs=1e-12)
    assert float(omega_t.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(omega_s[0] / omega_s[1], certainty(P_S, 0.0)[0] * M[Y[0]] / certainty(P_S, 0.0)[1] / M[Y[1]])


def test_sums_that_weights_are_divided_by_carry_no_gradient() -> None:
    p_s, p_t = P_S.clone().requires_grad_(), P_T.clone().requires_grad_()
    u_s, u_t = certainty(p_s, 1.0), certainty(p_t, 1.0)
    omega_s, omega_t = balance_weights(u_s, M[Y], u_t)
    found = torch.autograd.grad(omega_s.sum() + omega_t.sum(), [p_s, p_t], retain_graph=True)
    w_s = u_s * M[Y]
    expected = torch.autograd.grad(13 / 9 * w_s.sum() / w_s.sum().item() + u_t.sum() / u_t.sum().item(), [p_s, p_t])
    assert all(bool(a.any()) and torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    omega = torch.rand(5, generator=G).requires_grad_()
    loss = alignment_loss(lambda z: z.sum(1), torch.eye(3), torch.eye(3)[:2], omega[:3], omega[3:], kappa=1.0)
    (by_omega,) = torch.autograd.grad(loss, omega)
    assert torch.allclose((by_omega * omega).sum(), loss)  # linear in the weights; a true mean would give 0


def test_middle_images_become_fewer() -> None:
    assert [middle_size(36, 4, e) for e in range(11)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    for batch in range(2, 70):
        for mu in range(1, 9):
            sizes = [middle_size(batch, mu, e) for e in range(11)]
            assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-1]) == (batch // mu, 0)
    assert {middle_size(36, 0, e) for e in range(10)} == {0}
    assert {middle_size(36, -4, e) for e in range(10)} == {9}


def test_middle_images_count_as_target_for_the_discriminator() -> None:
    z_s, z_t = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[2, 2]]  # two of the source, one in the middle, two of the target
    omega = torch.ones(3), torch.ones(2)
    right = torch.tensor([9.0, -9.0, -9.0])
    assert float(alignment_loss(lambda z: z @ right, z_s, z_t, *omega, kappa=1.0)) < 1e-3
    assert float(alignment_loss(lambda z: z @ right.abs(), z_s, z_t, *omega, kappa=1.0)) > 5


# -- 4 and 7: uncertainty suppression ------------------------------------------------------------------------------


def test_complement_entropy_between_its_limits() -> None:
    y = torch.tensor([0, 0])
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.8, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(complement(p, y), torch.tensor([-1.0, 0.0], dtype=torch.float64), atol=1e-5)
    found = complement(P_S, Y)
    assert bool(((found > -1) & (found < 0)).all())


def test_uncertain_samples_weigh_most_and_weights_have_no_gradient() -> None:
    p = P_S.clone().requires_grad_()
    a = doubt(p, Y, M, 1.0)
    assert not a.requires_grad and float(a.sum()) == pytest.approx(1)
    uniform = torch.full_like(M, 0.1)
    assert torch.equal(doubt(p, Y, uniform, 1.0).argsort(), P_S.gather(1, Y[:, None])[:, 0].argsort(descending=True))
    assert torch.allclose(doubt(p, Y, uniform, 0.0), torch.full((13,), 1 / 13, dtype=torch.float64))
    before = M.clone()
    (found,) = torch.autograd.grad(suppression_loss(p, Y, M, 1.0), p)
    (expected,) = torch.autograd.grad((a * complement(p, Y)).sum(), p)
    assert torch.equal(found, expected) and torch.equal(M, before)


def test_certain_samples_give_no_nan() -> None:
    p = torch.eye(3)[[0, 1]].requires_grad_()
    loss = suppression_loss(p, torch.tensor([0, 1]), torch.full((3,), 1 / 3), 1.0)
    loss.backward()
    assert loss.item() == 0 and p.grad is not None and bool(p.grad.isfinite().all())


# -- 5: class weights ----------------------------------------------------------------------------------------------


def test_class_weights_sum_to_one_without_gradient_above_a_floor() -> None:
    m = class_weights(P_T.clone().requires_grad_())
    assert not m.requires_grad and float(m.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(m, P_T.mean(0))
    never = class_weights(torch.eye(3)[[0, 0, 1]])
    assert float(never.sum()) == pytest.approx(1) and 0 < float(never[2]) < 2e-6


def test_no_label_of_the_target_is_read() -> None:
    hidden = some(tiny_data(), 5)
    wrong = torch.randint(10, hidden.train.labels.shape, generator=G)
    lying = dataclasses.replace(hidden, train=dataclasses.replace(hidden.train, labels=wrong))
    blind = torch.full_like(hidden.validation.labels, -1)
    blind_data = dataclasses.replace(hidden, validation=dataclasses.replace(hidden.validation, labels=blind))
    a, b, c = (method().fit(Run(None, seed=5), data) for data in (hidden, lying, blind_data))
    assert equal(a, b) and equal(a, c)


def test_class_weights_find_the_classes_of_the_target(tmp_path: Path) -> None:
    data = some(tiny_data(1000), 5)
    run = Run(tmp_path, quiet=True)
    net = method(tiny_data(1000), iterations=200, batch_size=32, lr=0.05).fit(run, data)
    m = class_weights(predict_logits(net, data.train).softmax(1))
    assert float(m[:5].sum()) > 0.9
    run.close()
    drawn = [pictures.picture(file) for file in sorted((tmp_path / "pictures").iterdir())]
    assert len(drawn) == 2 and not any("cannot be drawn" in figure.caption for figure in drawn)
    assert str(drawn[1].body).count("<polyline") + str(drawn[1].body).count("<path") >= 10


# -- 6: reversal ---------------------------------------------------------------------------------------------------


def gradients(kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of L_adv by z, p and the discriminator."""
    torch.manual_seed(0)
    D = Discriminator(4, 8, 0.0).double()
    z_s, z_t = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (13, 9))
    p_s = P_S.clone().requires_grad_()
    omega = balance_weights(certainty(p_s, kappa), M[Y], certainty(P_T, kappa))
    loss = alignment_loss(partial(D, generator=torch.Generator()), z_s, z_t, *omega, kappa)
    z, p, d = torch.autograd.grad(loss, [z_s, p_s, D.layers[0].weight])  # type: ignore[list-item]
    return z, p, d


def test_reversal_reaches_features_and_entropy_but_not_the_discriminator() -> None:
    z0, p0, d0 = gradients(0.0)
    assert not z0.any() and not p0.any() and bool(d0.abs().sum() > 0)
    z1, p1, d1 = gradients(0.5)
    z2, p2, d2 = gradients(1.0)
    assert torch.allclose(2 * z1, z2) and torch.allclose(2 * p1, p2) and torch.equal(d1, d2)
    assert bool(p2.abs().sum() > 0)


def test_the_entropy_of_certainty_is_reversed() -> None:
    p = P_T.clone().requires_grad_()
    (found,) = torch.autograd.grad(certainty(p, 0.5).sum(), p)
    (plain,) = torch.autograd.grad((1 + (-entropy(p)).exp()).sum(), p)
    assert torch.allclose(found, -0.5 * plain)


# -- the run -------------------------------------------------------------------------------------------------------


def test_the_product_is_the_student(tmp_path: Path) -> None:
    """Also of a student with other classes, which stays as it was."""
    data, student = tiny_data(), dataclasses.replace(tiny_model("student", 1), classes=("a", "b", "c"))
    student.module.linear = nn.Linear(16, 3)
    before = {k: v.clone() for k, v in student.module.state_dict().items()}
    made = BA3US(student=student, source_data=tiny_data(), **TINY)
    made.require(data)
    product = made.product(made.fit(Run(None), data), data)
    assert product.classes == data.classes
    assert {k: v.shape for k, v in product.module.state_dict().items()} == {
        k: v.shape for k, v in tiny_net().state_dict().items()
    }
    assert all(torch.equal(v, before[k]) for k, v in student.module.state_dict().items())


def test_selection_by_entropy_keeps_the_weights_of_that_moment(tmp_path: Path) -> None:
    data = some(tiny_data(), 5)

    def logged(select: str) -> tuple[list[float], float]:
        run = Run(tmp_path / select, seed=0, precision="32-true")
        net = method(select=select, eta_t=0.0, eta_a=3.0, lr=0.3).fit(run, data)
        run.close()
        with open(tmp_path / select / "metrics.csv", newline="") as file:
            lines = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "target_entropy"]
        return lines, float(entropy(predict_logits(net, data.train).softmax(1)).mean())

    lines, found = logged("entropy")
    assert len(lines) == 10 and min(lines) < lines[-1] - 0.01  # or the test could not fail
    assert found == pytest.approx(min(lines), abs=1e-4)
    lines, found = logged("last")
    assert found == pytest.approx(lines[-1], abs=1e-4)


def test_what_cannot_be_is_refused() -> None:
    data = tiny_data()
    two = data.only(("3", "5"))
    with pytest.raises(UserError, match="with two classes there is one; give --eta_a 0"):
        method(two).require(two)
    method(two, eta_a=0.0).require(two)
    with pytest.raises(UserError, match="same classes in the same order"):
        method().require(dataclasses.replace(data, classes=tuple(reversed(data.classes))))
    with pytest.raises(UserError, match="has no training images"):
        method().require(data.subset(torch.arange(0)))
    with pytest.raises(UserError, match="without labels"):
        method(data.hide_labels(2, 0)).require(data)
    with pytest.raises(UserError, match="normalised differently"):
        method(data.normalised((0.5,), (0.5,))).require(data)
    with pytest.raises(UserError, match="linear layer"):
        convolutions = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
        BA3US(student=convolutions, source_data=data).require(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 25}, "multiple of 10"),
        ({"iterations": 0}, "multiple of 10"),
        ({"batch_size": 1}, "batch_size"),
        ({"eta_a": -1.0}, "eta_a"),
        ({"eta_t": math.nan}, "eta_t"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden": 0}, "hidden"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        method(**options)


def test_two_classes_without_suppression() -> None:
    two = tiny_data().only(("3", "5"))
    net = method(two, eta_a=0.0).fit(Run(None), two)
    assert all(p.isfinite().all() for p in net.parameters()) and net.linear.out_features == 2
