"""A diagnosis: which channels decide for which class, which classes share them, and which images are doubtful."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.feature_maps import FeatureMap, Flow
from upcycle.core.models import Model
from upcycle.core.task import Evaluation, judged, margin
from upcycle.diagnosis.errors.class_channels import (
    Act,
    Support,
    aligned,
    by_class,
    channel_map,
    channel_mask,
    channel_scores,
    class_aggregate,
    class_support,
    labelled,
    probe,
    rivals,
    shares,
)

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit


LISTED = 20
"""How many pairs of classes, and doubtful images of a class, a diagnosis names at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """The findings of :func:`diagnose` in a network with k classes, whose layer has c channels.

    Args:
        classes: their names.
        layer: whose channels are meant; ``None`` where the network has none that could be looked at, so that c is 0.
        scores: (k, c), float32 in [0, 1]: how much a channel speaks for a class, relative to others.
        mask: (k, c), bool: the channels of a class; a class that is never recognised has none.
        images: int64: the training images that both were made from, by position among those with labels.
        concentration: for each class the share of its support that falls on its channels, over validation images.
        wrong: for each class, over its images, the share of the most probable wrong class's support that falls on that
            one's channels.
        shared: pairs of classes with channels in common, and the Jaccard index of their channels; the closest first.
        confused: (class, predicted class, numbers of the validation images), the most frequent first.
        doubtful: for each class numbers of training images: ``unsure`` are recognised with the lowest probability,
            ``wrong`` are not, with the highest probability of the mistaken class. Masks for these help most.
        evaluation: accuracy, of each class too, and calibration on validation images.
        trained: the same on training images.
        familiar: whether validation images are answered as training images are, see :func:`familiar`.
        unrecognised: classes of which no training image is recognised, and how many training images each has.
    """

    classes: tuple[str, ...]
    layer: FeatureMap | None
    scores: Tensor
    mask: Tensor
    images: Tensor
    concentration: list[float | None]
    wrong: list[float | None]
    shared: list[tuple[str, str, float]]
    confused: list[tuple[str, str, list[int]]]
    doubtful: dict[str, dict[str, list[int]]]
    evaluation: Evaluation
    trained: Evaluation
    familiar: bool
    unrecognised: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {name: plain[name].tolist() for name in ("scores", "mask", "images")}
        for name in ("layer", "evaluation", "trained"):
            plain[name] = None if plain[name] is None else dataclasses.asdict(plain[name])
        return plain


def diagnose(
    model: Model,
    data: Images,
    *,
    layer: str | FeatureMap | None = None,
    n: int = 50,
    theta: float = 0.2,
    act: Act = "relu",
    device: torch.device | str | None = None,
) -> Diagnosis:
    """Find the channels that decide for each class, the classes that share some, and doubtful images.

    Channels of a class come from its ``n`` training images that the network recognises most surely. All else is
    measured on validation images, of which each takes one forward and two backward passes, from its logits to F.

    Args:
        model: a trained classifier; it stays as it is.
        data: labelled, with the same classes.
        layer: whose output F is looked at; ``None``: see :func:`~upcycle.diagnosis.errors.class_channels.channel_map`.
        theta: what a channel's score must exceed to belong to a class.
        act: relu (released code) counts what speaks for a class, abs (an older state of it) also what speaks against.
        device: where to compute; ``None`` is the CPU.

    Raises:
        UserError: there is no such layer, or it gives no maps; no labels; outputs that are not finite.
    """
    data, device = aligned(model, data), torch.device(device or "cpu")
    network = probe(model.module, device)
    place = layer if isinstance(layer, FeatureMap) else _place(network, layer, model.example(2).to(device))
    train, held = (labelled(split) for split in (data.train, data.validation))
    require(len(train) > 0 and len(held) > 0, f"{data.name} needs labels, for training and for validation images.")

    z = predict_logits(network, train)
    broken = int((~z.isfinite()).any(1).sum())
    require(
        broken == 0,
        f"{model.name} gives NaN or infinite outputs for {broken} of {len(z)} training images; check "
        "its weights and these images.",
    )
    surest = confident(z, train, n)
    images, k = torch.cat(surest).sort().values, len(model.classes)
    known = torch.tensor([len(found) > 0 for found in surest])
    counts = torch.bincount(train.labels, minlength=k).tolist()

    if place is None or not len(images):
        place, aggregate = None, torch.zeros(k, 0)
        logits = predict_logits(network, held)
        none = torch.zeros(len(held), 0)
        seen = Support(none, none, held.labels, rivals(logits, held.labels), logits)
    else:
        aggregate = class_aggregate(network, train.subset(images), place, act=act, device=device, k=k)
        seen = class_support(network, held, place, act=act, device=device)
    scores, mask = aggregate, aggregate > 0
    if place is not None:
        scores, mask = channel_scores(aggregate), channel_mask(aggregate, theta) & known[:, None]

    evaluation = judged(seen.logits, seen.labels, num_classes=k, name=model.name)
    own, wrong = shares(seen, mask)
    own[~known[seen.labels]] = wrong[~known[seen.rival]] = torch.nan
    return Diagnosis(
        classes=model.classes,
        layer=place,
        scores=scores,
        mask=mask,
        images=images,
        concentration=by_class(own, seen.labels, k),
        wrong=by_class(wrong, seen.labels, k),
        shared=_shared(mask, model.classes),
        confused=_confused(seen, held, model.classes),
        doubtful=_doubtful(z, train, model.classes),
        evaluation=evaluation,
        trained=judged(z, train.labels, num_classes=k, name=model.name),
        familiar=familiar(margin(z, train.labels), margin(seen.logits, seen.labels)),
        unrecognised={name: counts[c] for c, name in enumerate(model.classes) if not known[c]},
    )


def familiar(seen: Float[Tensor, " n"], held: Float[Tensor, " m"]) -> bool:
    """Whether a network answers validation images as it answers those that it learnt from.

    Where validation images were trained on, both are draws from the same images, and so are their margins. It is no
    longer believed when their means differ by more than three standard errors. Networks that answer any image of a kind
    alike, because they learnt nothing by heart, are familiar with all.

    Args:
        seen: :func:`~upcycle.core.task.margin` of each training image.
        held: the same of each validation image.
    """
    error = (seen.var() / len(seen) + held.var() / len(held)).sqrt()
    return not bool(seen.mean() - held.mean() > 3 * error)


def _place(network: nn.Module, layer: str | None, example: Tensor) -> FeatureMap | None:
    return channel_map(network, example) if layer is None else Flow(network, example).named(layer)[0]


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
