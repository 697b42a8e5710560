"""The classifier of a network: found, replaced by another one, what it is given, and the bottleneck head of DINE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.models import Model, copy_of
from upcycle.core.taps import Taps, observed

if TYPE_CHECKING:
    from upcycle.core.run import Run

MOST = 4
"""Linear layers whose mean is tried as a network's answer."""


def classifiers(model: Model) -> tuple[str, ...]:
    """The names of the linear layers whose mean output the logits of ``model`` are: one, for most networks.

    Two are those of a class token and of a distillation token: distilled DeiT, LeViT.

    Raises:
        UserError: the logits come from something else, for example a convolution.
    """
    *layers, whole = observed(model, kind=nn.Linear)
    names: tuple[str, ...]
    last = layers[-1].output.to(whole.output.dtype) if layers else None  # autocast gives it in bf16
    if last is not None and torch.equal(last, whole.output) and bool(whole.output.any()):
        names = (layers[-1].name,)
    else:
        names = _averaged(model, [c.name for c in layers if c.output.shape == whole.output.shape])
    by_name = {c.name: c for c in layers}
    if (
        not names
        and layers
        and layers[-1].output.shape == whole.output.shape
        and _behind(layers[-1].output, whole.output)
    ):
        raise UserError(
            f"{model.name} has a softmax or a sigmoid behind the linear layer that gives its logits, so its classifier "
            "cannot be replaced; let it answer with what that layer gives."
        )
    if not names:
        raise UserError(
            f"{model.name} does not end in a linear layer that gives its logits, so its classifier cannot be replaced; "
            "choose a network that does, or wrap it."
        )
    for c in (by_name[name] for name in names):
        layer = linear(model.module, c.name)
        bias = None if layer.bias is None else layer.bias.to(c.input)
        right = F.linear(c.input, layer.weight.to(c.input), bias).detach().to(c.output)
        if not torch.allclose(c.output, right, rtol=1e-3, atol=1e-3 * float(right.abs().max())):
            raise UserError(
                f"{model.name} ends in '{c.name}' ({type(c.module).__name__}), which computes something else than a "
                "linear layer does with its weight and bias, so it cannot be replaced by one; wrap the network."
            )
    return names


def _behind(z: Tensor, answer: Tensor) -> bool:
    """Whether an answer is z but for a number a row, as logits are that were taken back from probabilities."""
    apart = answer - z
    return float((apart - apart.mean(1, keepdim=True)).abs().max()) <= 1e-3 * float(z.abs().max())


def _averaged(model: Model, names: list[str]) -> tuple[str, ...]:
    """Those of some layers whose mean is what a network answers, found by answers put in their place.

    That tells layers apart whose outputs are equal, as those of new ones are, which are zero.
    """
    names = list(dict.fromkeys(names))[-MOST:]
    if not names:
        return ()
    generator, given = torch.Generator().manual_seed(0), {}

    def instead(name: str) -> Callable[[Tensor], Tensor]:
        def answer(out: Tensor) -> Tensor:
            given[name] = torch.randn(out.shape, generator=generator).to(out)
            return given[name]

        return answer

    with Taps(model.module, replace={name: instead(name) for name in names}):
        out = observed(model, kind=())[-1].output
    for first in range(len(names)):
        mean = torch.stack([given[name].double() for name in names[first:]]).mean(0)
        # Of several in half precision too; others differ by about one. One alone is handed on as it is.
        if torch.allclose(mean, out.double(), rtol=0, atol=1e-2 if len(names) - first > 1 else 0):
            return tuple(names[first:])
    return ()


def classifier(model: Model) -> str:
    """The name of the one linear layer whose output the logits of ``model`` are.

    Raises:
        UserError: the logits come from something else, or are the mean of several layers.
    """
    name, *others = classifiers(model)
    if others:
        raise UserError(
            f"{model.name} answers with the mean of {1 + len(others)} linear layers ({', '.join([name, *others])}), "
            "and one alone is needed here; adapt it by probe, or take a network with one classifier."
        )
    return name


