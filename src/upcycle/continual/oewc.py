"""Online elastic weight consolidation: weights resist change as far as their Fisher information goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import held
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.tasks import of_task, problems, start, tasks
from upcycle.continual.weights.fisher import fisher
from upcycle.continual.weights.penalty import ParameterState, pull
from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.streams import Stream


@dataclass(kw_only=True, eq=False, repr=False)
class EWC(Method):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv:1612.00796), online (Schwarz et al., arXiv:1805.06370).

    While it learns a task, the network descends the cross-entropy plus λ Σ F̄ (θ - θ*)². After the task

        F = 1/n Σ_n p(y_n | x_n) (∂ log p(y_n | x_n) / ∂θ)²,  F̄ ← γ F̄ + F,  θ* ← θ

    in the form of Mammoth, with the gradient of each example by itself; libraries that square the gradients of batches
    depend on the batch size. Cross-entropy and F are of the task's outputs where the task of an image will be known,
    else of all. λ has no half before it, as in Mammoth.

    Chosen here: F is of images without augmentation and of the network in evaluation mode. Steps are explicit, so
    2 λ F̄ times the learning rate must stay below 2 in every number, or the weights run away.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        lam: weight λ of the penalty; 0 is plain fine-tuning.
        gamma: share γ of the importances F̄ that stays after each task.
        samples: images of a task that F is estimated from; 0 takes all.
        weighted: F has the factor p(y_n | x_n); without it, it is the empirical Fisher information.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    lam: float = 10.0
    gamma: float = 1.0
    samples: int = 0
    weighted: bool = True
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="oewc",
        title="Progress & Compress: A scalable framework for continual learning",
        paper="Schwarz et al., ICML 2018; arXiv:1805.06370; after Kirkpatrick et al., PNAS 2017; arXiv:1612.00796",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="A network whose weights resist change as far as earlier tasks depend on them; no image is stored.",
        cost="plain training + one pass over each task",
        published="Split CIFAR-10, class-/task-incremental: 19.49 / 68.29 % (arXiv:2004.07211)",
    )
    refuses = {"any": "a pull towards the weights after earlier tasks is added to gradients, in no loss"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Without images of earlier tasks, best where the task of an image is known."""
        return held(
            have, 20, "weights that earlier tasks depend on are held, the more so the more they do: no image is kept."
        )

    def __post_init__(self) -> None:
        ranges(self, not_negative=("lam", "samples"), share=("gamma",))

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        beside = ParameterState(net.module, "importance", "anchor")
        for t, task in tasks(self, run, data, net, keep={"beside": beside}, allowed="no memory"):
            student, optimizer = run.setup(net.module, self.recipe)
            beside.match()
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    if self.lam:
                        pull(beside.parameters, beside["importance"], beside["anchor"], self.lam)
                    run.update(optimizer)
                    run.track(loss=loss * run.world_size)
            among = partial(of_task, data=data, t=t)
            f = fisher(run, student, task.train, among, samples=self.samples, weighted=self.weighted)
            torch._foreach_mul_(beside["importance"], self.gamma)
            torch._foreach_add_(beside["importance"], f)
            beside.copy_in("anchor", beside.parameters)
        return run.plain(net.module)
