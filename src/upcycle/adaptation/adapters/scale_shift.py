"""A scale and a shift behind the layers of a network: trained beside its weights, folded into them, kept in a file."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad

from upcycle.core import store
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.heads import classifier, classifiers, with_classes
from upcycle.core.models import Model
from upcycle.core.read import bytes_of, parse
from upcycle.surgery.sites import Site, fold, scale_weight, shift_bias, site, sites

TINY = 2.0**-10
"""Below this size of γ its gradient is damped, by |γ| / TINY, since what it is computed from is lost in rounding."""


class ScaleShift(nn.Module):
    """γ, near 1, and β, near 0, of C channels: y = γ ⊙ x + β.

    Args:
        channels: number C of channels.
        axis: number of the channels' axis, from the end.
        shift: whether there is a β.
        generator: source of the first γ ~ N(1, 0.02²) and β ~ N(0, 0.02²).
    """

    def __init__(self, channels: int, axis: int, shift: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.axis = axis
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels, generator=generator))
        self.beta = nn.Parameter(0.02 * torch.randn(channels, generator=generator)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        return _Output.apply(x, self.gamma, self.beta, self.axis)


# -- the operator: its input is recovered from its output ----------------------------------------


def _gradients(
    dy: Tensor, y: Tensor, gamma: Float[Tensor, " c"], beta: Float[Tensor, " c"] | None, axis: int
) -> tuple[Tensor, Tensor | None]:
    """Compute dγ = Σ dy x and dβ = Σ dy, where x = (y - β) / γ, so that dγ = (Σ dy y - β Σ dy) / γ."""
    axes = [d for d in range(y.ndim) if d != y.ndim + axis]
    total = (dy * y).sum(axes, dtype=gamma.dtype)
    d_beta = None if beta is None else dy.sum(axes, dtype=gamma.dtype)
    if beta is not None and d_beta is not None:
        total = total - beta * d_beta
    safe = torch.where(gamma.abs() < TINY, torch.full_like(gamma, TINY).copysign(gamma), gamma)
    return total / safe, d_beta


class _Output(torch.autograd.Function):
    """y = γ ⊙ x + β of any tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor | None, axis: int) -> Tensor:
        shape = [-1] + [1] * (-1 - axis)
        y = x * gamma.view(shape) if beta is None else torch.addcmul(beta.view(shape), x, gamma.view(shape))
        ctx.axis = axis
        ctx.save_for_backward(y, gamma, beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, beta = ctx.saved_tensors
        d_gamma, d_beta = _gradients(dy, y, gamma, beta, ctx.axis)
        return dy * gamma.view([-1] + [1] * (-1 - ctx.axis)), d_gamma, d_beta, None


class _Linear(torch.autograd.Function):
    """y = γ ⊙ (W x + b) + β in one product, which saves y and neither x nor γ W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None) -> Tensor:
        y = F.linear(x, gamma[:, None] * weight, shift_bias(bias, gamma, beta))
        ctx.save_for_backward(y, weight, gamma, beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, gamma, beta = ctx.saved_tensors
        d_gamma, d_beta = _gradients(dy, y, gamma, beta, -1)
        dx = dy @ (gamma[:, None] * weight).to(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, d_gamma, d_beta


class _Conv(torch.autograd.Function):
    """The same of a convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor | None, *how: Any
    ) -> Tensor:
        n = weight.ndim - 2
        convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        new = weight * gamma.view(-1, *[1] * (n + 1))
        y: Tensor = convolution(x, new, shift_bias(bias, gamma, beta), *how)
        ctx.how, ctx.shape = how, x.shape
        ctx.save_for_backward(y, weight, gamma, beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, gamma, beta = ctx.saved_tensors
        n, dx = weight.ndim - 2, None
        d_gamma, d_beta = _gradients(dy, y, gamma, beta, -1 - n)
        if ctx.needs_input_grad[0]:
            new = (weight * gamma.view(-1, *[1] * (n + 1))).to(dy.dtype)
            transposed = (grad.conv1d_input, grad.conv2d_input, grad.conv3d_input)[n - 1]
            dx = transposed(ctx.shape, new, dy, *ctx.how)
        return dx, None, None, d_gamma, d_beta, None, None, None, None


# -- layers with a scale and a shift ----------------------------------------


def _fused(m: Any, x: Tensor) -> Tensor:
    own = (m._parameters["weight"], m._parameters["bias"], m.ssf.gamma, m.ssf.beta)
    if isinstance(m, nn.Linear):
        return _Linear.apply(x, *own)
    return _Conv.apply(x, *own, m.stride, m.padding, m.dilation, m.groups)


def _shifted(m: Any, name: str) -> Tensor | None:
    return shift_bias(m._parameters[name], m.ssf.gamma, m.ssf.beta)


def _reading(kind: type[nn.Module], weight: str, biases: tuple[str, ...], forward: bool) -> type[nn.Module]:
    """``kind`` whose parameters read as the folded ones; the stored ones keep their names and values.

    Whoever reads them sees the fold: the layer's own forward, or a kernel that takes its weights.
    """
    members: dict[str, Any] = {weight: property(lambda m: scale_weight(m, m._parameters[weight], m.ssf.gamma))}
    for name in biases:
        members[name] = property(partial(_shifted, name=name))
    if forward:
        members["forward"] = _fused
    return type(kind.__name__, (kind,), members)


def _attention(kind: type[nn.Module]) -> type[nn.Module]:
    """An attention whose ``q_bias`` and ``v_bias`` read as the folded ones, with γ and β of its ``qkv``."""

    def part(name: str, first: bool) -> property:
        def read(m: Any) -> Tensor | None:
            bias, ssf = m._parameters[name], m.qkv.ssf
            where = slice(0, len(bias)) if first else slice(-len(bias), None)
            return shift_bias(bias, ssf.gamma[where], ssf.beta[where])

        return property(read)

    return type(kind.__name__, (kind,), {"q_bias": part("q_bias", True), "v_bias": part("v_bias", False)})


def _followed(kind: type[nn.Module]) -> type[nn.Module]:
    """``kind`` whose output is scaled and shifted."""
    return type(kind.__name__, (kind,), {"forward": lambda m, *args: m.ssf(kind.forward(m, *args))})


def _place(s: Site, ssf: ScaleShift) -> None:
    m, kind = s.module, type(s.module)
    m.ssf = ssf
    if s.mode == "output":
        m.__class__ = _followed(kind)
        return
    own = tuple(name for owner, name, _ in s.biases if owner is m)
    m.__class__ = _reading(kind, s.weight, own, s.mode == "fused")
    if s.biases and not own:
        attention = s.biases[0][0]
        attention.__class__ = _attention(type(attention))


def _remove(s: Site) -> None:
    for m in dict.fromkeys([s.module, *(owner for owner, _, _ in s.biases)]):
        m.__class__ = type(m).__bases__[0]
    del s.module.ssf


class Adapter:
    """A network with a scale and a shift at some of its layers; :func:`attach` makes it.

    Args:
        network: the network.
        sites: its layers with a scale and a shift.
        classifier: name of the classifier.
    """

    def __init__(self, network: nn.Module, sites: list[Site], classifier: str) -> None:
        self.network, self.sites, self.classifier = network, sites, classifier
        self._before: list[tuple[nn.Module, str, nn.Parameter | None]] | None = None
        self._taken: list[tuple[Site, ScaleShift]] = []

    def parameters(self) -> list[nn.Parameter]:
        """List every γ and β."""
        return [p for s in self.sites for p in s.module.ssf.parameters()]  # type: ignore[union-attr]

    def merge(self) -> list[str]:
        """Fold every γ and β into the weights: an ordinary network of the same function, size and speed.

        Returns:
            the layers that keep their scale and shift as a module, and why.

        Raises:
            UserError: they are merged already.
        """
        require(self._before is None, "The scales and shifts are in the weights already; unmerge them first.")
        self._before = []
        for s in self.sites:
            if not s.kept:
                ssf: Any = s.module.ssf
                places = [(s.module, s.weight), *((owner, name) for owner, name, _ in s.biases)]
                self._before += [(owner, name, owner._parameters.get(name)) for owner, name in places]
                self._taken.append((s, ssf))
                _remove(s)
                fold(s, ssf.gamma.detach(), None if ssf.beta is None else ssf.beta.detach())
        return [f"{s.name}: {s.kept}" for s in self.sites if s.kept]

    def unmerge(self) -> None:
        """Put the original weights back, to the bit, with the scales and shifts beside them."""
        if self._before is None:
            raise UserError("The scales and shifts are not in the weights; merge them first.")
        for owner, name, p in self._before:
            owner._parameters[name] = p
        for s, ssf in self._taken:
            _place(s, ssf)
        self._before, self._taken = None, []


def attach(
    model: Model, patterns: tuple[str, ...] = (), *, generator: torch.Generator | None = None, create: bool = False
) -> Adapter:
    """Put a scale and a shift behind the layers of ``model``, in place.

    A layer without a bias gets a scale alone. So merging leaves an architecture that its builder knows, and every
    product can be loaded again.

    Args:
        model: the network; its classifier gets none.
        patterns: patterns of names of layers, as in a shell; none takes the rule of
            :func:`upcycle.surgery.sites.sites`.
        generator: source of the first γ and β; one of seed 0 by default.
        create: whether to put also a shift where the layer has no bias, and both behind a norm without weights.
            Merging makes these parameters, and a network built anew lacks them.

    Raises:
        UserError: a pattern that fits no layer.
    """
    generator = generator or torch.Generator().manual_seed(0)
    found = sites(model, tuple(patterns), create=create)
    like = next(iter(model.module.parameters()))
    for s in found:
        shift = bool(s.biases) or (s.mode == "output" and bool(s.kept))
        _place(s, ScaleShift(s.channels, s.axis, shift, generator).to(like.device, like.dtype))
    return Adapter(model.module, found, classifier(model))


# -- adapters in files ----------------------------------------


def save_adapter(path: str | Path, adapter: Adapter, base: Model, classes: tuple[str, ...]) -> None:
    """Write γ, β and the classifier to a safetensors file, with the digest of the weights that they belong to.

    Args:
        adapter: not merged, and with nothing that cannot be.
        base: the network that they were attached to, as it was, with its own classifier.
        classes: the names of the classifier's outputs.
    """
    head = adapter.network.get_submodule(adapter.classifier)
    tensors = {f"{adapter.classifier}.{name}": p for name, p in head.named_parameters()}
    for s in adapter.sites:
        tensors |= {f"{s.name}.ssf.{name}": p for name, p in s.module.ssf.named_parameters()}  # type: ignore[union-attr]
    tensors = {name: p.detach().cpu().clone() for name, p in tensors.items()}  # type: ignore[misc]
    about = {
        "method": "ssf",
        "format": "1",
        "base": store.tensor_digest(base.module.state_dict()),
        "classes": json.dumps(list(classes)),
        "classifier": adapter.classifier,
        "sites": json.dumps([s.name for s in adapter.sites]),
    }
    store.save_tensors(Path(path), tensors, about | {"digest": _seal(tensors, about)})  # type: ignore[arg-type]


def load_adapter(path: str | Path, base: Model) -> Model:
    """Load the network that an adapter makes of ``base``: merged, with the adapter's classes. ``base`` stays as it is.

    Raises:
        UserError: a file that is no adapter or damaged, or one of another base.
    """
    path = Path(path)
    try:
        content = bytes_of(path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    tensors = store.parse_tensors(content, path)
    with safe_open(path, "pt") as file:
        about = dict(file.metadata() or {})
    require(about.get("method") == "ssf" and about.get("format") == "1", f"{path} is no adapter of ssf.")
    if about.pop("digest", "") != _seal(tensors, about):
        raise UserError(f"{path} is damaged: its content does not match its digest. Restore it from a copy.")
    require(
        about.get("base") == store.tensor_digest(base.module.state_dict()),
        f"{path} belongs to another base than {base.name}: give the network with the weights that it was trained on.",
    )
    classes, sites = (parse(about.get(key, ""), list[str], path, f"its '{key}'") for key in ("classes", "sites"))
    name = about.get("classifier", "")
    weight = tensors.get(f"{name}.weight")
    require(
        name in classifiers(base) and weight is not None and len(weight) == len(classes),
        f"{path} is damaged: it holds no classifier of its {len(classes):,} classes for {base.name}.",
    )
    made = with_classes(base, tuple(classes))
    try:
        for s in (site(made.module, where, create=True) for where in sites):
            assert s is not None
            fold(s, tensors[f"{s.name}.ssf.gamma"], tensors.get(f"{s.name}.ssf.beta"))
        head = made.module.get_submodule(name)
        head.load_state_dict({n: tensors[f"{name}.{n}"] for n in head.state_dict()})
    except (AssertionError, LookupError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: what it holds does not fit {base.name} ({one_line(error)}).") from error
    return dataclasses.replace(made, module=made.module.eval(), lineage=None)


def _seal(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    return store.digest_of((store.tensor_digest(tensors) + json.dumps(about, sort_keys=True)).encode())
