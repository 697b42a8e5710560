"""LoRA: a frozen network learns a task by low-rank changes of its weights, which are then merged into them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from upcycle.adaptation.adapters.peft_layers import (
    exactly,
    import_peft,
    layers,
    matching,
    note_left_out,
    peft_problems,
    peft_product,
    peft_recipe,
    tune_and_merge,
)
from upcycle.adaptation.probe import probed
from upcycle.core.advice import Fit, Situation, if_labelled
from upcycle.core.errors import require
from upcycle.core.heads import classifier, for_classes
from upcycle.core.ingredients import EVERY
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


def add_lora(
    module: nn.Module, names: list[str], rank: int, alpha: float, dropout: float, generator: torch.Generator
) -> Any:
    """Put LoRA on the layers ``names`` of ``module`` and freeze all else, in place; returns peft's tuner.

    W' = W + (α / r) B A with B = 0 and A drawn from Kaiming's uniform distribution, as peft has it, with ``generator``.
    """
    peft = import_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=exactly(names))
    tuner = peft.LoraModel(module, config, "default")
    for name, p in module.named_parameters():
        if ".lora_A." in name:
            p.data.copy_(nn.init.kaiming_uniform_(torch.empty(p.shape), a=math.sqrt(5), generator=generator))
    return tuner


@dataclass(kw_only=True, eq=False, repr=False)
class LoRA(Method):
    """LoRA: Low-Rank Adaptation of Large Language Models (Hu et al.; ICLR 2022; arXiv:2106.09685), by ``peft``.

    Each adapted weight W (out, in) becomes W + (α / r) B A with B (out, r) and A (r, in); W is frozen, and so is all
    else but the classifier: the source's where the data have its classes, otherwise a new one, of zeros. Of a
    convolution, A is one with its kernel to r channels and B one of 1x1. Cross-entropy on the target's labels. At the
    end B A is added to W: the architecture as it was, no cost when used.

    Dropout of the network itself acts in training; BatchNorm uses its running statistics and keeps them.

    Departure: the paper adapts the query and value projections of attention alone; here every linear layer is by
    default, which its successors found better (Dettmers et al., arXiv:2305.14314), and of a fused ``qkv`` all three.

    Args:
        source: a trained classifier of images, whose logits come from a linear layer.
        targets: patterns of names of layers, such as ``*.qkv``; empty: every linear layer but the classifier, and of a
            network without others every convolution that is neither grouped nor dilated.
        rank: rank r of the changes, at least 1.
        alpha: scale α of the changes, which are multiplied by α / r.
        dropout: share of the inputs of A that are dropped in training, from 0 to below 1.
        recipe: training of adapters and classifier.
    """

    source: Model | nn.Module
    targets: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    recipe: Recipe = field(default_factory=lambda: peft_recipe(1e-3))

    card = Card(
        name="lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        paper="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen; ICLR 2022; arXiv:2106.09685",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="one network with linear layers or convolutions"),
        summary="The network for other classes, tuned by low-rank changes of its weights that are merged into them.",
        cost="fine-tuning without most gradients of weights",
        published="GPT-3 175B: 10,000 times fewer trained numbers and a third of the memory of fine-tuning (abstract)",
    )
    admits = EVERY

    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After ssf."""
        if have.goal not in ("task", "domain"):
            return None
        reason = (
            "low-rank changes of the weights are trained and merged into them; --rank says how much may "
            "change. Its library, peft, comes with upcycle[peft]."
        )
        return Fit(10 if have.data == "few" else 5, if_labelled(have, reason))

    roles: ClassVar[tuple[str, ...]] = ("source",)

    def __post_init__(self) -> None:
        self.targets = tuple(self.targets)
        ranges(self, at_least={"rank": 1}, positive=("alpha",), below_one=("dropout",))

    def sites(self, source: Model) -> list[str]:
        """The names of the layers that are adapted.

        Raises:
            UserError: a pattern that matches none, or nothing to adapt at all.
        """
        found = {name: m for name, m in layers(source).items() if isinstance(m, nn.Linear) or _factors(m)}
        linear = [name for name, m in found.items() if isinstance(m, nn.Linear)]
        require(bool(found), f"{source.name} has no linear layer but its classifier, and no plain convolution.")
        return matching(self.targets, list(found)) if self.targets else linear or list(found)

    def _unpaired(self, source: Model) -> dict[str, str]:
        """Why convolutions are left out, by name, where others are adapted."""
        found = layers(source)
        if all(isinstance(found[name], nn.Linear) for name in self.sites(source)):
            return {}
        odd = [name for name, m in found.items() if isinstance(m, nn.Conv2d) and not _factors(m)]
        return dict.fromkeys(odd, "a grouped, dilated or not zero-padded convolution has no low-rank pair to merge")

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward and a backward worth one: gradients of features, hardly any of weights."""
        return 2.0 * self.steps(n) * self.recipe.batch_size * max(teacher, student)

    def check(self, data: Images) -> list[str]:
        """Labels, images that fit, a linear classifier, and layers that the patterns match."""
        return peft_problems(self.model("source", data), data, self.sites)

    def controls(self) -> dict[str, Control]:
        """The linear probe of the same source."""
        return probed(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network with its classifier trained and the low-rank changes merged."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        network = for_classes(source, data.classes).module
        note_left_out(run, source, self._unpaired(source))
        tuner = add_lora(network, self.sites(source), self.rank, self.alpha, self.dropout, run.generator("lora"))
        return tune_and_merge(run, data, self.recipe, tuner, classifier(source), self.recipe)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture for the target's classes."""
        return peft_product(self.model("source", data), module, data, "lora")


def _factors(conv: nn.Conv2d) -> bool:
    """Whether peft's low-rank pair of convolutions computes what this one does, and can be merged."""
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
