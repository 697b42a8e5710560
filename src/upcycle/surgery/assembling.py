"""Networks of one sequence of layers assembled into one classifier, block by block, and built again from a record.

The alignment padding of Model LEGO (Hu et al., arXiv:2203.13453).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.models import Model, copy_of, source_of
from upcycle.surgery.channels import Channels, Step
from upcycle.surgery.following import follow_channels
from upcycle.surgery.joined_layers import Renormalise
from upcycle.surgery.resizing import TOLERANCE, Widths, join_networks, resized, widths

RESIZED = "assembly:resized"


def assemble(models: Sequence[Model]) -> Model:
    """One classifier from several of one sequence of layers; its logits are theirs, one after the other.

    Every layer is block diagonal with zeros between the parts, so that nothing changes for any of them: a part added
    later leaves the old logits as they were. Depthwise convolutions get more groups. First layers see the same image:
    their filters are stacked. Where parts expect it normalised differently, a
    :class:`~upcycle.surgery.joined_layers.Renormalise` in front gives each its own copy, and the first layer is block
    diagonal too. (The paper's code assumes one normalisation; folding another into a first convolution would be wrong
    at its zero padding.)

    Args:
        models: two or more, with different class names; the result takes images normalised as the first one's.

    Raises:
        UserError: their layers, image shapes or class names do not fit together; the sentence names the first
            difference.
    """
    require(len(models) > 1, f"At least two networks are needed to assemble one, not {len(models)}.")
    first, *rest = models
    for other in rest:
        ours, theirs = (" x ".join(map(str, m.input_shape)) for m in (first, other))
        require(
            ours == theirs,
            f"{first.name} takes images of {ours} and {other.name} of {theirs}; only networks for "
            "one size can be assembled.",
        )
    names = [name for model in models for name in model.classes]
    twice = [name for name in names if names.count(name) > 1]
    require(
        not twice, f"The class '{(twice or [''])[0]}' is in two of the networks; rename it in one, or leave it out."
    )

    core, shared = _join(models, [model.module for model in models])
    module = core if shared else _behind(_renormalise(models), core)
    _check_assembled(models, module)
    return assembled_model(models, module)


def zero_blocks(models: Sequence[Model]) -> dict[str, Tensor]:
    """The places of the zeros between the parts of an assembled network: a mask for each weight that has some.

    Multiplying gradients with ``~mask`` keeps the parts apart in training.

    Args:
        models: as given to :func:`assemble`; the names are those of the network that it makes.
    """
    ones = [copy_of(model.module) for model in models]
    for p in itertools.chain.from_iterable(module.parameters() for module in ones):
        nn.init.ones_(p)
    core, shared = _join(models, ones)
    masks = {name: p.detach() == 0 for name, p in core.named_parameters() if p.dim() > 1}
    return {name if shared else f"network.{name}": mask for name, mask in masks.items() if mask.any()}


def _join(models: Sequence[Model], modules: Sequence[nn.Module]) -> tuple[nn.Module, bool]:
    """The block-diagonal network behind its normalisation, and whether all parts look at the same images."""
    first = models[0]
    shared = all(_front(m) is None for m in modules) and all((m.mean, m.std) == (first.mean, first.std) for m in models)
    cores = [_core(module) for module in modules]
    c, h, w = first.input_shape
    images = [torch.zeros(2, c * (front.copies if (front := _front(m)) else 1), h, w) for m in modules]
    channels = [follow_channels(core, x) for core, x in zip(cores, images, strict=True)]
    for model, found in zip(models[1:], channels[1:], strict=True):
        _same_steps(first.name, channels[0], model.name, found)
    return join_networks(cores, channels, shared, example=images[0] if shared else torch.cat(images, dim=1)), shared


def _same_steps(name: str, steps: Channels, other: str, theirs: Channels) -> None:
    """Refuse two networks that do not compute alike, but for widths."""
    for a, b in itertools.zip_longest(steps.steps, theirs.steps, fillvalue=Step("nothing more", "", "")):
        if a[:2] != b[:2]:
            where = f" at '{a.module or b.module}'" if a.module or b.module else ""
            ours, others = (a.what, b.what) if a.what != b.what else (f"{x.what} of {x.reads}" for x in (a, b))
            raise UserError(
                f"{name} and {other} cannot be assembled, for their layers differ{where}: "
                f"{ours} in {name}, {others} in {other}."
            )


def _front(module: nn.Module) -> Renormalise | None:
    """The normalisation in front of a network that was assembled from differently normalised ones."""
    found = module[0] if isinstance(module, nn.Sequential) and len(module) else None
    return found if isinstance(found, Renormalise) else None


def _core(module: nn.Module) -> nn.Module:
    return module if _front(module) is None else module.get_submodule("network")


def _behind(front: Renormalise, core: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(front=front, network=core)).eval()


def _between(own: Model, other: Model) -> tuple[Tensor, Tensor]:
    """(c, 1, 1) each: scale and shift from images normalised as ``own``'s to those of ``other``."""
    mean, std, to_mean, to_std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (own.mean, own.std, other.mean, other.std)
    )
    return std / to_std, (mean - to_mean) / to_std


