"""Which layers of an ordinary network the neurons of a spiking one can copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upcycle.core.models import Model
from upcycle.core.taps import Taps, observed
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.spikes.rates import percentile
from upcycle.zoo.spiking import Spiking

if TYPE_CHECKING:
    from upcycle.data.images import Images

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,  # nn.ReLU6 is one
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.FractionalMaxPool2d)
LOOKED_AT = 64
"""Training images on which a teacher is looked at before any work."""


def spiking_of(model: Model) -> Spiking | None:
    """The spiking network that a model is; ``None`` where it is another."""
    return model.module if isinstance(model.module, Spiking) else None


def shapes_of(model: Model, network: Spiking) -> list[tuple[int, ...]]:
    """The shape of each layer of neurons of a spiking network, for one image."""
    like = next(network.parameters())
    with undisturbed(network):
        _, spikes = network.simulate(model.example(2).to(like))
    return [tuple(s.shape[2:]) for s in spikes]


def copied(teacher: Model, layers: Sequence[str] = ()) -> tuple[str, ...]:
    """The layers of a teacher that are copied: those that are named, or all of its activations in their order."""
    return tuple(layers) or tuple(call.name for call in observed(teacher, kind=ACTIVATIONS) if call.name)


def looked_at(teacher: Model, data: Images) -> Tensor:
    """Some training images as the teacher sees them."""
    split = data.train.seen_by(teacher)
    device = next((p.device for p in teacher.module.parameters()), torch.device("cpu"))
    return split.batch(torch.arange(min(LOOKED_AT, len(split))), device=device).images


def problems(teacher: Model, student: Model, data: Images, q: float, layers: Sequence[str] = ()) -> list[str]:
    """Why the neurons of ``student`` cannot copy activations of ``teacher``, in words; empty if they can.

    Args:
        teacher: looked at on some training images.
        student: a spiking network, or none.
        data: whose training images are shown.
        q: the percentile that stands for a rate of 1.
        layers: of the teacher, if they are named.

    Raises:
        UserError: a layer that the teacher does not have.
    """
    network = spiking_of(student)
    if network is None:
        return [f"{student.name} does not send spikes; take zoo:spiking, or an upcycle.zoo.spiking.Spiking of your own"]
    for model in (teacher, student):
        pooling = next((name for name, m in model.module.named_modules() if isinstance(m, MAXIMA)), None)
        if pooling is not None:
            return [
                f"{model.name} has max pooling ('{pooling}'), and the largest of several spikes is no rate; take a "
                "network that halves by strides, such as zoo:capped"
            ]
    names = copied(teacher, layers)
    if not names:
        return [
            f"no activation of {teacher.name} is a module (nn.ReLU and the like), so none can be read; name its layers "
            "with --layers"
        ]
    with undisturbed(teacher.module), Taps(teacher.module, names) as taps:
        teacher.module(looked_at(teacher, data))
    found, asked = {name: tuple(taps[name].shape[1:]) for name in names}, shapes_of(student, network)
    if list(found.values()) != asked:
        return [
            f"the neurons of {student.name} are {_said(asked)}, and the activations of {teacher.name} are "
            f"{_said(list(found.values()))}: build both alike, as zoo:spiking and zoo:capped are, or name layers of "
            "the teacher with --layers"
        ]
    for name in names:
        a, kind = taps[name], type(teacher.module.get_submodule(name)).__name__
        if float(a.min()) < 0:
            return [
                f"layer '{name}' ({kind}) of {teacher.name} has values below 0, and a rate has none; take a network "
                "of capped ReLUs, such as zoo:capped"
            ]
        if not float(percentile(a, q)):
            return [
                f"layer '{name}' ({kind}) of {teacher.name} is zero on {q:g} % of its values, so there is nothing to "
                "copy; is it trained, and are its images normalised as in training?"
            ]
    return []


def _said(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes)