def linear(module: nn.Module, name: str) -> nn.Linear:
    """The linear layer ``name`` of ``module``, as :func:`classifiers` finds it."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear), f"{name} is a {type(layer).__name__}"
    return layer


def with_classes(model: Model, classes: tuple[str, ...]) -> Model:
    """A copy of ``model`` with a fresh linear classifier (zeros) for ``classes``; the rest keeps its weights.

    Where the logits are the mean of several linear layers, each is made anew. What the model is rebuilt from says so:
    its builder is given the number of classes.
    """
    module = copy_of(model.module)
    for name in classifiers(model):
        old = linear(module, name)
        new = nn.Linear(old.in_features, len(classes))
        nn.init.zeros_(new.weight)
        nn.init.zeros_(new.bias)
        module.set_submodule(name, new.to(old.weight.device, old.weight.dtype))
    options = {**model.options, "num_classes": len(classes)} if model.reference is not None else model.options
    return dataclasses.replace(model, module=module, classes=classes, options=options)


def for_classes(source: Model, classes: tuple[str, ...]) -> Model:
    """A copy of ``source`` to go on with: with its own classifier where it has ``classes``, in whatever order, else
    :func:`with_classes`.
    """
    return (grow_classifier if set(source.classes) == set(classes) else with_classes)(source, classes)


def grow_classifier(source: Model, classes: tuple[str, ...]) -> Model:
    """A copy of ``source`` with an output for each of ``classes``: those that it has keep their weights.

    New outputs begin at zero, so they answer zero until they are trained. Where none of its classes is among them, the
    classifier begins anew.
    """
    if source.classes == classes:
        return dataclasses.replace(source, module=copy_of(source.module))
    made = with_classes(source, classes)
    with torch.no_grad():
        for name in classifiers(source):
            old, new = linear(source.module, name), linear(made.module, name)
            for row, label in enumerate(source.classes):
                if label in classes:
                    new.weight[classes.index(label)] = old.weight[row]
                    if old.bias is not None:
                        new.bias[classes.index(label)] = old.bias[row]
    return made


def headless(model: Model) -> Model:
    """A copy of ``model`` that answers with what its classifier is given: features (n, d).

    Raises:
        UserError: see :func:`classifier`.
    """
    module, name = copy_of(model.module), classifier(model)
    module.set_submodule(name, nn.Identity())
    return dataclasses.replace(model, module=module, classes=(), name=f"{model.name} without its classifier")


def features(run: Run, model: Model, *splits: Any) -> list[Float[Tensor, "n d"]]:
    """The inputs of the classifier of ``model`` for each sample of some splits: float32 on the CPU, once, for training.

    In evaluation mode and without augmentation, by the fast copy that ``run.frozen`` makes, each process its share.

    Args:
        splits: of one collection, so of one normalisation; the first one has samples. Those of a run of several
            processes have ``subset``.

    Raises:
        UserError: features that are not finite; see also :func:`classifier`.
    """
    width = linear(model.module, classifier(model)).in_features
    network, found = run.frozen(headless(model), splits[0]), []
    for split in splits:
        places = torch.arange(len(split)).tensor_split(run.world_size)[run.rank]
        mine = torch.empty(0, width)
        if len(places):
            mine = predict_logits(network, split.subset(places) if len(places) < len(split) else split)
        found.append(run.gather(mine.to(run.device)).cpu())
        bad = int((~found[-1].isfinite()).any(1).sum())
        require(not bad, f"{model.name} gives features that are not finite numbers for {bad} of {len(split)} samples.")
    return found


class BottleneckHead(nn.Sequential):
    """Linear d → width, BatchNorm if asked for, linear width → k whose weight may be normalised; no non-linearity.

    Without one the whole is one affine map in evaluation mode, and :meth:`folded` is that linear layer.

    Args:
        inputs: d.
        num_classes: k.
        width: of the features z between.
        norm: BatchNorm on z.
        weight_norm: of the last layer: its rows are g v / |v|.
    """

    def __init__(self, inputs: int, num_classes: int, width: int, *, norm: bool, weight_norm: bool) -> None:
        bottleneck, last = nn.Linear(inputs, width), nn.Linear(width, num_classes)
        for layer in (bottleneck, last):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if weight_norm:
            last = parametrizations.weight_norm(last)
        super().__init__(nn.Sequential(bottleneck, *([nn.BatchNorm1d(width)] if norm else [])), last)

    def features(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
        """z, from what the backbone gives."""
        return self[0](x)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The same map in evaluation mode as one linear layer."""
        bottleneck, last = self[0][0], self[1]  # type: ignore[index]
        weight, bias = bottleneck.weight.double(), bottleneck.bias.double()
        if len(self[0]) > 1:  # type: ignore[arg-type]
            norm = self[0][1]  # type: ignore[index]
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight, bias = scale[:, None] * weight, scale * (bias - norm.running_mean.double()) + norm.bias.double()
        one = nn.Linear(bottleneck.in_features, last.out_features)  # type: ignore[arg-type]
        one.weight.copy_(last.weight.double() @ weight)
        one.bias.copy_(last.weight.double() @ bias + last.bias.double())
        return one.to(bottleneck.weight.device, bottleneck.weight.dtype).train(self.training)


class WithBottleneck(nn.Module):
    """A network whose classifier is a :class:`BottleneckHead`; ``forward`` gives logits, :meth:`parts` also z.

    Args:
        model: whose module is taken over, not copied; call :meth:`folded` to have it back.
        num_classes, width, norm, weight_norm: of the head.
    """

    def __init__(self, model: Model, num_classes: int, width: int, *, norm: bool, weight_norm: bool) -> None:
        super().__init__()
        self.name = classifier(model)
        inputs = linear(model.module, self.name).in_features
        model.module.set_submodule(self.name, nn.Identity())
        self.backbone = model.module
        self.head = BottleneckHead(inputs, num_classes, width, norm=norm, weight_norm=weight_norm)

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features z (n, width) and logits (n, k)."""
        z = self.head.features(self.backbone(images))
        return z, self.head[1](z)

    def forward(self, images: Tensor) -> Tensor:
        return self.parts(images)[1]

    def folded(self) -> nn.Module:
        """The network with one linear layer as its classifier: the architecture as it was, the same function."""
        self.backbone.set_submodule(self.name, self.head.folded())
        return self.backbone
