"""Training Generative Adversarial Networks in One Stage (Shen, Yin, Wang, Li, Song, Song; CVPR 2021; arXiv:2103.00430).

The generator G and the discriminator D learn from one forward and one backward pass::

    x_hat = G(z)
    step = one_stage(D, x, x_hat, NON_SATURATING)
    step.loss.backward()                    # or run.backward(step.loss)
    optimizer_d.step(), optimizer_g.step()

With f = D(x^), L_D = mean L_r(D(x)) + mean L_f(f) and L_G = mean L_G(f), D receives ∇L_D and G receives ∇L_G, both at
the weights before the step: simultaneous descent, not alternating. It usually wants a lower learning rate for D.

*Symmetric* losses, L_G = -L_f: the gradient changes its sign where it passes from D to G.

*Asymmetric* losses: D maps sample i to the one number f_i, so the gradients of both losses are ∂f_i/∂x^_i times a
number, and

    ∂L_G/∂x^_i = γ_i ∂L_f/∂x^_i,    γ_i = (∂L_G/∂f_i) / (∂L_f/∂f_i).

The gradient of sample i is multiplied by γ_i where it passes from D to G.

*Where no ratio exists* (D mixes samples or answers with several numbers, ∂L_f/∂f_i vanishes): ∂L_G/∂x^ comes from a
further backward pass through D, without weight gradients. Still one forward pass of either network.

Terms for the generator alone are functions of x^: ``(step.loss + R(x_hat)).backward()`` adds ∂R/∂x^ untouched. Terms
for the discriminator alone, such as a gradient penalty, take ``x_hat.detach()``.

*Data-free distillation* (adversarial, arXiv:1912.11006): the student S plays D and minimises a distance d to the
teacher T, which G maximises. Weights of T do not train, but gradients pass through it. One forward pass of T serves d
and the terms R for the generator alone, when :func:`upcycle.core.reversal.grad_reverse` stands behind T and before S::

    t = T(x_hat)
    (d(grad_reverse(t), S(grad_reverse(x_hat))) + R(x_hat, t)).backward()     # G: -∂d/∂x^ + ∂R/∂x^;  S: ∇d

Departure from the paper: it divides the loss by 1 - γ_i in its packed form; the gradients are the same, and the plain
form here is the safer one in floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.errors import UserError, require

LARGEST_RATIO = 1e12
"""|γ| beyond which ∂L_f is so small that a float32 backward pass through D could lose it to underflow."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The losses of discriminator and generator, each a function from D's outputs to as many losses.

    Args:
        name: how a person calls it.
        real: L_r(f_r), D's loss on real samples.
        fake: L_f(f), D's loss on generated samples.
        generator: L_G(f), of the same outputs.
        symmetric: L_G = -L_f plus a constant, everywhere.
    """

    name: str
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    symmetric: bool = False


SATURATING = Pair(
    name="saturating",
    real=lambda f: -F.logsigmoid(f),
    fake=lambda f: -F.logsigmoid(-f),
    generator=lambda f: F.logsigmoid(-f),
    symmetric=True,
)
"""L_r = -log σ(f), L_f = -log(1 - σ(f)), L_G = log(1 - σ(f)): the minimax game of arXiv:1406.2661; γ = -1."""

NON_SATURATING = Pair(
    name="non-saturating",
    real=lambda f: -F.logsigmoid(f),
    fake=lambda f: -F.logsigmoid(-f),
    generator=lambda f: -F.logsigmoid(f),
)
"""As above with L_G = -log σ(f); γ = -exp(-f)."""

WGAN = Pair(
    name="wgan",
    real=lambda f: -f,
    fake=lambda f: f,
    generator=lambda f: -f,
    symmetric=True,
)
"""L_r = -f, L_f = f, L_G = -f (arXiv:1701.07875); D's Lipschitz bound is the caller's; γ = -1."""

LSGAN = Pair(
    name="lsgan",
    real=lambda f: 0.5 * (f - 1).square(),
    fake=lambda f: 0.5 * f.square(),
    generator=lambda f: 0.5 * (f - 1).square(),
)
"""L_r = (f - 1)²/2, L_f = f²/2, L_G = (f - 1)²/2 (arXiv:1611.04076, targets 0 and 1); γ = (f - 1) / f."""

HINGE = Pair(
    name="hinge",
    real=lambda f: F.relu(1 - f),
    fake=lambda f: F.relu(1 + f),
    generator=lambda f: -f,
)
"""L_r = max(0, 1 - f), L_f = max(0, 1 + f), L_G = -f (arXiv:1705.02894); γ = -1 where f > -1, none elsewhere."""

PAIRS = (SATURATING, NON_SATURATING, WGAN, LSGAN, HINGE)


def ratio(pair: Pair, f: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """γ = (∂L_G/∂f) / (∂L_f/∂f) for each output, in float32 or better.

    Infinite where ∂L_f/∂f vanishes and ∂L_G/∂f does not; 0 where both vanish.

    Args:
        pair: the losses.
        f: outputs of D on generated samples; no gradient goes there.

    arXiv:2103.00430, the gradient decomposition of asymmetric losses.
    """
    f = _wide(f.detach()).requires_grad_()
    with torch.enable_grad():
        (d_f,) = torch.autograd.grad(pair.fake(f).sum(), f)
        (d_g,) = torch.autograd.grad(pair.generator(f).sum(), f)
    return torch.where(d_g == 0, torch.zeros_like(d_g), d_g / d_f)


def scale_backward(x: Float[Tensor, "b ..."], gamma: float | Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """x itself; backward, the gradient of sample i is multiplied by γ_i before it goes on to what made x.

    ``x`` and what is returned are two places: what else uses ``x`` keeps its gradient.

    Args:
        x: a batch of anything.
        gamma: one factor for each sample, or one for all.
    """
    y = x.view_as(x)
    _scale_gradient(y, gamma)
    return y


@dataclass(frozen=True, kw_only=True)
class OneStage:
    """The loss that :func:`one_stage` made of one batch.

    Args:
        loss: L_D, a scalar. Its backward gives D the gradient of L_D and G that of L_G, each times the factor that
            ``loss`` was multiplied by.
        loss_d: L_D, to look at.
        loss_g: L_G, to look at.
        gamma: γ_i, (b,); ``None`` without a generator to train or a ratio.
        fallback: why ∂L_G/∂x^ took a backward pass of its own; ``None`` when it did not.
    """

    loss: Float[Tensor, ""]
    loss_d: Float[Tensor, ""]
    loss_g: Float[Tensor, ""]
    gamma: Float[Tensor, " b"] | None
    fallback: str | None


def one_stage(
    discriminator: nn.Module,
    real: Float[Tensor, "n ..."],
    fake: Float[Tensor, "b ..."],
    pair: Pair = NON_SATURATING,
    *,
    form: Literal["auto", "ratio", "input"] = "auto",
) -> OneStage:
    """Forward of D on ``real`` and ``fake``, and a loss whose one backward updates both D and G.

    Args:
        discriminator: D, samples to outputs (b,), (b, 1), ... or several for each sample. Dropout and norms within a
            sample are welcome.
        real: x.
        fake: x^ = G(z), with its graph. Without one (detached, or G frozen) this is an ordinary step of D.
        pair: the losses.
        form: ``auto`` takes the ratio where it is exact, else ∂L_G/∂x^ by itself. For asymmetric losses it looks at
            the ratios, which on an accelerator waits for the device. ``ratio`` looks at none, so that vanishing
            ∂L_f gives a gradient that is no number. ``input`` always takes ∂L_G/∂x^: for a D that mixes samples
            otherwise than by BatchNorm, which cannot be seen (minibatch statistics, attention over the batch).

    Raises:
        UserError: outputs of D that are not one or more numbers a sample; ``form="ratio"`` where it cannot be exact.

    A D in float16 loses ∂L_f to underflow long before its outputs show it: take ``input`` for one under autocast.
    """
    l_r = pair.real(_wide(discriminator(real))).mean()
    f = discriminator(x := fake.view_as(fake))
    if f.numel() == len(x):
        f = f.reshape(len(x))  # also of a D that squeezed a batch of one away
    require(f.dim() > 0 and len(f) == len(x),
            f"The discriminator answered {len(x)} samples with outputs of shape {tuple(f.shape)}; it must give one "
            "or more numbers for each sample, along the first axis.")  # fmt: skip
    loss = l_r + pair.fake(_wide(f)).mean()
    gamma: Tensor | None = None
    fallback: str | None = None
    if x.requires_grad:
        fallback = _obstacle(discriminator, f, pair) if form != "input" else "asked for"
        if form == "ratio" and fallback:
            raise UserError(f"form='ratio' is not exact here: {fallback}. Leave form at 'auto'.")
        if not fallback:
            gamma = -torch.ones_like(l_r).repeat(len(x)) if pair.symmetric else ratio(pair, f)
            if form == "auto" and not pair.symmetric and bool((gamma.abs() > LARGEST_RATIO).any()):
                fallback, gamma = "∂L_f/∂f vanishes for some samples", None
    l_g = pair.generator(_wide(f)).mean()
    if gamma is not None:
        _scale_gradient(x, -1.0 if pair.symmetric else gamma)
    elif fallback:
        (g,) = torch.autograd.grad(l_g, x, retain_graph=True)
        x.register_hook(torch.zeros_like)
        loss = loss + (g * (fake - fake.detach())).sum()  # adds 0, and g to the gradient at x^
    return OneStage(loss=loss, loss_d=loss.detach(), loss_g=l_g.detach(), gamma=gamma, fallback=fallback)


def _obstacle(discriminator: nn.Module, f: Tensor, pair: Pair) -> str | None:
    """Find what keeps γ from linking the two losses, as far as no number tells; a constant γ always links them."""
    if pair.symmetric:
        return None
    for name, m in discriminator.named_modules():
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            return f"BatchNorm '{name}' of the discriminator mixes samples"
    if f.dim() > 1:
        return f"the discriminator gives outputs of shape {tuple(f.shape[1:])} for each sample, not one number"
    if f.dtype == torch.float16:
        return "the discriminator computes in float16, where ∂L_f underflows"
    return None


def _scale_gradient(x: Tensor, gamma: float | Tensor) -> None:
    """Let a hook on ``x`` multiply its gradient; γ lives in the hook, so steps may overlap."""
    if not x.requires_grad:
        return
    if isinstance(gamma, Tensor):
        factor = gamma.detach().view(-1, *[1] * (x.dim() - 1))
        x.register_hook(lambda g: (g * factor).to(g.dtype))
    else:
        x.register_hook(lambda g: g * gamma)


def _wide(f: Tensor) -> Tensor:
    return f if f.dtype == torch.float64 else f.float()
