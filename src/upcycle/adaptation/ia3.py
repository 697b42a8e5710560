"""IA3: a frozen network learns a task by one factor a channel, which is then merged into its weights."""

from __future__ import annotations

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
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


KEYS_AND_VALUES = frozenset(
    ["k", "v", "kv", "qkv", "key", "value", "k_proj", "v_proj", "to_k", "to_v", "to_kv", "to_qkv", "query_key_value"]
)
"""How transformers call the layers that make keys and values."""


def add_ia3(module: nn.Module, names: list[str], feedforward: list[str]) -> Any:
    """Put IA3 on the layers ``names`` of ``module`` and freeze all else, in place; returns peft's tuner.

    y' = l ⊙ y, and for the layers ``feedforward`` among them y = W (l ⊙ x) + b; l starts at 1.
    """
    peft = import_peft()
    config = peft.IA3Config(target_modules=exactly(names), feedforward_modules=exactly(feedforward))
    return peft.IA3Model(module, config, "default")


@dataclass(kw_only=True, eq=False, repr=False)
class IA3(Method):
    """Infused adapter by inhibiting and amplifying inner activations (Liu et al.; NeurIPS 2022; arXiv:2205.05638).

    A learned vector l multiplies keys, values and the hidden activations of feed-forward blocks: the outputs of the
    layers that make keys and values, the inputs of the second feed-forward layers. By ``peft``; l starts at 1, is never
    decayed, and is merged into the weights at the end. All else is frozen but the classifier, as for
    :class:`~upcycle.adaptation.lora.LoRA`.

    *Reconstructed* for networks of images. Keys and values are known by the names of their layers
    (:data:`KEYS_AND_VALUES`); of a fused ``qkv`` the queries are scaled too. Feed-forward are linear layers with more
    inputs than outputs. In a network with neither, every convolution's output channels are scaled (its linear layers'
    if it has no convolution). There is no shift, which is what SSF adds.

    Args:
        source: a trained classifier of images, whose logits come from a linear layer.
        targets: patterns of names of layers to scale; empty: as above.
        feedforward: patterns of those among them that are scaled at their input; empty: as above.
        recipe: training of vectors and classifier.
    """

    source: Model | nn.Module
    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=lambda: peft_recipe(3e-3))

    card = Card(
        name="ia3",
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        paper="Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel; NeurIPS 2022; arXiv:2205.05638",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="one network with linear layers or convolutions"),
        summary="The network for other classes, tuned by one factor a channel, merged into the weights; the fewest "
        "numbers of all.",
        cost="fine-tuning without most gradients of weights",
        published="T-Few with T0-11B: 6 % absolute over the state of the art on RAFT (abstract)",
    )
    admits = EVERY

    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After ssf and lora."""
        if have.goal not in ("task", "domain"):
            return None
        reason = "one factor a channel of some layers is trained, even less than ssf's scales and shifts."
        return Fit(12 if have.data == "few" else 8, if_labelled(have, reason))

    roles: ClassVar[tuple[str, ...]] = ("source",)

    def __post_init__(self) -> None:
        self.targets, self.feedforward = tuple(self.targets), tuple(self.feedforward)

    def sites(self, source: Model) -> tuple[list[str], list[str]]:
        """The names of the layers that are scaled, and of those among them that are at their input.

        Raises:
            UserError: a pattern that matches none, or nothing to adapt at all.
        """
        found = layers(source)
        require(bool(found), f"{source.name} has no linear layer but its classifier, and no convolution.")
        narrow = [name for name, m in found.items() if isinstance(m, nn.Linear) and m.in_features > m.out_features]
        chosen = [name for name in found if name in narrow or name.rpartition(".")[2] in KEYS_AND_VALUES]
        convolutions = [name for name, m in found.items() if isinstance(m, nn.Conv2d)]
        names = matching(self.targets, list(found)) if self.targets else chosen or convolutions or list(found)
        inputs = matching(self.feedforward, names) if self.feedforward else [name for name in names if name in narrow]
        grouped = [name for name in inputs if getattr(found[name], "groups", 1) > 1]
        require(
            not grouped,
            f"{', '.join(grouped[:1])} is a grouped convolution, which cannot be scaled at its input; "
            "leave it out of feedforward.",
        )
        return names, inputs

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
        """The algorithm; returns the network with its classifier trained and the factors merged."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        note_left_out(run, source)
        tuner = add_ia3(for_classes(source, data.classes).module, *self.sites(source))
        return tune_and_merge(run, data, self.recipe, tuner, classifier(source), self._optimizer)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Decay would pull the vectors to 0, and it is 1 that changes nothing."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        vectors = [p for name, p in trained.items() if ".ia3_l." in name]
        rest = [p for name, p in trained.items() if ".ia3_l." not in name]
        return self.recipe.make([{"params": rest}, {"params": vectors, "weight_decay": 0.0}])

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture for the target's classes."""
        return peft_product(self.model("source", data), module, data, "ia3")
