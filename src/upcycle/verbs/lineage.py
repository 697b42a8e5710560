"""``upcycle lineage``: the family tree of a model, with licences."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from upcycle.core import references, saved
from upcycle.core.errors import UserError
from upcycle.core.lineage import Node
from upcycle.core.models import Model
from upcycle.verbs.naming import Reference


def lineage(model: Reference) -> Node:
    """The family tree of a model, with licences. Of a saved model only its lineage is read, and nothing is rebuilt.

    Args:
        model: the path of a saved model or run, or a reference; in Python also a
            Model.

    Returns:
        the model's node, with its parents inside it; :func:`upcycle.core.lineage.tree` draws it.

    Raises:
        UserError: nothing is known about where it comes from.
    """
    found: Node | None = None
    if isinstance(model, Model):
        found, name = model.lineage, model.name
    elif isinstance(model, nn.Module):
        name = type(model).__name__
    else:
        name = str(model)
        references.check_reference(name)
        if Path(name).exists():
            found = saved.lineage_of(name)
        elif not references.is_bare(name):
            found = references.resolve(name).lineage
    if found is None:
        raise UserError(f"{name} carries no lineage: nothing is known about where it comes from.")
    return found
