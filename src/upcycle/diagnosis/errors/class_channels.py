"""The channels that speak for a class: gradients of its logit by the output F of a layer, summed over images.

These are what a person with a loop of their own takes; :func:`~upcycle.diagnosis.errors.findings.diagnose` is made of
them. No function changes the network.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.feature_maps import FeatureMap, Flow, Seen, record_layer
from upcycle.core.models import Model, copy_of
from upcycle.core.portions import portions
from upcycle.data.labels import relabelled

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

Act = Literal["relu", "abs"]
SHOWN = 120
"""How many channels a picture shows at most: those that speak loudest."""


# -- gradients ----------------------------------------


def class_gradients(
    z: Float[Tensor, "b k"], f: Float[Tensor, "b c h w"], classes: Int[Tensor, " b"], *, graph: bool = False
) -> Float[Tensor, "b c h w"]:
    """G[b] = d z[b, classes[b]] / d F[b], of logits; the sum over the batch is differentiated, never its mean.

    Args:
        z: logits that were computed from ``f``.
        classes: one for each sample.
        graph: make G differentiable itself: a penalty on it has no gradient otherwise.
    """
    chosen = z.gather(1, classes[:, None]).sum()
    return torch.autograd.grad(chosen, f, create_graph=graph, retain_graph=True)[0]


def rivals(z: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """y', the most probable wrong class: rank 2 of a sample that is classified correctly, rank 1 of another."""
    return z.detach().scatter(1, y[:, None], -torch.inf).argmax(1)


def support(gradients: Float[Tensor, "b c h w"], act: Act = "relu") -> Float[Tensor, "b c"]:
    """g[ch] = Σ_hw act(G[ch,h,w]): how much each channel speaks for the class that was differentiated."""
    wide = gradients if gradients.dtype == torch.float64 else gradients.float()
    return (wide.relu() if act == "relu" else wide.abs()).sum((2, 3))


# -- masks of channels ----------------------------------------


