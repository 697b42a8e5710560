"""Virtual attention module: attention over groups of filters while distilling, folded away afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upcycle.core.advice import Fit, Situation, imitates
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


class VirtualAttention(nn.Module):
    """W'[o,i] = G_i a[block(o), block(i)] W[o,i] with a = softmax(s / τ) over the G_i input blocks.

    Args:
        weight: of a convolution, (Co, Ci, kh, kw), Co and Ci divisible by ``block``.
        block: channels in a virtual block, v.
        theta: shared log-temperature, τ = exp(θ).

    The factor G_i makes the start (s = 0) the unchanged network.
    """

    def __init__(self, weight: Tensor, block: int, theta: nn.Parameter) -> None:
        super().__init__()
        self.block, self.theta = block, theta
        self.s = nn.Parameter(torch.zeros(weight.shape[0] // block, weight.shape[1] // block))

    def attention(self) -> Float[Tensor, "go gi"]:
        """a, whose rows sum to one."""
        return F.softmax(self.s / self.theta.exp(), dim=1)

    def forward(self, weight: Float[Tensor, "co ci kh kw"]) -> Float[Tensor, "co ci kh kw"]:
        scale = self.s.shape[1] * self.attention()
        scale = scale.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
        return weight * scale[:, :, None, None]

    def entropy(self) -> Float[Tensor, ""]:
        """mean over output blocks of -Σ_i a log a / log G_i, in [0, 1]."""
        log_a = F.log_softmax(self.s / self.theta.exp(), dim=1)
        return -(log_a.exp() * log_a).sum(1).mean() / math.log(self.s.shape[1])


def attach(module: nn.Module, block: int = 0) -> list[VirtualAttention]:
    """Put virtual attention on every convolution that has at least two input blocks; returns the attentions.

    Args:
        block: channels in a block; 0 takes 16, or 8 where a convolution has fewer than 32 input channels.

    *Reconstructed*: the paper gives the idea, and no code of it is public. The default of the card, the second
    convolution of each residual block and every convolution of plain nets, is taken as every ungrouped
    convolution with a kernel above 1x1, so that it needs no knowledge of the architecture.
    """
    theta = nn.Parameter(torch.zeros(()))
    made = []
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        v = block or (16 if conv.in_channels >= 32 else 8)
        fits = conv.in_channels % v == 0 and conv.out_channels % v == 0 and conv.in_channels >= 2 * v
        if fits and conv.groups == 1 and conv.kernel_size != (1, 1):
            attention = VirtualAttention(conv.weight, v, theta)
            parametrize.register_parametrization(conv, "weight", attention)
            made.append(attention)
    return made


def fold(module: nn.Module) -> nn.Module:
    """Replace every W by its W' and drop the attention: the architecture as it was, the same function."""
    for m in list(module.modules()):
        if parametrize.is_parametrized(m, "weight") and isinstance(m.parametrizations.weight[0], VirtualAttention):  # type: ignore[union-attr,index]
            parametrize.remove_parametrizations(m, "weight", leave_parametrized=True)
    return module


@dataclass(kw_only=True, eq=False, repr=False)
class VAM(Method):
    """KDExplainer's virtual attention module (Xue et al., IJCAI 2021; arXiv:2105.04181), *reconstructed*.

    L = w_ce L_ce + w_kd L_kd + γ mean over layers of the normalised entropy of a (see :class:`VirtualAttention`).
    s and θ are trained with the same optimiser without weight decay; at the end W' replaces W.

    Args:
        teacher: a trained classifier; only its logits are used.
        student: a network with the same classes and a convolution of at least two virtual blocks.
        terms: temperature and weights of the two terms of KD.
        gamma: γ, the weight of the entropy.
        block: v, channels in a virtual block; 0 takes 16, or 8 for layers narrower than 32.
        recipe: ordinary training of the student.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    terms: Terms = field(default_factory=Terms)
    gamma: float = 0.01
    block: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="vam",
        title="KDExplainer: A Task-oriented Attention Model for Explaining Knowledge Distillation",
        paper="Xue, Song, Wang, Chen, Wang, Song; IJCAI 2021; arXiv:2105.04181",
        verb="distill",
        needs=Needs(data="unlabelled", teacher="predictions", architectures="a student with convolutions"),
        summary="KD with attention over filter groups while training, folded away; a gain of tenths at best.",
        cost="KD + a few per cent",
        published="CIFAR-10 ResNet-18 +0.25, CIFAR-100 WRN-16-2 +0.57 over KD (secondary notes, unchecked)",
    )
    admits = EVERY - {"selection"}
    refuses = {"selection": "its loss has a term without samples"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After kd, where the student has convolutions."""
        if have.goal not in ("smaller", "better"):
            return None
        if have.architecture == "transformer":
            return "it works on the student's convolutions, and a transformer has next to none."
        if why := imitates(have):
            return why
        condition = ", if the student has convolutions" if have.architecture == "any" else ""
        reason = (
            f"kd{condition} with attention over groups of filters while training, folded away afterwards. Its "
            "published gain is some tenths of a point, which did not show here: try it after kd."
        )
        return Fit(20, reason, "" if have.data == "labelled" else "--terms.w_ce 0")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("gamma", "block"))

    def check(self, data: Images) -> list[str]:
        """KD's conditions, and a convolution of at least two virtual blocks in the student."""
        student = self.model("student", data)
        problems = same_classes(self.model("teacher", data), student)
        if not any(isinstance(m, nn.Conv2d) for m in student.module.modules()):
            problems.append("the student has no convolution; kd needs none")
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student with the attention folded into its weights."""
        teacher = run.frozen(self.model("teacher", data), data.validation)
        network = self.model("student", data).module
        attentions = attach(network, self.block)
        if not attentions:
            raise UserError(f"vam finds no convolution with two blocks of {self.block or '16 (or 8)'} channels in the "
                            "student; choose a smaller --block.")  # fmt: skip
        student, optimizer = run.setup(network, self._optimizer)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = self.terms(student(images), teacher(images), y)
                entropy = torch.stack([a.entropy() for a in attentions]).mean()
                run.backward(loss + self.gamma * entropy)
                run.update(optimizer)
                run.track(loss=loss, entropy=entropy)
            run.evaluate(student, data.validation)
        _show(run, attentions)
        return fold(run.plain(student))

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The recipe's, without weight decay on the attention."""
        own = {id(p) for m in module.modules() if isinstance(m, VirtualAttention) for p in m.parameters()}
        rest = [p for p in module.parameters() if id(p) not in own]
        attention = [p for p in module.parameters() if id(p) in own]
        return self.recipe.make([{"params": rest}, {"params": attention, "weight_decay": 0.0}])


def _show(run: Run, attentions: list[VirtualAttention]) -> None:
    """Leave a picture of each attention."""
    for i, a in enumerate(attentions):
        values = a.attention().detach().tolist()
        run.picture(
            f"attention-{i:02d}",
            {
                "kind": "heatmap",
                "title": f"Virtual attention, layer {i + 1}",
                "caption": "Share of each group of input filters (columns) in each group of output filters (rows).",
                "rows": [str(r) for r in range(len(values))],
                "columns": [str(c) for c in range(len(values[0]))],
                "values": values,
            },
        )
