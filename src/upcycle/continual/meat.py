"""MEAT: a frozen vision transformer learns each task by switching off weights and tokens, and a small head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import untold
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.tasks import learnt, problems, start, tasks
from upcycle.continual.weights.attention_masks import (
    Masked,
    Masks,
    WithTask,
    mask_problems,
    pack_bits,
    sample_mask,
    share_penalty,
)
from upcycle.continual.weights.mask_pictures import leave_mask_pictures
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import linear
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, source_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_of
from upcycle.data.streams import Stream

REFERENCE = "continual:meat"


class TaskParameters(nn.Module):
    """The parameters that one task learns: the logits ``a`` (n,) of its gates, and its head.

    Args:
        bits: n.
        gamma: where the logits begin.
        whole: the classifier of the network.
        columns: the outputs of the task.
    """

    def __init__(self, bits: int, gamma: float, whole: nn.Linear, columns: Sequence[int]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((bits,), gamma))
        self.head = nn.Linear(whole.in_features, len(columns), bias=whole.bias is not None)
        for p in self.head.parameters():
            nn.init.zeros_(p)

    def forward(self, masked: Masked, images: Tensor, mask: Tensor) -> Tensor:
        """The logits (b, classes of the task) of the network under a mask, with the task's head as its classifier."""
        tensors = masked.sites.tensors(masked.net, mask)
        tensors |= {f"{masked.head}.{name}": p for name, p in self.head.named_parameters()}
        return functional_call(masked.net, tensors, (images,))


def _recipe() -> Recipe:
    return Recipe(epochs=30, batch_size=256, optimizer="adamw", lr=2.5e-4, weight_decay=0.05, warmup=5)


