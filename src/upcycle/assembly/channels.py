"""Which channels of a network belong together, and networks made physically narrower or wider.

Every channel of every tensor in a forward gets an id. Layers make new ids; what only moves numbers (reshape, slices,
concatenation, channel shuffles) is carried out on a tensor of ids; a sum couples the ids of its terms place by place.
Coupled channels share one id in the end, and stay or go together.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.cut import Tracer, describe
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.models import copy_of
from upcycle.zoo.resnet import PadShortcut

TOLERANCE = 1e-5
"""Largest error of a resized network, of its largest output, in float64."""
LARGEST = 2**30
"""Most numbers in the layers of a network that is built from recorded widths."""

Widths = dict[str, list[int]]

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


class Scatter(nn.Module):
    """A shortcut without weights that puts each input channel to its place and zeros elsewhere.

    What :class:`~upcycle.zoo.resnet.PadShortcut` becomes when networks are put together and its channels no longer
    lie in one run.

    Args:
        index: int64 (o,), for each output channel the input channel that it takes; ``inputs`` for zeros.
        inputs: channels that come in.
        stride: every so-manyth pixel is taken.
    """

    index: Tensor

    def __init__(self, index: Int[Tensor, " o"], inputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.stride = inputs, stride
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1)).index_select(1, self.index)

    @classmethod
    def like(cls, shortcut: PadShortcut, inputs: int) -> Scatter:
        """The same map as ``shortcut`` computes from ``inputs`` channels."""
        index = torch.arange(-shortcut.before, inputs + shortcut.after)
        return cls(torch.where((index < 0) | (index >= inputs), inputs, index), inputs, shortcut.stride)


class Renormalise(nn.Module):
    """An image, once for each of several networks that expect it normalised differently.

    (b, c, h, w) to (b, n c, h, w): copy j is ``x * scale[j] + shift[j]``. It stands in front of a first convolution,
    for folded into that it would be wrong at the border, where the padding is zero after normalisation.

    Args:
        scale, shift: (n c, 1, 1).
        copies: n.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Float[Tensor, "m 1 1"], shift: Float[Tensor, "m 1 1"], copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.copies, 1, 1) * self.scale + self.shift


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer.

    Args:
        name: of the module.
        inputs: int64 (i,), the id of each input channel (feature, behind a flatten).
        outputs: int64 (o,), the id of each output channel.
        groups: of a convolution; the channels of one group share an id unless there is one group only.
    """

    name: str
    inputs: Int[Tensor, " i"]
    outputs: Int[Tensor, " o"]
    groups: int = 1


class Step(NamedTuple):
    """One operation of a forward.

    Args:
        what: operation or module with its settings, in words, without widths.
        reads: its arguments; other steps by number.
        module: name of the module, or "".
    """

    what: str
    reads: str
    module: str


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a network, by ids from 0 to n - 1; two with one id stay or go together.

    Args:
        n: how many there are.
        layers: convolutions and linear layers in the order in which they run.
        passes: BatchNorms, PReLUs and weightless shortcuts: the ids of the channels that come in and go out.
        image: int64 (c,), of the image's channels; they always stay.
        logits: int64 (k,), of the outputs, all different.
        steps: the forward as a list, for comparing networks whatever their widths.
    """

    n: int
    layers: tuple[Layer, ...]
    passes: dict[str, tuple[Tensor, Tensor]]
    image: Int[Tensor, " c"]
    logits: Int[Tensor, " k"]
    steps: tuple[Step, ...]

    def reads_image(self, layer: Layer) -> bool:
        """Whether a layer sees the image itself."""
        return bool(torch.isin(layer.inputs, self.image).all())

    def makes_logits(self, layer: Layer) -> bool:
        """Whether a layer's outputs are the network's."""
        return torch.equal(layer.outputs, self.logits)


