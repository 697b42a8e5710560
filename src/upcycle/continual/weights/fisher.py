"""Squared gradients of each example by itself, summed: the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.layers import NORMS, base_of
from upcycle.core.run import Run
from upcycle.core.undisturbed import undisturbed
from upcycle.data.images import ImageSplit

Losses = Callable[[Tensor, Tensor], Tensor]
"""The loss of each example (b,), from logits (b, k) and labels (b,)."""
Among = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The outputs that compete and the labels among them, from logits (b, k) and labels (b,)."""


def fisher(
    run: Run, module: nn.Module, split: ImageSplit, among: Among, *, samples: int = 0, weighted: bool = True
) -> list[Tensor]:
    """F = 1/n Σ_n w_n (∂ log p(y_n | x_n) / ∂θ)², a tensor for each trainable parameter of ``module``, in their order.

    Images are not augmented, and the network is in evaluation mode. Each process computes the part of its images.

    Args:
        split: with labels.
        among: restricts the outputs, for example to those of a task.
        samples: so many images, drawn; 0 takes all.
        weighted: w_n = p(y_n | x_n), as Mammoth has it: the part of the label in the expectation over the network's
            own answers, which is the true Fisher information. Else w_n = 1, the empirical one.
    """

    def losses(z: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(*among(z, y), reduction="none")
        return loss * (-0.5 * loss.detach()).exp() if weighted else loss  # the root of p: gradients are squared

    order = torch.randperm(len(split), generator=run.generator("fisher")) if samples else torch.arange(len(split))
    chosen = order[: samples or None]
    trained = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trained]
    for index in chosen.tensor_split(run.world_size)[run.rank].split(32):
        if len(index):
            images, labels, _ = split.batch(index, device=run.device)
            images = images.double() if run.precision == "64-true" else images
            found = squared_gradients(module, images, labels, losses)
            torch._foreach_add_(total, list(found.values()))
    if run.world_size > 1:
        total = [run.gather(t[None]).sum(0) for t in total]
    torch._foreach_div_(total, len(chosen))
    return total


