"""Segments: what lies between two places of a traced forward where exactly one tensor crosses."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from upcycle.surgery.trace import BATCH


def find_segments(
    root: nn.Module, graph: fx.Graph, constants: frozenset[fx.Node], shapes: dict[fx.Node, tuple[int, ...]]
) -> list[Segment]:
    """Find all segments of a forward, in order.

    Args:
        root: whose forward the graph is.
        graph: from :func:`~upcycle.surgery.trace.trace_blocks`.
        constants: from :func:`~upcycle.surgery.trace.constants_of`.
        shapes: from :func:`~upcycle.surgery.trace.shapes_of`.
    """
    cuts = _cuts(graph, constants, shapes)
    return [Segment(root, list(nodes), cut) for nodes, cut in _between(graph, cuts, constants)]


def _cuts(graph: fx.Graph, constants: frozenset[fx.Node], shapes: dict[fx.Node, Any]) -> list[fx.Node]:
    """The values behind which nothing else that was made before is used."""
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


class Segment:
    """The operations between two cuts.

    Args:
        root: whose forward they are of.
        nodes: the operations, with constants that they use.
        cut: the last of them, whose value crosses.

    Attributes:
        weights: names of the modules and parameters that mix channels.
        owners: submodules with a forward of their own that all operations lie in, from the outermost.
    """

    def __init__(self, root: nn.Module, nodes: list[fx.Node], cut: fx.Node) -> None:
        self.nodes, self.cut = nodes, cut
        self.weights = [str(n.target) for n in nodes if _has_weights(root, n)]
        stacks = [[path for path, _ in n.meta.get("nn_module_stack", {}).values()] for n in nodes if n.op != "get_attr"]
        shared = itertools.takewhile(lambda row: len({*row}) == 1, zip(*stacks, strict=False))
        self.owners = [row[0] for row in shared if row[0] and _own_forward(root.get_submodule(row[0]))]

    def pools(self, root: nn.Module) -> bool:
        """Whether it averages over space."""
        names = [_operation(root, n).lower().replace("_", "") for n in self.nodes]
        return any("avgpool" in name or "mean" in name for name in names)


def _operation(root: nn.Module, n: fx.Node) -> str:
    """The name of an operation: of the module's class, or of the function."""
    if n.op == "call_module":
        return type(root.get_submodule(str(n.target))).__name__
    return getattr(n.target, "__name__", str(n.target))


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


def group_segments(
    root: nn.Module, segments: list[Segment], shapes: dict[fx.Node, tuple[int, ...]]
) -> list[list[Segment]]:
    """Group the segments of each node of the chain; what is left behind them is the head.

    Args:
        root: whose forward they are of.
        segments: all of them; owners that hold a node and a part of the head are dropped from them.
        shapes: of the values that cross.
    """
    end = next((i for i, s in enumerate(segments) if _begins_head(root, s, shapes[s.cut])), len(segments))
    while end > 0 and _turns_tokens(
        root, segments[end - 1], shapes
    ):  # such as Hugging Face's Swin does before it pools
        end -= 1
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


def _begins_head(root: nn.Module, s: Segment, shape: tuple[int, ...]) -> bool:
    """Whether the head begins with a segment: it leaves no places, by weights or by pooling alone."""
    return len(shape) == 2 or (shape[2:] in ((1, 1), (1,)) and not s.weights and s.pools(root))


def _turns_tokens(root: nn.Module, s: Segment, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Whether a segment does nothing but put the channels of tokens before their places."""
    moves = {"transpose", "permute", "swapaxes"}
    return len(shapes[s.cut]) == 3 and not s.weights and all(_operation(root, n) in moves for n in s.nodes)


def node_names(body: list[list[Segment]]) -> list[str]:
    """Name each node by the innermost submodule that it has to itself, else by the one that holds its weights.

    Args:
        body: from :func:`group_segments`.
    """
    owners = [_shared_owners(group) for group in body]
    times = Counter(p for found in owners for p in found)
    names = []
    for group, found in zip(body, owners, strict=True):
        own = [p for p in found if times[p] == 1]
        paths = [w.split(".") for s in group for w in s.weights]
        shared = [row[0] for row in itertools.takewhile(lambda row: len({*row}) == 1, zip(*paths, strict=False))]
        names.append(own[-1] if own else ".".join(shared or paths[0]))
    return names


def _shared_owners(group: list[Segment]) -> list[str]:
    """The submodules that all segments with weights of one node lie in."""
    first, *rest = [s.owners for s in group if s.weights]
    return [p for p in first if all(p in o for o in rest)]