def follow(module: nn.Module, example: Float[Tensor, "b c h w"]) -> Channels:
    """The channels of a network, found on its forward in eval mode.

    Args:
        module: a classifier of images that torch.fx can trace.
        example: at least two images that it takes.

    Raises:
        UserError: naming the module or operation that mixes channels in a way that is not understood.
    """
    title = type(module).__name__
    shadow = copy_of(module).to("cpu", torch.float32).eval()
    parameters = list(inspect.signature(shadow.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        graph = _Tracer().trace(shadow, defaults)
    except Exception as error:  # whatever a stranger's forward does with a proxy
        raise UserError(f"{title} cannot be cut into channels: torch.fx cannot trace its forward "
                        f"({one_line(error)}).") from error  # fmt: skip
    follower = _Follower(title, fx.GraphModule(shadow, graph))
    try:
        with torch.no_grad():
            follower.run(example[:2].to("cpu", torch.float32).contiguous(), *defaults.values())
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{title} cannot be cut into channels: its forward fails ({one_line(error)}).") from error
    return follower.channels()


# -- following the ids ----------------------------------------


class _Tracer(Tracer):
    """Leaves layers of whatever library whole: their rules are known."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm | PadShortcut | Scatter | Renormalise)
        return ours or super().is_leaf_module(m, module_qualified_name)


class _Follower(fx.Interpreter):
    """Runs a traced network, and beside each tensor (2, c, ...) one of the same shape that holds ids."""

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
        """What was found, coupled ids made one and numbered anew."""
        assert self.image is not None and self.logits is not None
        same = _roots(self.count, self.edges)
        image, logits = same[self.image], same[self.logits]
        layers = tuple(Layer(x.name, same[x.inputs], same[x.outputs], x.groups) for x in self.layers)
        passes = {name: (same[i], same[o]) for name, (i, o) in self.passes.items()}
        twice = len(logits.unique()) < len(logits) or bool(torch.isin(logits, image).any())
        if twice or any(bool(torch.isin(logits, x.inputs).any()) for x in layers):
            raise UserError(f"{self.title} cannot be cut into channels: its logits are used for something else too.")
        n = int(same.max()) + 1
        return Channels(n, layers, passes, image, logits, tuple(self.steps))

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
                return getattr(args[0], str(n.target))(*args[1:], **kwargs)
            assert callable(n.target)
            return n.target(*args, **kwargs)
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
            return m(x)
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
        if type(m) not in (nn.Conv2d, nn.Linear) or (isinstance(m, nn.Linear) and x.dim() != 2):
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

    def _refuse(self, n: fx.Node) -> NoReturn:
        kind = f" ({type(self.submodules[str(n.target)]).__name__})" if n.op == "call_module" else ""
        what = "its output" if n.op == "output" else f"{describe(n)}{kind}"
        raise UserError(f"{self.title} cannot be cut into channels: {what} uses channels in a way that is not "
                        "understood; convolutions, linear layers, BatchNorm, activations, pooling, sums and "
                        "concatenations are.")  # fmt: skip


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
        return (f"Conv2d {m.kernel_size}, stride {m.stride}, padding {m.padding} {m.padding_mode}, "
                f"dilation {m.dilation}{groups}, bias {m.bias is not None}")  # fmt: skip
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
    """For each of n ids the number of its connected component, from 0 in the order of their first members."""
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


# -- other widths ----------------------------------------


@torch.no_grad()
def shrink(
    module: nn.Module,
    channels: Channels,
    keep: Bool[Tensor, " n"],
    rows: Sequence[int] | None = None,
    *,
    example: Float[Tensor, "b c h w"],
) -> nn.Module:
    """A copy of a network without the channels that are not kept: same class and forward, smaller layers.

    It computes what ``module`` would if each layer read zeros from the removed channels, and that is checked on
    ``example`` in float64.

    Args:
        channels: what :func:`follow` found.
        keep: of each id, whether it stays; those of the image always do.
        rows: which logits stay, in their new order; ``None`` keeps all.
        example: images that the network takes.

    Raises:
        UserError: a layer would have no channel left, or the forward depends on the number of channels.
    """
    keep = keep.clone()
    keep[channels.image] = True
    keep[channels.logits] = True
    chosen = torch.arange(len(channels.logits)) if rows is None else torch.tensor(list(rows), dtype=torch.long)

    def places(ids: Tensor) -> Tensor:
        return chosen if torch.equal(ids, channels.logits) else keep[ids].nonzero().flatten()

    made = copy_of(module).eval()
    for layer in channels.layers:
        i, o = places(layer.inputs), places(layer.outputs)
        require(len(i) > 0 and len(o) > 0, f"Layer '{layer.name}' must keep at least one channel.")
        _narrow_layer(made.get_submodule(layer.name), i, o)
    for name, (inputs, outputs) in channels.passes.items():
        _narrow_pass(made.get_submodule(name), len(inputs), places(inputs), places(outputs))

    images = example.detach().to("cpu", torch.float64)
    right = _masked(copy_of(module).to("cpu", torch.float64).eval(), channels, keep, images)[:, chosen]
    _compare(copy_of(made), images, right, type(module).__name__)
    return made


def widths(module: nn.Module) -> Widths:
    """The widths of all layers by name, as JSON data, for :func:`resized`.

    Convolution: inputs, outputs, groups. Linear: inputs, outputs. BatchNorm and PReLU: channels. Padded shortcut:
    zeros before and after, or inputs, outputs and stride.
    """
    found: Widths = {}
    for name, m in module.named_modules():
        if isinstance(m, nn.Conv2d):
            found[name] = [m.in_channels, m.out_channels, m.groups]
        elif isinstance(m, nn.Linear):
            found[name] = [m.in_features, m.out_features]
        elif isinstance(m, _BatchNorm):
            found[name] = [m.num_features]
        elif isinstance(m, nn.PReLU):
            found[name] = [m.num_parameters]
        elif isinstance(m, PadShortcut):
            found[name] = [m.before, m.after]
        elif isinstance(m, Scatter):
            found[name] = [m.inputs, len(m.index), m.stride]
    return found


def resized(module: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of a network whose layers have other widths, with fresh weights from torch's global generator.

    Args:
        widths: as :func:`widths` has them.

    Raises:
        ValueError, AttributeError, TypeError: they do not describe such layers.
    """
    made = copy_of(module)
    total = 0
    for name, numbers in widths.items():
        if not isinstance(name, str) or not all(type(n) is int and 0 <= n <= LARGEST for n in numbers):
            raise ValueError(f"the widths of '{name}' are no whole numbers: {numbers}")
        m = made.get_submodule(name)
        expected = (3 if isinstance(m, nn.Conv2d) else 2 if isinstance(m, nn.Linear) else
                    1 if isinstance(m, _BatchNorm | nn.PReLU) else 0)  # fmt: skip
        if expected and (len(numbers) != expected or min(numbers) < 1):
            raise ValueError(f"'{name}' takes {expected} positive widths, not {list(numbers)}")
        total += _size(m, numbers)
        if total > LARGEST:
            raise ValueError(f"the widths at '{name}' make the network too large: over {LARGEST:,} numbers")
        _resize(made, name, m, list(numbers))
    return made


def _size(m: nn.Module, numbers: Sequence[int]) -> int:
    if isinstance(m, nn.Conv2d):
        inputs, outputs, groups = numbers
        if inputs % groups or outputs % groups:
            raise ValueError(f"{inputs} and {outputs} channels do not divide into {groups} groups")
        return inputs * outputs // groups * m.kernel_size[0] * m.kernel_size[1]
    return numbers[0] * numbers[1] if isinstance(m, nn.Linear) else sum(numbers)


def _resize(network: nn.Module, name: str, m: nn.Module, numbers: list[int]) -> None:
    if isinstance(m, nn.Conv2d):
        inputs, outputs, groups = numbers
        set_layer(m, m.weight.new_empty(outputs, inputs // groups, *m.kernel_size), inputs, groups)
    elif isinstance(m, nn.Linear):
        set_layer(m, m.weight.new_empty(numbers[1], numbers[0]), numbers[0])
    elif isinstance(m, _BatchNorm):
        set_vectors(m, {name: old.new_empty(numbers[0]) for name, old in vectors(m).items()})
    elif isinstance(m, nn.PReLU):
        set_vectors(m, {name: old.new_full((numbers[0],), m.init) for name, old in vectors(m).items()})
        return
    elif isinstance(m, PadShortcut | Scatter):
        if isinstance(m, PadShortcut) and len(numbers) == 2:
            m.before, m.after = numbers
            return
        inputs, outputs, stride = numbers
        if stride < 1:
            raise ValueError(f"'{name}' has no stride {stride}")
        network.set_submodule(name, Scatter(torch.full((outputs,), inputs), inputs, stride))
        return
    else:
        raise TypeError(f"'{name}' is a {type(m).__name__}, which has no width")
    m.reset_parameters()


@torch.no_grad()
def joined(
    modules: Sequence[nn.Module], channels: Sequence[Channels], shared: bool, *, example: Float[Tensor, "b c h w"]
) -> nn.Module:
    """Several networks with one sequence of layers as one, whose logits are theirs one after the other.

    Each layer becomes block diagonal, with zeros between the networks; grouped convolutions have as many more groups,
    and BatchNorms hold all vectors one after the other. Whether the forward is then right is not checked here.

    Args:
        modules: the networks; forward and settings are those of the first.
        channels: of each, from :func:`follow`.
        shared: all look at the same image channels; otherwise each has its own, one after the other.
        example: images that the joined network takes.

    Raises:
        UserError: the forward depends on the number of channels.
    """
    made = copy_of(modules[0]).eval()
    for together in zip(*([step.module for step in c.steps if step.module] for c in channels), strict=True):
        parts = [m.get_submodule(name) for m, name in zip(modules, together, strict=True)]
        counts = [len(c.passes[name][0]) if name in c.passes else 0 for c, name in zip(channels, together, strict=True)]
        if isinstance(parts[0], PadShortcut | Scatter):
            made.set_submodule(together[0], _joined_shortcut(parts, counts))
        elif isinstance(parts[0], _BatchNorm | nn.PReLU):
            m = made.get_submodule(together[0])
            values = [{name: v.expand(count) for name, v in vectors(part).items()} for part, count in
                      zip(parts, counts, strict=True)]  # fmt: skip
            set_vectors(m, {name: torch.cat([v[name] for v in values]) for name in values[0]})
    for together in zip(*(c.layers for c in channels), strict=True):
        m = _layer_of(made, together[0])
        one = shared and channels[0].reads_image(together[0])
        inputs = sum([len(x.inputs) for x in together][: 1 if one else None])
        groups = sum(x.groups for x in together) if together[0].groups > 1 else 1
        size = (sum(len(x.outputs) for x in together), inputs // groups, *m.weight.shape[2:])
        set_layer(m, m.weight.new_zeros(size), inputs, groups)

    whole = follow(made, example)
    own = _correspondence(whole, channels, shared)
    for i, layer in enumerate(whole.layers):
        m = _layer_of(made, layer)
        sources = [_layer_of(module, c.layers[i]) for module, c in zip(modules, channels, strict=True)]
        first = 0
        for source, c, ids in zip(sources, channels, own, strict=True):
            rows = slice(first, first + len(source.weight))
            if layer.groups > 1:
                m.weight[rows] = source.weight
            else:
                m.weight[rows, _columns(layer, ids[c.layers[i].inputs])] = source.weight
            if m.bias is not None and source.bias is not None:
                m.bias[rows] = source.bias
            first = rows.stop
    return made


def _joined_shortcut(parts: Sequence[nn.Module], inputs: Sequence[int]) -> Scatter:
    indices, first = [], 0
    for part, n in zip(parts, inputs, strict=True):
        assert isinstance(part, PadShortcut | Scatter)
        index = (part if isinstance(part, Scatter) else Scatter.like(part, n)).index.cpu()
        indices.append(torch.where(index == n, sum(inputs), index + first))
        first += n
        stride = part.stride
    return Scatter(torch.cat(indices), sum(inputs), stride)


def _correspondence(whole: Channels, channels: Sequence[Channels], shared: bool) -> list[Tensor]:
    """For each network, the id in the whole of each of its own."""
    own = [torch.full((c.n,), -1) for c in channels]
    places = [(whole.image, [c.image for c in channels])] if not shared else []
    places += [(x.outputs, [c.layers[i].outputs for c in channels]) for i, x in enumerate(whole.layers)]
    for together, ids in places:
        for to, theirs, part in zip(own, ids, together.split([len(x) for x in ids]), strict=True):
            to[theirs] = part
    if shared:
        for to, c in zip(own, channels, strict=True):
            to[c.image] = whole.image
    return own


def _columns(layer: Layer, ids: Tensor) -> Tensor:
    """Which inputs of a layer of the whole are those of one of its networks, ``ids`` in its order."""
    places = torch.isin(layer.inputs, ids).nonzero().flatten()
    require(torch.equal(layer.inputs[places], ids), f"Layer '{layer.name}' cannot be joined: its forward counts on the "
            "number of channels.")  # fmt: skip
    return places


def _layer_of(network: nn.Module, layer: Layer) -> nn.Conv2d | nn.Linear:
    m = network.get_submodule(layer.name)
    assert isinstance(m, nn.Conv2d | nn.Linear)
    return m


def set_layer(m: nn.Conv2d | nn.Linear, weight: Tensor, inputs: int, groups: int = 1, bias: Any = None) -> None:
    """Give a convolution or linear layer, in place, a weight of another size; a missing ``bias`` is left unset."""
    if m.bias is not None:
        bias = weight.new_empty(len(weight)) if bias is None else bias
        m.bias = nn.Parameter(bias, requires_grad=m.bias.requires_grad)
    m.weight = nn.Parameter(weight, requires_grad=m.weight.requires_grad)
    if isinstance(m, nn.Conv2d):
        m.in_channels, m.out_channels, m.groups = inputs, len(weight), groups
    else:
        m.in_features, m.out_features = inputs, len(weight)


def vectors(m: nn.Module) -> dict[str, Tensor]:
    """The numbers that a BatchNorm or PReLU holds for each channel."""
    held = [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
    return {name: value.detach() for name, value in held if value.dim() == 1}


def set_vectors(m: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a BatchNorm or PReLU, in place, other such numbers."""
    for name, new in values.items():
        old = getattr(m, name)
        setattr(m, name, nn.Parameter(new, requires_grad=old.requires_grad) if name in m._parameters else new)
        setattr(m, "num_parameters" if isinstance(m, nn.PReLU) else "num_features", len(new))


def _narrow_layer(m: nn.Module, i: Tensor, o: Tensor) -> None:
    assert isinstance(m, nn.Conv2d | nn.Linear)
    i, o = i.to(m.weight.device), o.to(m.weight.device)
    bias = None if m.bias is None else m.bias[o]
    if isinstance(m, nn.Conv2d) and m.groups > 1:
        set_layer(m, m.weight[o], len(i), len(i) * m.groups // m.in_channels, bias)
    else:
        set_layer(m, m.weight[o][:, i], len(i), 1, bias)


def _narrow_pass(m: nn.Module, inputs: int, i: Tensor, o: Tensor) -> None:
    """Keep the places ``i`` of ``inputs`` channels that come in, and ``o`` of those that go out."""
    if isinstance(m, PadShortcut):
        m.before, m.after = int((o < m.before).sum()), int((o >= m.before + inputs).sum())
    elif isinstance(m, Scatter):
        rank = torch.full((m.inputs + 1,), len(i))
        rank[i] = torch.arange(len(i))
        m.inputs, m.index = len(i), rank[m.index.cpu()[o]].to(m.index.device)
    elif not (isinstance(m, nn.PReLU) and m.num_parameters == 1):
        set_vectors(m, {name: old[o.to(old.device)] for name, old in vectors(m).items()})


def _masked(network: nn.Module, channels: Channels, keep: Tensor, images: Tensor) -> Tensor:
    """What a network answers when every layer reads zeros from the channels that go."""

    def hook(mask: Tensor) -> Callable[..., Any]:
        return lambda m, args: (args[0] * mask.to(args[0]).view(1, -1, *[1] * (args[0].dim() - 2)), *args[1:])

    for layer in channels.layers:
        network.get_submodule(layer.name).register_forward_pre_hook(hook(keep[layer.inputs]))
    return network(images)


def _compare(network: nn.Module, images: Tensor, right: Tensor, title: str) -> None:
    """Refuse a network that does not answer ``right`` to ``images``, in float64."""
    try:
        found = network.to("cpu", torch.float64).eval()(images)
        error = float((found - right).abs().max() / right.abs().max().clamp_min(1e-30))
        problem = "" if error <= TOLERANCE else f"its answers are wrong by {error:.1e}"
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as failure:
        problem = one_line(failure)
    require(
        not problem, f"{title} cannot be cut into channels: its forward counts on the widths that it has ({problem})."
    )
