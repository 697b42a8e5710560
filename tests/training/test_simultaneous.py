"""One-stage GAN training: gradients against two explicit passes, and the invariants of its card."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.reversal import grad_reverse
from upcycle.core.run import Run
from upcycle.training import (
    HINGE,
    LSGAN,
    NON_SATURATING,
    PAIRS,
    SATURATING,
    WGAN,
    Pair,
    one_stage,
    ratio,
    scale_backward,
)

EACH = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
B = 6


def generator(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh(),
    ).to(dtype)  # fmt: skip


def discriminator(dtype: torch.dtype = torch.float64, norm: type[nn.Module] | None = None) -> nn.Module:
    """DCGAN's: GroupNorm, or another norm over the channels."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False), norm(16) if norm else nn.GroupNorm(4, 16), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4),
    ).to(dtype)  # fmt: skip


def batch(dtype: torch.dtype = torch.float64, b: int = B) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.rand(b, 1, 16, 16, generator=g, dtype=torch.float64) * 2 - 1
    return x.to(dtype), torch.randn(b, 8, 1, 1, generator=g, dtype=torch.float64).to(dtype)


def grads(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in net.parameters()])  # type: ignore[union-attr]


def two_passes(g_net: nn.Module, d_net: nn.Module, x: Tensor, z: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """∇L_D on D and ∇L_G on G at the same weights, each from a forward and a backward pass of its own."""
    g_net, d_net = copy.deepcopy(g_net), copy.deepcopy(d_net)
    loss_d = pair.real(d_net(x)).mean() + pair.fake(d_net(g_net(z).detach())).mean()
    of_d = torch.autograd.grad(loss_d, list(d_net.parameters()))
    of_g = torch.autograd.grad(pair.generator(d_net(g_net(z))).mean(), list(g_net.parameters()))
    return torch.cat([g.reshape(-1) for g in of_d]), torch.cat([g.reshape(-1) for g in of_g])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def check(g_net: nn.Module, d_net: nn.Module, pair: Pair, dtype: torch.dtype = torch.float64, **options):  # type: ignore[no-untyped-def]
    """Both gradients are those of two passes; returns the step."""
    x, z = batch(dtype)
    of_d, of_g = two_passes(g_net, d_net, x, z, pair)
    step = one_stage(d_net, x, g_net(z), pair, **options)
    step.loss.backward()
    assert error(grads(d_net), of_d) < TOLERANCE[dtype]
    assert error(grads(g_net), of_g) < TOLERANCE[dtype]
    return step


# -- exact gradients -----------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["auto", "ratio", "input"])
def test_both_gradients_are_those_of_two_passes(pair: Pair, dtype: torch.dtype, form: str) -> None:
    step = check(generator(dtype), discriminator(dtype), pair, dtype, form=form)
    assert (step.fallback is None) == (form != "input")
    assert (step.gamma is None) == (form == "input")


@EACH
def test_one_forward_of_each_network_and_one_backward(pair: Pair) -> None:
    g_net, d_net = generator(), discriminator()
    forward, backward = [], []
    for net in (g_net[-1], d_net[-1]):
        net.register_forward_hook(lambda m, *_: forward.append(m))
        net.register_full_backward_hook(lambda m, *_: backward.append(m))
    x, z = batch()
    one_stage(d_net, x, g_net(z), pair).loss.backward()
    assert forward == [g_net[-1], d_net[-1], d_net[-1]]  # D sees real and generated samples
    assert backward.count(g_net[-1]) == 1 and backward.count(d_net[-1]) == 2


@EACH
def test_d_gets_the_same_gradient_whether_g_learns_or_not(pair: Pair) -> None:
    x, z = batch()
    found = []
    for learns in (True, False):
        g_net, d_net = generator().requires_grad_(learns), discriminator()
        one_stage(d_net, x, g_net(z), pair).loss.backward()
        found.append(grads(d_net))
    assert torch.equal(*found)


@EACH
def test_a_batch_of_one(pair: Pair) -> None:
    g_net = generator().eval()  # BatchNorm of the generator would need two
    x, z = batch()
    d_net = nn.Sequential(discriminator(), nn.Flatten(0))
    whole = one_stage(d_net, x, g_net(z), pair)
    for i in range(B):
        for end in (nn.Flatten(0), nn.Flatten(1), Squeeze()):
            d_net[1] = end
            single = one_stage(d_net, x[i : i + 1], g_net(z[i : i + 1]), pair)
            assert torch.allclose(single.gamma, whole.gamma[i : i + 1], rtol=1e-12, atol=0)  # type: ignore[arg-type,index]


class Squeeze(nn.Module):
    def forward(self, f: Tensor) -> Tensor:
        return f.squeeze()


@EACH
def test_permuting_the_batch_permutes_gamma(pair: Pair) -> None:
    x, z = batch()
    fake, order = generator()(z), torch.randperm(B, generator=torch.Generator().manual_seed(4))
    d_net = discriminator()
    gamma, permuted = (one_stage(d_net, x, x_hat, pair).gamma for x_hat in (fake, fake[order]))
    assert gamma is not None and permuted is not None
    assert torch.allclose(permuted, gamma[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("pair", [SATURATING, WGAN], ids=lambda pair: pair.name)
def test_symmetric_is_asymmetric_with_gamma_minus_one(pair: Pair) -> None:
    plain = Pair(name="undeclared", real=pair.real, fake=pair.fake, generator=pair.generator)
    x, z = batch()
    found = []
    for p in (pair, plain):
        g_net, d_net = generator(), discriminator()
        step = one_stage(d_net, x, g_net(z), p)
        step.loss.backward()
        assert torch.equal(step.gamma, -torch.ones(B, dtype=torch.float64))  # type: ignore[arg-type]
        found.append(torch.cat([grads(g_net), grads(d_net)]))
    assert torch.equal(*found)


def test_dropout_is_the_same_mask_for_both_losses() -> None:
    g_net, d_net = generator(), nn.Sequential(*discriminator()[:-1], nn.Dropout(0.5), discriminator()[-1])
    x, z = batch()
    torch.manual_seed(5)
    step = one_stage(d_net, x, g_net(z), NON_SATURATING)
    step.loss.backward()
    by_ratio = grads(g_net)
    g_net.zero_grad()
    torch.manual_seed(5)
    one_stage(d_net, x, g_net(z), NON_SATURATING, form="input").loss.backward()
    assert step.gamma is not None and error(by_ratio, grads(g_net)) < 1e-12


# -- ratios --------------------------------------------------------------------------------------------------

outputs = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


@given(outputs)
def test_the_closed_forms_of_gamma(values: list[float]) -> None:
    f = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(ratio(NON_SATURATING, f), -torch.exp(-f), rtol=1e-9, atol=0)
    for pair in (SATURATING, WGAN):
        assert torch.equal(ratio(pair, f), -torch.ones_like(f))
    f = torch.where(f.abs() < 1e-3, torch.ones_like(f), f)
    assert torch.allclose(ratio(LSGAN, f), (f - 1) / f, rtol=1e-12, atol=0)
    hinge = ratio(HINGE, f)
    assert torch.equal(hinge[f > -1], -torch.ones_like(hinge[f > -1])) and hinge[f < -1].isinf().all()


@EACH
@given(values=outputs)
def test_the_packed_loss_gives_d_its_own_gradient(pair: Pair, values: list[float]) -> None:
    """∂/∂f (L_f - L_G) / (1 - γ) = ∂L_f, with the factor held constant."""
    f = torch.tensor(values, dtype=torch.float64).requires_grad_()
    gamma = ratio(pair, f)
    (packed,) = torch.autograd.grad(((pair.fake(f) - pair.generator(f)) / (1 - gamma)).sum(), f)
    (plain,) = torch.autograd.grad(pair.fake(f).sum(), f)
    finite = gamma.isfinite()
    assert torch.allclose(packed[finite], plain[finite], rtol=1e-9, atol=1e-300)


def test_gamma_is_computed_in_float32_or_better() -> None:
    f = torch.tensor([-20.0, -3.0, 2.0])
    for dtype in (torch.float16, torch.bfloat16):
        assert ratio(NON_SATURATING, f.to(dtype)).dtype == torch.float32
        assert torch.allclose(ratio(NON_SATURATING, f.to(dtype)), -torch.exp(-f), rtol=1e-5)
    assert ratio(NON_SATURATING, f.double()).dtype == torch.float64


# -- where no ratio exists -----------------------------------------------------------------------------------


def test_batchnorm_in_d_takes_the_gradient_at_the_image() -> None:
    step = check(generator(), discriminator(norm=nn.BatchNorm2d), NON_SATURATING)
    assert step.gamma is None and "BatchNorm '3'" in str(step.fallback)


def test_batchnorm_in_d_would_make_the_ratio_wrong() -> None:
    g_net, d_net = generator(), discriminator(norm=nn.BatchNorm2d)
    x, z = batch()
    _, of_g = two_passes(g_net, d_net, x, z, NON_SATURATING)
    f = d_net(x_tilde := scale_backward(g_net(z), 1.0))
    gamma = ratio(NON_SATURATING, f.flatten())
    x_tilde.register_hook(lambda g: g * gamma.view(-1, 1, 1, 1))
    NON_SATURATING.fake(f).mean().backward()
    assert error(grads(g_net), of_g) > 1e-3  # what the fallback is there for
    with pytest.raises(UserError, match="BatchNorm '3' of the discriminator mixes samples"):
        one_stage(d_net, x, g_net(z), NON_SATURATING, form="ratio")


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.BatchNorm2d])
def test_norms_that_do_not_mix_samples_keep_the_ratio(norm: type[nn.Module]) -> None:
    d_net = discriminator(norm=norm)
    if norm is nn.BatchNorm2d:
        d_net.eval()
    assert check(generator(), d_net, NON_SATURATING).gamma is not None


@pytest.mark.parametrize("pair", [SATURATING, WGAN], ids=lambda pair: pair.name)
def test_a_constant_ratio_survives_batchnorm_and_several_outputs(pair: Pair) -> None:
    d_net = discriminator(norm=nn.BatchNorm2d)
    d_net[-1] = nn.Conv2d(16, 2, 3, dtype=torch.float64)
    assert check(generator(), d_net, pair).fallback is None


@EACH
def test_several_outputs_a_sample(pair: Pair) -> None:
    d_net = discriminator()
    d_net[-1] = nn.Conv2d(16, 1, 3, dtype=torch.float64)  # 2 x 2 patches
    step = check(generator(), d_net, pair)
    assert (step.fallback is None) if pair.symmetric else ("(1, 2, 2)" in str(step.fallback))


def test_hinge_with_all_fakes_beyond_the_margin() -> None:
    g_net, d_net = generator(), discriminator()
    nn.init.constant_(d_net[-1].bias, -50.0)  # type: ignore[arg-type]
    x, z = batch()
    expected = torch.autograd.grad(-d_net(g_net(z)).mean(), list(g_net.parameters()))
    step = one_stage(d_net, x, fake := g_net(z), HINGE)
    assert float(d_net(fake).detach().max()) < -1 and step.gamma is None and "vanishes" in str(step.fallback)
    step.loss.backward()
    assert error(grads(g_net), torch.cat([g.reshape(-1) for g in expected])) < 1e-12
    assert grads(d_net).isfinite().all()
    g_net.zero_grad(), d_net.zero_grad()
    check(g_net, d_net, HINGE)


def test_hinge_with_some_fakes_beyond_the_margin() -> None:
    g_net, d_net = generator(), discriminator()
    with torch.no_grad():
        _, z = batch()
        d_net[-1].bias -= 1 + d_net(g_net(z)).median()  # type: ignore[operator]
        f = d_net(g_net(z))
    assert 0 < int((f < -1).sum()) < B
    assert check(g_net, d_net, HINGE).gamma is None


@pytest.mark.parametrize(("bias", "by_ratio"), [(-20.0, True), (-60.0, False), (-200.0, False), (-1e6, False)])
def test_a_very_sure_discriminator(bias: float, by_ratio: bool) -> None:
    """∂L_f = σ(f) underflows in float32 below f = -103 and γ = -exp(-f) overflows below -88."""
    g_net, d_net = generator(torch.float32), discriminator(torch.float32)
    nn.init.constant_(d_net[-1].bias, bias)  # type: ignore[arg-type]
    step = check(g_net, d_net, NON_SATURATING, torch.float32)
    assert (step.gamma is not None) == by_ratio


def test_lsgan_at_its_target() -> None:
    """An output of exactly 0 has no ∂L_f."""

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            f = x.flatten(1).mean(1)
            return f - f.detach()

    x, z = batch()
    fake = generator()(z).detach().requires_grad_()
    step = one_stage(Zero(), x, fake, LSGAN)
    step.loss.backward()
    assert step.gamma is None
    assert torch.allclose(fake.grad, torch.full_like(fake, -1 / (B * 256)))  # type: ignore[arg-type]


def test_float16_outputs_take_the_gradient_at_the_image() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).mean(1).half()

    x, z = batch(torch.float32)
    step = one_stage(Half(), x, generator(torch.float32)(z), NON_SATURATING)
    assert step.gamma is None and "float16" in str(step.fallback) and step.loss.dtype == torch.float32


