"""The classifier of a network: found, replaced by another one, and by the bottleneck head of SHOT and DINE."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upcycle.core.errors import UserError
from upcycle.core.models import Model, copy_of
from upcycle.core.taps import observed


def classifier(model: Model) -> str:
    """The name of the linear layer whose output the logits of ``model`` are.

    Raises:
        UserError: the logits come from something else, for example a convolution.
    """
    *layers, whole = observed(model, kind=nn.Linear)
    if layers and layers[-1].output.shape == whole.output.shape and torch.equal(layers[-1].output, whole.output):
        return layers[-1].name
    if layers and layers[-1].output.shape == whole.output.shape and _behind(layers[-1].output, whole.output):
        raise UserError(
            f"{model.name} has a softmax or a sigmoid behind the linear layer that gives its logits, so its classifier "
            "cannot be replaced; let it answer with what that layer gives."
        )
    raise UserError(
        f"{model.name} does not end in a linear layer that gives its logits, so its classifier cannot be replaced; "
        "choose a network that does, or wrap it."
    )


def _behind(z: Tensor, answer: Tensor) -> bool:
    """Whether an answer is z but for a number a row, as logits are that were taken back from probabilities."""
    apart = answer - z
    return float((apart - apart.mean(1, keepdim=True)).abs().max()) <= 1e-3 * float(z.abs().max())


def linear(module: nn.Module, name: str) -> nn.Linear:
    """The linear layer ``name`` of ``module``, as :func:`classifier` finds it."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear), f"{name} is a {type(layer).__name__}"
    return layer


def with_classes(model: Model, classes: tuple[str, ...]) -> Model:
    """A copy of ``model`` with a fresh linear classifier (zeros) for ``classes``; the rest keeps its weights.

    What it is rebuilt from says so: its builder is given the number of classes.
    """
    module, name = copy_of(model.module), classifier(model)
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
    made, name = with_classes(source, classes), classifier(source)
    old, new = linear(source.module, name), linear(made.module, name)
    with torch.no_grad():
        for row, label in enumerate(source.classes):
            if label in classes:
                new.weight[classes.index(label)] = old.weight[row]
                if old.bias is not None:
                    new.bias[classes.index(label)] = old.bias[row]
    return made


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
