"""Inference stage optimization: a network takes steps on a self-supervised loss of a sample, then answers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from upcycle.adaptation.test_time.adapter import Mode, Optimizer, Params, StreamAdapter
from upcycle.adaptation.test_time.joint_network import JointNetwork, gradient_alignment
from upcycle.adaptation.test_time.losses import SHIFTS, rotate, rotation_loss, simulate_shift, turn_loss
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import classifier
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of, own_copy
from upcycle.core.patterns import Values, weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images, ImageSplit
from upcycle.data.labels import match_classes

CHUNK = 64
"""Samples of the stream between save points."""
CHECKED = 128
"""Source validation images that the gradients are compared on."""


@dataclass(kw_only=True, eq=False, repr=False)
class ISO(Method):
    """Inference Stage Optimization for Cross-scenario 3D Human Pose Estimation (Zhang, Nie, Feng; arXiv:2007.02054).

    1. *Joint training* on the labelled source, from the start, of encoder θ, main head φ and rotation head ψ:

        L = L_main(h_φ(e_θ(x)), y) + λ L_ssl(x; θ, ψ)               (cross-entropy, and ``rotation_loss``).

    2. *Check.* Adaptation is refused if the gradients of the two losses disagree beyond chance, by two standard
       errors (``gradient_alignment``), on source validation images under a shift (``simulate_shift``). On the images as
       they are it says nothing: where joint training ends, ∇L_main = -λ ∇L_ssl on average, and no adaptation is needed.
    3. *Adaptation.* For each sample x of the unlabelled target stream, in its order: T steps on L_ssl(x; θ, ψ), then
       the answer (:class:`~upcycle.adaptation.test_time.adapter.StreamAdapter`). Vanilla begins each sample at the
       stored weights, online where the last one ended. The product is the network that was trained jointly (vanilla)
       or the drifted one (online), without ψ.

    *Reconstructed*: the paper has no public code. This is its general scheme with rotation prediction, as in test-time
    training (Sun et al.; ICML 2020; arXiv:1909.13231); the losses for pose (cycle consistency of lifted joints, and a
    discriminator of 2D poses) are left out. The copies of a sample are its shifts by whole pixels, nearest first, each
    in all four turns: the same in every step, so that nothing is random while adapting, and a vanilla answer depends
    on nothing but its sample.

    Every process walks the whole stream: each online sample begins where the one before ended, so there is nothing
    to share out, and one sample is too small to split.

    Args:
        source: a classifier that ends in a linear layer, fresh or trained; best with GroupNorm or LayerNorm.
        source_data: labelled images for the joint training, with labelled validation images for the check.
        mode: vanilla or online.
        updates: number T of steps before each answer; if not given, 5 (vanilla) or 1 (online).
        lr: learning rate of these steps; if not given, 1e-3 (vanilla) or 1e-4 (online).
        optimizer: optimiser of these steps; adam keeps its state in online mode, sgd has no momentum.
        params: choice of what moves: encoder (θ and ψ), all, or norm-affine (scales and shifts of normalisations),
            which bears a higher lr and forgot least in our trials (1e-3, see the claim).
        copies: number of copies of each sample in a step, a multiple of four up to 100.
        lam: weight λ of the self-supervised loss in the joint training.
        reset_every: number of samples after which online mode goes back to the start; 0 for never.
        pull: share ρ of θ ← (1 - ρ) θ + ρ θ0 after each step, from 0 to 1.
        recipe: ordinary training on the source.
    """

    source: Model | nn.Module
    source_data: Images | None = None
    mode: Mode = "online"
    updates: int | None = None
    lr: float | None = None
    optimizer: Optimizer = "adam"
    params: Params = "encoder"
    copies: int = 16
    lam: float = 1.0
    reset_every: int = 0
    pull: float = 0.0
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.05, warmup=1.0))

    roles: ClassVar[tuple[str, ...]] = ("source",)
    given: ClassVar[tuple[str, ...]] = ("source_data",)
    card = Card(
        name="iso",
        title="Inference Stage Optimization for Cross-scenario 3D Human Pose Estimation",
        paper="Zhang, Nie, Feng; NeurIPS 2020; arXiv:2007.02054",
        verb="adapt",
        needs=Needs(data="unlabelled", teacher="weights", architectures="a classifier that ends in a linear layer"),
        summary="A classifier that adjusts itself to each unlabelled image, or to the stream, before it answers.",
        cost="four times plain training on the source, then T steps of 16 copies a sample",
        published="MPI-INF-3DHP 83.6 % 3D-PCK across scenarios, 9.7 points above the best before (abstract)",
    )
    refuses = {"any": "its loss turns each image, which two tasks share"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a domain that shifts in use, with labelled images of the old one."""
        if have.goal != "domain":
            return None
        if have.source == "none":
            return "it trains MODEL on labelled images of the old domain first (--source labelled)."
        reason = (
            "for a shift that shows in use, image by image: MODEL is trained with a second task that needs no labels, "
            "and goes on with that one before each answer."
        )
        return Fit(30, reason, networks="MODEL --source_data SOURCE")

    def __post_init__(self) -> None:
        ranges(
            self,
            not_negative=("updates", "lr", "lam", "reset_every"),
            share=("pull",),
            one_of={
                "mode": ("vanilla", "online"),
                "optimizer": ("adam", "sgd"),
                "params": ("encoder", "all", "norm-affine"),
            },
        )
        require(
            self.mode == "online" or not self.reset_every,
            "reset_every is for --mode online; vanilla begins anew with every sample.",
        )
        require(
            self.copies % 4 == 0 and 4 <= self.copies <= 4 * len(SHIFTS),
            f"copies must be a multiple of 4 from 4 to {4 * len(SHIFTS)}, not {self.copies}.",
        )

    def steps(self, n: int) -> int:
        """Updates on the source, and those on ``n`` samples of the stream."""
        known = len(self.source_data.train) if self.source_data is not None else n
        return self.recipe.steps(known) + n * self._updates

    def work(self, n: int, teacher: int, student: int) -> float:
        """Four turns of each source image in each epoch, ``copies`` of each sample in each of its updates."""
        known = len(self.source_data.train) if self.source_data is not None else n
        own = max(teacher, student)
        return float(3 * own * (4 * self.recipe.epochs * known + self._updates * self.copies * n) + own * n)

    def check(self, data: Images) -> list[str]:
        """Source images with labels, square ones on both sides, and a network that ends in a linear layer."""
        source, known = self.model("source", data), self.source_data
        if known is None:
            return [
                "it trains jointly on labelled images of the source before it adapts, and none were given: give "
                "source_data"
            ]
        problems = []
        for images in (known, data):
            c, h, w = images.shape
            if h != w:
                problems.append(f"{images.name} has images of {h} x {w}, and rotation prediction needs square ones")
            if c != source.input_shape[0]:
                problems.append(f"{source.name} takes {source.input_shape[0]} input channels and {images.name} has {c}")
        for name, split in (("training", known.train), ("validation", known.validation)):
            if not bool((split.labels >= 0).any()):
                problems.append(f"{known.name} has no labelled {name} images")
        if problems:
            return problems
        try:
            classifier(source)
            _expected(known, source)
            _expected(data, source)
        except UserError as error:
            problems.append(str(error).rstrip("."))
        return problems

    def controls(self) -> dict[str, Control]:
        """The source trained jointly with its auxiliary task, and not adapted."""
        return {
            "trained jointly and not adapted": Control(
                method=dataclasses.replace(self, source=own_copy(self.source), updates=0),
                words="trained jointly and not adapted",
            )
        }

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the classifier, adapted to the stream in online mode."""
        if self.source_data is None:
            raise UserError("iso trains jointly on labelled images of the source first; give source_data.")
        source = self.model("source", data)
        known, stream = _expected(self.source_data, source), _expected(data, source).train
        joint = self.beside_rotation(source)
        joint.to(run.device, run.dtype)

        found = run.stored("joint", weights_of(joint))
        if found is None:
            with run.open_stage("joint") as found:
                found |= self.train_jointly(run, source, known).state_dict()
        joint.load_state_dict(found)
        alignment = partial(self.alignment, joint, known.validation)
        cosine, error = run.stage("alignment", alignment, (float, float))
        require(
            cosine >= -2 * error,
            "Adapting would hurt: on source validation images under a simulated shift, the gradients of the main and "
            f"the self-supervised loss have a mean cosine of {cosine:.3f} ± {error:.3f}, below zero; train longer or "
            "with another --lam.",
        )
        like = Values((len(stream),), 0, len(source.classes) - 1, whole=True)
        before = run.stage("before", partial(_classes, joint, stream, source.name), like)

        adapter = self.adapter(joint, partial(_descend, run))
        after = torch.full((len(stream),), -1)
        for name, state in (("network", joint), ("optimizer", adapter.optimizer), ("answers", after)):
            run.register(name, state)
        seconds, walked = 0.0, 0
        for chunk in run.epochs(math.ceil(len(stream) / CHUNK)):
            index = torch.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(stream)))
            images = stream.batch(index, device=run.device).images.to(joint.phi.weight.dtype)
            adapter.answered, start = int(index[0]), time.perf_counter()
            after[index] = torch.cat(list(adapter.answers(images.split(1)))).argmax(1).cpu()
            seconds, walked = seconds + time.perf_counter() - start, walked + len(index)
        if self.mode == "vanilla":
            adapter.reset()
        if walked:  # none is left for a run that comes back when it is done
            run.note(f"Adapting took {1000 * seconds / walked:.1f} ms a sample.")
        run.log(gradient_cosine=cosine)
        self._show(run, stream, before, after)
        run.plain(joint.requires_grad_(True))
        return joint.whole()

    def beside_rotation(self, source: Model) -> JointNetwork:
        """A copy of ``source`` with a fresh rotation head."""
        return JointNetwork(dataclasses.replace(source, module=copy_of(source.module).requires_grad_(True)))

    def train_jointly(self, run: Run, source: Model, data: Images) -> JointNetwork:
        """Stage 1, on images normalised as ``source`` expects them."""
        joint, optimizer = run.setup(self.beside_rotation(source), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            joint.train()
            for images, y, _ in run.batches(data.train, self.recipe.batch_size):
                self.recipe.schedule_rate(optimizer, run.progress)
                z, turns = joint.parts(rotate(images))
                main, ssl = ce_loss(z[: len(y)], y), turn_loss(turns)
                run.backward(main + self.lam * ssl)
                run.update(optimizer)
                run.track(loss=main, ssl_loss=ssl)
            run.evaluate(joint, data.validation)
        run.plain(joint)
        return joint

    def alignment(self, joint: JointNetwork, split: ImageSplit) -> tuple[float, float]:
        """:func:`gradient_alignment` on up to 128 labelled images, spread over ``split``, under the simulated shift."""
        labelled = (split.labels >= 0).nonzero()[:, 0]
        spread = torch.linspace(0, len(labelled) - 1, min(CHECKED, len(labelled))).long()
        images, y, _ = split.batch(labelled[spread], device=joint.phi.weight.device)
        return gradient_alignment(joint, simulate_shift(images.to(joint.phi.weight.dtype)), y)

    def adapter(
        self, joint: JointNetwork, update: Callable[[Tensor, torch.optim.Optimizer], None] | None = None
    ) -> StreamAdapter:
        """Stage 3 for ``joint``, which changes in place; ``update`` as for :class:`StreamAdapter`."""
        lr = self.lr if self.lr is not None else 1e-3 if self.mode == "vanilla" else 1e-4

        return StreamAdapter(
            joint,
            self._ssl_loss,
            mode=self.mode,
            steps=self._updates,
            lr=lr,
            params=self.params,
            head="phi",
            optimizer=self.optimizer,
            reset_every=self.reset_every,
            pull=self.pull,
            update=update,
        )

    def _ssl_loss(self, network: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(network, JointNetwork)
        return rotation_loss(network.turns, x, self.copies)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The same architecture with new weights."""
        source = self.model("source", data)
        return dataclasses.replace(source, module=module, lineage=None, name=f"{source.name}-adapted")

    @property
    def _updates(self) -> int:
        return self.updates if self.updates is not None else 5 if self.mode == "vanilla" else 1

    def _show(self, run: Run, stream: ImageSplit, before: Tensor, after: Tensor) -> None:
        """What was answered along the stream, with and without adaptation; labels serve here alone."""
        known = stream.labels >= 0
        if not bool(known.any()):
            return
        right = {
            name: (found == stream.labels)[known].double()
            for name, found in (("no adaptation", before), (self.mode, after))
        }
        run.log(unadapted_accuracy=right["no adaptation"].mean(), stream_accuracy=right[self.mode].mean())
        x = torch.linspace(1, int(known.sum()), min(200, int(known.sum()))).long()
        series = [
            {"name": name, "x": x.tolist(), "y": (hits.cumsum(0)[x - 1] / x).tolist()} for name, hits in right.items()
        ]
        run.picture(
            "1-stream",
            {
                "kind": "lines",
                "title": "Accuracy along the stream",
                "caption": "Of all answers so far. Each was given once, after the network had adapted to that sample.",
                "x": "samples",
                "y": "accuracy",
                "unit": "percent",
                "series": series,
            },
        )


def _descend(run: Run, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step down a loss that is the same on every process."""
    run.backward(loss, "global")
    run.update(optimizer)


def _expected(images: Images, model: Model) -> Images:
    """As ``model`` expects them: batches have its normalisation, known labels are the numbers of its logits."""
    images = images.normalised(model.mean, model.std)

    def relabelled(split: ImageSplit) -> ImageSplit:
        if not bool((split.labels >= 0).any()):
            return split
        to = torch.full((len(images.classes) + 1,), -1)  # the last one for label -1
        to[match_classes(images.classes, model.classes)[0]] = torch.arange(len(model.classes))
        return dataclasses.replace(split, labels=to[split.labels])

    train, validation, test = map(relabelled, (images.train, images.validation, images.test))
    return dataclasses.replace(images, train=train, validation=validation, test=test)


def _classes(network: nn.Module, split: ImageSplit, name: str) -> Tensor:
    """The class that ``network`` gives each sample, int64 (n,)."""
    z = predict_logits(network, split)
    broken = int((~z.isfinite()).any(1).sum())
    require(
        broken == 0,
        f"{name} gives NaN or infinite outputs for {broken} of {len(z)} images of the stream; look at those images.",
    )
    return z.argmax(1)
