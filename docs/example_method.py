"""Logit matching: a student regresses the logits of its teacher. The worked example of CONTRIBUTING.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.checks import same_classes
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


def logit_loss(z_s: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """L = 1/2 mean_b || c(z_s) - c(z_t) ||², where c takes the mean over the classes off each row.

    Adding a number to all logits of a sample changes none of its probabilities, so the loss does not see it.

    Args:
        z_s: logits of the student.
        z_t: logits of the teacher; no gradient goes there.

    Ba and Caruana, arXiv:1312.6184, the regression on logits. Computed in float32 or better.
    """
    wide = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    z_s, z_t = z_s.to(wide), z_t.detach().to(wide)
    c_s, c_t = (z - z.mean(dim=1, keepdim=True) for z in (z_s, z_t))
    return 0.5 * F.mse_loss(c_s, c_t, reduction="sum") / len(z_s)


@dataclass(kw_only=True, eq=False, repr=False)
class LogitMatching(Method):
    """Do Deep Nets Really Need to be Deep? (Ba, Caruana; arXiv:1312.6184).

    Each step draws one augmented batch, shows it to teacher and student, and descends :func:`logit_loss`.
    No label is used.

    Departure: logits are centred for each sample; the paper standardises each class over the training set (from
    memory, unchecked).

    Args:
        teacher: a trained classifier; only its logits are used.
        student: any network with the same classes.
        recipe: ordinary training of the student. Gradients of a squared error grow with the logits, so the
            learning rate is lower than that of kd.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.02, warmup=1))

    card = Card(
        name="logits",
        title="Do Deep Nets Really Need to be Deep?",
        paper="Ba, Caruana; NIPS 2014; arXiv:1312.6184",
        verb="distill",
        needs=Needs(data="unlabelled", teacher="predictions"),
        summary="A smaller or different student that regresses the teacher's logits.",
        cost="student training + one teacher forward a step",
        published="TIMIT: shallow networks perform like deep ones (abstract, which gives no figure)",
    )

    def check(self, data: Images) -> list[str]:
        """Classes and channels of teacher, student and data must agree."""
        return same_classes(self.model("teacher", data), self.model("student", data))

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        teacher = run.frozen(self.model("teacher", data), data.validation)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, _, _ in run.batches(data.train, self.recipe.batch_size):
                run.step(logit_loss(student(images), teacher(images)), optimizer, self.recipe)
            run.evaluate(student, data.validation)
        return run.plain(student)
