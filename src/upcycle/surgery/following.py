"""A network's channels followed through its forward.

Every channel of every tensor in a forward gets an id. Layers make new ids; what only moves numbers (reshape, slices,
concatenation, channel shuffles) is carried out on a tensor of ids; a sum couples the ids of its terms place by place.
Coupled channels share one id in the end, and stay or go together.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.cut import Tracer, describe, optional
from upcycle.core.errors import UserError, one_line
from upcycle.core.layers import base_of
from upcycle.core.models import copy_of
from upcycle.core.outputs import called
from upcycle.surgery.channels import Channels, Layer, Step
from upcycle.surgery.dividing import division
from upcycle.surgery.joined_layers import Renormalise, Scatter
from upcycle.zoo.resnet import PadShortcut

_POINTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
              nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Identity,
              nn.Dropout, nn.Dropout2d, nn.AlphaDropout)  # fmt: skip
_SPATIAL = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
_MOVES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
_POINTWISE_CALLS: set[Any] = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.dropout,
    F.dropout2d, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, operator.neg,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "clamp", "clamp_", "float", "to",
}  # fmt: skip
_SPATIAL_CALLS: set[Any] = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pad, torch.max_pool2d,
    torch.adaptive_avg_pool1d,
}  # fmt: skip
_MOVE_CALLS: set[Any] = {
    torch.flatten, torch.cat, torch.concat, torch.chunk, torch.split, torch.transpose, torch.permute, torch.reshape,
    torch.unsqueeze, torch.squeeze, torch.stack, torch.channel_shuffle, operator.getitem,
    "flatten", "chunk", "split", "transpose", "permute", "reshape", "view", "unsqueeze", "squeeze", "contiguous",
    "clone", "detach",
}  # fmt: skip
_PAIRS: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum,
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
}  # fmt: skip
_MEANS: set[Any] = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}


def follow_channels(module: nn.Module, example: Float[Tensor, "b c h w"]) -> Channels:
    """Find the channels of a network, on its forward in evaluation mode.

    Args:
        module: a classifier of images that torch.fx can trace.
        example: at least two images that it takes.

    Raises:
        UserError: naming the module or operation that mixes channels in a way that is not understood.
    """
    title = called(module)
    shadow = copy_of(module).to("cpu", torch.float32).eval()
    images, defaults = example[:2].to("cpu", torch.float32).contiguous(), optional(shadow)
    follower = _Follower(title, fx.GraphModule(shadow, _trace(shadow, images, title)))
    try:
        with torch.no_grad():
            follower.run(images, *defaults.values())
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{title} cannot be cut into channels: its forward fails ({one_line(error)}).") from error
    return follower.channels()


def _trace(shadow: nn.Module, images: Tensor, title: str) -> fx.Graph:
    """The forward as a graph; where it asks for shapes, one of these images alone, which is all that is wanted here."""
    try:
        return _Tracer().trace(shadow, optional(shadow))
    except Exception:  # whatever a stranger's forward does with a proxy
        tracer = _Tracer(images, numbers=True)
    try:
        return tracer.trace(shadow, optional(shadow))
    except Exception as error:
        where = f" at '{tracer.failed}'" if tracer.failed else ""
        raise UserError(
            f"{title} cannot be cut into channels: torch.fx cannot trace its forward{where} ({one_line(error)})."
        ) from error


class _Tracer(Tracer):
    """A tracer that leaves layers with known rules whole, of whatever library."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm | PadShortcut | Scatter | Renormalise)
        return ours or super().is_leaf_module(m, module_qualified_name)


