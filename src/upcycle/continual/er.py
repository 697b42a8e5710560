"""Experience replay: a few images of earlier tasks are trained on again beside the stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import kept
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.replay import Replay
from upcycle.continual.protocol.tasks import problems, start, tasks
from upcycle.core.advice import Fit, Situation
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.streams import Stream


@dataclass(kw_only=True, eq=False, repr=False)
class ER(Method):
    """Experience replay (Ratcliff 1990; Robins 1995), in the form of Mammoth (arXiv:2004.07211).

    Each step draws as many images from the memory as come from the stream, and descends the cross-entropy of both in
    one batch; then the stream's images are offered to the memory. An empty memory leaves plain fine-tuning. All
    outputs compete, so the task of an image need not be known, neither in training nor in use.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        replay: memory of earlier images, and how many of them are shown again.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    replay: Replay = field(default_factory=Replay)
    recipe: Recipe = field(default_factory=plain_recipe)

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
    refuses = {"any": "each batch also fills and reads its memory, once"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After derpp: simpler."""
        return kept(have, 14, "derpp without the answers: simpler, less memory, two thirds of the time.")

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the images must fit, the memory must hold one of each class."""
        return problems(self, data, memory=self.replay.images, option="replay.images")

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net, buffer = start(self, data), self.replay.buffer(data.train, run.seed)
        allowed = f"memory {self.replay.images} images"
        for _, task in tasks(self, run, data, net, keep={"buffer": buffer}, allowed=allowed, passes=2.0):
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size):
                    total = run.count
                    if len(buffer):
                        old = buffer.draw(run, self.replay.draw or run.count)
                        images, labels = torch.cat([images, old.images]), torch.cat([labels, old.labels])
                        total += old.total
                    loss = cross_entropy(student(images), labels, total)
                    run.step(loss, optimizer, self.recipe, "sum")
                    buffer.add(run, task.train, index)
        return run.plain(net.module)
