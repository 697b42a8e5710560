"""Replay: images of earlier tasks in a small memory, trained on again beside the stream (ER, DER, DER++)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.continual.finetune import bounds, plain_recipe
from upcycle.continual.scores import Scores
from upcycle.continual.tasks import Past, follow, problems, start
from upcycle.core.errors import require
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.buffer import Buffer, Drawn, Policy
from upcycle.data.images import Images
from upcycle.data.streams import Stream


def logit_loss(z: Float[Tensor, "m k"], stored: Float[Tensor, "m k"], total: int) -> Float[Tensor, ""]:
    """This process' part of MSE(z, ẑ), the mean over ``total`` images of all processes and over k (DER, eq. 5)."""
    return (z - stored.to(z.dtype)).square().sum() / (total * z.shape[1])


@dataclass(kw_only=True, eq=False, repr=False)
class ER(Method):
    """Experience replay (Ratcliff 1990; Robins 1995), in the form of Mammoth (arXiv:2004.07211).

    Each step draws as many images from the memory as come from the stream, and descends the cross-entropy of both in
    one batch; then the stream's images are offered to the memory. An empty memory leaves plain fine-tuning. All
    outputs compete, so the task of an image need not be known, neither in training nor in use.

    Args:
        student: the network.
        past: what an earlier stream left.
        memory: images that are stored.
        policy: which images stay, see :class:`~upcycle.data.buffer.Buffer`.
        replay: images drawn in each step; 0 for as many as the batch has.
        recipe: of each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    memory: int = 200
    policy: Policy = "reservoir"
    replay: int = 0
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="er",
        title="Catastrophic forgetting, rehearsal and pseudorehearsal",
        paper="Robins, Connection Science 1995; as in Buzzega et al., NeurIPS 2020; arXiv:2004.07211",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="A network that repeats a few stored images of earlier tasks while it learns new ones.",
        cost="2 × plain training",
        published="Split CIFAR-10, class-/task-incremental, memory 200: 44.79 / 91.19 % (arXiv:2004.07211)",
    )

    def __post_init__(self) -> None:
        require(self.memory >= 0, f"memory must not be negative, it is {self.memory}.")
        require(self.replay >= 0, f"replay must not be negative, it is {self.replay}.")

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the images must fit, the memory must hold one of each class."""
        return problems(self, data, memory=self.memory)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        buffer = Buffer(self.memory, data.train, policy=self.policy, seed=run.seed)

        def learn(t: int, task: Images) -> None:
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                         save_within=True):  # fmt: skip
                    self.recipe.schedule_rate(optimizer, run.progress)
                    total = run.count
                    if len(buffer):
                        old = buffer.draw(run, self.replay or run.count)
                        images, labels = torch.cat([images, old.images]), torch.cat([labels, old.labels])
                        total += old.total
                    loss = cross_entropy(student(images), labels, total)
                    run.backward(loss, "sum")
                    run.update(optimizer)
                    run.track(loss=loss * run.world_size)
                    buffer.add(run, task.train, index)

        allowed = f"memory {self.memory} images"
        return follow(self, run, data, net, learn, keep={"buffer": buffer}, allowed=allowed, passes=2.0)


@dataclass(kw_only=True, eq=False, repr=False)
class DERpp(Method):
    """Dark experience replay (Buzzega, Boschini, Porrello, Abati, Calderara; NeurIPS 2020; arXiv:2004.07211).

    The memory keeps the logits that the network gave when an image came. Each step descends

        CE(z(x), y) + α MSE(z(x'), ẑ') + β CE(z(x''), y'')

    for the stream's batch x and two independent batches x', x'' from the memory; β = 0 is DER, without the second
    batch. Stored are images without augmentation, and logits of the augmented ones from before the step. The three go
    through the network one after another, as in the authors' code, so each has BatchNorm statistics of its own.

    Args:
        student: the network.
        past: what an earlier stream left.
        memory: images that are stored.
        alpha: weight α of the logits.
        beta: weight β of the labels.
        policy: which images stay, see :class:`~upcycle.data.buffer.Buffer`.
        replay: images drawn in each step; 0 for as many as the batch has.
        recipe: of each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    memory: int = 200
    alpha: float = 0.1
    beta: float = 0.5
    policy: Policy = "reservoir"
    replay: int = 0
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="derpp",
        title="Dark Experience for General Continual Learning: a Strong, Simple Baseline",
        paper="Buzzega, Boschini, Porrello, Abati, Calderara; NeurIPS 2020; arXiv:2004.07211",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="Replay that also holds on to what the network answered when it saw each stored image first.",
        cost="3 × plain training",
        published="Split CIFAR-10, class-/task-incremental, memory 200: 64.88 / 91.92 %, DER 61.93 / 91.40 "
        "(arXiv:2004.07211)",
    )

    def __post_init__(self) -> None:
        require(self.memory >= 0, f"memory must not be negative, it is {self.memory}.")
        require(self.replay >= 0, f"replay must not be negative, it is {self.replay}.")
        require(self.alpha >= 0 and self.beta >= 0, f"alpha and beta must not be negative, they are {self.alpha} and "
                f"{self.beta}.")  # fmt: skip

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the images must fit, the memory must hold one of each class."""
        return problems(self, data, memory=self.memory)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        buffer = Buffer(self.memory, data.train, logits=len(data.classes), policy=self.policy, seed=run.seed)

        def learn(t: int, task: Images) -> None:
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                         save_within=True):  # fmt: skip
                    self.recipe.schedule_rate(optimizer, run.progress)
                    z = student(images)
                    loss = cross_entropy(z, labels, run.count)
                    for weight, term in ((self.alpha, dark), (self.beta, labelled)):
                        if weight and len(buffer):
                            old = buffer.draw(run, self.replay or run.count)
                            loss = loss + weight * term(student(old.images), old)
                    run.backward(loss, "sum")
                    run.update(optimizer)
                    run.track(loss=loss * run.world_size)
                    buffer.add(run, task.train, index, z)

        passes = 1.0 + (self.alpha > 0) + (self.beta > 0)
        allowed = f"memory {self.memory} images with logits"
        return follow(self, run, data, net, learn, keep={"buffer": buffer}, allowed=allowed, passes=passes)


def dark(z: Tensor, old: Drawn) -> Tensor:
    """DER's term of a minibatch from the memory."""
    return logit_loss(z, old.logits, old.total)


def labelled(z: Tensor, old: Drawn) -> Tensor:
    """Cross-entropy of a minibatch from the memory."""
    return cross_entropy(z, old.labels, old.total)