def test_outputs_that_are_not_per_sample_are_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    x, z = batch()
    with pytest.raises(UserError, match=r"answered 6 samples with outputs of shape \(\)"):
        one_stage(Mean(), x, generator()(z))


# -- in a loop -----------------------------------------------------------------------------------------------


def test_terms_of_the_generator_alone_are_added_at_the_image() -> None:
    x, z = batch()
    for pair, form in itertools.product((NON_SATURATING, WGAN), ("auto", "input")):
        g_net, d_net = generator(), discriminator()
        of_d, of_g = two_passes(g_net, d_net, x, z, pair)
        of_r = torch.autograd.grad(g_net(z).square().mean(), list(g_net.parameters()))
        step = one_stage(d_net, x, fake := g_net(z), pair, form=form)  # type: ignore[arg-type]
        (step.loss + 3 * fake.square().mean()).backward()
        assert error(grads(g_net), of_g + 3 * torch.cat([g.reshape(-1) for g in of_r])) < 1e-12
        assert error(grads(d_net), of_d) < 1e-12


@EACH
@pytest.mark.parametrize("form", ["auto", "input"])
def test_a_factor_on_the_loss_scales_both_gradients(pair: Pair, form: str) -> None:
    x, z = batch()
    g_net, d_net = generator(), discriminator()
    of_d, of_g = two_passes(g_net, d_net, x, z, pair)
    (0.25 * one_stage(d_net, x, g_net(z), pair, form=form).loss).backward()  # type: ignore[arg-type]
    assert error(grads(d_net), 0.25 * of_d) < 1e-12 and error(grads(g_net), 0.25 * of_g) < 1e-12


