"""Components of a classifier: the samples that decide on them, and the smaller network on their routes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require, unknown
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.portions import portions
from upcycle.core.task import margin
from upcycle.surgery.channels import Channels
from upcycle.surgery.resizing import shrink

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit


def find_confident(
    network: nn.Module, split: ImageSplit, labels: Mapping[int, int], n: int, device: torch.device | str = "cpu"
) -> dict[int, Int[Tensor, " s"]]:
    """Find the ``n`` images of each class that a network recognises with the largest probability.

    Args:
        network: a classifier on ``device``, in eval mode.
        split: images, normalised as the network expects.
        labels: the label in ``split`` of each class, by its logit.
        n: the most images of a class.
        device: where the network is.

    Returns:
        positions in ``split`` by logit, the surest first; fewer than ``n``, or none, where fewer are recognised.
    """
    wanted = torch.tensor(list(labels.values()))
    index = torch.isin(split.labels, wanted).nonzero().flatten()
    logits = []
    with torch.no_grad():
        for part in portions(network, index):
            logits.append(network(split.batch(part, device=torch.device(device)).images).cpu().double())
    z = torch.cat(logits)
    found = {}
    for target, label in labels.items():
        own = ((split.labels[index] == label) & (z.argmax(1) == target)).nonzero().flatten()
        surest = margin(z[own], torch.full_like(own, target))
        found[target] = index[own[surest.argsort(descending=True, stable=True)[:n]]]
    return found


def cut_component(
    module: nn.Module,
    channels: Channels,
    routes: Bool[Tensor, "k n"],
    classes: Sequence[int],
    *,
    example: Float[Tensor, "b c h w"],
) -> nn.Module:
    """Cut out the part of a network on the routes of some classes: a smaller network with their logits, in their order.

    Args:
        module: the network; unchanged.
        channels: those of the network.
        routes: a row for each of these classes, the channel ids on its route.
        classes: their logits in ``module``.
        example: images on which the result is checked, see :func:`~upcycle.surgery.resizing.shrink`.
    """
    return shrink(module, channels, routes.any(0), classes, example=example)


def restrict(model: Model, classes: Sequence[str]) -> Model:
    """Read only the logits of some classes of a network, which is then what their component is compared with."""
    rows = class_indices(model, classes)
    module = Columns(model.module, torch.tensor(rows))
    names = tuple(model.classes[i] for i in rows)
    return dataclasses.replace(model, module=module, reference=None, options={}, classes=names)


def class_indices(model: Model, classes: Sequence[str]) -> list[int]:
    """Find the logits of classes by their names; all of them when none is named.

    Raises:
        UserError: for a name that there is not, with the nearest, or one that is named twice.
    """
    for name in classes:
        if name not in model.classes:
            raise unknown(f"class of {model.name}", name, model.classes)
    require(len({*classes}) == len(classes), f"classes names one class twice: {', '.join(classes)}.")
    return [model.classes.index(name) for name in classes] or list(range(len(model.classes)))
