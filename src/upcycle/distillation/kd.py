"""Knowledge distillation: a student learns the softened class probabilities of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation, imitates
from upcycle.core.batches import Batch
from upcycle.core.checks import same_classes
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms
from upcycle.core.method import ANY, Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import Values
from upcycle.core.portions import portions
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.core.batches import Split
    from upcycle.core.frozen import Frozen
    from upcycle.data.collection import Collection


def teacher_outputs(
    run: Run,
    teacher: Frozen,
    split: Split,
    *,
    classes: int,
    cache: Literal["auto", "on", "off"],
    views: int,
    augmented: bool,
) -> Callable[[Batch, int], Tensor]:
    """A function from a batch and its epoch to the teacher's logits: computed anew, or looked up.

    The teacher sees the very inputs that the student sees. Its outputs can be kept where these repeat: without
    augmentation, or when augmentation repeats every ``views`` epochs. They are stored in float16 (v, n, k).

    Args:
        run: keeps the outputs in its stage "teacher outputs".
        teacher: the frozen teacher.
        split: the training samples.
        classes: number of the teacher's logits.
        cache: as the option of :class:`KD`.
        views: as the option of :class:`KD`.
        augmented: whether the split augments its samples.
    """
    if cache == "off" or (cache == "auto" and augmented and not views):
        return lambda batch, epoch: teacher(batch.inputs)
    v = views if augmented and views else 1

    def compute() -> Tensor:
        rows = []
        for view in range(v):
            for index in portions(teacher, split):
                batch = split.batch(index, device=run.device, view=(run.seed, view) if augmented else None)
                rows.append(teacher(batch.inputs).cpu())
        z = torch.cat(rows).view(v, len(split), -1)
        return z if run.dtype == torch.float64 else z.half()

    z_t: Tensor = run.stage("teacher outputs", compute, Values((v, len(split), classes))).to(run.device)
    return lambda batch, epoch: z_t[epoch % v].index_select(0, batch.index.to(run.device)).to(batch.inputs.dtype)


@dataclass(kw_only=True, eq=False, repr=False)
class KD(Method):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; arXiv:1503.02531).

    Each step draws one augmented batch x, shows the same x to teacher and student, and descends

        L = w_ce L_ce(z_s, y) + w_kd T² mean_b KL(softmax(z_t / T) || softmax(z_s / T)).

    With ``w_ce = 0`` no label is used. Where only some are known, L_ce counts those.

    Args:
        teacher: a trained classifier; only its logits are used.
        student: any network with the same classes.
        terms: temperature and weights of the two terms.
        cache: keep the teacher's outputs instead of computing them each epoch: auto does where inputs repeat.
        views: let the augmentation repeat after so many epochs, so that outputs can be kept; 0 never repeats.
        recipe: ordinary training of the student.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    terms: Terms = field(default_factory=Terms)
    cache: Literal["auto", "on", "off"] = "auto"
    views: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="kd",
        title="Distilling the Knowledge in a Neural Network",
        paper="Hinton, Vinyals, Dean; NIPS 2014 workshop; arXiv:1503.02531",
        verb="distill",
        needs=Needs(data="unlabelled", teacher="predictions", inputs=ANY),
        summary="A smaller or different student that imitates the teacher's class probabilities.",
        cost="student training + one teacher forward a step (none when its outputs are kept)",
        published="CIFAR-100 MobileNetV2 68.4 → 71.1 with a ResNet-18 teacher (Tf-KD repository, Re-KD table)",
    )

    runs_on = ("few",)
    admits = EVERY

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a smaller or a better student wherever there are images; weak on a few."""
        if have.goal not in ("smaller", "better"):
            return None
        if why := imitates(have):
            return why
        if have.data == "few":
            stretched = ", which crop and flip stretch but do not replace" if have.inputs == "images" else ""
            reason = (
                f"weak on a few images{stretched}; a folder of any public "
                "images of the same kind serves better. If yours have labels, leave out --terms.w_ce 0."
            )
            return Fit(30, reason, "--terms.w_ce 0")
        stronger = " It helps most when the teacher is the stronger network." if have.goal == "better" else ""
        if have.data == "unlabelled":
            reason = (
                "the student learns the teacher's predictions on your images, without any label. If a part of "
                "them has labels, leave out --terms.w_ce 0 and these count."
            )
            return Fit(10, reason + stronger, "--terms.w_ce 0")
        reason = "the student learns from your labels and from the teacher's predictions on the same images."
        return Fit(10, reason + stronger)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("views",))

    def check(self, data: Collection) -> list[str]:
        """Classes and inputs of teacher, student and data must agree; ``w_ce > 0`` alone needs labels."""
        problems = same_classes(self.model("teacher", data), self.model("student", data))
        if not self.terms.w_kd and not (data.train.labels >= 0).any():
            problems.append("w_kd is 0 and there are no labels, so nothing is left to learn from")
        if self.cache == "on" and data.train.augment and not self.views:
            problems.append("cache=on needs inputs that repeat: give --views 8, or --augment none")
        return problems

    def fit(self, run: Run, data: Collection) -> nn.Module:
        """The algorithm; returns the student."""
        teacher = run.frozen(self.model("teacher", data), data.validation)
        z_t = teacher_outputs(
            run,
            teacher,
            data.train,
            classes=len(data.classes),
            cache="off" if self.recipe.mixes else self.cache,
            views=self.views,
            augmented=bool(data.train.augment),
        )
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for epoch in run.epochs(self.recipe.epochs):
            student.train()
            for batch in run.batches(data.train, self.recipe, views=self.views):
                z_s = student(batch.inputs)
                loss = self.terms(z_s, z_t(batch, epoch), batch.labels, reduction=run.reduction)
                run.step(loss, optimizer, self.recipe)
            run.evaluate(student, data.validation)
        return run.plain(student)
