"""The two ends of continual learning: plain training task after task, and training on all tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from upcycle.continual.scores import Scores
from upcycle.continual.tasks import Past, follow, leave_joint, of_task, problems, same_stream, start
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images
from upcycle.data.streams import Stream


def plain_recipe() -> Recipe:
    """Plain SGD, one pass: no momentum and no weight decay, which would move the outputs of classes that rest."""
    return Recipe(epochs=1, batch_size=32, lr=0.03, momentum=0.0, weight_decay=0.0, schedule="constant")


@dataclass(kw_only=True, eq=False, repr=False)
class Finetune(Method):
    """Plain training on one task after another: what is left of the first ones is the lower bound.

    Cross-entropy over the classes of the task where its images will come with their task (task-incremental), else over
    all outputs.

    Args:
        student: the network.
        past: what an earlier stream left.
        recipe: of each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

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

        def learn(t: int, task: Images) -> None:
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                     save_within=True):  # fmt: skip
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    run.update(optimizer)
                    run.track(loss=loss * run.world_size)

        return follow(self, run, data, net, learn)


@dataclass(kw_only=True, eq=False, repr=False)
class Joint(Method):
    """Training on all tasks at once, as if nothing came in sequence: the upper bound.

    As many passes over each image as the other methods have. The order of the tasks plays no part.

    Args:
        student: the network.
        past: what an earlier stream left; its images are gone, so only the network is used.
        recipe: of the whole training.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="joint",
        title="Joint training",
        paper="common practice; the upper bound of DER (Buzzega et al., NeurIPS 2020; arXiv:2004.07211)",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="What the network would reach if all tasks were there at once.",
        cost="plain training on all images",
        published="Split CIFAR-10, class-/task-incremental: 92.20 / 98.31 % (arXiv:2004.07211)",
    )

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        same_stream(run, data)
        net, joint = start(self, data), data.joint()
        student, optimizer = run.setup(net.module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, labels, _ in run.batches(joint.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = cross_entropy(student(images), labels, run.count)
                run.backward(loss, "sum")
                run.update(optimizer)
                run.track(loss=loss * run.world_size)
        leave_joint(self, run, data, student)
        return run.plain(student)


def bounds(method: Any) -> dict[str, Control]:
    """What bounds a continual method from both sides: the same network fine-tuned, and trained on all tasks at once.

    Args:
        method: whose ``student`` and, where it has one, ``recipe`` they take.
    """
    own = {"student": method.student}
    if isinstance(recipe := getattr(method, "recipe", None), Recipe):
        own["recipe"] = recipe
    both = {
        "finetune": (Finetune, "lower bound", "fine-tuned"),
        "joint": (Joint, "upper bound", "trained jointly"),
    }
    return {
        name: Control(method=cls(**own), role=role, words=words)
        for name, (cls, role, words) in both.items()
        if not isinstance(method, cls)
    }