@pytest.mark.parametrize("form", ["auto", "input"])
def test_steps_may_overlap(form: str) -> None:
    """Two losses made before either goes back: each keeps its own ratios."""
    x, z = batch()
    d_net = discriminator()
    apart, together = generator(), generator()
    for part in z.split(3):
        one_stage(d_net, x, apart(part), form=form).loss.backward()  # type: ignore[arg-type]
    sum(one_stage(d_net, x, together(part), form=form).loss for part in z.split(3)).backward()  # type: ignore[union-attr,arg-type]
    assert error(grads(together), grads(apart)) < 1e-12


@EACH
def test_the_losses_to_look_at_are_the_losses(pair: Pair) -> None:
    x, z = batch()
    g_net, d_net = generator(), discriminator()
    step = one_stage(d_net, x, g_net(z), pair)
    with torch.no_grad():
        f = d_net(g_net(z))
        loss_d, loss_g = pair.real(d_net(x)).mean() + pair.fake(f).mean(), pair.generator(f).mean()
    assert torch.equal(step.loss_d, step.loss.detach()) and torch.allclose(step.loss_d, loss_d, rtol=1e-12)
    assert torch.allclose(step.loss_g, loss_g, rtol=1e-12)
    assert not step.loss_d.requires_grad and not step.loss_g.requires_grad


