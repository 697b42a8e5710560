"""CMAE: an encoder learns from images without labels, by reconstructing what is hidden and telling images apart."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.masked import pictures
from upcycle.adaptation.masked.parts import (
    Decoder,
    Online,
    Target,
    groups_of,
    hidden_places,
    patches_of,
    standardised,
    trained,
    visible_places,
)
from upcycle.adaptation.masked.views import ShiftedViews
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError
from upcycle.core.heads import classifier, features, for_classes, linear
from upcycle.core.losses import contrastive_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of, own_copy
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.core.tokens import Blocks, blocks_of, encode, last_of, leaking
from upcycle.core.undisturbed import undisturbed
from upcycle.training.linear_probe import linear_probe

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

BETAS = (0.9, 0.95)
"""Of AdamW, as in the authors' code."""


def reconstruction_loss(
    pred: Float[Tensor, "b n p"], patches: Float[Tensor, "b n p"], hidden: Int[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """L_r of each image: the mean over its hidden places of the mean over p of (pred - t)², t standardised patches.

    Args:
        pred: what the decoder gives for each place.
        patches: the pixels.
        hidden: places that the encoder did not see; what ``pred`` has for others does not count.
    """
    apart = (pred - standardised(patches)[0]).square().mean(2)
    return apart.gather(1, hidden).mean(1)


def contrast_loss(p_s: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"], tau: float) -> Float[Tensor, ""]:
    """L_c = 2 τ CE(p̂_s · ẑ_t' / τ, diagonal) with rows of unit length: each image is told from all others of the batch.

    Args:
        p_s: predictions from the online views, of all processes.
        z_t: projections of the target views, likewise; no gradient goes there.
        tau: τ.
    """
    wide = torch.float64 if p_s.dtype == torch.float64 else torch.float32
    return 2 * tau * contrastive_loss(F.normalize(p_s.to(wide)), F.normalize(z_t.to(wide)), tau)


@dataclass(kw_only=True, eq=False, repr=False)
class CMAE(Method):
    """Contrastive Masked Autoencoders are Stronger Vision Learners (Huang et al.; arXiv:2207.13532).

    Of each image there are two views that lie over each other but for a few pixels
    (:class:`~upcycle.adaptation.masked.views.ShiftedViews`). The online encoder sees the patches of the first that are
    not masked, the target encoder the whole second one, in other colours. Each step descends

        w_pixels L_r + w_contrast L_c

    where L_r compares what the pixel decoder makes of the hidden patches with them (:func:`reconstruction_loss`), and
    L_c what the feature decoder makes of the whole image with the target (:func:`contrast_loss`), among all images of
    the batch over all processes. Then the target's weights follow: θ_t = m θ_t + (1 - m) θ_s, parameter by parameter of
    the same name. ``w_contrast 0`` is a masked autoencoder (MAE), exactly.

    Labels play no part in that. At the end a linear probe on the frozen encoder is fitted to labelled training images,
    where there are any, and is the classifier of the product: on what the network's own classifier reads, the class
    token of ``zoo:vit_plain`` or the mean of the patches of ``zoo:vit_plain_mean``. Where there are none, it is left as
    it came. Decoders, projector, predictor and target are thrown away.

    Departures from the authors' code: the encoder's positions are its own, learnt ones, while theirs are fixed; hues do
    not change; flips are what ``--augment`` says; the shift, the decoders and the hidden layers keep the paper's
    proportions to image and encoder, unless they are given. Clips (CMAE-V) are not built.

    Args:
        source: a vision transformer whose tokens see one patch each before the first block, fresh or trained.
        mask: share of the groups of patches that is hidden.
        group: side of a group, in patches.
        shift: pixels that the target view may be off at most; if not given, 31 of 224.
        scale: smallest share of an image's area that a view shows, above 0; 1 for the whole image.
        recolour: change the colours of the target view.
        w_pixels: weight of the reconstruction.
        w_contrast: weight of the contrast; with both at 0 nothing is learnt but the classifier.
        tau: temperature τ of the contrast.
        momentum: share m of the target's weights that stays in each step.
        projection: size of what is contrasted.
        decoder_width: width of both decoders, a multiple of 4; if not given, two thirds of the encoder's.
        decoder_depth: blocks of the pixel decoder; if not given, two thirds of the encoder's.
        feature_depth: blocks of the feature decoder; if not given, a sixth of the encoder's.
        probes: labelled images at most that the classifier is fitted to, at least 2.
        recipe: training of the encoder. The paper has batches of 4,096 and 300 epochs or more; contrast among few
            images helps less.
    """

    source: Model | nn.Module
    mask: float = 0.65
    group: int = 2
    shift: int | None = None
    scale: float = 0.2
    recolour: bool = True
    w_pixels: float = 1.0
    w_contrast: float = 1.0
    tau: float = 0.07
    momentum: float = 0.996
    projection: int = 256
    decoder_width: int | None = None
    decoder_depth: int | None = None
    feature_depth: int | None = None
    probes: int = 10_000
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=100, batch_size=256, optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup=1.0
        )
    )

    roles: ClassVar[tuple[str, ...]] = ("source",)
    card = Card(
        name="cmae",
        title="Contrastive Masked Autoencoders are Stronger Vision Learners",
        paper="Huang, Jin, Lu, Hou, Cheng, Fu, Shen, Feng; TPAMI 2023; arXiv:2207.13532",
        verb="adapt",
        needs=Needs(
            data="unlabelled",
            teacher="none",
            architectures="a vision transformer whose tokens are patches, or a fresh one",
        ),
        summary="An encoder that learns from images without labels; a linear classifier on it, where some have labels.",
        cost="about plain training: a third of the patches, two decoders, and a forward of the whole image",
        published="ImageNet ViT-B, fine-tuned: MAE 82.9 and 83.6, CMAE 83.8 and 84.7 (300 and 1600 epochs; README)",
    )
    refuses = {"any": "labels play no part in it, and each image comes in two views"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For many images without labels and a vision transformer, which may be a fresh one."""
        if have.goal not in ("task", "domain"):
            return None
        if have.architecture != "transformer":
            return "it is for a network that is a vision transformer; ask with --architecture transformer."
        reason = (
            "for many images without labels: the encoder learns from hidden patches and from telling images apart; "
            "where some have labels, a linear classifier on it is fitted at the end."
        )
        return Fit(18 if have.data == "unlabelled" else 55, reason, networks="zoo:vit_plain" * (have.teacher == "none"))

    def __post_init__(self) -> None:
        ranges(
            self,
            share=("mask", "scale", "momentum"),
            at_least={
                "group": 1,
                "projection": 2,
                "decoder_depth": 1,
                "feature_depth": 1,
                "decoder_width": 4,
                "probes": 2,
            },
            not_negative=("shift", "w_pixels", "w_contrast"),
            positive=("scale", "tau", "mask"),
        )

    # -- before any work --------------------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether the encoder learns anything."""
        return bool(self.w_pixels or self.w_contrast)

    def kept(self, groups: int) -> int:
        """Groups that stay visible, of so many."""
        return math.floor(groups * (1 - self.mask) + 1e-9)

    def check(self, data: Images) -> list[str]:
        """A transformer whose tokens see one patch each, a mask that leaves and hides something, and two images."""
        source = self.model("source", data)
        if len(data.train) < 2:
            return ["it tells images apart, and there is one training image"]
        if source.input_shape != data.shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (source.input_shape, data.shape))
            return [f"{source.name} takes images of {ours}, and those of {data.name} are {theirs}"]
        try:
            blocks, layer = blocks_of(source), linear(source.module, classifier(source))
        except UserError as error:
            return [str(error).rstrip(".")]
        if layer.bias is None:
            return [f"the classifier of {source.name} has no bias, which a linear probe needs"]
        (rows, columns), side = blocks.grid, self.group
        _, h, w = data.shape
        if h % rows or w % columns:
            return [f"{h} x {w} pixels are no whole number of patches for {source.name}, which has {rows} x {columns}"]
        if n := leaking(source, blocks):
            return [
                f"the tokens of {source.name} see pixels of other patches before the first block (one patch reaches "
                f"{n} more), so what is masked would leak: take zoo:vit_plain or a VisionTransformer of timm"
            ]
        if rows % side or columns % side:
            return [
                f"{rows} x {columns} patches do not divide into groups of {side} x {side}: give --group 1, or images "
                "of another --size"
            ]
        groups = rows * columns // side**2
        if not 0 < (keep := self.kept(groups)) < groups:
            what = "no token visible" if keep == 0 else "nothing hidden"
            return [f"mask {self.mask:g} leaves {what} of {groups} groups: choose another, or another --group"]
        if self.shift is not None and self.shift > min(h, w):
            return [f"shift {self.shift} is more than the {min(h, w)} pixels of an image"]
        return self._untried(source, blocks, keep * side**2)

    def _untried(self, source: Model, blocks: Blocks, visible: int) -> list[str]:
        """Say why blocks do not run on some of their tokens, or why a width cannot be; an empty list where all can."""
        if self.width(blocks) % 4:
            return [f"decoder_width must be a multiple of 4, and it is {self.width(blocks)}"]
        images = source.example(2).to(next(source.module.parameters()))
        keep = torch.arange(visible, device=images.device).expand(2, -1)
        try:
            with undisturbed(source.module):
                tokens = encode(source.module, images, blocks, last_of(source, blocks), keep)
        except (RuntimeError, ValueError, IndexError) as error:
            return [f"the blocks of {source.name} do not take {visible} of {blocks.places} tokens ({error})"]
        expected = (2, blocks.prefix + visible, blocks.width)
        return [] if tokens.shape == expected else [f"{source.name} gives no token for each that it was given"]

    def steps(self, n: int) -> int:
        """None where nothing is learnt but the classifier."""
        return self.recipe.steps(n) if self.learns else 0

    def work(self, n: int, teacher: int, student: int) -> float:
        """Of the encoder a share for the visible patches, with its backward, as the decoders; and one whole forward."""
        forwards = 3 * (1 - self.mask + 0.35) + (self.w_contrast > 0)
        return forwards * self.steps(n) * (self.recipe.batch_size or n) * max(teacher, student)

    def controls(self) -> dict[str, Control]:
        """The network as it came, with a linear probe fitted in the same way."""
        return {
            "as it came": Control(
                method=dataclasses.replace(self, source=own_copy(self.source), w_pixels=0.0, w_contrast=0.0),
                words="as it came, probed",
            )
        }

    # -- the algorithm ----------------------------------------------------------------------------------------------

    def width(self, blocks: Blocks) -> int:
        """That of the decoders."""
        return self.decoder_width or max(round(2 * blocks.width / 3 / 16) * 16, 16)

    def views(self, data: Images) -> ShiftedViews:
        """The views of the training images."""
        shift = data.shape[1] * 31 // 224 if self.shift is None else self.shift
        split = dataclasses.replace(data.train, augment=tuple(name for name in data.train.augment if name == "flip"))
        return ShiftedViews(split, shift, self.scale, self.recolour, target=self.w_contrast > 0)

    def visible(self, run: Run, ids: Int[Tensor, " b"], blocks: Blocks) -> Int[Tensor, "b v"]:
        """The places that stay visible of each image of the batch at hand, drawn by (seed, view, sample)."""
        groups = blocks.places // self.group**2
        noise = uniform(run.seed, run.view, ids, "mask", groups).float().to(run.device)
        return visible_places(noise, blocks.grid, self.group, self.kept(groups))

    def parts(
        self, network: nn.Module, blocks: Blocks, patch: int
    ) -> tuple[Decoder | None, Online | None, Target | None]:
        """The pixel decoder and both branches of the contrast, as far as they are needed.

        Args:
            network: the encoder.
            blocks: of it.
            patch: numbers in a patch.
        """
        width, depth = self.width(blocks), len(blocks.names)
        pixels = Decoder(blocks, width, self.decoder_depth or max(2 * depth // 3, 1), patch) if self.w_pixels else None
        if not self.w_contrast:
            return pixels, None, None
        online = Online(blocks, width, self.feature_depth or max(depth // 6, 1), self.projection)
        return pixels, online, Target(network, online, blocks)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the encoder with a linear probe as its classifier."""
        start = self._start(data)
        data = data.normalised(start.mean, start.std)
        blocks, name = blocks_of(start), classifier(start)
        last, layer, ids = last_of(start, blocks), linear(start.module, name), data.train.ids
        start.module.set_submodule(name, nn.Identity())  # from here on the network is the encoder
        with undisturbed(start.module):
            theta = trained(start.module, start.example(2).to(next(start.module.parameters())), blocks, last)
        pixels, online, target = self.parts(start.module, blocks, math.prod(data.shape) // blocks.places)
        learnt = [*theta, *(p for part in (pixels, online) if part is not None for p in part.parameters())]
        encoder, optimizer = run.setup(start.module, lambda _: self.recipe.make(groups_of(learnt, betas=BETAS)))
        for part in (pixels, online, target):
            if part is not None:
                run.setup(part)
        views = self.views(data)
        for _ in run.epochs(self.recipe.epochs if self.learns else 0):
            for net in (encoder, pixels, online, target):
                if net is not None:
                    net.train()
            for both, _, index in run.batches(views, self.recipe.batch_size):
                x_s, keep = both[:, 0], self.visible(run, ids[index.cpu()], blocks)
                z, loss = encode(encoder, x_s, blocks, last, keep), x_s.new_zeros(())
                if pixels is not None:
                    hidden = hidden_places(keep, blocks.places)
                    l_r = reconstruction_loss(pixels(z, keep=keep), patches_of(x_s, blocks.grid), hidden)
                    l_r = run.gather(l_r).mean()
                    loss = loss + self.w_pixels * l_r
                    run.track(reconstruction_loss=l_r)
                if online is not None and target is not None:
                    p_s, z_t = run.gather(online(z, keep=keep)), run.gather(target(both[:, 1]))
                    l_c = contrast_loss(p_s, z_t, self.tau)
                    loss = loss + self.w_contrast * l_c
                    run.track(contrast_loss=l_c)
                run.step(loss, optimizer, self.recipe, "global")
                if online is not None and target is not None:
                    target.follow(encoder, online, self.momentum)
        if pixels is not None:
            self._show(run, encoder, pixels, data, (blocks, last))
        encoder = run.plain(encoder)
        encoder.set_submodule(name, self._probe(run, dataclasses.replace(start, module=encoder), layer, name, data))
        return run.plain(encoder)

    def _start(self, data: Images) -> Model:
        """The network with an output for each class of the data, or as it is where these have none."""
        source = self.model("source", data)
        if not data.classes:
            return dataclasses.replace(source, module=copy_of(source.module))
        return for_classes(source, data.classes)

    def _probe(self, run: Run, model: Model, layer: nn.Linear, name: str, data: Images) -> nn.Linear:
        """The classifier, fitted to labelled training images, its penalty by the labelled validation images."""
        found: list[ImageSplit] = []
        for split in (data.train, data.validation):
            known = (split.labels >= 0).nonzero()[:, 0]
            order = uniform(0, 0, split.ids[known], "probe")[:, 0].argsort(stable=True)
            found.append(dataclasses.replace(split.subset(known[order[: self.probes]]), augment=()))
        train, held = found
        if len(train.labels.unique()) < 2:
            run.note("No two classes of training images are labelled, so the classifier was left as it came.")
            return layer
        model = dataclasses.replace(model, module=copy_of(model.module).float())  # as all that is asked for features
        model.module.set_submodule(name, layer)
        x, *others = features(run, model, train, *([held] if len(held) else []))
        chosen = (others[0], held.labels) if others else None
        last = linear_probe(x, train.labels, len(data.classes), chosen)
        layer.to(run.dtype).load_state_dict({"weight": last.weight, "bias": last.bias})
        return layer

    @torch.no_grad()
    def _show(self, run: Run, encoder: nn.Module, pixels: Decoder, data: Images, at: tuple[Blocks, str]) -> None:
        """Leave a picture of what is made of hidden patches of some validation images."""
        split = data.validation if len(data.validation) else data.train
        index = torch.arange(min(pictures.ROWS, len(split)))
        blocks, last = at
        images = split.batch(index, device=run.device).images.to(run.dtype)
        noise = uniform(0, 0, split.ids[index], "mask", blocks.places // self.group**2).to(images)
        keep = visible_places(noise, blocks.grid, self.group, self.kept(noise.shape[1]))
        with undisturbed(encoder), undisturbed(pixels):
            pred = pixels(encode(encoder, images, blocks, last, keep), keep=keep)
        shown = pictures.picture(images.cpu(), pred.cpu(), keep.cpu(), blocks.grid, (split.mean, split.std))
        run.picture("1-reconstruction", shown)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture with the classes of the data, if they have any."""
        return dataclasses.replace(
            self._start(data), module=module, lineage=None, name=f"{self.model('source', data).name}-cmae"
        )
