"""Plain training on one task after another: the lower bound of continual learning."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from upcycle.continual.protocol.bounds import bounds, plain_recipe
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.tasks import of_task, problems, start, tasks
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.streams import Stream


@dataclass(kw_only=True, eq=False, repr=False)
class Finetune(Method):
    """Plain training on one task after another: what is left of the first ones is the lower bound.

    Cross-entropy over the classes of the task where its images will come with their task (task-incremental), else over
    all outputs.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="finetune",
        title="Sequential fine-tuning",
        paper="common practice; the lower bound of DER (Buzzega et al., NeurIPS 2020; arXiv:2004.07211), there SGD",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="The network after plain training on each task in turn, with nothing done against forgetting.",
        cost="plain training",
        published="Split CIFAR-10, class-/task-incremental: 19.62 / 61.02 % (arXiv:2004.07211)",
    )

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        for t, task in tasks(self, run, data, net):
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.step(loss, optimizer, self.recipe, "sum")
        return run.plain(net.module)
