"""Networks over graphs built again for more features a node, with their weights where they were."""

from __future__ import annotations

import dataclasses

import torch

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything


def widened(model: Model, more: int, seed: int) -> Model:
    """The network built anew for further features behind those of each node; the same function where these are zero.

    That holds where features enter through linear maps, as in all layers of the zoo.

    Args:
        model: over graphs, with a reference that it is built from.
        more: how many.
        seed: that the weights of the new features are drawn from, as a fresh network draws them.

    Raises:
        UserError: it cannot be built so.
    """
    if not more:
        return model
    if model.reference is None:
        raise UserError(
            f"{model.name} is a bare module, which cannot be built again with {more} features more; give a reference, "
            "such as zoo:gcn_2_16 or package.module:callable."
        )
    assert isinstance(model.takes, GraphTakes)
    takes = dataclasses.replace(model.takes, features=model.takes.features + more)
    seed_everything(seed, "widened")
    try:
        made = resolve(model.reference, pretrained=False, num_classes=len(model.classes), takes=takes)
    except UserError as error:
        raise UserError(f"{model.name} cannot be built with {more} features more: {one_line(error)}") from error
    old, new = model.module.state_dict(), made.module.state_dict()
    for key, tensor in new.items():
        grown = [d for d, (a, b) in enumerate(zip(old[key].shape, tensor.shape, strict=True)) if a != b]
        fits = len(grown) < 2 and all(tensor.shape[d] == old[key].shape[d] + more for d in grown)
        require(fits, f"{model.name} cannot be built with {more} features more: '{key}' would change its shape.")
        with torch.no_grad():
            place = tensor if not grown else tensor.narrow(grown[0], 0, old[key].shape[grown[0]])
            place.copy_(old[key])
    return dataclasses.replace(
        made, name=model.name, classes=model.classes, licence=model.licence, lineage=model.lineage
    )
