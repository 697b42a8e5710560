"""Plain training: a network learns the labels that there are, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import balanced_targets, ce_loss
from upcycle.core.method import ANY, Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.collection import Collection


@dataclass(kw_only=True, eq=False, repr=False)
class Plain(Method):
    """Training on labels without a teacher: what every method that takes more than labels has to beat.

    Each step draws one augmented batch x and descends

        L = 1/b Σ_i -log softmax(z(x_i))[y_i]

    over the samples whose label is known; where the task is no classification, that task's loss. With label smoothing
    ε the target of a sample is (1 - ε) on its label and ε / K more on each of K classes (Szegedy et al.,
    arXiv:1512.00567, section 7).

    The weights are, bit for bit, those of ``kd`` with ``w_kd = 0`` and ``w_ce = 1``.

    Args:
        student: the network to train; its weights are where it starts.
        label_smoothing: share ε of each target that is spread over all classes, from 0 to 1.
        balanced: weigh labels so that each class counts alike, however many samples it has.
        views: let the augmentation repeat after so many epochs, as that of a method beside it does; 0 never repeats.
        recipe: ordinary training of the student.
    """

    roles = ("student",)

    student: Model | nn.Module
    label_smoothing: float = 0.0
    balanced: bool = False
    views: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="plain",
        title="Training on labels",
        paper="common practice",
        verb="distill",
        needs=Needs(data="labelled", teacher="none", architectures="any network", inputs=ANY, tasks=ANY),
        summary="A network that learned from labels alone: the baseline that a teacher must beat.",
        cost="student training",
        published="none: it is what others are compared with",
    )

    admits = EVERY

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """As the baseline, after everything that takes more than labels."""
        if have.goal not in ("smaller", "better"):
            return None
        reason = "no teacher, your labels alone: the baseline that everything else has to beat."
        return Fit(80, reason, teacher=False)

    def __post_init__(self) -> None:
        ranges(self, share=("label_smoothing",), not_negative=("views",))

    def check(self, data: Collection) -> list[str]:
        """At least one training label must be known; only classes can be smoothed and balanced."""
        task, labels = data.train.task, data.train.labels
        if not task.known(labels).any():
            return ["there are no labels, and nothing else is learned from; kd works without labels"]
        if (self.label_smoothing or self.balanced) and task.name != "classification":
            return [f"label_smoothing and balanced are for classes, and the task is {task.name}"]
        if self.balanced and self.recipe.mix != "none":
            return ["balanced weighs labels, and those of mixed images are none: take --recipe.sampler class with it"]
        return []

    def fit(self, run: Run, data: Collection) -> nn.Module:
        """The algorithm; returns the student."""
        task, weighted = data.train.task, None
        if self.balanced:
            weighted = balanced_targets(data.train.labels, len(data.classes)).to(run.device)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for inputs, labels, index in run.batches(data.train, self.recipe, views=self.views):
                target = labels if weighted is None else weighted[index.to(run.device)]
                z, classes = student(inputs), task.name == "classification"
                loss = ce_loss(z, target, self.label_smoothing, run.reduction) if classes else task.loss(z, target)
                run.step(loss, optimizer, self.recipe)
            run.evaluate(student, data.validation)
        return run.plain(student)
