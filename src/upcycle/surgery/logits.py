"""The logits of a classifier by the names of its classes, and rescaled in its last layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.models import Model, copy_of
from upcycle.core.portions import portions
from upcycle.surgery.following import follow_channels

if TYPE_CHECKING:
    from upcycle.data.images import Images


def logit_scales(
    model: Model, data: Images, per_class: int = 500, device: torch.device | str = "cpu"
) -> Float[Tensor, " k"]:
    """r_c = n_c / Σ_i z_i[c] over the training images i of class c that a network gets right, n_c of them.

    1 where there is none, or where their mean logit is not positive: the paper's code has NaN, and turns the sign.

    Hu et al., arXiv:2203.13453, parameter scaling.

    Args:
        model: the component; its classes and the labels of the data are matched by name.
        data: whose training images are read, normalised as the component expects.
        per_class: the most images of each class that are looked at, the first ones.
        device: where the component runs.
    """
    split = data.train.normalised(model.mean, model.std)
    network = copy_of(model.module).eval().to(device)
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    r = torch.ones(len(model.classes))
    for c, label in enumerate(class_positions(model.classes, data.classes).tolist()):
        index = (split.labels == label).nonzero().flatten()[:per_class]
        if label < 0 or not len(index):
            continue
        won = []
        with torch.no_grad():
            for part in portions(network, index):
                z = network(split.batch(part, device=torch.device(device)).images.to(dtype)).cpu()
                won.append(z[z.argmax(1) == c, c].double())
        if (mean := float(torch.cat(won).mean())) > 0:  # NaN for none, which is not above 0
            r[c] = 1 / mean
    return r


@torch.no_grad()
def scale_logits(model: Model, r: Float[Tensor, " k"]) -> Model:
    """A copy of a classifier whose logit c is multiplied by ``r[c]``: that row of its last weight and bias.

    Args:
        model: a CNN whose logits come from a last layer.
        r: the factors, for instance from :func:`logit_scales`.

    Raises:
        UserError: its logits do not come from a last layer alone.
    """
    module = copy_of(model.module)
    channels = follow_channels(module, model.example(2))
    last = [x for x in channels.layers if channels.makes_logits(x)]
    between = any(bool(torch.isin(o, channels.logits).any()) for _, o in channels.passes.values())
    require(
        len(last) > 0 and not between,
        f"The logits of {model.name} cannot be scaled: they do not come from a last layer alone; assemble it with "
        "scale=False.",
    )
    for layer in last:
        m = module.get_submodule(layer.name)
        for p in m.parameters(recurse=False):
            p.mul_(r.to(p).view(-1, *[1] * (p.dim() - 1)))
    return dataclasses.replace(model, module=module, lineage=None)


def class_positions(names: Sequence[str], among: Sequence[str]) -> Int[Tensor, " n"]:
    """The place of each name among others, -1 for one that is not there."""
    return torch.tensor([among.index(name) if name in among else -1 for name in names])
