"""Which channels of a trained network speak for which class: gradients of logits by a layer, summed over images.

The pure functions are what a person with a loop of their own takes. :func:`diagnose` looks without changing anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.evaluate import Evaluation, judged, margin, predict_logits, undisturbed
from upcycle.core.models import Model, copy_of
from upcycle.core.taps import Taps
from upcycle.data.labels import relabelled

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

Act = Literal["relu", "abs"]
LISTED = 20
"""How many pairs of classes, and doubtful images of a class, a diagnosis names at most."""

SHOWN = 120
"""How many channels a picture shows at most: those that speak loudest."""


# -- gradients ----------------------------------------


class Recorded:
    """What :func:`recorded` saw: ``f``, the output F (b, c, h, w) of the layer in the last forward."""

    f: Tensor


@contextmanager
def recorded(
    module: nn.Module, layer: str, *, leaf: bool = False, noise: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Recorded]:
    """Within: keep the output F of a layer, and let the network go on with a copy, so that nothing writes over it.

    Args:
        layer: its name in ``module.named_modules()``.
        leaf: cut the graph at F. When no parameter asks for a gradient, all before F runs without a graph.
        noise: of F, what is added to it on the way on: F + ε.

    Raises:
        UserError: there is no such layer.
    """
    seen = Recorded()

    def keep(f: Tensor) -> Tensor:
        seen.f = f.detach().requires_grad_() if leaf else f
        return seen.f.clone() if noise is None else seen.f + noise(seen.f)

    with Taps(module, replace={layer: keep}):
        yield seen


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


# -- diagnosis ----------------------------------------


class Support(NamedTuple):
    """What :func:`class_support` found for n samples; on the CPU."""

    own: Tensor  # (n, c): g(b, y)
    other: Tensor  # (n, c): g(b, y')
    labels: Tensor  # (n,): y
    rival: Tensor  # (n,): y'
    logits: Tensor  # (n, k): z


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` found in a network with k classes, whose layer has c channels.

    Args:
        classes: their names.
        layer: whose channels are meant.
        scores: (k, c), float32 in [0, 1]: how much a channel speaks for a class, relative to others.
        mask: (k, c), bool: the channels of a class.
        images: int64: the training images that both were made from, by position among those with labels.
        concentration: for each class the share of its support that falls on its channels, over validation images.
        wrong: for each class, over its images, the share of the most probable wrong class's support that falls on that
            one's channels.
        shared: pairs of classes with channels in common, and the Jaccard index of their channels; the closest first.
        confused: (class, predicted class, numbers of the validation images), the most frequent first.
        doubtful: for each class numbers of training images: ``unsure`` are recognised with the lowest probability,
            ``wrong`` are not, with the highest probability of the mistaken class. Masks for these help most.
        evaluation: accuracy, of each class too, and calibration on validation images.
    """

    classes: tuple[str, ...]
    layer: str
    scores: Tensor
    mask: Tensor
    images: Tensor
    concentration: list[float | None]
    wrong: list[float | None]
    shared: list[tuple[str, str, float]]
    confused: list[tuple[str, str, list[int]]]
    doubtful: dict[str, dict[str, list[int]]]
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {name: plain[name].tolist() for name in ("scores", "mask", "images")}
        return {**plain, "evaluation": dataclasses.asdict(self.evaluation)}


def diagnose(
    model: Model,
    data: Images,
    *,
    layer: str | None = None,
    n: int = 50,
    theta: float = 0.2,
    act: Act = "relu",
    device: torch.device | str | None = None,
) -> Diagnosis:
    """Which channels decide for which class, which classes share them, and which images are doubtful.

    Channels of a class come from its ``n`` training images that the network recognises most surely. All else is
    measured on validation images, of which each takes one forward and two backward passes, from its logits to F.

    Args:
        model: a trained classifier; it stays as it is.
        data: labelled, with the same classes.
        layer: whose output F is looked at; ``None``: the last convolution that runs.
        theta: what a channel's score must exceed to belong to a class.
        act: relu (released code) counts what speaks for a class, abs (an older state of it) also what speaks against.
        device: where to compute; ``None`` is the CPU.

    Raises:
        UserError: there is no convolution; a class without a training image that is recognised; no labels; outputs
            that are not finite.
    """
    data, device = aligned(model, data), torch.device(device or "cpu")
    network = probe(model.module, device)
    layer = layer or last_convolution(network, model.example(2).to(device))
    train, held = (labelled(split) for split in (data.train, data.validation))
    require(len(train) > 0 and len(held) > 0, f"{data.name} needs labels, for training and for validation images.")

    z = predict_logits(network, train)
    broken = int((~z.isfinite()).any(1).sum())
    require(broken == 0, f"{model.name} gives NaN or infinite outputs for {broken} of {len(z)} training images; check "
            "its weights and these images.")  # fmt: skip
    surest = confident(z, train, n)
    for name, found in zip(model.classes, surest, strict=True):
        require(len(found) > 0, f"{model.name} recognises no training image of class '{name}', so no channel "
                "speaks for it; check the labels and the normalisation, or train that class first.")  # fmt: skip
    images = torch.cat(surest).sort().values
    aggregate = class_aggregate(network, train.subset(images), layer, act=act, device=device, k=len(model.classes))
    mask = channel_mask(aggregate, theta)

    seen = class_support(network, held, layer, act=act, device=device)
    evaluation = judged(seen.logits, seen.labels, num_classes=len(model.classes), name=model.name)
    own, wrong = shares(seen, mask)
    return Diagnosis(
        classes=model.classes, layer=layer, scores=channel_scores(aggregate), mask=mask, images=images,
        concentration=by_class(own, seen.labels, len(model.classes)),
        wrong=by_class(wrong, seen.labels, len(model.classes)),
        shared=_shared(mask, model.classes), confused=_confused(seen, held, model.classes),
        doubtful=_doubtful(z, train, model.classes), evaluation=evaluation,
    )  # fmt: skip


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


