"""A network's forward as a graph, and networks cut in pieces along it."""

from __future__ import annotations

import bisect
import copy
import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.outputs import called


class Tracer(fx.Tracer):
    """Symbolic tracing that remembers what each submodule returned, also of those it looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[Any]] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self.outputs.setdefault(self.path_of_module(m), []).append(output)
        return output


def cut(module: nn.Module, names: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a network after the named submodules, into pieces whose composition is the network.

    The pieces share the parameters and submodules of ``module`` and keep their names. What the forward does
    is recorded in the mode (training or not) that ``module`` is in.

    Args:
        module: any network that torch.fx can trace; takes one tensor and returns one.
        names: as ``module.named_modules()`` has them, in the order in which they run.

    Returns:
        one piece more than there are names.

    Raises:
        UserError: a name that does not exist, does not run exactly once, or is out of order; more than one
            value crosses a cut; the network cannot be traced.
    """
    title = called(module)
    known = dict(module.named_modules())
    for name in names:
        if not name or name not in known:
            raise unknown(f"module of {title}", name, [k for k in known if k.count(".") < 2 and k])
    tracer, graph = trace(module)
    order = {node: i for i, node in enumerate(graph.nodes)}
    cuts = [_output_of(tracer, title, name) for name in names]
    places = [order[node] for node in cuts]
    require(
        all(a < b for a, b in itertools.pairwise(places)),
        f"{title} cannot be cut after {', '.join(names)}: name them in the order in which they run.",
    )

    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    graphs = [fx.Graph() for _ in range(len(names) + 1)]
    made = [{source: g.placeholder("x")} for source, g in zip([inputs[0], *cuts], graphs, strict=True)]

    def fetch(i: int, node: fx.Node) -> fx.Node:
        """``node`` inside piece ``i``; a parameter is read again in each piece."""
        if node not in made[i]:
            if node.op != "get_attr":
                name = names[bisect.bisect_left(places, order[node])]
                raise UserError(
                    f"{title} cannot be cut after '{name}': besides its output, {describe(node)} is used "
                    "behind the cut, and only one tensor may cross; cut elsewhere."
                )
            made[i][node] = graphs[i].node_copy(node)
        return made[i][node]

    skipped = set(inputs[1:])  # optional arguments, fixed to their defaults, and the tracer's checks of them
    for node in graph.nodes:
        if node in skipped or skipped.intersection(node.all_input_nodes):
            skipped.add(node)
        elif node.op not in ("placeholder", "get_attr", "output"):
            i = bisect.bisect_left(places, order[node])
            made[i][node] = graphs[i].node_copy(node, functools.partial(fetch, i))
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    require(
        isinstance(result, fx.Node),
        f"{title} returns several values; a network that returns logits is needed.",
    )
    for i, node in enumerate([*cuts, result]):
        graphs[i].output(fetch(i, node))
    return [fx.GraphModule(module, g, class_name=f"{title}Block") for g in graphs]


def optional(module: nn.Module) -> dict[str, Any]:
    """The optional arguments of a network's forward, with their defaults: what calling it with images alone means."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def trace(module: nn.Module) -> tuple[Tracer, fx.Graph]:
    """The forward of a network as a graph, and the tracer that knows what each submodule gave.

    Raises:
        UserError: the network cannot be traced.
    """
    # A copy, because a forward that stores what it sees would keep the tracer's proxies. Optional arguments
    # take their defaults, as they do when the network is called with images alone.
    shadow, tracer = copy.deepcopy(module), Tracer()
    try:
        return tracer, tracer.trace(shadow, optional(shadow))
    except Exception as error:  # whatever a stranger's forward does with a proxy
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(f"{called(module)} cannot be cut: torch.fx cannot trace its forward ({reason}).") from error


def _output_of(tracer: Tracer, title: str, name: str) -> fx.Node:
    outputs = tracer.outputs.get(name, [])
    require(
        len(outputs) == 1,
        f"{title} cannot be cut after '{name}': its forward runs it {len(outputs)} times, not once.",
    )
    require(
        isinstance(outputs[0], fx.Proxy),
        f"{title} cannot be cut after '{name}': it gives a {type(outputs[0]).__name__}, not one tensor; "
        "name a module inside it.",
    )
    return outputs[0].node


def describe(node: fx.Node) -> str:
    """A node of the graph in the words of the network: its operation and the module that it runs in."""
    if node.op == "placeholder":
        return "the input"
    stack = list(node.meta.get("nn_module_stack", {}))
    what = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = f" in '{stack[-1]}'" if stack and stack[-1] != what else ""
    return f"'{what}'{where}"
