"""Learning without forgetting: the network's answers from before a task are distilled while it learns the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import held
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.tasks import of_task, problems, start, tasks
from upcycle.core.advice import Fit, Situation
from upcycle.core.evaluate import predict_logits
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.collection import Collection
from upcycle.data.streams import Stream


def old_loss(
    z: Float[Tensor, "b k"], old: Float[Tensor, "b k"], heads: Sequence[Sequence[int]], temperature: float, total: int
) -> Float[Tensor, ""]:
    """This process' part of the mean over ``total`` images of Σ_heads KL(softmax(old / T), softmax(z / T)).

    Equation 2 of the paper less the entropy of the old answers, so it is zero where nothing has changed; the gradient
    is the same. There is no factor T², as there.

    Args:
        z: logits now.
        old: logits before the task.
        heads: columns that compete with each other.
        temperature: T.
        total: images of all processes.
    """
    parts = []
    for columns in map(list, heads):
        now, then = ((x[:, columns] / temperature).log_softmax(1) for x in (z, old))
        parts.append(F.kl_div(now, then, reduction="sum", log_target=True))
    return sum(parts, z.new_zeros(())) / total


@dataclass(kw_only=True, eq=False, repr=False)
class LwF(Method):
    """Learning without Forgetting (Li, Hoiem; ECCV 2016; arXiv:1606.09282).

    Before a task the network's answers to the task's images are recorded. Then it descends

        CE(z, y) + α Σ_o KL(softmax(ẑ_o / T), softmax(z_o / T))

    where z_o are the outputs of an earlier task o, ẑ_o those that were recorded. In a class-incremental stream all
    earlier classes are one such o, as in Mammoth, and cross-entropy is over all outputs; where the task of an image
    will be known, each task is one, as in the paper, and cross-entropy is over the outputs of the task.

    Departures: new outputs begin at zero and are trained with the rest at once, without the paper's warm-up in which
    only they train. The answers are those to images without augmentation, recorded once. Cross-entropy is also over
    the outputs of classes that are still to come, as in the other methods here, so that α = 0 is fine-tuning; in
    Mammoth it is over those seen so far. α is the paper's; Mammoth's default is 0.5.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        alpha: weight α of the old answers, the paper's λ_o; 0 is plain fine-tuning.
        temperature: temperature T that softens both answers before they are compared.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    alpha: float = 1.0
    temperature: float = 2.0
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="lwf",
        title="Learning without Forgetting",
        paper="Li, Hoiem; ECCV 2016; arXiv:1606.09282",
        verb="extend",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="ends in a linear classifier",
            inputs=("images", "graphs"),
        ),
        summary="A network that learns a task and still answers its images as before; no image is stored.",
        cost="plain training + one forward of each task",
        published="Split CIFAR-10, class-/task-incremental: 19.61 / 63.29 % (arXiv:2004.07211)",
    )
    refuses = {"any": "its loss compares answers with those before the task"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Without images of earlier tasks, best where the task of an image is known."""
        return held(have, 24, "the network's own answers of before are held on the new images: no image is kept.")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("alpha",), positive=("temperature",))

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def heads(self, data: Stream, t: int) -> list[tuple[int, ...]]:
        """Group the outputs that were learnt before task t: those that compete with each other together."""
        tasks = [*(self.past.tasks if self.past is not None else ()), *data.tasks[:t]]
        if data.scenario == "task":
            return tasks
        columns = tuple(sorted({k for task in tasks for k in task}))
        return [columns] if columns else []

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        for t, task in tasks(self, run, data, net, allowed="no memory"):
            student, optimizer = run.setup(net.module, self.recipe)
            heads = self.heads(data, t) if self.alpha else []
            # A run that resumes within the task comes here with the network as it was before the task, and records
            # the same.
            old = record_logits(run, student, task) if heads else torch.empty(0)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size):
                    z = student(images)
                    loss = cross_entropy(*of_task(z, labels, data, t), run.count)
                    if heads:
                        loss = loss + self.alpha * old_loss(z, old[index].to(z), heads, self.temperature, run.count)
                    run.step(loss, optimizer, self.recipe, "sum")
        return run.plain(net.module)


def record_logits(run: Run, network: nn.Module, task: Collection) -> Tensor:
    """Compute the logits of every training sample of a task, (n, k) on the device; each process computes its share."""
    mine = torch.arange(len(task.train)).tensor_split(run.world_size)[run.rank]
    return run.gather(predict_logits(network, task.train.subset(mine), run.device).to(run.device))
