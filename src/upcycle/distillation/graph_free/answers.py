"""Answers of a teacher to graphs that are being made: its logits, and how far the statistics of its layers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.graphs import Graphs, GraphTakes
from upcycle.core.models import copy_of
from upcycle.core.taps import Taps
from upcycle.distillation.data_free.inversion import bn_loss, moments, norms
from upcycle.distillation.graph_free.blocks import Blocks, Places, blocked

if TYPE_CHECKING:
    from upcycle.core.models import Model
    from upcycle.core.run import Run


class Answers:
    """A frozen teacher of graphs; its messages go through dense blocks where its layers allow, else over edges.

    Args:
        run: whose device and precision it has.
        model: the teacher.

    Attributes:
        takes: what it takes.
        d: features of a node.
        dense: whether messages go through blocks.
    """

    def __init__(self, run: Run, model: Model) -> None:
        assert isinstance(model.takes, GraphTakes)
        self.model, self.takes, self.d = model, model.takes, model.takes.features
        self.teacher = copy_of(model.module).to(run.device, run.dtype).eval().requires_grad_(False)
        self._ask(blocked(self.teacher, model.takes.example(4).to(run.device).to(run.dtype)))

    def _ask(self, dense: nn.Module | None) -> None:
        """Ask this copy from now on, or, where there is none, the teacher itself over lists of edges."""
        self.dense, self.network = dense is not None, dense or self.teacher
        self.layers = norms(self.network)
        self._taps = Taps(self.network, self.layers, kind="input")

    def over_edges(self) -> None:
        """Let messages go over lists of edges, whatever the layers allow; to compare both."""
        self._ask(None)

    def __call__(
        self, A: Float[Tensor, "b n n"], X: Float[Tensor, "m d"], places: Places
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, ""]]:
        """Logits, with gradients to X, and L_bn: the statistics of all nodes against the teacher's, layer by layer.

        Args:
            A: edges.
            X: features of all nodes, one graph after the other.
            places: of the nodes.
        """
        edges: Any = Blocks(A, places) if self.dense else places.edges(A)
        with self._taps:
            z = self.network(Graphs(x=X, edge_index=edges, batch=places.batch, n=len(places.sizes)))
        if not self.layers:
            return z, z.new_zeros(())
        found = [moments(self._taps[name]) for name in self.layers]
        running = [(m.running_mean, m.running_var) for m in self.layers.values()]
        return z, bn_loss(found, running)  # type: ignore[arg-type]  # of layers that keep them

    @torch.no_grad()
    def logits(self, graphs: Graphs) -> Float[Tensor, "n k"]:
        """Its answers to finished graphs."""
        return self.teacher(graphs.to(next(self.teacher.parameters())))