def squared_gradients(
    module: nn.Module, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], losses: Losses
) -> dict[str, Tensor]:
    """Σ_n (∂ℓ_n / ∂θ)² over a batch, for each trainable parameter by its name; nothing of ``module`` changes.

    The network is in evaluation mode, so that each example is by itself. One forward and one backward of the sum of
    all losses bring the input x and the output's gradient g of each layer, from which the gradients of its parameters
    follow for each example: those of a linear layer on vectors are g xᵀ, whose squares sum to (G ∘ G)ᵀ (X ∘ X)
    (Goodfellow, arXiv:1510.01799), those of a convolution the same with x in columns, those of BatchNorm sums of g and
    of g x̂, and those of other layers come from ``torch.func`` on the layer alone. Parameters of no innermost layer, and
    of a layer that is called twice or not with the examples in the first dimension, take a gradient of the whole
    network for each example. Batches of 16 to 64 fit a CPU's cache.

    Args:
        labels: or whatever ``losses`` wants of each example.
        losses: maps logits (b, k) and labels to ℓ (b,), each from its own row.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found: dict[str, Tensor] = {}
    with torch.compiler.set_stance("force_eager"), undisturbed(module), torch.enable_grad():
        watch = _Watch(module)
        try:
            z = module(images)
            once = {name: calls[0] for name, calls in watch.calls.items() if len(calls) == 1}
            places = {name: call for name, call in once.items() if call.rows == (len(images), len(images))}
            # Where tokens come first there may be as many as images: then they are as many for one image.
            unsure = [
                name
                for name, call in places.items()
                if call.x.dim() > 2 and not isinstance(module.get_submodule(name), nn.Conv2d | _BatchNorm)
            ]
            if unsure:
                watch.calls.clear()
                module(images[:1])
                places = {
                    name: call
                    for name, call in places.items()
                    if name not in unsure or watch.calls[name][0].rows == (1, 1)
                }
        finally:
            watch.stop()
        edges = [call.edge for call in places.values()]
        grads = torch.autograd.grad(losses(z, labels).sum(), edges, allow_unused=True) if edges else ()
        for (name, call), g in zip(places.items(), grads, strict=True):
            layer = module.get_submodule(name)
            own = _own(layer)
            dtype = next(iter(own.values())).dtype
            squares = {} if g is None else _squares(layer, call.x.to(dtype), g.to(dtype))
            found |= {f"{name}.{key}": squares.get(key, torch.zeros_like(p)) for key, p in own.items()}
        rest = {name: p.detach() for name, p in trained.items() if name not in found}
        if rest:
            found |= _one_by_one(module, rest, images, labels, losses)
    return {name: found[name] for name in trained}


class _Call(NamedTuple):
    """The input of a layer, the place that the gradient of its output will pass, and the first dimensions of both."""

    x: Tensor
    edge: GradientEdge
    rows: tuple[int, int]


class _Watch:
    """Records the calls of the innermost layers with parameters, but for those that share them with another."""

    def __init__(self, module: nn.Module) -> None:
        owners = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        self.calls: dict[str, list[_Call]] = {}
        self._hooks = []
        for name, layer in module.named_modules():
            own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
            if name and own and not any(layer.children()) and all(owners[id(p)] == 1 for p in own):
                self._hooks.append(layer.register_forward_hook(self._hook(name), with_kwargs=True))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], words: dict[str, Any], output: Any) -> None:
            calls = self.calls.setdefault(name, [])
            both = (*inputs, *words.values(), output)
            if len(inputs) == 1 and len(both) == 2 and all(isinstance(x, Tensor) and x.dim() > 1 for x in both):
                # The edge and not the output, which an activation in place may overwrite.
                calls.append(_Call(inputs[0].detach(), get_gradient_edge(output), (len(inputs[0]), len(output))))

        return hook

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _squares(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Σ_n of the squares, by the names of the layer's own parameters."""
    base = base_of(layer)  # a subclass that computes its weight has other gradients
    if base is nn.Linear and isinstance(layer, nn.Linear):
        return _linear(layer, x, g)
    if (
        base is nn.Conv2d
        and isinstance(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    ):
        return _convolution(layer, x, g)
    if (
        base in NORMS
        and isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
    ):
        shape, places = (-1, *[1] * (x.dim() - 2)), list(range(2, x.dim()))
        scale = (layer.running_var + layer.eps).rsqrt().view(shape)
        normal = torch.addcmul(-layer.running_mean.view(shape) * scale, x, scale)
        each = {"weight": g * normal, "bias": g}
        return {key: (y.sum(places) if places else y).square().sum(0) for key, y in each.items()}
    return _layer(layer, x, g)


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    if x.dim() == 2:
        return {"weight": g.square().T @ x.square(), "bias": g.square().sum(0)}
    x, g = x.flatten(1, -2), g.flatten(1, -2)  # (b, tokens, inputs) and (b, tokens, outputs)
    weight = torch.zeros_like(layer.weight)
    for x_n, g_n in _groups(x, g, layer.weight.numel()):
        weight += (g_n.mT @ x_n).square_().sum(0)
    return {"weight": weight, "bias": g.sum(1).square().sum(0)}


def _convolution(layer: nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    (i, j), (s, t), (d, e), n = layer.kernel_size, layer.stride, layer.dilation, layer.groups
    top, left = cast("tuple[int, int]", layer.padding)
    (h, w), c = g.shape[2:], layer.in_channels // n
    x = F.pad(x.permute(0, 2, 3, 1).contiguous(), (0, 0, left, left, top, top))
    g = g.permute(0, 2, 3, 1)
    image, row, column, _ = x.stride()
    strides = (image, c, s * row, t * column, d * row, e * column, 1)
    weight = g.new_zeros(n, layer.out_channels // n, i * j * c)
    for x_n, g_n in _groups(x, g, h * w * i * j * c * n):
        # What each place of the output saw, (b, groups, h w, i j c): channels last, so that whole runs are copied.
        seen = x_n.as_strided((len(x_n), n, h, w, i, j, c), strides, x_n.storage_offset())
        each = g_n.reshape(len(x_n), h * w, n, -1).permute(0, 2, 3, 1) @ seen.reshape(len(x_n), n, h * w, -1)
        weight += each.square_().sum(0)
    return {"weight": weight.view(-1, i, j, c).permute(0, 3, 1, 2), "bias": g.sum((1, 2)).square().sum(0)}


def _layer(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Of any layer: the gradient of each example from its input and the output's gradient."""

    def one(x: Tensor, g: Tensor) -> dict[str, Tensor]:
        back = torch.func.vjp(lambda own: torch.func.functional_call(layer, own, (x[None],)), _own(layer))[1]
        return back(g[None])[0]

    return {key: each.square().sum(0) for key, each in torch.func.vmap(one)(x, g).items()}


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {key: p.detach() for key, p in layer.named_parameters(recurse=False) if p.requires_grad}


def _groups(x: Tensor, g: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in groups of examples, ``numbers`` for each example, that fit a cache (CPU) or bound the memory (GPU)."""
    size = max(1, 2 ** (19 if x.device.type == "cpu" else 27) // numbers)
    return zip(x.split(size), g.split(size), strict=True)


def _one_by_one(
    module: nn.Module, rest: dict[str, Tensor], images: Tensor, labels: Tensor, losses: Losses
) -> dict[str, Tensor]:
    """The same of the parameters ``rest``, whatever the layers are: a gradient of each example."""

    def loss(rest: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        z = torch.func.functional_call(module, rest, (image[None],))
        return losses(z, label[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(rest, images, labels)
    return {name: g.square().sum(0) for name, g in each.items()}
