"""Synaptic intelligence: weights resist change as far as their moves lowered earlier losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import held
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.tasks import of_task, problems, start, tasks
from upcycle.continual.weights.penalty import ParameterState, Tensors, clip, gradients, pull
from upcycle.core.advice import Fit, Situation
from upcycle.core.collective import average_gradients
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.streams import Stream


@dataclass(kw_only=True, eq=False, repr=False)
class SI(Method):
    """Synaptic intelligence (Zenke, Poole, Ganguli; ICML 2017; arXiv:1703.04200), in the form of Mammoth.

    Every step adds to ω how much each parameter's own move lowered the loss, and after the task

        ω ← ω + g (θ_before - θ_after),  Ω ← Ω + ω / ((θ - θ*)² + ξ),  ω ← 0,  θ* ← θ

    where g is the gradient of the cross-entropy alone. The step descends g + 2 c Ω (θ - θ*), clipped to [-1, 1] in each
    number. Cross-entropy is over the task's outputs where the task of an image will be known, else over all.

    Chosen here: g in ω is not clipped, since it is the loss that ω is about; moves by weight decay and momentum count.
    A sum ω may be negative, and then counts against earlier tasks' Ω, as in the paper's equation 4.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        c: weight of the penalty; 0 leaves it out.
        xi: damping ξ, which bounds Ω where a weight hardly moved.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    c: float = 0.1
    xi: float = 0.1
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="si",
        title="Continual Learning Through Synaptic Intelligence",
        paper="Zenke, Poole, Ganguli; ICML 2017; arXiv:1703.04200",
        verb="extend",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="ends in a linear classifier",
            inputs=("images", "graphs"),
        ),
        summary="A network whose weights resist change as far as their moves lowered earlier losses; no image stored.",
        cost="plain training",
        published="Split CIFAR-10, class-/task-incremental: 19.48 / 68.05 % (arXiv:2004.07211)",
    )
    refuses = {"any": "it sums what each update does to the loss"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Without images of earlier tasks, best where the task of an image is known."""
        return held(have, 22, "like oewc, with the importance of a weight added up while it is learnt.")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("c",), positive=("xi",))

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        beside = ParameterState(net.module, "importance", "anchor", "path")
        beside.copy_in("anchor", beside.parameters)
        for t, task in tasks(self, run, data, net, keep={"beside": beside}, allowed="no memory"):
            student, optimizer = run.setup(net.module, self.recipe)
            beside.match()
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    if run.world_size > 1:  # before the clip, which is not linear
                        average_gradients(list(beside.parameters), run.world_size)
                    g = [x.clone() for x in gradients(beside.parameters)]
                    before = [p.detach().clone() for p in beside.parameters]
                    pull(beside.parameters, beside["importance"], beside["anchor"], self.c)
                    clip(gradients(beside.parameters))
                    run.update(optimizer)
                    torch._foreach_addcmul_(beside["path"], g, _apart(before, beside.parameters))
                    run.track(loss=loss * run.world_size)
            moved = _apart(beside.parameters, beside["anchor"])
            beside.copy_in("importance", omega(beside["importance"], beside["path"], moved, self.xi))
            beside.copy_in("anchor", beside.parameters)
            torch._foreach_zero_(beside["path"])
        return run.plain(net.module)


@torch.no_grad()
def _apart(a: Tensors, b: Tensors) -> tuple[Tensor, ...]:
    return torch._foreach_sub(a, b)


def omega(importance: Tensors, path: Tensors, moved: Tensors, xi: float) -> list[Tensor]:
    """Ω + ω / (Δθ² + ξ) of each parameter (SI, equation 5)."""
    return [o + w / (d.square() + xi) for o, w, d in zip(importance, path, moved, strict=True)]
