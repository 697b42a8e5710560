"""SSF: a scale and a shift behind every layer of a frozen network, folded into its weights afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from upcycle.adaptation.adapters.scale_shift import Adapter, attach, save_adapter
from upcycle.adaptation.probe import probed
from upcycle.core.advice import Fit, Situation, if_labelled
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.heads import classifier, for_classes
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.norms import use_running
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images

TOLERANCE = 1e-4
"""Largest relative difference of logits that folding may make."""


@dataclass(kw_only=True, eq=False, repr=False)
class SSF(Method):
    """Scaling & Shifting Your Features (Lian, Zhou, Feng, Wang; NeurIPS 2022; arXiv:2210.08823).

    Behind every linear layer, convolution and normalisation of a frozen network, y = γ ⊙ x + β with γ, β ∈ R^C, from
    γ ~ N(1, 0.02²), β ~ N(0, 0.02²). Trained are these and a new classifier, on the cross-entropy, without weight
    decay on γ, β and biases. In the end γ W and γ b + β replace W and b: the architecture as it was.

    Sites are found in one forward (:func:`~upcycle.surgery.sites.sites`). In networks with BatchNorm they are behind
    it and not behind the layer that feeds it (the card's rule; the released code has no such networks).

    Training saves no input of γ: it is recovered from the output, which what follows mostly keeps anyhow. Linear layers
    and convolutions run with γ W, made on the fly; normalisations with γ w and γ b + β, which costs no activation.

    Departures: a layer without a bias gets γ alone, so that the product is rebuilt from its reference; Swin's
    reductions, which the released code leaves out, get such a γ. ConvNeXt's SSF on its last feature map, which cannot
    be folded, is left to the norm behind the pooling. Neither mixup nor a moving average of the weights.

    BatchNorm uses its trained statistics throughout; dropout and drop-path stay as the source has them.

    Args:
        source: a trained classifier that ends in a linear layer. Where the data have its classes its classifier is
            the start, otherwise a new one, of zeros.
        sites: patterns of names of layers, as in a shell (``*.norm1``); none takes the rule.
        recipe: training of scales, shifts and classifier. Its learning rate is 10 to 1000 times that of full
            fine-tuning. The paper: 100 epochs, 10 of warm-up, 1e-3 to 5e-2; here a short run.
    """

    source: Model | nn.Module
    sites: tuple[str, ...] = ()
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=20, batch_size=64, optimizer="adamw", lr=5e-3, weight_decay=0.05, warmup=1
        )
    )

    roles: ClassVar[tuple[str, ...]] = ("source",)
    card = Card(
        name="ssf",
        title="Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
        paper="Lian, Zhou, Feng, Wang; NeurIPS 2022; arXiv:2210.08823",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="a classifier that ends in a linear layer"),
        summary="The same network for new classes, from 0.2 % of its weights, with an adapter of kilobytes.",
        cost="2/3 of fine-tuning: no gradient of the weights",
        published="ViT-B/16, mean of 5 fine-grained sets 90.72 (full fine-tuning 88.54), of 19 VTAB-1k tasks 73.10 "
        "(65.57) (abstract)",
    )
    admits = EVERY

    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """First where there are many labels; on a few, after the probe."""
        if have.goal not in ("task", "domain"):
            return None
        reason = (
            "a scale and a shift behind every layer are trained, under a hundredth of the weights, and then "
            "folded into them: the network's size and speed stay as they were."
        )
        return Fit(5 if have.data == "few" else 0, if_labelled(have, reason))

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward, and the half of a backward that reaches activations."""
        return float(self.steps(n) * self.recipe.batch_size * 2 * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """Labels, a classifier to replace, images that fit, and sites that can be folded."""
        source, problems = self.model("source", data), []
        if without := int((data.train.labels < 0).sum()):
            problems.append(f"it learns from labels, and {without} of {len(data.train)} training images have none")
        if source.input_shape[0] != data.shape[0]:
            return [
                *problems,
                f"{source.name} takes {source.input_shape[0]} input channels and the images have {data.shape[0]}",
            ]
        try:
            start, _ = self._start(data, torch.Generator().manual_seed(0))
            start.module(
                dataclasses.replace(start, input_shape=data.shape).example().to(next(start.module.parameters()))
            )
        except UserError as error:
            problems.append(str(error).rstrip("."))
        except (RuntimeError, ValueError, AssertionError) as error:
            problems.append(
                f"{source.name} does not take images of {data.shape[1]} x {data.shape[2]} pixels "
                f"({one_line(error)}); load the data at {source.input_shape[1]}"
            )
        return problems

    def controls(self) -> dict[str, Control]:
        """The linear probe of the same source."""
        return probed(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the merged network."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        start, adapter = self._start(data, run.generator("ssf"))
        student, optimizer = run.setup(start.module, lambda module: self._optimizer(module, adapter))
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            use_running(student)
            for images, y, _ in run.batches(data.train, self.recipe):
                loss = ce_loss(student(images), y, reduction=run.reduction)
                run.step(loss, optimizer, self.recipe)
            run.evaluate(student, data.validation)
        if run.directory is not None and run.rank == 0:
            save_adapter(run.directory / "adapter.safetensors", adapter, source, data.classes)
        return self._merged(run, run.plain(student), adapter, data)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture with the classes of the data."""
        source = self.model("source", data)
        made = for_classes(source, data.classes)
        return dataclasses.replace(made, module=module, lineage=None, name=f"{source.name}-ssf")

    def _start(self, data: Images, generator: torch.Generator) -> tuple[Model, Adapter]:
        """A frozen copy of the source with the classifier of the data, and its scales and shifts."""
        source = self.model("source", data)
        start = for_classes(source, data.classes)
        start.module.requires_grad_(False).eval()
        start.module.get_submodule(classifier(start)).requires_grad_(True)
        adapter = attach(start, self.sites, generator=generator)
        for s in adapter.sites:
            require(
                not s.kept,
                f"The scale and shift of {s.name} cannot be folded away, because {s.kept}; leave it out of sites.",
            )
        require(bool(adapter.sites), f"{source.name} has no layer to scale and shift.")
        return start, adapter

    def _optimizer(self, module: nn.Module, adapter: Adapter) -> torch.optim.Optimizer:
        """The recipe's, without weight decay on γ, β and biases."""
        head = list(module.get_submodule(adapter.classifier).parameters())
        still = [*adapter.parameters(), *(p for p in head if p.ndim < 2)]
        return self.recipe.make([{"params": [p for p in head if p.ndim >= 2]}, {"params": still, "weight_decay": 0.0}])

    @staticmethod
    @torch.no_grad()
    def _merged(run: Run, network: nn.Module, adapter: Adapter, data: Images) -> nn.Module:
        """Fold, and compare the logits of some images before and after."""
        images = data.validation.batch(torch.arange(min(32, len(data.validation))), device=torch.device("cpu")).images
        images = images.to(next(network.parameters()))
        before = network(images)
        adapter.merge()
        error = float((network(images) - before).abs().max() / before.abs().max().clamp_min(1e-30))
        require(
            error <= TOLERANCE,
            f"Folding the scales and shifts changed logits by {error:.1e} of the largest, more "
            f"than {TOLERANCE:g}; the adapter is kept, and a lower lr gives tamer scales.",
        )
        run.note(f"Folding the scales and shifts changed logits by {error:.1e} of the largest.")
        return network.requires_grad_(True)
