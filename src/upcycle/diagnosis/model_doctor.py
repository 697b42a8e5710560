"""Model Doctor: which channels speak for which class, and training that silences wrong channels and the background.

The pure functions are what a person with a training loop of their own takes: :func:`recorded`,
:func:`class_gradients`, :func:`channel_loss`, :func:`spatial_loss`. :func:`diagnose` looks without changing anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.evaluate import Evaluation, evaluate, predict_logits, undisturbed
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.taps import Taps
from upcycle.data.augment import uniform
from upcycle.data.labels import match_classes
from upcycle.diagnosis.masks import as_masks, foreground, load_masks
from upcycle.distillation.kd import ce_loss
from upcycle.distillation.tfkd import fresh

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


def share_on(g: Float[Tensor, "n c"], on: Bool[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The share of each sample's support that falls on given channels; NaN where there is no support at all."""
    return (g * on).sum(1) / g.sum(1)


# -- losses ----------------------------------------


def channel_loss(
    own: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    rival: Int[Tensor, " b"],
    mask: Bool[Tensor, "k c"],
    act: Act = "relu",
) -> Float[Tensor, ""]:
    """L_chan = mean_b [ Σ_ch M[y',ch] g(y')[ch] + Σ_ch (1 - M[y,ch]) g(y)[ch] ].

    Channels of the wrong class must not react to the sample, and channels foreign to the true class must not
    support it.

    Args:
        own: G of the true class.
        other: G of the most probable wrong class.
        y, rival: these classes.
        mask: M.
    """
    wrong, foreign = mask[rival] * support(other, act), ~mask[y] * support(own, act)
    return (wrong + foreign).sum(1).mean()