def channel_scores(aggregate: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """g~ = (G_c - min_ch) / (max_ch - min_ch + 1e-5), in [0, 1], of gradients summed over images of each class."""
    low, high = aggregate.aminmax(dim=1, keepdim=True)
    return (aggregate - low) / (high - low + 1e-5)


def channel_mask(aggregate: Float[Tensor, "k c"], theta: float = 0.2) -> Bool[Tensor, "k c"]:
    """M[c,ch] = 1[g~ > θ]; the strongest channel of a class always belongs to it.

    The released code's rule. (An older state of it took the channels above the mean of their class.)
    """
    scores = channel_scores(aggregate)
    return (scores > theta).scatter(1, scores.argmax(1, keepdim=True), True)


def channel_order(scores: Float[Tensor, "k c"]) -> Int[Tensor, " s"]:
    """The loudest channels, those of one class side by side."""
    top, owner = scores.max(0)
    loudest = top.argsort(descending=True, stable=True)[:SHOWN]
    return loudest[owner[loudest].argsort(stable=True)]


def share_on(g: Float[Tensor, "n c"], on: Bool[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The share of each sample's support that falls on given channels; NaN where there is no support at all."""
    return (g * on).sum(1) / g.sum(1)


# -- over the images of a split ----------------------------------------


class Support(NamedTuple):
    """Support that :func:`class_support` found in n samples; on the CPU."""

    own: Tensor  # (n, c): g(b, y)
    other: Tensor  # (n, c): g(b, y')
    labels: Tensor  # (n,): y
    rival: Tensor  # (n,): y'
    logits: Tensor  # (n, k): z


def aligned(model: Model, data: Images) -> Images:
    """``data`` as a network expects it: labels are the numbers of its logits, batches have its normalisation.

    Raises:
        UserError: the classes do not match.
    """
    k, found = len(model.classes), len(data.classes)
    require(k == found, f"{model.name} has {k} classes and {data.name} has {found}: give it the data of its classes.")
    return relabelled(data, model.classes).normalised(model.mean, model.std)


def labelled(split: ImageSplit) -> ImageSplit:
    """The samples whose class is known."""
    return split.subset((split.labels >= 0).nonzero()[:, 0])


def probe(module: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """A copy to look into: eval mode, float32, and no parameter asks for a gradient."""
    return copy_of(module).to(torch.device(device), torch.float32).eval().requires_grad_(False)


def channel_map(module: nn.Module, example: Float[Tensor, "b c h w"]) -> FeatureMap | None:
    """Where the channels of a network are looked at, if nobody names a layer.

    That is the last convolution, as in the paper, where the channels of the last feature map are its own: BatchNorm,
    activations and a shortcut without a convolution may lie between. Elsewhere a convolution is one branch of several,
    or there is none: then it is the last feature map that all logits pass through and behind which the gradient depends
    on the image (if there is one), tokens folded to maps. A network without maps is looked at where its last vector is.
    ``None`` where there is nothing between images and logits, or no gradient.

    Args:
        module: made by :func:`probe`.
        example: two normalised images or more.
    """
    flow = Flow(module, example)
    maps = flow.maps()
    last = next(maps, None)
    if last is None:
        return flow.vector()
    if (convolution := _owner(flow, *last)) is not None:
        return FeatureMap(convolution.name, "maps", last[0].grid)
    for place, seen in itertools.chain([last], maps):
        a, *others = place.maps(flow.gradient(seen))
        if not all(torch.allclose(a, b, rtol=1e-4, atol=0) for b in others):
            return place
    return last[0]


def _owner(flow: Flow, place: FeatureMap, seen: Seen) -> Seen | None:
    """The last convolution whose channels become those of a map one by one, unless others beside it do, too."""
    maps = place.maps(seen.out)
    convs = [s for s in flow.seen if isinstance(s.module, nn.Conv2d) and s.out.shape == maps.shape]
    if not convs:
        return None
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(maps.shape[1], generator=generator)[: (maps.shape[1] + 1) // 2]
    mix = torch.randn(maps[:, some].shape, generator=generator).to(maps)
    grads = torch.autograd.grad(
        (maps[:, some] * mix).sum(), [s.out for s in convs], retain_graph=True, allow_unused=True
    )
    others = torch.ones(maps.shape[1], dtype=torch.bool, device=maps.device).index_fill(0, some.to(maps.device), False)
    own = [s for s, g in zip(convs, grads, strict=True) if g is not None and g.any() and not g[:, others].any()]
    if len(own) < 2:
        return own[0] if own else None
    before = torch.autograd.grad(own[-1].out.sum(), [s.out for s in own[:-1]], retain_graph=True, allow_unused=True)
    return None if any(g is None for g in before) else own[-1]


def class_support(
    network: nn.Module,
    split: ImageSplit,
    layer: str | FeatureMap,
    *,
    act: Act = "relu",
    device: torch.device | str = "cpu",
) -> Support:
    """Support for the true and for the most probable wrong class, of every sample of a split.

    Args:
        network: made by :func:`probe`, on ``device``, so that there is a graph from F onwards only.
        split: without unknown labels.
    """
    parts = []
    for index in portions(network, len(split)):
        images, y, _ = split.batch(index, device=torch.device(device))
        with torch.enable_grad(), record_layer(network, layer, leaf=True) as seen:
            z = network(images)
        rival = rivals(z, y)
        own, other = (support(class_gradients(z, seen.f, c), act) for c in (y, rival))
        parts.append([t.detach().cpu() for t in (own, other, y, rival, z)])
    return Support(*(torch.cat(column) for column in zip(*parts, strict=True)))


def class_aggregate(
    network: nn.Module,
    split: ImageSplit,
    layer: str | FeatureMap,
    *,
    act: Act = "relu",
    device: torch.device | str = "cpu",
    k: int,
) -> Float[Tensor, "k c"]:
    """G_c[ch], the support for class c, summed over the images of c in a split; see :func:`class_support`."""
    seen = class_support(network, split, layer, act=act, device=device)
    total = torch.zeros(k, seen.own.shape[1], dtype=torch.float64)  # so that the order of the images does not matter
    return total.index_add_(0, seen.labels, seen.own.double()).float()


def shares(seen: Support, mask: Bool[Tensor, "k c"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Of each sample the shares of g(y) on M[y] and of g(y') on M[y']."""
    return share_on(seen.own, mask[seen.labels]), share_on(seen.other, mask[seen.rival])


def by_class(values: Float[Tensor, " n"], labels: Int[Tensor, " n"], k: int) -> list[float | None]:
    """The mean of each class, over values that are numbers; ``None`` where there is none."""
    means = [float(values[labels == c].nanmean()) for c in range(k)]
    return [None if math.isnan(m) else m for m in means]
