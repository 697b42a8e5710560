"""A network as a chain of nodes, and blocks cut out of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.core.undisturbed import undisturbed
from upcycle.measure.multiply_adds import MultiplyAdds
from upcycle.surgery.segments import find_segments, group_segments, node_names
from upcycle.surgery.signals import Signal, global_pool, signal_at_cut, signal_at_size
from upcycle.surgery.trace import BATCH, cast_like, constants_of, fix_sizes, shapes_of, trace_blocks

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit

TOLERANCE = 1e-5
"""Largest relative error between a network and the composition of its nodes."""


@dataclass(frozen=True)
class Node:
    """The smallest unit that keeps the network a path: one tensor goes in, one comes out.

    Args:
        name: of the submodule that it is, or of the first with weights in it.
        takes: the signal that comes in, at the network's own input size.
        gives: the signal that goes out, at that size.
    """

    name: str
    takes: Signal
    gives: Signal


@dataclass(frozen=True)
class BlockCost:
    """The cost of a block for one sample at one input size.

    Args:
        params: its parameters, shared ones once.
        macs: its multiply-adds, counted as :func:`upcycle.measure.cost.count` does.
        gives: the signal that comes out.
    """

    params: int
    macs: int
    gives: Signal


@dataclass(eq=False)
class Chain:
    """A network as nodes 0 ... n - 1 and a head; made by :func:`chain`.

    Node 0 is the stem: whatever comes before the second unit with weights, a transformer's class token and
    position embedding included. The head is all from global pooling (or flattening, or picking the class token) on.

    Args:
        model: the network; unchanged.
        nodes: in the order in which they run.
        root: a copy of the network in evaluation mode, whose weights the parts share.
    """

    model: Model
    nodes: tuple[Node, ...]
    root: nn.Module = field(repr=False)
    _graph: fx.Graph = field(repr=False)
    _cuts: tuple[fx.Node, ...] = field(repr=False)  # the input, and the output of each node
    _constants: frozenset[fx.Node] = field(repr=False)
    _made: dict[tuple[int, int], fx.GraphModule] = field(default_factory=dict, repr=False)
    _costs: dict[tuple[int, Signal], tuple[int, Signal] | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.nodes)

    def block(self, first: int, last: int) -> nn.Module:
        """Nodes ``first`` to ``last``, both included, as a module: a copy, whose state keeps the network's names.

        What a forward asks ``self.training`` for outside its layers is fixed as in evaluation.
        """
        self._require(first, last)
        return copy.deepcopy(self._part(first, last))

    def head(self) -> nn.Module:
        """All behind the last node, as a module of its own."""
        return copy.deepcopy(self._piece(self._cuts[-1], None))

    def parts(self) -> list[nn.Module]:
        """Each node as a module, that share the weights of one copy of the network."""
        return [self._part(i, i) for i in range(len(self))]

    def cost(self, first: int, last: int, signal: Signal) -> BlockCost | None:
        """The cost of a block that is given ``signal``; ``None`` where it cannot take that.

        Each node is counted once for each input, on tensors without memory.
        """
        self._require(first, last)
        macs = 0
        for i in range(first, last + 1):
            found = self._node_cost(i, signal)
            if found is None:
                return None
            macs, signal = macs + found[0], found[1]
        params = {id(p): p.numel() for i in range(first, last + 1) for p in self._part(i, i).parameters()}
        return BlockCost(sum(params.values()), macs, signal)

    def _require(self, first: int, last: int) -> None:
        require(
            0 <= first <= last < len(self),
            f"{self.model.name} has nodes 0 to {len(self) - 1}, so there is no block from {first} to {last}.",
        )

    def _part(self, first: int, last: int) -> fx.GraphModule:
        if (first, last) not in self._made:
            self._made[first, last] = self._piece(self._cuts[first], self._cuts[last + 1])
        return self._made[first, last]

    def _piece(self, start: fx.Node, end: fx.Node | None) -> fx.GraphModule:
        """The graph behind ``start`` up to ``end`` (``None``: the logits); constants are made again in each piece."""
        graph = fx.Graph()
        made = {start: graph.placeholder("x")}

        def fetch(node: fx.Node) -> fx.Node:
            if node not in made:
                assert node in self._constants, f"{node} crosses a cut"
                made[node] = graph.node_copy(node, fetch)
            return made[node]

        inside = False
        for node in self._graph.nodes:
            if node.op == "output":
                graph.output(fetch(node.args[0]))
            elif inside and node not in self._constants:
                made[node] = graph.node_copy(node, fetch)
            inside = inside or node is start
            if end is not None and node is end:
                graph.output(fetch(end))
                break
        return fx.GraphModule(self.root, graph, class_name=f"{type(self.model.module).__name__}Block")

    def _node_cost(self, i: int, signal: Signal) -> tuple[int, Signal] | None:
        if (i, signal) not in self._costs:
            meta = copy.deepcopy(self._part(i, i)).to("meta").requires_grad_(False)
            self._costs[i, signal] = _count(meta, signal, self.nodes[i])
        return self._costs[i, signal]


def chain(model: Model) -> Chain:
    """Cut a network into a chain of nodes.

    A cut is a place in the traced forward where exactly one tensor crosses. Between two cuts lies a segment, and
    segments with weights become nodes; those without, or with normalisation only, belong to the node before.
    Segments that lie in one submodule with a forward of its own are one node: the two halves of a transformer
    block, the convolutions of an inverted residual. The paper (arXiv:2210.17409) lists the nodes of its
    networks by hand; this rule finds the same for ResNets, ViT and Swin.

    Args:
        model: any classifier of images that torch.fx can trace. A submodule whose forward it cannot trace is kept
            whole, and lies inside one node.

    Raises:
        UserError: the network cannot be traced, does not take its own input, or is no chain of two nodes or more.
    """
    try:
        return _chain(model)
    except UserError:  # such as a forward that asks for shapes, as those of Hugging Face do
        images = cast_like(model.example(BATCH), model.module)
    free = _chain(model, images)
    try:
        fixed = _chain(model, images, fixed=True)
    except UserError:
        return free
    return fixed if len(fixed) > len(free) else free


def _chain(model: Model, images: Tensor | None = None, *, fixed: bool = False) -> Chain:
    """The chain of a network; ``images`` run along while it is traced, ``fixed``: and its sizes are theirs for good."""
    name = model.name
    root = copy.deepcopy(model.module).eval()
    graph, kept = trace_blocks(root, name, images)
    if fixed:
        fix_sizes(root, graph, model)
    shapes, constants = shapes_of(root, graph, model), constants_of(graph)
    body = group_segments(root, find_segments(root, graph, constants, shapes), shapes)
    whole = "".join(f" torch.fx cannot look into '{path}' ({reason})." for path, reason in [*kept.items()][:1])
    require(
        len(body) >= 2,
        f"{name} is no chain of blocks that could be cut: one tensor must carry a map or tokens from one block to the "
        f"next at two places or more.{whole}",
    )
    signals = [Signal("map", model.input_shape[0], model.input_shape[1:])]
    for group in body:
        seen = [shapes[n] for s in group for n in s.nodes if n in shapes]
        signals.append(signal_at_cut(shapes[group[-1].cut], seen, signals[-1], model.input_shape[1:], name))
    nodes = [Node(*row) for row in zip(node_names(body), signals, signals[1:], strict=False)]
    image = next(n for n in graph.nodes if n.op == "placeholder")
    made = Chain(model, tuple(nodes), root, graph, (image, *(g[-1].cut for g in body)), constants)
    _compare(made, BATCH if images is None else BATCH + 1)  # a graph that was made for two images alone shows itself
    return made


@torch.no_grad()
def _compare(made: Chain, batch: int) -> None:
    """Refuse a chain whose nodes and head do not compute what the network computes, on an example."""
    x = right = cast_like(made.model.example(batch), made.root)
    with undisturbed(made.root):
        right = made.root(right.clone())
        for part in [*made.parts(), made.head()]:
            x = part(x.clone())
    error = ((x - right).abs().max() / right.abs().max().clamp_min(1e-30)).item()
    require(
        error <= TOLERANCE,
        f"{made.model.name} cannot be cut into blocks: one after the other they differ from it by {error:.1e}, "
        f"more than {TOLERANCE:.0e}.",
    )


def _count(part: nn.Module, signal: Signal, node: Node) -> tuple[int, Signal] | None:
    """Multiply-adds and output of a node that is given ``signal``; ``None`` where it cannot take that."""
    if (signal.layout, signal.channels) != (node.takes.layout, node.takes.channels):
        return None
    counter = MultiplyAdds()
    fast = torch.backends.mha.get_fastpath_enabled()  # it hides its matrix products from the counter
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            shape = part(torch.empty(signal.shape(1), device="meta")).shape
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    gives = signal_at_size(shape, signal, node.takes, node.gives)
    return None if gives is None else (counter.total, gives)


def node_features(
    chain: Chain, split: ImageSplit, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Iterator[list[Tensor]]:
    """The pooled output of every node on a split, a batch at a time.

    Args:
        chain: the network; it runs once a batch, on float32.
        split: read without augmentation, in its order, normalised as the network expects.
        batch_size: samples a batch at most; the batches are of nearly equal length.

    Yields:
        for each node float32 (b, d).
    """
    device = torch.device(device)
    split = split.normalised(chain.model.mean, chain.model.std)
    parts = [copy.deepcopy(part).to(device) for part in chain.parts()]
    for index in torch.arange(len(split)).tensor_split(max(-(-len(split) // batch_size), 1)):
        x = cast_like(split.batch(index, device=device).images, parts[0])
        found = []
        with torch.no_grad():
            for part, node in zip(parts, chain.nodes, strict=True):
                x = part(x)
                found.append(global_pool(x, node.gives.layout).float())
        yield found