def last_convolution(module: nn.Module, example: Float[Tensor, "b c h w"]) -> str:
    """The name of the convolution that runs last, in eval mode.

    In a block with several branches that is the last that its forward calls, for example the shortcut's.

    Raises:
        UserError: there is none.
    """
    ran: list[str] = []

    def noting(name: str) -> Callable[[Tensor], Tensor]:
        def note(f: Tensor) -> Tensor:
            ran.append(name)
            return f

        return note

    with undisturbed(module):
        names = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d)]
        with Taps(module, replace={name: noting(name) for name in names}):
            module(example)
    require(bool(ran), f"{type(module).__name__} has no convolution, and it is the channels of one that are looked at; "
            "name a --layer that gives maps (b, c, h, w).")  # fmt: skip
    return ran[-1]


def class_support(
    network: nn.Module, split: ImageSplit, layer: str, *, act: Act = "relu", device: torch.device | str = "cpu"
) -> Support:
    """Support for the true and for the most probable wrong class, of every sample of a split.

    Args:
        network: made by :func:`probe`, on ``device``, so that there is a graph from F onwards only.
        split: without unknown labels.
    """
    parts = []
    for index in torch.arange(len(split)).split(256):
        images, y, _ = split.batch(index, device=torch.device(device))
        with torch.enable_grad(), recorded(network, layer, leaf=True) as seen:
            z = network(images)
        rival = rivals(z, y)
        own, other = (support(class_gradients(z, seen.f, c), act) for c in (y, rival))
        parts.append([t.detach().cpu() for t in (own, other, y, rival, z)])
    return Support(*(torch.cat(column) for column in zip(*parts, strict=True)))


def class_aggregate(
    network: nn.Module, split: ImageSplit, layer: str, *, act: Act = "relu", device: torch.device | str = "cpu", k: int
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


def confident(z: Float[Tensor, "n k"], split: ImageSplit, n: int) -> list[Int[Tensor, " s"]]:
    """Positions of the ``n`` images of each class that are recognised most surely, whatever the order of the images."""
    y = split.labels
    right = z.argmax(1) == y
    order = split.ids.argsort(stable=True)
    order = order[margin(z, y)[order].argsort(descending=True, stable=True)]
    return [order[right[order] & (y[order] == c)][:n] for c in range(z.shape[1])]


def _shared(mask: Tensor, classes: tuple[str, ...]) -> list[tuple[str, str, float]]:
    m = mask.double()
    both, each = m @ m.T, m.sum(1)
    jaccard = (both / (each[:, None] + each - both)).triu(1)
    values, places = jaccard.flatten().topk(min(LISTED, jaccard.numel()))
    pairs = [(classes[i // len(classes)], classes[i % len(classes)]) for i in places.tolist()]
    return [(a, b, v) for (a, b), v in zip(pairs, values.tolist(), strict=True) if v > 0]


def _confused(seen: Support, split: ImageSplit, classes: tuple[str, ...]) -> list[tuple[str, str, list[int]]]:
    pairs: dict[tuple[int, int], list[int]] = {}
    for y, p, number in zip(seen.labels.tolist(), seen.logits.argmax(1).tolist(), split.ids.tolist(), strict=True):
        if y != p:
            pairs.setdefault((y, p), []).append(number)
    most = sorted(pairs.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:LISTED]
    return [(classes[y], classes[p], sorted(numbers)) for (y, p), numbers in most]


def _doubtful(z: Tensor, split: ImageSplit, classes: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
    top, predicted = z.double().softmax(1).max(1)
    right = predicted == split.labels
    found = {}
    for c, name in enumerate(classes):
        unsure, wrong = (((split.labels == c) & which).nonzero()[:, 0] for which in (right, ~right))
        unsure, wrong = unsure[top[unsure].argsort()], wrong[top[wrong].argsort(descending=True)]
        found[name] = {key: split.ids[i[: LISTED // 2]].tolist() for key, i in (("unsure", unsure), ("wrong", wrong))}
    return found
