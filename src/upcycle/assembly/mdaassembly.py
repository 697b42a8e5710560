"""Assembling of Model LEGO: several networks of one sequence of layers joined into one, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import Values
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.surgery.assembling import assemble, assembled_model, zero_blocks
from upcycle.surgery.logits import class_positions, logit_scales, scale_logits

if TYPE_CHECKING:
    from upcycle.data.images import Images


@dataclass(kw_only=True, eq=False, repr=False)
class MDAAssembly(Method):
    """Assembling of Model LEGO (Hu et al.; arXiv:2203.13453, v2): one classifier from the parts of several.

    1. *Scaling.* Of each part, the row of class c in the last layer times r_c = 1 / (mean winning logit of c), so
       that logits of different parts can be compared: :func:`~upcycle.surgery.logits.logit_scales`.
    2. *Alignment padding.* Every layer becomes block diagonal: :func:`~upcycle.surgery.assembling.assemble`.
    3. *Fine-tuning*, if asked for: cross-entropy on the joint classes.

    Departures: scales come from training images (the paper's code takes test images), and are 1 for a class without
    a positive mean; parts may expect different normalisations; any number at once.

    Args:
        parts: two or more classifiers with one sequence of layers, for instance components that ``mda`` made.
        scale: multiply the logits of each part by the scales of step 1; needs labelled training images of its classes.
        tune: train the assembled network on the joint classes, step 3.
        keep_zeros: leave the zeros between parts as they are while it is trained.
        recipe: ordinary training, for step 3.
    """

    parts: tuple[Model | nn.Module, ...]
    scale: bool = True
    tune: bool = False
    keep_zeros: bool = False
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, lr=0.01))

    roles: ClassVar[tuple[str, ...]] = ("parts",)
    card = Card(
        name="mdaassembly",
        title="Model LEGO: Creating Models Like Disassembling and Assembling Building Blocks",
        paper="Hu, Gao, Ye, Gao, Wang, Feng, Song; NeurIPS 2024; arXiv:2203.13453",
        verb="assemble",
        needs=Needs(data="labelled", teacher="weights", architectures="parts with one sequence of layers"),
        summary="One classifier from parts of several, without training or with a short one.",
        cost="one forward over some training images; with tune, that training",
        published="close to the source without fine-tuning, above it after one epoch (abstract of v1)",
    )
    admits = frozenset({"sharpness", "mix", "sampler"})
    refuses = {"any": "it masks gradients before each update, so it needs them all in every meeting"}

    runs_on = ("none", "few", "unlabelled")

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To join convolutional networks of different classes, also where there are no images."""
        if have.goal != "join":
            return None
        if have.architecture == "transformer":
            return "it joins convolutional networks channel by channel."
        reason = (
            "networks with one sequence of layers and different classes become one with all classes, without training "
            "(--tune adds a short one); what mda cut out of two networks of one architecture fits together."
        )
        if have.data != "labelled":
            reason += (
                " Without labelled images the logits of the networks are not scaled to each other, and nothing is "
                "measured."
            )
        return Fit(0, reason, data=have.data == "labelled")

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        require(len(self.parts) > 1, f"parts must be two networks or more, not {len(self.parts)}.")

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """Two networks."""
        return {**super().stand_ins(), "parts": (nn.Identity(), nn.Identity())}

    def steps(self, n: int) -> int:
        """The updates of the fine-tuning, if any."""
        return self.recipe.steps(n) if self.tune else 0

    def check(self, data: Images) -> list[str]:
        """The parts must fit together, and where images are used, their classes must be among the data's."""
        parts, problems = self.models("parts", data), []
        try:
            whole = assemble(parts)
            if self.scale:
                scale_logits(parts[0], torch.ones(len(parts[0].classes)))
        except UserError as error:
            return [str(error).rstrip(".")]
        if self.scale or self.tune:
            if whole.input_shape[0] != data.shape[0]:
                problems.append(
                    f"the parts take {whole.input_shape[0]} input channels and the images have {data.shape[0]}"
                )
            labels = class_positions(whole.classes, data.classes).tolist()
            none = [name for name, y in zip(whole.classes, labels, strict=True) if not (data.train.labels == y).any()]
            if none or -1 in labels:
                problems.append(
                    f"{data.name} has no labelled training image of {', '.join(none[:3])}; give data with the joint "
                    "classes, or scale=False and tune=False"
                )
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the assembled network."""
        parts = self.models("parts", data)
        if self.scale:
            like = tuple(Values((len(part.classes),)) for part in parts)
            scales = run.stage("scales", lambda: [logit_scales(part, data, device=run.device) for part in parts], like)
            parts = [scale_logits(part, r) for part, r in zip(parts, scales, strict=True)]
            factors = torch.cat(scales)
            run.note(
                f"The logits of each class were multiplied by {factors.min():.2g} to {factors.max():.2g}, so that the "
                "winning ones have a mean of 1. This balances the classes of one part too, so within the whole a part "
                "may tell its classes apart better than alone, where no logit is scaled."
            )
        whole = assemble(parts)
        if not self.tune:
            return run.plain(whole.module)
        zeros = zero_blocks(parts) if self.keep_zeros else {}
        data = data.only(whole.classes).normalised(whole.mean, whole.std)
        network, optimizer = run.setup(whole.module, self.recipe)
        between = [(p, zeros[name].to(run.device)) for name, p in network.named_parameters() if name in zeros]
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            for images, labels, _ in run.batches(data.train, self.recipe):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = ce_loss(network(images), labels)
                run.backward(loss)
                for p, mask in between:
                    assert p.grad is not None
                    p.grad.masked_fill_(mask, 0.0)
                run.update(optimizer)
                run.track(loss=loss)
            if len(data.validation):
                run.evaluate(network, data.validation)
        return run.plain(network)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The assembled network with the joint classes, rebuilt from the first part's architecture and its widths."""
        return assembled_model(self.models("parts", data), module)
