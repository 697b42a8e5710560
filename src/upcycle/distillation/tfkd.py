"""Teacher-free knowledge distillation: a network's earlier self, or a hand-made distribution, is the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms, ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, fresh_copy_of
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


def virtual_teacher(y: Int[Tensor, " b"], k: int, temperature: float, correct: float = 0.99) -> Float[Tensor, "b k"]:
    """p^d_T = softmax(p^d / T), with p^d = ``correct`` on the label and the rest spread evenly (section 4.2).

    The probabilities themselves are divided by T, not logits: at T = 20 the target is nearly uniform.
    """
    p_d = torch.full((len(y), k), (1 - correct) / (k - 1), device=y.device)
    p_d.scatter_(1, y[:, None], correct)
    return F.softmax(p_d / temperature, dim=1)


def reg_loss(
    z: Float[Tensor, "b k"], y: Int[Tensor, " b"], *, a: float, temperature: float, student_temperature: float = 1.0
) -> Float[Tensor, ""]:
    """L_reg = (1 - a) H(q, p) + a mean_b KL(p^d_T || softmax(z / τ)).

    The paper's text tempers the student (τ = T), its CIFAR-100 code does not (τ = 1, the default here); neither
    has a factor T².
    """
    log_p = F.log_softmax(z.float() / student_temperature, dim=1)
    kl = F.kl_div(log_p, virtual_teacher(y, z.shape[1], temperature), reduction="batchmean")
    return (1 - a) * ce_loss(z, y) + a * kl


@dataclass(kw_only=True, eq=False, repr=False)
class TfKD(Method):
    """Revisiting Knowledge Distillation via Label Smoothing Regularization (Yuan et al.; arXiv:1909.11723).

    ``variant="self"`` (Tf-KD_self): train the network M, freeze it, train a fresh M' of the same architecture with

        L = (1 - a) H(q, p) + a T² KL(softmax(z_M / T) || softmax(z_M' / T)).

    ``variant="reg"`` (Tf-KD_reg): one run against a virtual teacher; see :func:`reg_loss`.

    The paper's code averages its divergence over batch and classes and repairs that with hand-set multipliers; the
    weights here are for the sum over classes, and are not the paper's a and T (its ResNet-18 setting for reg
    amounts to the defaults given).

    Args:
        teacher: for self, a trained network of the same architecture; without one it is trained first.
        student: the network whose architecture is trained.
        variant: the teacher: the network's earlier self (self), or a virtual one (reg).
        temperature: T of the soft target; 0 takes the default, 4 for self and 20 for reg.
        a: the weight of the soft target; -1 takes the default, 0.9 for self and 0.1 for reg.
        student_temperature: τ, the temperature of the student in reg; self uses T for both.
        recipe: training of each of the two runs, or of the one.
    """

    teacher: Model | nn.Module | None = None
    student: Model | nn.Module
    variant: Literal["self", "reg"] = "self"
    temperature: float = 0.0
    a: float = -1.0
    student_temperature: float = 1.0
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="tfkd",
        title="Revisiting Knowledge Distillation via Label Smoothing Regularization",
        paper="Yuan, Tay, Li, Wang, Feng; CVPR 2020; arXiv:1909.11723",
        verb="distill",
        needs=Needs(data="labelled", teacher="none", architectures="any network; it teaches itself"),
        summary="A better network of the same architecture, without any stronger one.",
        cost="self: two trainings; reg: one",
        published="CIFAR-100 ResNet-18 75.9 → 77.1 (self) and 77.4 (reg) (official README)",
    )
    admits = EVERY - {"selection"}
    refuses = {"selection": "the regularised loss of --variant reg is one number a batch"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For labels without a teacher that is better than the student could be."""
        if have.goal not in ("smaller", "better"):
            return None
        if have.architecture == "same" and have.teacher != "none":
            reason = (
                "the teacher serves as the student's earlier self: a fresh network of its build learns from it "
                "and from your labels."
            )
            return Fit(5, reason)
        reason = "the student learns from your labels and its own earlier self (--variant reg: in one training)."
        if have.teacher != "none":
            reason = f"for when the teacher, which it does not use, is no better than the student could be: {reason}"
            return Fit(30, reason, teacher=False)
        small = " It shrinks nothing: choose a small STUDENT." if have.goal == "smaller" else ""
        return Fit(10, reason + small, teacher=False)

    def __post_init__(self) -> None:
        ranges(self, one_of={"variant": ("self", "reg")})
        self.temperature = self.temperature or (4.0 if self.variant == "self" else 20.0)
        self.a = self.a if self.a != -1.0 else (0.9 if self.variant == "self" else 0.1)
        ranges(self, positive=("temperature", "student_temperature"), share=("a",))

    def check(self, data: Images) -> list[str]:
        """Every training image needs its label; a given teacher needs the student's classes."""
        problems = []
        if self.variant == "reg" and self.recipe.mix != "none":
            problems.append(
                "variant=reg makes its target from one class an image, so it takes no mix; variant=self does"
            )
        if unknown := int((data.train.labels < 0).sum()):
            problems.append(f"it learns from labels, and {unknown} of {len(data.train)} training images have none; "
                            "kd works without labels")  # fmt: skip
        if self.variant == "self" and self.teacher is not None:
            problems += same_classes(self.model("teacher", data), self.model("student", data))
        return problems

    def steps(self, n: int) -> int:
        """Twice the recipe where its own teacher is trained first."""
        return self.recipe.steps(n) * (2 if self.variant == "self" and self.teacher is None else 1)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns M' (self) or the one network (reg)."""
        student = self.model("student", data)
        if self.variant == "reg":
            return self._train(run, data, student.module, None)
        if self.teacher is None:
            m = fresh_copy_of(student.module)
            own = run.stage("own teacher", lambda: self._train(run, data, m, None).state_dict(), weights_of(m))
            m.load_state_dict(own)
            teacher = Model(module=m, input_shape=student.input_shape, mean=data.train.mean, std=data.train.std,
                            classes=student.classes, name="own teacher")  # fmt: skip
        else:
            teacher = self.model("teacher", data)
        return self._train(run, data, student.module, teacher)

    def _train(self, run: Run, data: Images, network: nn.Module, teacher: Model | None) -> nn.Module:
        reg = self.variant == "reg"
        terms = Terms(temperature=self.temperature, w_kd=self.a, w_ce=1 - self.a)
        t = run.frozen(teacher, data.validation) if teacher else None
        network, optimizer = run.setup(network, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                z = network(images)
                if t is not None:
                    loss = terms(z, t(images), y)
                elif reg:
                    loss = reg_loss(z, y, a=self.a, temperature=self.temperature,
                                    student_temperature=self.student_temperature)  # fmt: skip
                else:  # the plain training of M
                    loss = ce_loss(z, y)
                run.step(loss, optimizer, self.recipe)
            run.evaluate(network, data.validation)
        return run.plain(network)
