"""A network's forward as a graph, and networks cut in pieces along it."""

from __future__ import annotations

import bisect
import copy
import functools
import inspect
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.outputs import called


class Tracer(fx.Tracer):
    """Symbolic tracing that remembers what each submodule returned, also of those it looks into, and where it failed.

    Args:
        images: a batch that runs along, so that questions which a forward asks of shapes and number formats are
            answered as they are for it; without one they end the tracing.
        numbers: answer also where a forward wants a whole number or a length; the graph is then one for batches of
            that shape only.
    """

    def __init__(self, images: Tensor | None = None, *, numbers: bool = False) -> None:
        super().__init__()
        self.outputs: dict[str, list[Any]] = {}
        self.failed: str | None = None
        self.images, self.numbers = images, numbers
        self.values: dict[fx.Node, Any] = {}
        self._asking = False

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._asking:
            return forward(*args, **kwargs)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise
        self.outputs.setdefault(self.path_of_module(m), []).append(output)
        return output

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._asking else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Number(node, self) if self.images is not None and self.numbers else super().proxy(node)

    def create_proxy(self, *arguments: Any, **more: Any) -> fx.Proxy:
        made = super().create_proxy(*arguments, **more)
        if self.images is not None:
            try:
                self._asking = True
                with torch.no_grad():
                    self.values[made.node] = self._value(made.node)
            except Exception:  # what cannot be computed is not known, which only those who ask will see
                self.values.pop(made.node, None)
            finally:
                self._asking = False
        return made

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.known(obj)) if self.knows(obj) else super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Any:
        return (
            iter([operator.getitem(obj, i) for i in range(len(self.known(obj)))])
            if self.knows(obj)
            else super().iter(obj)
        )

    def knows(self, obj: fx.Proxy) -> bool:
        """Whether the value is known, and follows from shapes and number formats alone."""
        return obj.node in self.values and not isinstance(self.values[obj.node], Tensor)

    def known(self, obj: fx.Proxy) -> Any:
        """The value on the images that run along."""
        return self.values[obj.node]

    def _value(self, n: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: self.values[a])
        if n.op == "placeholder":
            assert self.images is not None
            return args[0] if self.values else self.images.clone()  # behind the images: defaults
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        if n.op == "call_function":
            assert callable(n.target)
            return n.target(*args, **kwargs)
        found: Any = functools.reduce(getattr, str(n.target).split("."), self.root)
        return found(*args, **kwargs) if n.op == "call_module" else found


class _Number(fx.Proxy):
    """A value in a graph that is a number where one is wanted."""

    tracer: Tracer

    def __len__(self) -> int:
        known = self.tracer.values.get(self.node)
        return super().__len__() if known is None else len(known)

    def __int__(self) -> int:
        return int(self._known())

    def __index__(self) -> int:
        return operator.index(self._known())

    def __float__(self) -> float:
        return float(self._known())

    def _known(self) -> Any:
        if not self.tracer.knows(self):
            raise TypeError(f"'{self.node}' depends on the images")
        return self.tracer.known(self)


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
