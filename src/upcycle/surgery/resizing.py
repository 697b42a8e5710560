"""Networks made physically narrower, wider, or joined side by side, along the channels that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.models import copy_of
from upcycle.core.outputs import called
from upcycle.surgery.channels import Channels, Layer
from upcycle.surgery.following import follow_channels
from upcycle.surgery.joined_layers import Scatter
from upcycle.zoo.resnet import PadShortcut

TOLERANCE = 1e-5
"""Largest error of a resized network, of its largest output, in float64."""
LARGEST = 2**30
"""Most numbers in the layers of a network that is built from recorded widths."""

Widths = dict[str, list[int]]


@torch.no_grad()
def shrink(
    module: nn.Module,
    channels: Channels,
    keep: Bool[Tensor, " n"],
    rows: Sequence[int] | None = None,
    *,
    example: Float[Tensor, "b c h w"],
) -> nn.Module:
    """Copy a network without the channels that are not kept: same class and forward, smaller layers.

    It computes what ``module`` would if each layer read zeros from the removed channels, and that is checked on
    ``example`` in float64.

    Args:
        module: the network; unchanged.
        channels: those of the network, from :func:`~upcycle.surgery.following.follow_channels`.
        keep: for each id, whether it stays; those of the image always do, and so do fixed ones.
        rows: logits that stay, in their new order; ``None`` keeps all.
        example: images that the network takes.

    Raises:
        UserError: a layer would have no channel left, or the forward depends on the number of channels.
    """
    keep = keep.clone()
    for always in (channels.image, channels.logits, channels.fixed):
        keep[always] = True
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
    whole = _masked(copy_of(module).to("cpu", torch.float64).eval(), channels, keep)
    part, kept = copy_of(made).to("cpu", torch.float64).eval(), [*channels.passes, *(x.name for x in channels.layers)]
    (right, of_whole), (found, of_part) = (_outputs(m, kept, images) for m in (whole, part))
    require(
        isinstance(right, Tensor),
        f"{called(module)} cannot be cut into channels: its forward fails in float64 ({right}).",
    )
    problem = found if isinstance(found, str) else _difference(found, right[:, chosen])
    if problem:
        where = _first_difference(channels, of_whole, of_part, places)
        raise UserError(
            f"{called(module)} cannot be cut into channels: its forward counts on the widths that it has{where} "
            f"({problem})."
        )
    return made


def widths(module: nn.Module) -> Widths:
    """List the widths of all layers by name, as JSON data, for :func:`resized`.

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
    """Copy a network with layers of other widths and fresh weights, from torch's global generator.

    Args:
        module: the network; unchanged.
        widths: those of some layers, as :func:`widths` has them.

    Raises:
        ValueError, AttributeError, TypeError: they do not describe such layers.
    """
    made = copy_of(module)
    total = 0
    for name, numbers in widths.items():
        if not isinstance(name, str) or not all(type(n) is int and 0 <= n <= LARGEST for n in numbers):
            raise ValueError(f"the widths of '{name}' are no whole numbers: {numbers}")
        m = made.get_submodule(name)
        expected = (
            3
            if isinstance(m, nn.Conv2d)
            else 2
            if isinstance(m, nn.Linear)
            else 1
            if isinstance(m, _BatchNorm | nn.PReLU)
            else 0
        )
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
def join_networks(
    modules: Sequence[nn.Module], channels: Sequence[Channels], shared: bool, *, example: Float[Tensor, "b c h w"]
) -> nn.Module:
    """Join networks with one sequence of layers into one, whose logits are theirs one after the other.

    Each layer becomes block diagonal, with zeros between the networks; grouped convolutions have as many more groups,
    and BatchNorms hold all vectors one after the other. Whether the forward is then right is not checked here.

    Args:
        modules: the networks; forward and settings are those of the first.
        channels: those of each network, from :func:`~upcycle.surgery.following.follow_channels`.
        shared: let all look at the same image channels; otherwise each has its own, one after the other.
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
            values = [
                {name: v.expand(count) for name, v in vectors(part).items()}
                for part, count in zip(parts, counts, strict=True)
            ]
            set_vectors(m, {name: torch.cat([v[name] for v in values]) for name in values[0]})
    for together in zip(*(c.layers for c in channels), strict=True):
        m = _layer_of(made, together[0])
        one = shared and channels[0].reads_image(together[0])
        inputs = sum([len(x.inputs) for x in together][: 1 if one else None])
        groups = sum(x.groups for x in together) if together[0].groups > 1 else 1
        size = (sum(len(x.outputs) for x in together), inputs // groups, *m.weight.shape[2:])
        set_layer(m, m.weight.new_zeros(size), inputs, groups)

    whole = follow_channels(made, example)
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
    require(
        torch.equal(layer.inputs[places], ids),
        f"Layer '{layer.name}' cannot be joined: its forward counts on the number of channels.",
    )
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


def _masked(network: nn.Module, channels: Channels, keep: Tensor) -> nn.Module:
    """A network, in place, whose layers read zeros from the channels that go."""

    def hook(mask: Tensor) -> Callable[..., Any]:
        return lambda m, args: (args[0] * mask.to(args[0]).view(1, -1, *[1] * (args[0].dim() - 2)), *args[1:])

    for layer in channels.layers:
        network.get_submodule(layer.name).register_forward_pre_hook(hook(keep[layer.inputs]))
    return network


def _outputs(network: nn.Module, names: Sequence[str], images: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The answer of a network, or in words why it fails, and what some of its modules gave until then."""
    given: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: given.update({name: out.clone()})
        )
        for name in names
    ]
    try:
        return network(images), given
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as failure:
        return one_line(failure), given
    finally:
        for hook in hooks:
            hook.remove()


def _difference(found: Tensor, right: Tensor) -> str:
    """By how much an answer is wrong, in words; nothing where it is right."""
    if found.shape != right.shape:
        return f"its answers are of shape {tuple(found.shape)}"
    error = float((found - right).abs().max() / right.abs().max().clamp_min(1e-30))
    return "" if error <= TOLERANCE else f"its answers are wrong by {error:.1e}"


def _first_difference(
    channels: Channels, whole: Mapping[str, Tensor], part: Mapping[str, Tensor], places: Callable[[Tensor], Tensor]
) -> str:
    """Before which module the narrower network does something else than the whole one, in words."""
    outputs = {name: o for name, (_, o) in channels.passes.items()} | {x.name: x.outputs for x in channels.layers}
    for name in (step.module for step in channels.steps if step.module in outputs):
        if name not in part or _difference(part[name], whole[name][:, places(outputs[name])]):
            return f", at or before '{name}'"
    return ""
