"""A propagation rule learnt for one image: how much each activation lets through on the way back to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from upcycle.core.errors import UserError, one_line, require

ACTIVATIONS = frozenset(
    ("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "tanh",
     "sigmoid", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "softsign")
)  # fmt: skip
"""Elementwise functions that a propagation rule may change, by their names in torch."""

Activation = Callable[[Tensor], Tensor]


class Rule(TorchFunctionMode):
    """Within, every call of an activation on the way from the input to the logits is made by ``rule``.

    Calls are seen wherever they come from: ``nn.ReLU``, in place or not, one module called twice, ``F.relu``,
    ``torch.relu``, ``x.relu_()``. The network itself is not touched.

    Args:
        rule: from the number of the call in this forward, the activation and its input, the output.
    """

    def __init__(self, rule: Callable[[int, Activation, Tensor], Tensor]) -> None:
        super().__init__()
        self.rule, self.calls = rule, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, written = dict(kwargs or {}), getattr(func, "__name__", "")
        name = written.rstrip("_")
        if name not in ACTIVATIONS or not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
            return func(*args, **kwargs)
        if kwargs.pop("inplace", False) or written != name:  # the same without overwriting: the rule reads its input
            func = getattr(torch, name, None) or getattr(F, name)
        self.calls += 1
        return self.rule(self.calls - 1, lambda u: func(u, *args[1:], **kwargs), args[0])


def gated(activation: Activation, u: Tensor, theta: Tensor | float) -> Tensor:
    """activation(u) to the bit; backward, R becomes R · activation'(u) · θ, differentiable in R and in θ.

    The card's straight-through form ``stop(relu(u) - s) + s`` with s = u·gate·θ, but with s = (u - stop(u))·gate·θ,
    which is zero: nothing is rounded, and θ gets no gradient but through R.
    """
    fixed = u.detach()
    with torch.enable_grad():
        leaf = fixed.clone().requires_grad_()
        value = activation(leaf)
        (gate,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach() + (u - fixed) * (gate * theta)


def modified_gradient(
    network: nn.Module, x: Float[Tensor, "b c h w"], target: Int[Tensor, " b"], theta: Sequence[Tensor]
) -> Float[Tensor, "b c h w"]:
    """g(θ) = ∂~z_c/∂x, with a graph to θ: the gradient with θ_l multiplied in at the l-th call of an activation."""
    leaf = x.detach().clone().requires_grad_()
    with Rule(lambda i, activation, u: gated(activation, u, theta[i])):
        z = network(leaf)
    return torch.autograd.grad(z.gather(1, target[:, None]).sum(), leaf, create_graph=True)[0]


def evidence(g: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """a = max(0, Σ over colours of g · x): what speaks for the class."""
    return (g * x).sum(1).relu()


def normalised(a: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """m = min(a / q, 1) with q the 99th percentile of each map, without a gradient; a map of zeros stays one."""
    q = torch.quantile(a.detach().flatten(1), 0.99, dim=1)
    # Evidence in less than a hundredth of the pixels has a percentile of nought.
    q = torch.where(q > 0, q, a.detach().flatten(1).amax(1))
    return (a / torch.where(q > 0, q, 1.0)[:, None, None]).clamp_max(1)


def objective(
    log_p: Float[Tensor, " b"],
    log_p_m: Float[Tensor, " b"],
    m: Float[Tensor, "b h w"],
    *,
    lambda1: float,
    lambda2: float,
) -> Float[Tensor, ""]:
    """J = Σ over samples of max(0, log p_c(x) - log p_c(x_m)) + λ1 mean(m) + λ2 TV(m).

    A sum, so that no sample changes the step of another.

    Args:
        log_p, log_p_m: log-probability of the class explained, for the image and for the masked image.
        m: mask in [0, 1]; TV is the mean absolute difference of neighbours, over both directions.
    """
    tv = m.diff(dim=1).abs().mean((1, 2)) + m.diff(dim=2).abs().mean((1, 2))
    return ((log_p - log_p_m).relu() + lambda1 * m.mean((1, 2)) + lambda2 * tv).sum()


def learned(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    *,
    chunk: int = 64,
    iterations: int = 50,
    lr: float = 0.02,
    lambda1: float = 0.05,
    lambda2: float = 0.01,
    noise: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, list[str]]:
    """Learning Propagation Rules for Attribution Map Generation (Yang et al., ECCV 2020; arXiv:2010.07210).

        repeat:  g(θ) = modified backward of z_c        θ_l = 2 sigmoid(φ_l), a number an element and sample
                 m = max(0, Σ g·x) over its 99th percentile
                 x_m = m·x + (1 - m)·r + noise          r = 0, the mean image
                 φ <- Adam step on J(θ)

    φ = 0 at the start, where θ = 1 and the map is that of gradient x input. *Reconstructed*: only the abstract
    could be read, which gives the plugins, their place and the second forward; parametrisation, objective and
    numbers are ours. The 2 in θ keeps deep networks from shrinking g to nothing. A pixel against the class has no
    part in m, and J asks for the class explained rather than for all probabilities: on validation canvases of the
    claim, |Σ g·x|, the Kullback-Leibler divergence, a blurred m or Adam at 0.1 gave maps less faithful than
    gradient x input. The noise keeps masks from being adversarial; it is the same for all samples, so that a batch
    gives what its images give one by one. Activations other than ReLU have their true derivative as gate; softmax,
    normalisation, pooling and linear layers their true gradient.

    Args:
        network: (b, c, h, w) to logits (b, k), in eval mode, parameters without gradients.
        chunk: images that fit in a forward and backward; a quarter of them is solved at a time.
        iterations: steps of Adam on φ.
        lr: learning rate of Adam.
        lambda1: weight of the mask's mean.
        lambda2: weight of the mask's total variation.
        noise: standard deviation of the noise that is added to x_m.
        seed: of that noise.

    Returns:
        the evidence a of the last θ, (b, h, w), and notes.

    Raises:
        UserError: no activation is found, or the network is not twice differentiable.
    """
    require(iterations >= 0 and lr > 0, f"iterations and lr must be positive, not {iterations} and {lr}.")
    require(min(lambda1, lambda2, noise) >= 0, "lambda1, lambda2 and noise must not be negative.")

    idle: set[int] = set()
    maps = []
    size = max(1, chunk // 4)  # the second derivative keeps activations several times
    with _twice_differentiable():
        for images, y in zip(x.split(size), target.split(size), strict=True):
            with torch.no_grad():
                log_p = _log_probability(network, images, y)
            phi = plugins(network, images)
            optimizer = torch.optim.Adam(phi, lr=lr)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(iterations):
                m = normalised(_evidence_by(phi, network, images, y))
                drawn = torch.randn(x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
                x_m = m[:, None] * images + noise * drawn  # r = 0; activations run plain here
                log_p_m = _log_probability(network, x_m, y)
                j = objective(log_p, log_p_m, m, lambda1=lambda1, lambda2=lambda2)
                grads = torch.autograd.grad(j, phi, allow_unused=True)
                idle.update(i for i, grad in enumerate(grads) if grad is None)
                require(len(idle) < len(phi), _ONCE.format("no rule changes the gradient"))
                for p, grad in zip(phi, grads, strict=True):
                    p.grad = grad
                optimizer.step()
            maps.append(_evidence_by(phi, network, images, y).detach())
    note = (
        f"The rule has no part in {len(idle)} of the network's activations: nothing leads from there to the map twice."
    )
    return torch.cat(maps), [note] if idle else []


def _log_probability(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return F.log_softmax(network(x), 1).gather(1, target[:, None])[:, 0]


def _evidence_by(phi: list[Tensor], network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return evidence(modified_gradient(network, x, target, [2 * p.sigmoid() for p in phi]), x)


def plugins(network: nn.Module, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """φ = 0 for each call of an activation, in the order of the calls and of the shape of their outputs.

    Raises:
        UserError: there is none, or the network needs an activation to overwrite its input.
    """
    phi: list[Tensor] = []

    def rule(i: int, activation: Activation, u: Tensor) -> Tensor:
        phi.append(torch.zeros_like(u, requires_grad=True))
        return activation(u)

    with Rule(rule):
        seen = network(x.detach().clone().requires_grad_())
    require(bool(phi), "The learned rule finds no activation between input and logits (it knows torch's elementwise "
            "ones, called in Python); take method='integrated_gradients' or 'rise', which need none.")  # fmt: skip
    with torch.no_grad():
        plain = network(x)
    require(torch.allclose(seen, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max())),
            "This network reads an activation's input after it was overwritten, which the learned rule cannot follow; "
            "take method='integrated_gradients'.")  # fmt: skip
    return phi


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention in its plain form, which has a second derivative; a refusal in words where something has none."""
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("derivative", "differentiated twice", "does not require grad")):
            raise
        raise UserError(_ONCE.format(one_line(error))) from error


_ONCE = (
    "This network is not twice differentiable ({}), which the learned rule needs; take method='integrated_gradients' "
    "or 'rise'."
)