def spatial_loss(own: Float[Tensor, "b c h w"], m: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """L_spat = mean_b Σ_{ch,h,w} | (1 - m) G |, where G is that of the true class and m is 1 on the foreground.

    The mean is over the batch, in which an image without a mask (m = 1 all over) counts as 0: what the published code
    amounts to. A mean over masked images alone would let a batch with one of them weigh as much as one full of them.
    """
    wide = own if own.dtype == torch.float64 else own.float()
    return ((1 - m[:, None]) * wide).abs().sum() / len(own)


# -- diagnosis ----------------------------------------


class Support(NamedTuple):
    """What :func:`class_support` found for n samples; on the CPU."""

    own: Tensor  # (n, c): g(b, y)
    other: Tensor  # (n, c): g(b, y')
    labels: Tensor  # (n,): y
    rival: Tensor  # (n,): y'
    predicted: Tensor  # (n,)


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

    evaluation = evaluate(network, held, num_classes=len(model.classes), name=model.name)
    seen = class_support(network, held, layer, act=act, device=device)
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
    columns = match_classes(data.classes, model.classes)[0].tolist()
    if columns != list(range(k)):
        data = dataclasses.replace(data.only(tuple(data.classes[i] for i in columns)), classes=model.classes)
    return data.normalised(model.mean, model.std)


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
        parts.append([t.detach().cpu() for t in (own, other, y, rival, z.argmax(1))])
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
    own = z.double().gather(1, y[:, None])[:, 0]
    # The margin grows with the probability, and does not end at 1.
    margin = own - z.double().scatter(1, y[:, None], -torch.inf).logsumexp(1)
    right = z.argmax(1) == y
    order = split.ids.argsort(stable=True)
    order = order[margin[order].argsort(descending=True, stable=True)]
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
    for y, p, number in zip(seen.labels.tolist(), seen.predicted.tolist(), split.ids.tolist(), strict=True):
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


def gradcam_masks(network: nn.Module, split: ImageSplit, layer: str, *, device: torch.device | str) -> ImageSplit:
    """Masks of all images from the network itself: where Grad-CAM of the true class is above its mean.

    Σ_ch α_ch F[ch] with α the spatial mean of G (Selvaraju et al., arXiv:1610.02391). F is taken before BatchNorm,
    whose shift would add a constant to the map, so the threshold is the map's mean and not zero (our choice). Such
    masks hold training to where the network looks already; they cannot tell it where to look.
    """
    _, height, width = split.shape
    maps = []
    for index in torch.arange(len(split)).split(256):
        images, y, _ = split.batch(index, device=torch.device(device))
        with torch.enable_grad(), recorded(network, layer, leaf=True) as seen:
            z = network(images)
        alpha = class_gradients(z, seen.f, y).mean((2, 3), keepdim=True)
        cam = (alpha * seen.f.detach()).sum(1)
        above = (cam > cam.mean((1, 2), keepdim=True)).float()
        maps.append(F.interpolate(above[:, None], (height, width), mode="nearest-exact")[:, 0].cpu() > 0.5)
    found = torch.cat(maps)
    rows = found.flatten(1).any(1).nonzero()[:, 0]
    return as_masks(found[rows], rows, split)


# -- treatment ----------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class ModelDoctor(Method):
    """Model Doctor: A Simple Gradient Aggregation Strategy (Feng et al.; AAAI 2022; arXiv:2112.04934).

    1. *Diagnosis.* M from the most confident training images of each class, see :func:`diagnose`.
    2. *Treatment.* Ordinary training of all weights, from the trained ones, on

        L = CE(z, y) + a L_chan + b L_spat      (:func:`channel_loss`, :func:`spatial_loss`),

       whose inner gradients d z / d F are made with a graph, so that the penalties have gradients themselves.

    With a = b = 0 and no noise it is plain continued training, bit for bit: the control without which a gain says
    nothing.

    Scale: the published code differentiates the mean of the logits over the batch, so that its gradients carry 1/B;
    here they are per sample. Its a = 10 at B = 128 is a = 0.08 here. Its b, divided by B and summed, stays b.

    Departures: the released script never loads the trained network that it is given; here it is loaded
    (``from_scratch`` is that script). Until May 2023 its penalties had no gradient.

    If only pooling and a linear layer follow F, L_chan is an L1 norm of chosen weights of that layer: little changes
    before F. The gates of ReLU have no second derivative.

    Args:
        source: a trained classifier that can be differentiated twice from its logits to the layer.
        a: weight of the channel term.
        b: weight of the spatial term; above 0 it needs ``masks``.
        theta: threshold of the channel masks.
        n: confident images a class.
        act: relu (released code) or abs.
        noise: standard deviation of Gaussian noise added to F in training (1 in the code of 2021, 0 in the released).
        layer: whose output is F; none: the last convolution that runs.
        masks: foreground: gradcam, a folder of PNG files, or a COCO file (:func:`~upcycle.diagnosis.masks.load_masks`).
        from_scratch: draw new weights and train those, with the masks of the trained network.
        recipe: ordinary training (the paper: 200 epochs).
    """

    source: Model | nn.Module
    a: float = 0.1
    b: float = 0.0
    theta: float = 0.2
    n: int = 50
    act: Act = "relu"
    noise: float = 0.0
    layer: str | None = None
    masks: str | None = None
    from_scratch: bool = False
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=30, lr=0.01))

    roles: ClassVar[tuple[str, ...]] = ("source",)
    card = Card(
        name="modeldoctor",
        title="Model Doctor: A Simple Gradient Aggregation Strategy for Diagnosing and Treating CNN Classifiers",
        paper="Feng, Hu, Wu, Yu, Song, Song; AAAI 2022; arXiv:2112.04934",
        verb="treat",
        needs=Needs(data="labelled", teacher="weights", architectures="a CNN classifier, twice differentiable"),
        summary="The same classifier, retrained so that channels of wrong classes and the background decide less.",
        cost="plain training + two passes a step through what follows the last convolution",
        published="+1 to +5 points on 16 CNNs (abstract); CIFAR-10 ResNet-50 94.89 → 95.48 (log of a fork of the code)",
    )

    def __post_init__(self) -> None:
        for name in ("a", "b", "noise"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} must be zero or positive, not {value}.")
        require(0 <= self.theta < 1, f"theta must lie in [0, 1), as scores do, not {self.theta}.")
        require(self.n >= 1, f"n must be at least 1 image a class, not {self.n}.")
        require(self.act in ("relu", "abs"), f"act must be relu or abs, not '{self.act}'.")

    def control(self) -> ModelDoctor:
        """Plain continued training with the same recipe: what a gain must be compared with."""
        return dataclasses.replace(self, a=0.0, b=0.0, noise=0.0)

    def work(self, n: int, teacher: int, student: int) -> float:
        """Training, and two forwards of every training image for the diagnoses before and after."""
        return super().work(n, 0, max(teacher, student)) + float(2 * n * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labels, images of each class, a layer that is twice differentiable, and masks that fit."""
        source, problems = self.model("source", data), []
        if unknown := int((data.train.labels < 0).sum()):
            problems.append(f"it learns from labels, and {unknown} of {len(data.train)} training images have none")
        if source.input_shape[0] != data.shape[0]:
            return [*problems, f"{source.name} takes {source.input_shape[0]} input channels and the images have "
                    f"{data.shape[0]}"]  # fmt: skip
        try:
            images = aligned(source, data)
            network = probe(source.module)
            layer = self.layer or last_convolution(network, source.example())
            require_penalty(network, layer, source.example(), twice=self.a > 0 or self.b > 0)
            if self.b:
                require(self.masks is not None, "b weighs the background, which needs masks: give --masks FOLDER, a "
                        "COCO file, or gradcam.")  # fmt: skip
                if self.masks != "gradcam":
                    load_masks(str(self.masks), images.train)
        except UserError as error:
            return [*problems, str(error).rstrip(".")]
        counts = torch.bincount(labelled(images.train).labels, minlength=len(source.classes)).tolist()
        none = [name for name, count in zip(source.classes, counts, strict=True) if not count]
        if none:
            problems.append(f"{data.name} has no labelled training image of {', '.join(none[:3])}, so no channel would "
                            "belong to it")  # fmt: skip
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the treated network."""
        source = self.model("source", data)
        data = aligned(source, data)
        require(not (run.compile and (self.a or self.b)), "modeldoctor differentiates twice, which compiled networks "
                "cannot; leave out --compile.")  # fmt: skip

        def look() -> dict[str, Any]:
            found = diagnose(
                source, data, layer=self.layer, n=self.n, theta=self.theta, act=self.act, device=run.device
            )
            return {"layer": found.layer, "scores": found.scores, "mask": found.mask, "images": found.images,
                    "shares": [found.concentration, found.wrong]}  # fmt: skip

        before = run.stage("diagnosis", look)
        layer, mask = before["layer"], before["mask"].to(run.device)
        masks = self._masks(run, source, data, layer)

        network = fresh(source.module) if self.from_scratch else copy_of(source.module)
        student, optimizer = run.setup(network.requires_grad_(True), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, y, index in run.batches(data.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                view = (run.seed, run.view)
                with recorded(student, layer, noise=self._noise(data.train, index, view)) as seen:
                    z = student(images)
                loss = cross_entropy = ce_loss(z, y)
                if self.a or self.b:
                    own = class_gradients(z, seen.f, y, graph=True)
                if self.a:
                    rival = rivals(z, y)
                    other = class_gradients(z, seen.f, rival, graph=True)
                    channels = channel_loss(own, other, y, rival, mask, self.act)
                    loss = loss + self.a * channels
                    run.track(channel_loss=channels)
                if masks is not None:
                    m = foreground(masks, index.cpu(), (own.shape[2], own.shape[3]), view=view, device=run.device)
                    background = spatial_loss(own, m)
                    loss = loss + self.b * background
                    run.track(spatial_loss=background)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=cross_entropy)
            run.evaluate(student, data.validation)
        made = run.plain(student)
        self._show(run, source, data, before, made)
        return made

    def product(self, module: nn.Module, data: Images) -> Model:
        """The same architecture with new weights."""
        source = self.model("source", data)
        return dataclasses.replace(source, module=module, lineage=None, name=f"{source.name}-treated")

    def _masks(self, run: Run, source: Model, data: Images, layer: str) -> ImageSplit | None:
        if not self.b:
            return None
        if self.masks != "gradcam":
            return load_masks(str(self.masks), data.train)
        return gradcam_masks(probe(source.module, run.device), data.train, layer, device=run.device)

    def _noise(self, split: ImageSplit, index: Tensor, view: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
        """ε of each sample, drawn from (seed, epoch, sample), so that the number of processes changes nothing."""
        if not self.noise:
            return None

        def draw(f: Tensor) -> Tensor:
            u = uniform(*view, split.ids[index.cpu()], "model doctor", f[0].numel()).clamp_min(2.0**-54)
            return self.noise * torch.special.ndtri(u).view(f.shape).to(f)

        return draw

    def _show(self, run: Run, source: Model, data: Images, before: dict[str, Any], made: nn.Module) -> None:
        """The channels before and after, and what they mean on validation images with the same M."""
        layer, k, treated = before["layer"], len(source.classes), probe(made, run.device)
        scores = channel_scores(class_aggregate(treated, data.train.subset(before["images"]), layer, act=self.act,
                                                device=run.device, k=k))  # fmt: skip
        order = channel_order(before["scores"])
        for i, (name, found) in enumerate((("before", before["scores"]), ("after", scores)), 1):
            run.picture(f"channels-{i}-{name}", {
                "kind": "heatmap", "title": f"Channels of {layer}, {name}",
                "caption": f"How much each channel speaks for each class (rows), in [0, 1]; above {self.theta:g} it is "
                "one of that class.", "rows": list(source.classes), "columns": [str(c) for c in order.tolist()],
                "values": found[:, order].tolist()})  # fmt: skip
        seen = class_support(treated, labelled(data.validation), layer, act=self.act, device=run.device)
        found = [by_class(share, seen.labels, k) for share in shares(seen, before["mask"])]
        own, wrong = ([_percent(means) for means in pair] for pair in zip(before["shares"], found, strict=True))
        run.note(f"Channels are those of {layer}. On validation images {own[1]:.1f} % of the support for the true "
                 f"class falls on its channels ({own[0]:.1f} % before), and {wrong[1]:.1f} % of the support for the "
                 f"most probable wrong class on that one's ({wrong[0]:.1f} %), means over classes.")  # fmt: skip


def _percent(means: list[float | None]) -> float:
    """Of all classes that have a value."""
    found = [m for m in means if m is not None]
    return 100 * sum(found) / max(len(found), 1)


def channel_order(scores: Float[Tensor, "k c"]) -> Int[Tensor, " s"]:
    """The loudest channels, those of one class side by side."""
    top, owner = scores.max(0)
    loudest = top.argsort(descending=True, stable=True)[:SHOWN]
    return loudest[owner[loudest].argsort(stable=True)]


def require_penalty(network: nn.Module, layer: str, example: Float[Tensor, "b c h w"], *, twice: bool = True) -> None:
    """Try on one batch whether a penalty on d z / d F moves any weight.

    Raises:
        UserError: the layer gives no maps or does not reach the logits, or there is no second derivative.
    """
    network = copy_of(network).requires_grad_(True)
    with recorded(network, layer) as seen:
        z = network(example)
    require(hasattr(seen, "f"), f"'{layer}' does not run in eval mode; name another --layer.")
    require(seen.f.ndim == 4, f"'{layer}' gives {tuple(seen.f.shape)}, not maps (b, c, h, w); name another --layer.")
    classes = z.argmin(1)
    try:
        g = class_gradients(z, seen.f, classes, graph=twice)
        if not twice:
            return
        if g.requires_grad:
            g.square().sum().backward()
    except RuntimeError as error:
        raise UserError(f"{type(network).__name__} cannot be differentiated twice from its logits to '{layer}' "
                        f"({one_line(error)}); name another --layer, or set a and b to 0.") from None  # fmt: skip
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    require(any(bool(grad.any()) for grad in grads), f"No weight follows '{layer}', so a penalty on its "
            "gradient changes nothing; name an earlier --layer.")  # fmt: skip
