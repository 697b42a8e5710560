"""A network as a chain of nodes, and blocks cut out of it."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from upcycle.core.cut import Tracer, optional
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.evaluate import undisturbed
from upcycle.core.models import Model

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit

Layout = Literal["map", "grid", "tokens"]
TOLERANCE = 1e-5
"""Largest relative error between a network and the composition of its nodes."""


@dataclass(frozen=True)
class Signal:
    """The one tensor that crosses a cut, for one sample.

    Args:
        layout: map (b, c, h, w), grid (b, h, w, c: Swin's tokens in their places) or tokens (b, t, c).
        channels: c.
        size: (h, w); that of the patches for tokens.
        extra: tokens before those of the patches, such as a class token: t = extra + h w.
    """

    layout: Layout
    channels: int
    size: tuple[int, int]
    extra: int = 0

    @property
    def kind(self) -> Literal["map", "tokens"]:
        """What a stitch must know: whether convolutions or linear layers work on it."""
        return "map" if self.layout == "map" else "tokens"

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of ``batch`` samples."""
        h, w = self.size
        return {"map": (batch, self.channels, h, w), "grid": (batch, h, w, self.channels),
                "tokens": (batch, self.extra + h * w, self.channels)}[self.layout]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """The smallest unit that keeps the network a path: one tensor goes in, one comes out.

    Args:
        name: of the submodule that it is, or of the first with weights in it.
        takes, gives: at the network's own input size.
    """

    name: str
    takes: Signal
    gives: Signal


@dataclass(frozen=True)
class BlockCost:
    """What nodes ``first`` to ``last`` cost for one sample at one input size.

    Args:
        params: shared ones once.
        macs: multiply-adds, counted as :func:`upcycle.measure.cost.count` does.
        gives: what comes out.
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
        """What the block costs when it is given ``signal``; ``None`` where it cannot take that.

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
            meta = copy.deepcopy(self._part(i, i)).to("meta")
            self._costs[i, signal] = _count(meta, signal, self.nodes[i])
        return self._costs[i, signal]


# -- finding the nodes -----------------------------------------------------------------------------------------


def chain(model: Model) -> Chain:
    """A network as a chain of nodes.

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
    name = model.name
    root = copy.deepcopy(model.module).eval()
    graph = _trace(root, name)
    shapes = _shapes(root, graph, model)
    constants = _constants(graph)
    cuts = _cuts(graph, constants, shapes)
    segments = [_Segment(root, list(nodes), cut) for nodes, cut in _between(graph, cuts, constants)]
    body = _body(root, segments, shapes)
    require(
        len(body) >= 2,
        f"{name} is no chain of blocks that could be cut: one tensor must carry a map or tokens from one block to the "
        "next at two places or more.",
    )
    signals = [Signal("map", model.input_shape[0], model.input_shape[1:])]
    for group in body:
        seen = [shapes[n] for s in group for n in s.nodes if n in shapes]
        signals.append(_signal(shapes[group[-1].cut], seen, signals[-1], model.input_shape[1:], name))
    nodes = [Node(*row) for row in zip(_titles(body), signals, signals[1:], strict=False)]
    image = next(n for n in graph.nodes if n.op == "placeholder")
    made = Chain(model, tuple(nodes), root, graph, (image, *(g[-1].cut for g in body)), constants)
    _compare(made)
    return made


class _Leafy(Tracer):
    """Keeps whole what has no children (so that a layer asks for its own shapes and its own mode), every BatchNorm,
    and the submodules ``kept``; remembers in which submodule tracing failed."""

    def __init__(self, kept: set[str]) -> None:
        super().__init__()
        self.kept = kept
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, _BatchNorm) or not any(m.children()) or module_qualified_name in self.kept
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _trace(root: nn.Module, name: str) -> fx.Graph:
    defaults = optional(root)
    kept: set[str] = set()
    while True:
        tracer = _Leafy(kept)
        try:
            return _of_images_alone(tracer.trace(root, defaults))
        except Exception as error:  # whatever a stranger's forward does with a proxy
            if not tracer.failed or tracer.failed in kept:
                raise UserError(
                    f"{name} cannot be cut into blocks: torch.fx cannot trace its forward ({one_line(error)})."
                ) from error
            kept.add(tracer.failed)


def _of_images_alone(graph: fx.Graph) -> fx.Graph:
    """Without optional arguments, fixed to their defaults, and the tracer's checks of them."""
    unused = {n for n in graph.nodes if n.op == "placeholder"} - {next(iter(graph.nodes))}
    for n in graph.nodes:
        if unused.intersection(n.all_input_nodes):
            unused.add(n)
    for n in reversed(graph.nodes):
        if n in unused:
            graph.erase_node(n)
    return graph


class _Shapes(fx.Interpreter):
    """Runs the graph and remembers the shape of every tensor in it."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = tuple(value.shape)
        return value


BATCH = 2


def _shapes(root: nn.Module, graph: fx.Graph, model: Model) -> dict[fx.Node, tuple[int, ...]]:
    runner = _Shapes(root, graph)
    images = _like(model.example(BATCH), root)
    try:
        with undisturbed(root):
            runner.run(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"{model.name} does not take images of its input_shape: {one_line(error)}.") from error
    return {n: runner.found[n.name] for n in graph.nodes if n.name in runner.found}


def _constants(graph: fx.Graph) -> frozenset[fx.Node]:
    """What does not depend on the image: parameters, and what is made of them alone."""
    found: set[fx.Node] = set()
    first = next(n for n in graph.nodes if n.op == "placeholder")
    for n in graph.nodes:
        if n is not first and n.op != "output" and all(a in found for a in n.all_input_nodes):
            found.add(n)
    return frozenset(found)


def _cuts(graph: fx.Graph, constants: frozenset[fx.Node], shapes: dict[fx.Node, Any]) -> list[fx.Node]:
    """Values behind which nothing else that was made before is used."""
    place = {n: i for i, n in enumerate(graph.nodes)}
    cuts, alive = [], -1  # the last place where an earlier value is used
    for n in graph.nodes:
        if n in constants or n.op == "output":
            continue
        shape = shapes.get(n, ())
        if alive <= place[n] and shape[:1] == (BATCH,) and len(shape) in (2, 3, 4) and n.op != "placeholder":
            cuts.append(n)
        alive = max([alive, *(place[u] for u in n.users)])
    return cuts


def _between(
    graph: fx.Graph, cuts: list[fx.Node], constants: frozenset[fx.Node]
) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """The nodes of each segment, constants that it uses included, and the cut behind it."""
    waiting: list[fx.Node] = []
    ends = set(cuts)
    for n in graph.nodes:
        if n in constants or n.op in ("placeholder", "output"):
            continue
        waiting += [*(a for a in n.all_input_nodes if a in constants), n]
        if n in ends:
            yield waiting, n
            waiting = []


class _Segment:
    """What lies between two cuts.

    Args:
        nodes: its operations.
        cut: the last of them, whose value crosses.
    """

    def __init__(self, root: nn.Module, nodes: list[fx.Node], cut: fx.Node) -> None:
        self.nodes, self.cut = nodes, cut
        self.weights = [str(n.target) for n in nodes if _has_weights(root, n)]
        stacks = [[path for path, _ in n.meta.get("nn_module_stack", {}).values()] for n in nodes if n.op != "get_attr"]
        shared = itertools.takewhile(lambda row: len({*row}) == 1, zip(*stacks, strict=False))
        self.owners = [row[0] for row in shared if row[0] and _own_forward(root.get_submodule(row[0]))]

    def pools(self, root: nn.Module) -> bool:
        """Whether it averages over space."""
        what = [type(root.get_submodule(str(n.target))).__name__ if n.op == "call_module"
                else getattr(n.target, "__name__", str(n.target)) for n in self.nodes]  # fmt: skip
        return any(word in name.lower().replace("_", "") for name in what for word in ("avgpool", "mean"))


def _has_weights(root: nn.Module, n: fx.Node) -> bool:
    """Whether an operation mixes channels by weights: more than a vector, and no embedding shared by all samples."""
    tensors: list[Any] = []
    if n.op == "call_module":
        tensors = list(root.get_submodule(str(n.target)).parameters())
    elif n.op == "get_attr":
        tensors = [functools.reduce(getattr, str(n.target).split("."), root)]
    return any(isinstance(t, nn.Parameter) and t.ndim >= 2 and t.shape[0] > 1 for t in tensors)


def _own_forward(m: nn.Module) -> bool:
    """Whether someone wrote down what its parts do together; a layer and a plain sequence say nothing of that."""
    return any(m.children()) and type(m).forward is not nn.Sequential.forward


def _body(root: nn.Module, segments: list[_Segment], shapes: dict[fx.Node, tuple[int, ...]]) -> list[list[_Segment]]:
    """The segments of each node; what is left is the head."""

    def ends(s: _Segment) -> bool:
        shape = shapes[s.cut]
        return len(shape) == 2 or (shape[2:] == (1, 1) and not s.weights and s.pools(root))

    end = next((i for i, s in enumerate(segments) if ends(s)), len(segments))
    around = {p for s in segments[end:] for p in s.owners}  # a module around everything is no block
    for s in segments:
        s.owners = [p for p in s.owners if p not in around]
    spans: dict[str, tuple[int, int]] = {}
    for i, s in enumerate(segments[:end]):
        if s.weights:
            owner = s.owners[-1] if s.owners else f"{i}"
            first = spans[owner][0] if owner in spans else i
            while first > 0 and not segments[first - 1].weights and owner in segments[first - 1].owners:
                first -= 1  # the normalisation or reshaping that it begins with
            spans[owner] = (first, i)
    starts: list[int] = []
    reach = -1
    for first, last in sorted(spans.values()):
        if first > reach:
            starts.append(first)
        reach = max(reach, last)
    starts[:1] = [0] if starts else []
    return [segments[a:b] for a, b in itertools.pairwise([*starts, end])]


def _titles(body: list[list[_Segment]]) -> list[str]:
    """For each node the innermost submodule that it has to itself, else the one that holds its weights."""
    owners = [[p for p in group_owners[0] if all(p in o for o in group_owners)]
              for group in body for group_owners in [[s.owners for s in group if s.weights]]]  # fmt: skip
    times = Counter(p for found in owners for p in found)
    titles = []
    for group, found in zip(body, owners, strict=True):
        own = [p for p in found if times[p] == 1]
        paths = [w.split(".") for s in group for w in s.weights]
        shared = [row[0] for row in itertools.takewhile(lambda row: len({*row}) == 1, zip(*paths, strict=False))]
        titles.append(own[-1] if own else ".".join(shared or paths[0]))
    return titles


def _signal(
    shape: tuple[int, ...], seen: list[tuple[int, ...]], before: Signal, image: tuple[int, int], name: str
) -> Signal:
    """How a tensor that crosses a cut is laid out.

    Args:
        shape: of the tensor, batch first.
        seen: of all tensors made on the way there from ``before``.
        image: (h, w) of the network's input.
    """

    def proportioned(h: int, w: int) -> bool:
        return 0.75 < (h * image[1]) / (w * image[0]) < 1.34

    if len(shape) == 4:
        as_map, as_grid = proportioned(*shape[2:]), proportioned(*shape[1:3])
        if as_grid and (not as_map or before.layout == "grid"):
            return Signal("grid", shape[3], (shape[1], shape[2]))
        return Signal("map", shape[1], (shape[2], shape[3]))
    places = [before.size, *((s[2], s[3]) for s in reversed(seen) if len(s) == 4)]
    for h, w in places:
        if 0 <= shape[1] - h * w <= EXTRA:
            return Signal("tokens", shape[2], (h, w), shape[1] - h * w)
    raise UserError(f"{name} cannot be cut into blocks: its {shape[1]} tokens lie on no grid of patches that it made.")


EXTRA = 8
"""The most tokens without a place that are taken for class tokens and registers."""


@torch.no_grad()
def _compare(made: Chain) -> None:
    """Both sides on an example: what the nodes and the head compute must be what the network computes."""
    x = right = _like(made.model.example(BATCH), made.root)
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


def _like(images: Tensor, root: nn.Module) -> Tensor:
    return images.to(next((t for t in root.parameters() if t.is_floating_point()), images))


# -- what they cost and what they compute ------------------------------------------------------------------------


def _count(part: nn.Module, signal: Signal, node: Node) -> tuple[int, Signal] | None:
    """Multiply-adds and output of a node that is given ``signal``; ``None`` where it cannot take that."""
    if (signal.layout, signal.channels) != (node.takes.layout, node.takes.channels):
        return None
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()  # it hides its matrix products from the counter
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            shape = part(torch.empty(signal.shape(1), device="meta")).shape
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    gives = _at(shape, signal, node)
    return None if gives is None else (counter.get_total_flops() // 2, gives)


def _at(shape: tuple[int, ...], signal: Signal, node: Node) -> Signal | None:
    """The layout of a node's output at another input size."""
    native = node.gives
    if len(shape) != len(native.shape(1)) or 0 in shape:
        return None
    if native.layout != "tokens":
        size = (shape[2], shape[3]) if native.layout == "map" else (shape[1], shape[2])
        return Signal(native.layout, native.channels, size)
    scaled = tuple(n * g // t for n, g, t in zip(signal.size, native.size, node.takes.size, strict=True))
    for h, w in (signal.size, scaled):
        if 0 <= shape[1] - h * w <= EXTRA:
            return Signal("tokens", native.channels, (h, w), shape[1] - h * w)
    return None


def pooled(x: Tensor, layout: Layout) -> Float[Tensor, "b d"]:
    """A node's output without its places: maps to their mean over h and w, tokens to that over all tokens."""
    return x.mean({"map": (2, 3), "grid": (1, 2), "tokens": (1,)}[layout])


def features(
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
        x = _like(split.batch(index, device=device).images, parts[0])
        found = []
        with torch.no_grad():
            for part, node in zip(parts, chain.nodes, strict=True):
                x = part(x)
                found.append(pooled(x, node.gives.layout).float())
        yield found
