"""Model Doctor: training that silences wrong channels and the background.

:func:`channel_loss` and :func:`spatial_loss` are for a training loop of one's own; what they penalise comes from
:mod:`upcycle.diagnosis.errors.class_channels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.feature_maps import FeatureMap, Flow, record_layer
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of, fresh_copy_of
from upcycle.core.outputs import called
from upcycle.core.patterns import Values
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.diagnosis.errors.class_channels import (
    Act,
    aligned,
    by_class,
    channel_map,
    channel_order,
    channel_scores,
    class_aggregate,
    class_gradients,
    class_support,
    labelled,
    probe,
    rivals,
    shares,
    support,
)
from upcycle.diagnosis.errors.findings import diagnose
from upcycle.diagnosis.errors.foreground import foreground, gradcam_masks, load_masks

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit


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


def gaussian(
    f: Float[Tensor, "b c h w"], *, ids: Int[Tensor, " b"], view: tuple[int, int], deviation: float
) -> Float[Tensor, "b c h w"]:
    """ε of each sample, drawn from (seed, epoch, sample), so that the number of processes changes nothing.

    Args:
        f: F, whose shape and type ε has.
        ids: numbers of the samples.
        view: seed and epoch.
        deviation: the standard deviation of ε.
    """
    u = uniform(*view, ids, "model doctor", f[0].numel()).clamp_min(2.0**-54)
    return deviation * torch.special.ndtri(u).view(f.shape).to(f)


@dataclass(kw_only=True, eq=False, repr=False)
class ModelDoctor(Method):
    """Model Doctor: A Simple Gradient Aggregation Strategy (Feng et al.; AAAI 2022; arXiv:2112.04934).

    1. *Diagnosis.* M from the most confident training images of each class, see
       :func:`~upcycle.diagnosis.errors.findings.diagnose`.
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
        theta: score, at least 0 and below 1, above which a channel belongs to a class.
        n: images of each class that its channels are found from, those recognised most surely.
        act: relu counts what speaks for a class (released code), abs also what speaks against it.
        noise: standard deviation of Gaussian noise added to F in training (1 in the code of 2021, 0 in the released).
        layer: name of the layer whose output is F; if not given, the last convolution, or where that is one branch of
            several, or none, the last feature map that all logits pass through.
        masks: foreground of training images: gradcam, a folder of PNG files, or a COCO file
            (:func:`~upcycle.diagnosis.errors.foreground.load_masks`).
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
    admits = frozenset({"sharpness", "sampler"})
    refuses = {"any": "it differentiates inside the loss", "mix": "its loss needs the class of each image"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To mend a CNN by training on."""
        if have.goal != "mend":
            return None
        if have.architecture == "transformer":
            return "its paper treats convolutional networks, and nothing was measured on a transformer."
        reason = (
            "training goes on with a penalty on channels that speak for wrong classes, beside the same training "
            "without one; see first where the network errs, by upcycle diagnose MODEL."
        )
        return Fit(0, reason)

    def __post_init__(self) -> None:
        ranges(
            self,
            not_negative=("a", "b", "noise"),
            below_one=("theta",),
            at_least={"n": 1},
            one_of={"act": ("relu", "abs")},
        )

    def controls(self) -> dict[str, Control]:
        """Plain continued training with the same recipe: what a gain must be compared with."""
        return {"control": Control(method=dataclasses.replace(self, a=0.0, b=0.0, noise=0.0), words="trained on")}

    def work(self, n: int, teacher: int, student: int) -> float:
        """Training, and two forwards of every training image for the diagnoses before and after."""
        return super().work(n, 0, max(teacher, student)) + float(2 * n * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labels, images of each class, a layer that is twice differentiable, and masks that fit."""
        source, problems = self.model("source", data), []
        if unknown := int((data.train.labels < 0).sum()):
            problems.append(f"it learns from labels, which {unknown} of {len(data.train)} training images do not have")
        if source.input_shape[0] != data.shape[0]:
            return [*problems, f"{source.name} takes {source.input_shape[0]} input channels and the images have "
                    f"{data.shape[0]}"]  # fmt: skip
        try:
            images = aligned(source, data)
            network, layer = probe(source.module), self._layer(source)
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
        require(
            not (run.compile and (self.a or self.b)),
            "modeldoctor differentiates twice, which compiled networks cannot; run it uncompiled.",
        )

        layer = self._layer(source)
        before = run.stored("diagnosis", self._kept(len(source.classes), int((data.train.labels >= 0).sum())))
        if before is None:
            with run.open_stage("diagnosis") as before:
                found = diagnose(source, data, layer=layer, n=self.n, theta=self.theta, act=self.act, device=run.device)
                before |= {"scores": found.scores, "mask": found.mask, "images": found.images}
                before["shares"] = [found.concentration, found.wrong]
        mask = before["mask"].to(run.device)
        mask = mask | ~mask.any(1, keepdim=True)  # to a class that was never recognised no channel is foreign
        masks = self._masks(run, source, data, layer)

        network = fresh_copy_of(source.module) if self.from_scratch else copy_of(source.module)
        student, optimizer = run.setup(network.requires_grad_(True), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, y, index in run.batches(data.train, self.recipe):
                self.recipe.schedule_rate(optimizer, run.progress)
                view = (run.seed, run.view)
                with record_layer(student, layer, noise=self._noise(data.train, index, view)) as seen:
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
        self._show(run, source, data, layer, before, made)
        return made

    def _kept(self, k: int, n: int) -> dict[str, Any]:
        """The pattern of what is kept of the diagnosis of k classes by n labelled images."""
        shares = (((float | None),) * k,) * 2
        images = Values((None,), 0, n - 1, whole=True)
        mask = Values((k, None), 0, 1, whole=True)
        return {"scores": Values((k, None)), "mask": mask, "images": images, "shares": shares}

    def product(self, module: nn.Module, data: Images) -> Model:
        """The same architecture with new weights."""
        source = self.model("source", data)
        return dataclasses.replace(source, module=module, lineage=None, name=f"{source.name}-treated")

    def _layer(self, source: Model) -> FeatureMap:
        network, example = probe(source.module), source.example()
        if self.layer is not None:
            return Flow(network, example).named(self.layer)[0]
        found = channel_map(network, example)
        if found is None:
            raise UserError(
                f"{source.name} has no features between images and logits whose gradient could be looked at"
            )
        return found

    def _masks(self, run: Run, source: Model, data: Images, layer: FeatureMap) -> ImageSplit | None:
        if not self.b:
            return None
        if self.masks != "gradcam":
            return load_masks(str(self.masks), data.train)
        return gradcam_masks(probe(source.module, run.device), data.train, layer, device=run.device)

    def _noise(self, split: ImageSplit, index: Tensor, view: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
        if not self.noise:
            return None
        return partial(gaussian, ids=split.ids[index.cpu()], view=view, deviation=self.noise)

    def _show(
        self, run: Run, source: Model, data: Images, layer: FeatureMap, before: dict[str, Any], made: nn.Module
    ) -> None:
        """The channels before and after, and what they mean on validation images with the same M."""
        k, treated = len(source.classes), probe(made, run.device)
        scores = channel_scores(class_aggregate(treated, data.train.subset(before["images"]), layer, act=self.act,
                                                device=run.device, k=k))  # fmt: skip
        order = channel_order(before["scores"])
        for i, (name, found) in enumerate((("before", before["scores"]), ("after", scores)), 1):
            run.picture(f"channels-{i}-{name}", {
                "kind": "heatmap", "title": f"Channels of {layer.name}, {name}",
                "caption": f"How much each channel speaks for each class (rows), in [0, 1]; above {self.theta:g} it is "
                "one of that class.", "rows": list(source.classes), "columns": [str(c) for c in order.tolist()],
                "values": found[:, order].tolist()})  # fmt: skip
        seen = class_support(treated, labelled(data.validation), layer, act=self.act, device=run.device)
        found = [by_class(share, seen.labels, k) for share in shares(seen, before["mask"])]
        own, wrong = ([_percent(means) for means in pair] for pair in zip(before["shares"], found, strict=True))
        run.note(f"Channels are those of {layer.name}. On validation images {own[1]:.1f} % of the support for the true "
                 f"class falls on its channels ({own[0]:.1f} % before), and {wrong[1]:.1f} % of the support for the "
                 f"most probable wrong class on that one's ({wrong[0]:.1f} %), means over classes.")  # fmt: skip


def _percent(means: list[float | None]) -> float:
    """Of all classes that have a value."""
    found = [m for m in means if m is not None]
    return 100 * sum(found) / max(len(found), 1)


def require_penalty(
    network: nn.Module, layer: str | FeatureMap, example: Float[Tensor, "b c h w"], *, twice: bool = True
) -> None:
    """Try on one batch whether a penalty on d z / d F moves any weight.

    Raises:
        UserError: the layer gives no maps or does not reach the logits, or there is no second derivative.
    """
    network, name = copy_of(network).requires_grad_(True), layer if isinstance(layer, str) else layer.name
    with record_layer(network, layer) as seen:
        z = network(example)
    classes = z.argmin(1)
    try:
        g = class_gradients(z, seen.f, classes, graph=twice)
        if not twice:
            return
        if g.requires_grad:
            g.square().sum().backward()
    except RuntimeError as error:
        raise UserError(f"{called(network)} cannot be differentiated twice from its logits to '{name}' "
                        f"({one_line(error)}); name another --layer, or set a and b to 0.") from None  # fmt: skip
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    require(any(bool(grad.any()) for grad in grads), f"No weight follows '{name}', so a penalty on its "
            "gradient changes nothing; name an earlier --layer.")  # fmt: skip
