"""KD: the invariants of its card."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.settings import tiny_data, tiny_net
from upcycle.core.errors import UserError
from upcycle.core.frozen import frozen
from upcycle.core.losses import Terms, balanced_targets, ce_loss, kd_loss, kd_objective
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation.kd import KD


def logits(seed: int = 0, b: int = 16, k: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z_s, z_t = (torch.randn(b, k, generator=g, dtype=torch.float64) * 3 for _ in range(2))
    return z_s.requires_grad_(), z_t, torch.randint(k, (b,), generator=g)


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0, 20.0])
def test_equal_logits_give_zero_and_no_gradient(t: float) -> None:
    z_s, _, _ = logits()
    loss = kd_loss(z_s, z_s.detach().clone(), t)
    loss.backward()
    assert abs(float(loss)) < 1e-12 and float(z_s.grad.abs().max()) < 1e-12


def test_a_constant_a_row_changes_nothing() -> None:
    z_s, z_t, _ = logits()
    shift = torch.randn(16, 1, dtype=torch.float64)
    assert torch.allclose(kd_loss(z_s + shift, z_t - 2 * shift, 4.0), kd_loss(z_s, z_t, 4.0), rtol=1e-12)


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_the_gradient_is_the_paper_s(t: float) -> None:
    z_s, z_t, _ = logits()
    kd_loss(z_s, z_t, t).backward()
    expected = t / len(z_s) * ((z_s / t).softmax(1) - (z_t / t).softmax(1))
    assert torch.allclose(z_s.grad, expected, atol=1e-6)


def test_at_high_temperature_it_is_centred_logit_regression() -> None:
    z_s, z_t, _ = logits()
    centred = (z_s - z_s.mean(1, keepdim=True)) - (z_t - z_t.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * z_s.shape[1])
    assert torch.allclose(kd_loss(z_s, z_t, 1e4), limit, rtol=1e-3)


def test_it_is_a_mean_over_the_batch_and_over_pixels() -> None:
    z_s, z_t, _ = logits()
    twice = kd_loss(torch.cat([z_s, z_s]), torch.cat([z_t, z_t]), 4.0)
    dense = kd_loss(z_s[:, :, None, None].expand(-1, -1, 3, 5), z_t[:, :, None, None].expand(-1, -1, 3, 5), 4.0)
    assert torch.allclose(twice, kd_loss(z_s, z_t, 4.0)) and torch.allclose(dense, kd_loss(z_s, z_t, 4.0))


def test_a_one_hot_teacher_is_cross_entropy_with_its_argmax() -> None:
    z_s, z_t, _ = logits()
    hard = 100.0 * F.one_hot(z_t.argmax(1), 10).double() - 50
    assert torch.allclose(kd_loss(z_s, hard, 1.0), F.cross_entropy(z_s, z_t.argmax(1)), atol=1e-6)


def test_without_kd_it_is_cross_entropy_bit_for_bit() -> None:
    z_s, z_t, y = logits()
    z_s = z_s.detach().float()
    found = kd_objective(z_s, z_t, y, temperature=4.0, w_kd=0.0, w_ce=1.0)
    assert torch.equal(found, F.cross_entropy(z_s, y))


def test_unknown_labels_add_nothing() -> None:
    z_s, _, y = logits()
    y[4:] = -1
    assert torch.allclose(ce_loss(z_s, y), F.cross_entropy(z_s[:4], y[:4], reduction="sum") / 16)
    assert float(ce_loss(z_s, torch.full_like(y, -1))) == 0.0


def test_no_gradient_reaches_the_teacher_and_its_buffers_stay() -> None:
    module = tiny_net(seed=1)
    before = tensor_digest(module.state_dict())
    x = torch.randn(8, 1, 8, 8)
    teacher = frozen(module, x, precision="32-true")
    student = tiny_net(seed=2)
    kd_loss(student(x), teacher(x), 4.0).backward()
    assert all(p.grad is None for p in [*teacher.parameters(), *module.parameters()])
    assert tensor_digest(module.state_dict()) == before


def fit(data=None, **options):  # type: ignore[no-untyped-def]
    data = data or tiny_data()
    method = KD(teacher=tiny_net(1), student=tiny_net(2), recipe=Recipe(epochs=2, batch_size=32, lr=0.05), **options)
    method.require(data)
    return method.fit(Run(None, precision="32-true"), data)


def test_without_labels_the_labels_are_not_read() -> None:
    data = tiny_data()
    a = fit(data, terms=Terms(w_ce=0.0, w_kd=1.0))
    b = fit(data.hide_labels(0, seed=0), terms=Terms(w_ce=0.0, w_kd=1.0))
    assert tensor_digest(a.state_dict()) == tensor_digest(b.state_dict())


def test_kept_outputs_are_the_computed_ones() -> None:
    a, b = fit(cache="on"), fit(cache="off")
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4)  # float16 holds three digits of a logit


def test_the_student_alone_moves() -> None:
    teacher = tiny_net(1)
    before = copy.deepcopy(teacher.state_dict())
    KD(teacher=teacher, student=tiny_net(2), recipe=Recipe(epochs=1, batch_size=64)).fit(Run(None), tiny_data())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_impossible_options() -> None:
    with pytest.raises(UserError, match="views"):
        KD(teacher=nn.Identity(), student=nn.Identity(), views=-1)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"w_kd": -1.0}, {"w_kd": 0.0, "w_ce": 0.0}]
)
def test_impossible_terms(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Terms(**options)


def test_terms_are_the_objective_with_their_weights() -> None:
    z_s, z_t, y = logits()
    found = Terms(temperature=2.0, w_kd=0.7, w_ce=0.3)(z_s, z_t, y, smoothing=0.1)
    assert torch.allclose(found, 0.7 * kd_loss(z_s, z_t, 2.0) + 0.3 * ce_loss(z_s, y, 0.1))
    assert torch.equal(Terms()(z_s, z_t, y), kd_objective(z_s, z_t, y, temperature=4.0, w_kd=0.9, w_ce=0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_targets_that_are_one_hot_or_zero_give_the_bits_of_labels(smoothing: float, dtype: torch.dtype) -> None:
    z, _, y = logits(b=1001)
    a, b = (z.detach().to(dtype).requires_grad_() for _ in range(2))
    y[::3] = -1
    T = F.one_hot(y.clamp_min(0), 10).to(dtype) * (y >= 0)[:, None]
    found, expected = ce_loss(a, T, smoothing), ce_loss(b, y, smoothing)
    assert torch.equal(found, expected)
    found.backward(), expected.backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-9)
    assert not a.grad[::3].any()


def test_targets_are_taken_as_they_are() -> None:
    z, _, y = logits()
    z = z.detach()
    log_p = z.log_softmax(1)
    T = torch.rand(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    assert torch.allclose(ce_loss(z, T), -(T * log_p).sum() / 16)
    probabilities = T / T.sum(1, keepdim=True)
    for smoothing in (0.0, 0.3):
        expected = F.cross_entropy(z, probabilities, label_smoothing=smoothing)
        assert torch.allclose(ce_loss(z, probabilities, smoothing), expected)
    assert ce_loss(z, torch.zeros(16, 10), 0.3) == 0 and ce_loss(z, -torch.ones_like(y), 0.3) == 0


def test_balanced_targets_weigh_all_classes_alike() -> None:
    z, _, _ = logits(b=8, k=3)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1])
    T = balanced_targets(y, 3).double()
    assert torch.allclose(T.sum(0), torch.full((3,), 7 / 3, dtype=torch.float64), atol=1e-6) and not T[-1].any()
    weight = torch.tensor([7 / 12, 7 / 6, 7 / 3], dtype=torch.float64)
    expected = F.cross_entropy(z, y, weight=weight, ignore_index=-1, reduction="sum") / 8
    assert torch.allclose(ce_loss(z, T), expected, atol=1e-6)