class _Follower(fx.Interpreter):
    """An interpreter that runs a traced network, and beside each tensor (2, c, ...) one like it that holds ids."""

    def __init__(self, title: str, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # one sentence is enough
        self.title = title
        self.ids: dict[fx.Node, Any] = {}
        self.count = 0
        self.edges: list[Tensor] = []  # (2, m): pairs of ids that are one
        self.layers: list[Layer] = []
        self.passes: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps: list[Step] = []
        self.fixed: list[Tensor] = []
        self.image: Tensor | None = None
        self.logits: Tensor | None = None
        self.numbers: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        self._record(n)
        value = super().run_node(n)
        if n.op == "output":
            logits = self.ids.get(n.args[0]) if isinstance(n.args[0], fx.Node) else None
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise UserError(f"{self.title} cannot be cut into channels: it does not answer with logits (b, k).")
            self.logits = self._vector(n, logits)
        elif _tensors(value) and n.op != "get_attr" and (n.op == "placeholder" or self._sources(n)):
            self.ids[n] = self._rule(n, value)
        return value

    def channels(self) -> Channels:
        """The channels that were found, coupled ids made one and numbered anew."""
        assert self.image is not None and self.logits is not None
        same = _roots(self.count, self.edges)
        image, logits = same[self.image], same[self.logits]
        layers = tuple(Layer(x.name, same[x.inputs], same[x.outputs], x.groups) for x in self.layers)
        passes = {name: (same[i], same[o]) for name, (i, o) in self.passes.items()}
        twice = len(logits.unique()) < len(logits) or bool(torch.isin(logits, image).any())
        if twice or any(bool(torch.isin(logits, x.inputs).any()) for x in layers):
            raise UserError(f"{self.title} cannot be cut into channels: its logits are used for something else too.")
        n = int(same.max()) + 1
        fixed = same[torch.cat(self.fixed)].unique() if self.fixed else same[:0]
        return Channels(n, layers, passes, image, logits, tuple(self.steps), fixed)

    # -- rules

    def _rule(self, n: fx.Node, value: Any) -> Any:
        if n.op == "placeholder":
            self.image = self._fresh(value.shape[1])
            return _spread(self.image, value)
        if n.op == "call_module":
            return self._module_rule(n, self.submodules[str(n.target)], value)
        if n.target in _MOVE_CALLS:
            args: Any = fx.node.map_arg(n.args, self._ids_or_value)
            kwargs: Any = fx.node.map_arg(n.kwargs, self._ids_or_value)
            if n.op == "call_method":
                moved = getattr(args[0].contiguous(), str(n.target))(*args[1:], **kwargs)
            else:
                assert callable(n.target)
                moved = n.target(*args, **kwargs)
            if isinstance(args[0], Tensor):
                rows, fixed = division(n, args[0], moved)
                self._couple_rows(rows)
                self.fixed.append(fixed)
            return moved
        if n.target in _PAIRS:
            return self._pair(n, value)
        x = self._source(n)
        if n.target in _POINTWISE_CALLS:
            return x
        if n.target in _SPATIAL_CALLS:
            return self._spatial(n, value)
        if n.target in _MEANS:
            return self._mean(n, x)
        if any(value is self.env[a] for a in n.all_input_nodes):  # such as stochastic depth, which rests in eval mode
            return x
        self._refuse(n)

    def _module_rule(self, n: fx.Node, m: nn.Module, value: Any) -> Any:
        name = str(n.target)
        x = self._source(n)
        if isinstance(m, _POINTWISE):
            return x
        if isinstance(m, _SPATIAL):
            return self._spatial(n, value)
        if isinstance(m, _MOVES):
            moved = m(x)
            if isinstance(m, nn.ChannelShuffle):
                self._couple_rows(self._vector(n, x).view(m.groups, -1))
            return moved
        if isinstance(m, _BatchNorm) or (isinstance(m, nn.PReLU) and m.num_parameters > 1):
            channels = self._vector(n, x)
            self._pass(name, channels, channels)
            return x
        if isinstance(m, nn.PReLU):
            channels = self._vector(n, x)
            self.passes[name] = (channels, channels)
            return x
        if isinstance(m, nn.Conv2d | nn.Linear):
            return self._layer(n, m, x, value)
        if isinstance(m, PadShortcut | Scatter):
            inputs, outputs = self._vector(n, x), self._fresh(value.shape[1])
            index = (m if isinstance(m, Scatter) else Scatter.like(m, len(inputs))).index
            self._couple(outputs[index < len(inputs)], inputs[index[index < len(inputs)]])
            self._pass(name, inputs, outputs)
            return _spread(outputs, value)
        if isinstance(m, Renormalise):
            return x.repeat(1, m.copies, 1, 1)
        self._refuse(n)

    def _layer(self, n: fx.Node, m: nn.Conv2d | nn.Linear, x: Tensor, value: Tensor) -> Tensor:
        name = str(n.target)
        if any(layer.name == name for layer in self.layers):
            raise UserError(f"{self.title} cannot be cut into channels: its forward runs '{name}' more than once.")
        if base_of(m, repadded=True) is None:
            raise UserError(
                f"{self.title} cannot be cut into channels: {self._words(n)} computes something else than torch's "
                "layer does with its weight and bias, so fewer channels would change what is left."
            )
        if isinstance(m, nn.Linear) and x.dim() != 2:
            self._refuse(n)
        inputs, outputs = self._vector(n, x), self._fresh(value.shape[1])
        groups = m.groups if isinstance(m, nn.Conv2d) else 1
        if groups > 1:  # whole groups stay or go
            for members in zip(inputs.chunk(groups), outputs.chunk(groups), strict=True):
                first, *rest = torch.cat(members)
                self._couple(first.expand(len(rest)), torch.stack(rest))
        self.layers.append(Layer(name, inputs, outputs, groups))
        return _spread(outputs, value)

    def _pass(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Channels through something with one number a channel; a second call couples them to those of the first."""
        if name in self.passes:
            for before, now in zip(self.passes[name], (inputs, outputs), strict=True):
                self._couple(before, now)
        self.passes[name] = (inputs, outputs)

    def _couple_rows(self, rows: Tensor) -> None:
        """Rows of ids: those of one column become one."""
        for row in rows[1:]:
            self._couple(rows[0], row)

    def _pair(self, n: fx.Node, value: Tensor) -> Tensor:
        """Two tensors place by place, or one and a number."""
        for node in n.all_input_nodes:
            other = self.env[node]
            if node not in self.ids and isinstance(other, Tensor) and other.numel() > 1:
                self._refuse(n)
        sources = [x for x in self._sources(n) if isinstance(x, Tensor)]
        if len(sources) == 1:
            return sources[0]
        a, b = sources
        if a.dim() != b.dim() or a.shape[1] != b.shape[1]:
            self._refuse(n)
        a, b = (x.expand_as(value) for x in (a, b))
        pairs = torch.stack([a[0].flatten(), b[0].flatten()])
        self._couple(*pairs[:, pairs[0] != pairs[1]])
        return a

    def _spatial(self, n: fx.Node, value: Any) -> Tensor:
        """Something that treats every channel alike and by itself."""
        x = self._source(n)
        if not isinstance(value, Tensor) or value.shape[:2] != x.shape[:2]:
            self._refuse(n)
        return _spread(self._vector(n, x), value)

    def _mean(self, n: fx.Node, x: Tensor) -> Tensor:
        dims: Any = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else None)
        keep = bool(n.kwargs.get("keepdim", n.args[2] if len(n.args) > 2 else False))
        if not isinstance(dims, int | tuple | list):
            self._refuse(n)
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        low, high = x.amin(dims, keepdim=keep), x.amax(dims, keepdim=keep)
        if not torch.equal(low, high):
            self._refuse(n)
        return low

    # -- small helpers

    def _fresh(self, n: int) -> Tensor:
        self.count += n
        return torch.arange(self.count - n, self.count)

    def _couple(self, a: Tensor, b: Tensor) -> None:
        if len(a):
            self.edges.append(torch.stack([a, b]))

    def _ids_or_value(self, node: fx.Node) -> Any:
        return self.ids[node] if node in self.ids else self.env[node]

    def _sources(self, n: fx.Node) -> list[Any]:
        return [self.ids[a] for a in n.all_input_nodes if a in self.ids]

    def _source(self, n: fx.Node) -> Tensor:
        sources = self._sources(n)
        if len(sources) != 1 or not isinstance(sources[0], Tensor):
            self._refuse(n)
        return sources[0]

    def _vector(self, n: fx.Node, x: Tensor) -> Tensor:
        """(c,): the id of each channel, which must be the same at all of its places."""
        first = x[0].flatten(1)[:, 0] if x.dim() > 2 else x[0]
        if x.dim() not in (2, 4) or len(x) != 2 or not torch.equal(x, _spread(first, x)):
            self._refuse(n)
        return first

    def _record(self, n: fx.Node) -> None:
        """The step in words."""
        self.numbers[n] = len(self.numbers)
        module = self.submodules[str(n.target)] if n.op == "call_module" else None
        what = _settings(module) if module is not None else n.op if n.op in ("placeholder", "output") else _name(n)
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: f"#{self.numbers[a]}")
        reads = ", ".join([*map(str, args), *(f"{k}={v}" for k, v in kwargs.items())])
        self.steps.append(Step(what, reads, str(n.target) if module is not None else ""))

    def _words(self, n: fx.Node) -> str:
        kind = f" ({type(self.submodules[str(n.target)]).__name__})" if n.op == "call_module" else ""
        return "its output" if n.op == "output" else f"{describe(n)}{kind}"

    def _refuse(self, n: fx.Node) -> NoReturn:
        raise UserError(
            f"{self.title} cannot be cut into channels: {self._words(n)} uses channels in a way that is not "
            "understood; convolutions, linear layers, BatchNorm, activations, pooling, sums and "
            "concatenations are."
        )


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_tensors, value)))


def _spread(channels: Tensor, like: Tensor) -> Tensor:
    """(c,) to the shape of ``like`` (b, c, ...)."""
    return channels.view(1, -1, *[1] * (like.dim() - 2)).expand(like.shape)


def _name(n: fx.Node) -> str:
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))


def _settings(m: nn.Module) -> str:
    """A module in words, without its widths."""
    if isinstance(m, nn.Conv2d):
        groups = "" if m.groups == 1 else ", depthwise" if m.groups == m.in_channels else ", grouped"
        kind = "Conv2d" if base_of(m) else "Conv2d padded by itself"
        return (
            f"{kind} {m.kernel_size}, stride {m.stride}, padding {m.padding} {m.padding_mode}, "
            f"dilation {m.dilation}{groups}, bias {m.bias is not None}"
        )
    if isinstance(m, nn.Linear):
        return f"Linear, bias {m.bias is not None}"
    if isinstance(m, _BatchNorm):
        return f"{type(m).__name__}, eps {m.eps}"
    if isinstance(m, PadShortcut | Scatter):
        return f"padded shortcut, stride {m.stride}"
    if isinstance(m, nn.PReLU):
        return "PReLU"
    return re.sub(r",? ?inplace=True", "", repr(m))


def _roots(n: int, edges: Sequence[Tensor]) -> Int[Tensor, " n"]:
    """Number the connected components of n ids from 0 in the order of their first members: that of each id."""
    parent = list(range(n))

    def root(a: int) -> int:
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        return a

    if edges:
        pairs = torch.cat(list(edges), dim=1)
        codes = (pairs[0] * n + pairs[1]).unique().tolist()
        for a, b in (divmod(code, n) for code in codes):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return torch.tensor([root(a) for a in range(n)]).unique(return_inverse=True)[1]
