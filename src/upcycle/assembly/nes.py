"""Neural epitome search: each layer stores a small tensor, and its whole weight is sampled from that."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.losses import Terms, ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, source_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.surgery.epitome import Learner, Mode, compress, drop_learners, epitomes, replaceable

if TYPE_CHECKING:
    from upcycle.data.images import Images

REFERENCE = "assembly:epitome"
SETTLE = 16
"""How many batches the routing maps are averaged over after training."""


@dataclass(kw_only=True, eq=False, repr=False)
class NES(Method):
    """Neural Epitome Search for Architecture-Agnostic Network Compression (Zhou et al.; arXiv:1907.05642).

    Layers of the student's shapes are trained from scratch, but store epitomes: every weight θ (C_out, C_in, k, k) is
    put together of patches that are read from E (E_out, E_in, k, k) at real-valued offsets. In mode learned a small
    network reads the offsets off each layer's inputs, and their moving average M is what stays; after training M is
    averaged anew over 16 batches and the learners are dropped. In mode tile E is repeated. The loss is cross-entropy,
    or with a teacher

        L = w_ce L_ce + w_kd T² mean_b KL(softmax(z_t / T) || softmax(z_s / T)).

    The result computes with the epitomes: R_in times fewer multiply-adds in those layers (tile: R_in R_out times). That
    is faster where layers are wide; with learned offsets, blending the channels of narrow ones costs what it saves.
    :func:`~upcycle.surgery.epitome.materialise` makes an ordinary network of it.

    Reconstructed: the paper's transformation is known to us from its abstract and from summaries, and the authors'
    released model uses no learned offsets, only tiling by 2 along one side of 1x1 convolutions. Our choices: the ratio
    is split evenly over outputs and inputs; each patch has an input offset of its own, and a row of patches shares its
    output offset, so that wrapping stays exact; kernels are not searched in rows and columns (e = k); the learner
    without its last BatchNorm (see :class:`~upcycle.surgery.epitome.Learner`); where offsets start; μ. Weight decay
    acts on E as on any weight, which shrinks each of its copies at the ordinary rate, and not on the learners. The
    learners take a tenth of the learning rate: an offset moves a whole patch, and at the full rate it jumps from
    position to position. Linear layers stay as they are.

    Args:
        teacher: a trained classifier with the same classes, or none.
        student: the architecture. The layers that are replaced start fresh, all others with its weights.
        ratio: stored numbers over parameters, in each replaced layer, between 0.01 and 1.
        mode: how weights are put together of epitomes: read at learned offsets, or tiled.
        momentum: μ of the moving average of offsets, above 0 and at most 1.
        lr_learner: learning rate of the learners, as a share of that of the recipe.
        terms: temperature and weights of the two terms; without a teacher they have no effect.
        recipe: ordinary training of the compressed network.
    """

    teacher: Model | nn.Module | None = None
    student: Model | nn.Module
    ratio: float = 0.25
    mode: Mode = "learned"
    momentum: float = 0.1
    lr_learner: float = 0.1
    terms: Terms = field(default_factory=Terms)
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="nes",
        title="Neural Epitome Search for Architecture-Agnostic Network Compression",
        paper="Zhou, Jin, Hou, Wang, Yang, Feng; ICLR 2020; arXiv:1907.05642",
        verb="distill",
        needs=Needs(data="labelled", teacher="none", architectures="any network with convolutions"),
        summary="The same architecture with a fraction of its parameters and fewer multiply-adds.",
        cost="1.5 to 2 times the student training, for the learners (tile: less than it)",
        published="ImageNet MobileNetV2: +1.47 points over the full model with 25 % fewer multiply-adds (abstract)",
    )
    admits = frozenset({"sampler"})
    refuses = {
        "sharpness": "each forward moves the average of its offsets, so a second one of a batch would move it twice",
        "mix": "its offsets are averages over images, and mixtures are none",
    }

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For fewer stored numbers in the same layers; a narrower student is the simpler way."""
        if have.goal not in ("smaller", "better"):
            return None
        if have.architecture == "transformer":
            return "it compresses convolutions, and a transformer has next to none."
        if have.goal == "better":
            return "it stores a network in fewer numbers and makes none better."
        reason = (
            "a network of the student's shapes is trained whose layers are read from smaller tensors: fewer stored "
            "parameters with the same layers. A narrower student by kd is the simpler way; compare."
        )
        return Fit(36, reason, teacher=have.teacher != "none")

    def __post_init__(self) -> None:
        ranges(
            self,
            positive=("momentum",),
            not_negative=("lr_learner",),
            share=("ratio", "momentum"),
            at_least={"ratio": 0.01},
            one_of={"mode": get_args(Mode)},
        )

    def check(self, data: Images) -> list[str]:
        """Every training image needs its label; a convolution to compress; a given teacher the student's classes."""
        student, problems = self.model("student", data), []
        if unknown := int((data.train.labels < 0).sum()):
            problems.append(
                f"it learns from labels, and {unknown} of {len(data.train)} training images have none; kd works "
                "without labels"
            )
        if not any(map(replaceable, [m for m in student.module.modules() if isinstance(m, nn.Conv2d)][1:])):
            problems.append(
                f"{student.name} has no convolution to compress besides its first (plain nn.Conv2d in one group with "
                "zero padding)"
            )
        if self.teacher is not None:
            problems += same_classes(self.model("teacher", data), student)
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the compressed network."""
        teacher = run.frozen(self.model("teacher", data), data.validation) if self.teacher is not None else None
        student, generator = self.model("student", data).module, run.generator("epitomes")
        network = compress(student, self.ratio, self.mode, momentum=self.momentum, generator=generator)
        learners = [layer.learner for layer in epitomes(network) if layer.learner is not None]
        for learner in learners:
            learner.gather = run.gather
        network, optimizer = run.setup(network, self._optimizer)
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                z = network(images)
                if teacher is None:
                    loss = ce_loss(z, y)
                else:
                    loss = self.terms(z, teacher(images), y)
                run.step(loss, optimizer, self.recipe)
            run.evaluate(network, data.validation)
        if learners:
            self._settle(run, network, data)
        drop_learners(network)
        if self.mode == "tile" and _redundant(network):
            run.note(
                "The tiled outputs of a layer are alike, and nothing in this network tells them apart: it has neither "
                "biases nor normalisation after its compressed layers. Take --mode learned."
            )
        return run.plain(network)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The compressed network, rebuilt from the student's architecture."""
        student = self.model("student", data)
        source = source_of(student)
        made = dataclasses.replace(student, module=module, reference=None, options={})
        if source is None:
            return made
        options = {"source": source, "ratio": self.ratio, "mode": self.mode}
        return dataclasses.replace(made, reference=REFERENCE, options=options)

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The recipe's optimiser, with a rate of its own for the learners, which do not decay."""
        learners = [p for m in network.modules() if isinstance(m, Learner) for p in m.parameters()]
        apart = set(learners)
        kept = [p for p in network.parameters() if p.requires_grad and p not in apart]
        slow = {"params": learners, "weight_decay": 0.0, "lr": self.lr_learner * self.recipe.lr}
        return self.recipe.make([{"params": kept}, slow])

    def _settle(self, run: Run, network: nn.Module, data: Images) -> None:
        """Average M over batches of the trained network: each weighs the same, where the moving average forgets."""
        network.train()
        with torch.no_grad():
            for i, (images, _, _) in enumerate(run.batches(data.train, self.recipe.batch_size, steps=SETTLE)):
                for layer in epitomes(network):
                    layer.momentum = 1 / (i + 1)
                network(images)


def _redundant(network: nn.Module) -> bool:
    """Whether copies of a tiled output stay alike: its layer has no bias, and no normalisation is anywhere."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return any(layer.bias is None for layer in epitomes(network)) and not any(
        isinstance(m, norms) for m in network.modules()
    )