@EACH
def test_with_a_generator_that_stands_still_d_trains_as_on_fixed_fakes(pair: Pair) -> None:
    x, z = batch()
    g_net, d_one, d_two = generator(), discriminator(), discriminator()
    before = [p.detach().clone() for p in g_net.parameters()]
    fixed = g_net(z).detach()
    one, two = (torch.optim.Adam(d.parameters(), lr=1e-3) for d in (d_one, d_two))
    of_g = torch.optim.Adam(g_net.parameters(), lr=0.0)
    for _ in range(5):
        one.zero_grad(), two.zero_grad(), of_g.zero_grad()
        one_stage(d_one, x, g_net(z), pair).loss.backward()
        (pair.real(d_two(x)).mean() + pair.fake(d_two(fixed)).mean()).backward()
        one.step(), two.step(), of_g.step()
    assert all(torch.equal(p, q) for p, q in zip(before, g_net.parameters(), strict=True))
    for p, q in zip(d_one.parameters(), d_two.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_a_run_trains_both_from_one_backward(norm: type[nn.Module] | None) -> None:
    """Run's loop makes the steps that simultaneous descent makes by hand, by ratio and by fallback."""
    x, z = batch()
    recipe = Recipe(optimizer="adam", lr=1e-3, weight_decay=0.0)
    run = Run(None, precision="64-true", accelerator="cpu", quiet=True)
    g_net, of_g = run.setup(generator(), recipe)
    d_net, of_d = run.setup(discriminator(norm=norm), recipe)
    g_hand, d_hand = generator(), discriminator(norm=norm)
    by_hand = [recipe.make(g_hand), recipe.make(d_hand)]
    for _ in range(3):
        step = one_stage(d_net, x, g_net(z), NON_SATURATING)
        assert (step.fallback is None) == (norm is None)
        run.backward(step.loss)
        run.update(of_d)
        run.update(of_g)
        fake = g_hand(z)
        f = d_hand(fake)
        loss_d = NON_SATURATING.real(d_hand(x)).mean() + NON_SATURATING.fake(f).mean()
        d_params, g_params = list(d_hand.parameters()), list(g_hand.parameters())
        grads_d = torch.autograd.grad(loss_d, d_params, retain_graph=True)
        grads_g = torch.autograd.grad(NON_SATURATING.generator(f).mean(), g_params)
        for p, g in zip([*g_params, *d_params], [*grads_g, *grads_d], strict=True):
            p.grad = g
        for optimizer in by_hand:
            optimizer.step()
    for made, hand in ((g_net, g_hand), (d_net, d_hand)):
        for p, q in zip(made.parameters(), hand.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-11)


# -- the links -----------------------------------------------------------------------------------------------


def test_scale_backward_scales_each_sample_and_only_on_its_way() -> None:
    x = torch.randn(3, 2, 2, requires_grad=True)
    gamma = torch.tensor([-1.0, 0.0, 2.5])
    y = scale_backward(x, gamma)
    assert torch.equal(y, x)
    (y.sum() + 10 * x.sum()).backward()  # what else uses x keeps its gradient
    assert torch.equal(x.grad, (10 + gamma).view(3, 1, 1).expand(3, 2, 2))  # type: ignore[arg-type]
    (g,) = torch.autograd.grad(grad_reverse(x).sum(), x)
    assert torch.equal(g, -torch.ones_like(x))
    assert not scale_backward(x.detach(), gamma).requires_grad


def test_scale_backward_keeps_the_type_of_the_gradient() -> None:
    x = torch.randn(3, 2, dtype=torch.bfloat16, requires_grad=True)
    scale_backward(x, torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert torch.equal(x.grad[:, 0].float(), torch.tensor([1.0, -2.0, 0.5]))


def test_data_free_distillation_in_one_stage() -> None:
    """S minimises d = |T(x^) - S(x^)|, G maximises it and has a term R of T's outputs: one forward of T."""
    _, z = batch()
    torch.manual_seed(6)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 4)).double()
                        for _ in range(2))  # fmt: skip
    teacher.requires_grad_(False)

    def d(t: Tensor, s: Tensor) -> Tensor:
        return (t - s).abs().sum(1).mean()

    def r(x: Tensor, t: Tensor) -> Tensor:
        return t.softmax(1).square().sum(1).mean() + x.square().mean()

    g_net = generator()
    fake = g_net(z)
    of_s = torch.autograd.grad(d(teacher(fake), student(fake)), list(student.parameters()))
    fake = g_net(z)
    of_g = torch.autograd.grad(-d(teacher(fake), student(fake)) + r(fake, teacher(fake)), list(g_net.parameters()))
    fake = g_net(z)
    t = teacher(fake)
    (d(grad_reverse(t), student(grad_reverse(fake))) + r(fake, t)).backward()
    assert error(grads(student), torch.cat([g.reshape(-1) for g in of_s])) < 1e-12
    assert error(grads(g_net), torch.cat([g.reshape(-1) for g in of_g])) < 1e-12
