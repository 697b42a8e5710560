"""Plain training on one task after another, and on all at once: the bounds of continual learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from upcycle.continual.protocol.advice import kept
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.tasks import leave_joint, of_task, problems, same_stream, start, tasks
from upcycle.core.advice import Fit, Situation
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
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="ends in a linear classifier",
            inputs=("images", "graphs"),
        ),
        summary="The network after plain training on each task in turn, with nothing done against forgetting.",
        cost="plain training",
        published="Split CIFAR-10, class-/task-incremental: 19.62 / 61.02 % (arXiv:2004.07211)",
    )
    admits = frozenset({"sharpness", "dropping", "sampler"})
    refuses = {"selection": "its loss is a sum over images", "mix": "its labels are those of one task"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Last: the lower bound."""
        if have.goal != "extend":
            return None
        return Fit(80, "nothing is done against forgetting; the others show it beside them as their lower bound.")

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
                for images, labels, _ in run.batches(task.train, self.recipe):
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.step(loss, optimizer, self.recipe, "sum")
        return run.plain(net.module)


@dataclass(kw_only=True, eq=False, repr=False)
class Joint(Method):
    """Training on all tasks at once, as if nothing came in sequence: the upper bound.

    As many passes over each image as the other methods have. The order of the tasks plays no part.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left; its images are gone, so only the network is used.
        recipe: training on all tasks together.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="joint",
        title="Joint training",
        paper="common practice; the upper bound of DER (Buzzega et al., NeurIPS 2020; arXiv:2004.07211)",
        verb="extend",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="ends in a linear classifier",
            inputs=("images", "graphs"),
        ),
        summary="What the network would reach if all tasks were there at once.",
        cost="plain training on all images",
        published="Split CIFAR-10, class-/task-incremental: 92.20 / 98.31 % (arXiv:2004.07211)",
    )
    admits = frozenset({"sharpness", "dropping", "sampler"})
    refuses = {"selection": "its loss is a sum over images", "mix": "its labels are those of one task"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """The upper bound, if all images may be kept."""
        reason = (
            "if the images of all tasks can be kept: nothing is forgotten where all are learnt at once. The others "
            "show it beside them as their upper bound."
        )
        return kept(have, 70, reason)

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
            for images, labels, _ in run.batches(joint.train, self.recipe):
                run.step(cross_entropy(student(images), labels, run.count), optimizer, self.recipe, "sum")
        leave_joint(self, run, data, student)
        return run.plain(student)


def bounds(method: Any) -> dict[str, Control]:
    """The bounds of a continual method from both sides: the same network fine-tuned, and trained on all tasks at once.

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
