"""Dark experience replay: stored images are replayed with the logits that the network once gave for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import kept
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.replay import Replay, logit_loss
from upcycle.continual.protocol.tasks import problems, start, tasks
from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.buffer import Drawn
from upcycle.data.streams import Stream


@dataclass(kw_only=True, eq=False, repr=False)
class DERpp(Method):
    """Dark experience replay (Buzzega, Boschini, Porrello, Abati, Calderara; NeurIPS 2020; arXiv:2004.07211).

    The memory keeps the logits that the network gave when an image came. Each step descends

        CE(z(x), y) + α MSE(z(x'), ẑ') + β CE(z(x''), y'')

    for the stream's batch x and two independent batches x', x'' from the memory; β = 0 is DER, without the second
    batch. Stored are images without augmentation, and logits of the augmented ones from before the step. The three go
    through the network one after another, as in the authors' code, so each has BatchNorm statistics of its own.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        replay: memory of earlier images, and how many of them are shown again.
        alpha: weight α of the loss on stored logits; 0 leaves it out.
        beta: weight β of the loss on stored labels; 0 leaves it out.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    replay: Replay = field(default_factory=Replay)
    alpha: float = 0.1
    beta: float = 0.5
    recipe: Recipe = field(default_factory=plain_recipe)

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
    refuses = {"any": "each batch also fills and reads its memory, once"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """First where some images may be kept."""
        reason = (
            "a few images stay in a memory, with what the network answered when it saw them, and are learnt again "
            "beside the new ones; it needs neither the task of an image nor to know where one ends."
        )
        return kept(have, 10, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("alpha", "beta"))

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the images must fit, the memory must hold one of each class."""
        return problems(self, data, memory=self.replay.images, option="replay.images")

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net, buffer = start(self, data), self.replay.buffer(data.train, run.seed, logits=len(data.classes))
        allowed = f"memory {self.replay.images} images with logits"
        passes = 1.0 + (self.alpha > 0) + (self.beta > 0)
        for _, task in tasks(self, run, data, net, keep={"buffer": buffer}, allowed=allowed, passes=passes):
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size):
                    z = student(images)
                    loss = cross_entropy(z, labels, run.count)
                    for weight, term in ((self.alpha, dark), (self.beta, labelled)):
                        if weight and len(buffer):
                            old = buffer.draw(run, self.replay.draw or run.count)
                            loss = loss + weight * term(student(old.images), old)
                    run.step(loss, optimizer, self.recipe, "sum")
                    buffer.add(run, task.train, index, z)
        return run.plain(net.module)


def dark(z: Tensor, old: Drawn) -> Tensor:
    """DER's term of a minibatch from the memory."""
    return logit_loss(z, old.logits, old.total)


def labelled(z: Tensor, old: Drawn) -> Tensor:
    """Cross-entropy of a minibatch from the memory."""
    return cross_entropy(z, old.labels, old.total)
