"""A network's forward traced for cutting: the graph, the shapes in it, and what does not depend on the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.cut import Tracer, optional
from upcycle.core.errors import UserError, one_line
from upcycle.core.models import Model
from upcycle.core.undisturbed import undisturbed

BATCH = 2
"""Images that shapes are taken with."""


class _BlockTracer(Tracer):
    """A tracer that leaves layers whole.

    What has no children stays whole, so that a layer asks for its own shapes and its own mode; so does every BatchNorm.

    Args:
        kept: further submodules that stay whole.
        images: a batch that runs along, see :class:`~upcycle.core.cut.Tracer`.
    """

    def __init__(self, kept: set[str], images: Tensor | None) -> None:
        super().__init__(images)
        self.kept = kept

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, _BatchNorm) or not any(m.children()) or module_qualified_name in self.kept
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace_blocks(root: nn.Module, name: str, images: Tensor | None = None) -> tuple[fx.Graph, dict[str, str]]:
    """Trace a network, with each submodule that cannot be traced as one operation.

    Args:
        root: the network, in evaluation mode.
        name: of the network, for the error.
        images: a batch that answers what a forward asks of shapes and number formats; without one, a submodule that
            asks cannot be traced.

    Returns:
        the graph, and why each submodule was kept whole, by its name.

    Raises:
        UserError: the forward of the network itself cannot be traced.
    """
    defaults = optional(root)
    kept: dict[str, str] = {}
    while True:
        tracer = _BlockTracer({*kept}, images)
        try:
            return _of_images_alone(tracer.trace(root, defaults)), kept
        except Exception as error:  # whatever a stranger's forward does with a proxy
            if not tracer.failed or tracer.failed in kept:
                raise UserError(
                    f"{name} cannot be cut into blocks: torch.fx cannot trace its forward ({one_line(error)})."
                ) from error
            kept[tracer.failed] = one_line(error)


def _of_images_alone(graph: fx.Graph) -> fx.Graph:
    """The graph without optional arguments, which have their defaults, and without the tracer's checks of them."""
    unused = {n for n in graph.nodes if n.op == "placeholder"} - {next(iter(graph.nodes))}
    for n in graph.nodes:
        if unused.intersection(n.all_input_nodes):
            unused.add(n)
    for n in reversed(graph.nodes):
        if n in unused:
            graph.erase_node(n)
    return graph


class _Shapes(fx.Interpreter):
    """An interpreter that remembers the shape of every tensor in the graph."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = tuple(value.shape)
        return value


def shapes_of(root: nn.Module, graph: fx.Graph, model: Model) -> dict[fx.Node, tuple[int, ...]]:
    """Find the shape of every tensor in a graph on images of the model's size.

    Args:
        root: whose forward the graph is.
        graph: from :func:`trace_blocks`.
        model: what ``root`` is a copy of.

    Raises:
        UserError: the network does not take such images.
    """
    runner = _Shapes(root, graph)
    images = cast_like(model.example(BATCH), root)
    try:
        with undisturbed(root):
            runner.run(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"{model.name} does not take images of its input_shape: {one_line(error)}.") from error
    return {n: runner.found[n.name] for n in graph.nodes if n.name in runner.found}


def fix_sizes(root: nn.Module, graph: fx.Graph, model: Model) -> None:
    """Write the sizes that a forward computes into its graph, in place, but for those that follow the batch.

    So they cross no cut. What lies behind takes images of the model's size alone.

    Args:
        root: whose forward the graph is.
        graph: from :func:`trace_blocks`.
        model: what ``root`` is a copy of.
    """
    fixed: list[dict[str, Any]] = []
    for batch in (BATCH, BATCH + 1):
        runner = _Sizes(root, graph)
        with undisturbed(root):
            runner.run(cast_like(model.example(batch), root))
        fixed.append(runner.found)
    for n in reversed(graph.nodes):
        if n.name in fixed[0] and fixed[0][n.name] == fixed[1].get(n.name):
            size = fixed[0][n.name]
            for user in list(n.users):
                user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda a: size if a is n else a)  # noqa: B023
        if n.name in fixed[0] and not n.users:
            graph.erase_node(n)


class _Sizes(fx.Interpreter):
    """An interpreter that remembers every whole number in the graph, and every tuple of some."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        numbers = value if isinstance(value, tuple) else (value,)
        if n.op in ("call_function", "call_method") and numbers and all(type(v) is int for v in numbers):
            self.found[n.name] = tuple(numbers) if isinstance(value, tuple) else value
        return value


def constants_of(graph: fx.Graph) -> frozenset[fx.Node]:
    """Find what does not depend on the image: parameters, and what is made of them alone."""
    found: set[fx.Node] = set()
    first = next(n for n in graph.nodes if n.op == "placeholder")
    for n in graph.nodes:
        if n is not first and n.op != "output" and all(a in found for a in n.all_input_nodes):
            found.add(n)
    return frozenset(found)


def cast_like(images: Tensor, root: nn.Module) -> Tensor:
    """Give images the precision and device of a network's parameters."""
    return images.to(next((t for t in root.parameters() if t.is_floating_point()), images))
