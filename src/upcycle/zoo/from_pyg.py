"""Graph networks of PyTorch Geometric: ``pyg:NAME``, one of its models with 2 layers of width 64."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.synonyms import same_name
from upcycle.core.takes import Takes

MODELS = ("GAT", "GCN", "GIN", "GraphSAGE")
HIDDEN, LAYERS = 64, 2


def require_installed() -> None:
    """Raise UserError where the library is missing; it is not imported, which takes seconds."""
    if importlib.util.find_spec("torch_geometric") is None:
        raise UserError('torch_geometric is not installed: pip install "upcycle[graphs]"')


def torch_geometric() -> Any:
    """The library, or one sentence on how to get it."""
    require_installed()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about what the library uses of it
            import torch_geometric as library
            import torch_geometric.nn
    except (ImportError, RuntimeError, OSError) as error:  # its compiled helpers may be for another torch
        raise UserError(
            f"torch_geometric cannot be imported ({one_line(error)}): pip install --upgrade torch torch_geometric"
        ) from error
    return library


def spelled(name: str) -> str:
    """The name as the library has it, whatever its case; one that is unknown stays as it is."""
    return same_name(name, MODELS) or name


def check(name: str) -> None:
    """Raise UserError for a name that is no such model, or where the library is missing."""
    require_installed()
    if name not in MODELS:
        raise unknown("model of PyTorch Geometric", name, MODELS)


def build(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    takes: Takes | None = None,
) -> Model:
    """A model of PyTorch Geometric with fresh weights, which answers about nodes.

    Args:
        name: one of :data:`MODELS`.
        pretrained: there are no trained weights.
        num_classes: outputs; 2 when not given.
        input_shape: of images, which it does not take.
        takes: what the graphs are like.

    Raises:
        UserError: unknown name, the library missing, or graphs as samples instead of nodes.
    """
    check(name)
    described = graphs_for(f"pyg:{name}", pretrained, takes)
    require(
        described.level == "node",
        f"pyg:{name} answers about nodes, and not about graphs; take zoo:gcn_3_32, which pools them.",
    )
    k = num_classes or 2
    network = getattr(torch_geometric().nn.models, name)(described.features, HIDDEN, LAYERS, out_channels=k)
    return graph_model(f"pyg:{name}", network, described, k)


def graphs_for(reference: str, pretrained: bool, takes: Takes | None) -> GraphTakes:
    """Give what a fresh graph network shall take.

    Args:
        reference: its own, for errors.
        pretrained: whether trained weights are asked for, which it has none of.
        takes: what is said of the inputs.

    Raises:
        UserError: trained weights, or no graphs.
    """
    if pretrained:
        raise UserError(f"{reference} has no trained weights; name a file as its weights.")
    if not isinstance(takes, GraphTakes):
        raise UserError(
            f"{reference} is a network over graphs: it needs data that are graphs"
            + (f", not {takes}." if takes is not None else ".")
        )
    return takes


def graph_model(reference: str, network: Any, takes: GraphTakes, num_classes: int) -> Model:
    """A graph network that is rebuilt from ``reference`` and what it takes; features of edges it does not use."""
    return Model(
        module=network,
        inputs=GraphTakes(takes.features, 0, takes.nodes, takes.level),
        classes=tuple(map(str, range(num_classes))),
        reference=reference,
        options={"num_classes": num_classes},
        name=reference.partition(":")[2],
    )