@dataclass(kw_only=True, eq=False, repr=False)
class MEAT(Method):
    """Meta-attention for ViT-backed Continual Learning (Xue, Zhang, Song, Song; CVPR 2022; arXiv:2203.11684).

    The transformer never changes. Each task t has gates with logits (a, b), which begin at (γ, -γ), and a head, the
    rows of the classifier for its classes. A step samples binary masks m = 1[a + g₁ > b + g₂] with Gumbel noise g,
    straight through to the soft probability (``sample_mask`` in ``weights/attention_masks.py``), and descends

        CE(head_t) + r Σ_l (mean(m_l) - κ)²    over the token masks m_l of the chosen blocks l.

    A token mask hides image tokens as keys from all other tokens, for all images and heads alike (``masked_softmax``
    there); every weight of the feed-forward layers has a gate of its own, y = (M ⊙ W) x + b. Afterwards the bits a > b
    and the head stay, and the logits of the gates go. So what was learnt is the same to the last bit ever after.

    What comes out answers over all classes by running once under each task's mask, T forwards; told the task, it takes
    one. Classes that the network had before, and no task has, are answered by the network as it was.

    Departures from the authors' code, which does not run as published: a head of zeros to begin with; no mixup, weight
    average or drop-path: the network runs as in use, so that nothing of it changes; warm-up from zero and cosine to
    zero; mean(m) over image tokens of the batch's one sample. b = -a, which follows from their opposite gradients, so
    half of the logits are stored. Masks of the feed-forward layers cover both weights of each ``mlp``, however wide.

    Args:
        student: network that learns the tasks, a vision transformer of timm or zoo:vit.
        past: state that an earlier stream left with the network.
        masks: kind of masks: ``meat``; ``all`` for a gate at every weight of every linear layer of the blocks, and no
            token masks (the weights that Piggyback masks, arXiv:1801.06519, with gates as here); ``none`` for a head
            alone.
        blocks: blocks whose attention is masked, from 0; those at a quarter, half and three quarters of the depth if
            not given (3, 6 and 9 of 12), none if empty.
        gamma: γ, the logit at which every gate begins; larger keeps more weights on.
        tau: τ, the temperature of the soft probability.
        kappa: κ, the share of tokens that is kept; above 0, at most 1.
        r: weight of the loss on token shares; 0 leaves it out.
        lr_gates: learning rate of the gates, which do not decay.
        recipe: training on each task; ``lr`` and ``weight_decay`` are the head's.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    masks: Masks = "meat"
    blocks: tuple[int, ...] | None = None
    gamma: float = 4.0
    tau: float = 1.0
    kappa: float = 0.9
    r: float = 1.0
    lr_gates: float = 0.1
    recipe: Recipe = field(default_factory=_recipe)

    card = Card(
        name="meat",
        title="Meta-attention for ViT-backed Continual Learning",
        paper="Xue, Zhang, Song, Song; CVPR 2022; arXiv:2203.11684",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="a vision transformer of timm, or zoo:vit"),
        summary="One frozen transformer, with bits and a head for each task, that forgets nothing.",
        cost="plain training; in use one forward a task, or one if the task is told",
        published="4.0 to 6.0 points over CNN counterparts (abstract); CIFAR-100 85.93, CUB 81.53 % (a public list of "
        "results, backbone not stated)",
    )
    refuses = {"any": "each batch draws new gates"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Where the task of an image is known and the network is a vision transformer."""
        if have.goal != "extend":
            return None
        if why := untold(have):
            return why
        if have.architecture in ("conv", "same"):
            return "it is for vision transformers (--architecture transformer)."
        if have.growth == "none":
            return "it keeps masks and a head for every task, which grow with them (--growth allowed)."
        only = "" if have.architecture == "transformer" else "if MODEL is a trained vision transformer: "
        reason = (
            f"{only}its weights stay as they are, and each task gets masks of a bit a weight and a head of its own, so "
            "nothing is forgotten."
        )
        return Fit(0 if have.architecture == "transformer" else 5, reason)

    def __post_init__(self) -> None:
        ranges(
            self,
            one_of={"masks": get_args(Masks)},
            positive=("gamma", "tau", "lr_gates", "kappa"),
            share=("kappa",),
            not_negative=("r",),
        )
        require(
            self.recipe.optimizer != "sgd",
            "The optimizer of meat must be adamw or adam: under sgd its gates hardly move.",
        )
        self.blocks = None if self.blocks is None else tuple(self.blocks)

    def model(self, role: str, data: Any) -> Model:
        """The network in ``role``; of one that carries masks, the network below them."""
        found = super().model(role, data)
        if not isinstance(found.module, Masked):
            return found
        source = found.options.get("source", {})
        return dataclasses.replace(
            found, module=found.module.net, reference=source.get("reference"), options=source.get("options", {})
        )

    def check(self, data: Stream) -> list[str]:
        """A transformer whose blocks can be masked, a stream that tells the task of its images, and masks that fit."""
        found, student = problems(self, data), self.model("student", data)
        if data.scenario != "task":
            found.append("it must be told the task of each image, and this stream does not say it; use --scenario task")
        found += found or mask_problems(student, self.masks, self.blocks)
        before = self.student.module if isinstance(self.student, Model) else self.student
        if isinstance(before, Masked):
            if self.past is None:
                found.append(f"{student.name} carries the masks of earlier tasks, and what that run kept is not given")
            elif (before.masks, before.blocks) != (self.masks, self.blocks):
                found.append(
                    f"{student.name} was extended with --masks {before.masks} and --blocks {before.blocks}, and goes "
                    "on with these"
                )
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the network with its masks, a :class:`Masked`."""
        net, before = start(self, data), learnt(self)
        every = (*(self.past.tasks if self.past else ()), *data.tasks)
        net.module.eval().requires_grad_(False)
        masked = Masked(net, every, self.masks, self.blocks).to(run.device)
        whole = linear(masked.net, masked.head)
        for t, task in tasks(
            self,
            run,
            data,
            dataclasses.replace(net, module=masked),
            keep={"off": masked.off},
            answers=lambda split, t: predict_logits(WithTask(masked, before + t), split, run.device),
            held=lambda t: masked.held(before + t + 1),
            allowed=f"{masked.sites.bits:,} bits and a head a task",
        ):
            columns = list(data.tasks[t])
            position = torch.full((len(data.classes) + 1,), -1, device=run.device)  # an unknown label is none of them
            position[columns] = torch.arange(len(columns), device=run.device)
            own, optimizer = run.setup(TaskParameters(masked.sites.bits, self.gamma, whole, columns), self._optimizer)
            for _ in run.epochs(self.recipe.epochs):
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    # The same noise on every process, and after a resume.
                    noise = torch.Generator(run.device).manual_seed(seed_of(run.seed, "gates", t, run.updates))
                    mask = sample_mask(own.a, self.tau, noise)
                    parts = masked.sites.parts(mask)
                    loss = F.cross_entropy(own(masked, images, mask), position[labels], reduction="sum") / run.count
                    if tokens := [parts[policy] for policy in masked.sites.policies]:
                        loss = loss + self.r * share_penalty(tokens, self.kappa) / run.world_size
                    run.step(loss, optimizer, self.recipe, "sum")
            with torch.no_grad():
                masked.off[before + t] = pack_bits(own.a <= 0)
                for key, p in own.head.named_parameters():
                    whole.get_parameter(key)[columns] = p
        leave_mask_pictures(run, masked, net.input_shape)
        return run.plain(masked).requires_grad_(True)

    def product(self, module: nn.Module, data: Stream) -> Model:
        """The network with its masks, rebuilt from the student's architecture."""
        made = super().product(module, data)
        assert isinstance(module, Masked)
        source = source_of(made)
        if source is None:
            return dataclasses.replace(made, options={})
        options = {
            "source": source,
            "tasks": [list(columns) for columns in module.tasks],
            "masks": module.masks,
            "blocks": None if module.blocks is None else list(module.blocks),
        }
        return dataclasses.replace(made, reference=REFERENCE, options=options)

    def _optimizer(self, own: TaskParameters) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [own.head.weight]}]
        if own.head.bias is not None:
            groups.append({"params": [own.head.bias], "weight_decay": 0.0})
        if len(own.a):
            groups.append({"params": [own.a], "weight_decay": 0.0, "lr": self.lr_gates})
        return self.recipe.make(groups)