def _renormalise(models: Sequence[Model]) -> Renormalise:
    scales, shifts = [], []
    for model in models:
        a, b = _between(models[0], model)
        if front := _front(model.module):
            a, b = (v.repeat(front.copies, 1, 1) for v in (a, b))
            a, b = a * front.scale.double(), b * front.scale.double() + front.shift.double()
        scales.append(a)
        shifts.append(b)
    scale, shift = torch.cat(scales).float(), torch.cat(shifts).float()
    return Renormalise(scale, shift, len(scale) // models[0].input_shape[0])


@torch.no_grad()
def _check_assembled(models: Sequence[Model], module: nn.Module) -> None:
    """Refuse a module whose logits are not those of ``models`` one after the other, on random images in float64."""
    x = models[0].example(4).double()
    right = []
    for model in models:
        a, b = _between(models[0], model)
        right.append(copy_of(model.module).to("cpu", torch.float64).eval()(x * a + b))
    z = torch.cat(right, dim=1)
    try:
        error = float((copy_of(module).double()(x) - z).abs().max() / z.abs().max().clamp_min(1e-30))
        problem = "" if error <= TOLERANCE else f"its logits are wrong by {error:.1e}"
    except (IndexError, RuntimeError, TypeError, ValueError) as failure:
        problem = one_line(failure)
    require(
        not problem,
        f"{' and '.join(m.name for m in models)} cannot be assembled: their forward counts on the "
        f"widths that they have ({problem}).",
    )


def assembled_model(models: Sequence[Model], module: nn.Module) -> Model:
    """A module that was assembled of ``models``, with their classes, licence and what it is rebuilt from."""
    licences = {model.licence for model in models}
    whole = dataclasses.replace(
        models[0],
        module=module,
        classes=tuple(c for m in models for c in m.classes),
        licence=licences.pop() if len(licences) == 1 else "unknown",
        lineage=None,
        name="+".join(m.name for m in models),
    )
    return with_origin(whole, models[0])


def with_origin(model: Model, source: Model) -> Model:
    """A copy of ``model`` that says what it is rebuilt from: the architecture of ``source`` with other widths.

    Args:
        model: a component of ``source``, or a network assembled of such.
        source: with a reference; without one, the result has none either.
    """
    origin = source.options["source"] if source.reference == RESIZED else source_of(source)
    if origin is None:
        return dataclasses.replace(model, reference=None, options={})
    front = _front(model.module)
    options = {"source": origin, "widths": widths(_core(model.module)), "copies": front.copies if front else 0}
    return dataclasses.replace(model, reference=RESIZED, options=options)


def rebuild_resized(
    *, source: dict[str, Any], widths: Widths, copies: int = 0, rebuild: Callable[[dict[str, Any]], Model]
) -> nn.Module:
    """A component or an assembled network with fresh weights.

    Args:
        source: the architecture that it came from, as a record.
        widths: those of its layers, see :func:`~upcycle.surgery.resizing.widths`.
        copies: how often :class:`~upcycle.surgery.joined_layers.Renormalise` in front gives the image; 0 for none.
        rebuild: the function that builds a recorded architecture.

    Raises:
        AttributeError, TypeError, ValueError: they do not fit together.
    """
    if type(copies) is not int or not 0 <= copies <= 1000:
        raise ValueError(f"copies is {copies}")
    origin = rebuild(source)
    module = resized(_core(origin.module), widths)
    if copies:
        n = copies * origin.input_shape[0]
        module = _behind(Renormalise(torch.ones(n, 1, 1), torch.zeros(n, 1, 1), copies), module)
    try:
        with torch.no_grad():
            module.eval()(origin.example(2))
    except RuntimeError as error:
        raise ValueError(f"the widths do not fit together ({one_line(error)})") from error
    return module
