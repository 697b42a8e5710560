"""DINE: a student for a new domain from the predictions of black boxes, then from its own certainty alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from upcycle.adaptation.black_box.answers import ask, check_predictors
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.adaptation.black_box.training import (
    distil_loss,
    draw_beta,
    due,
    ema_update,
    late_rate,
    rate,
    set_rate,
    tune,
)
from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import problems_of
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import with_classes
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything

if TYPE_CHECKING:
    from upcycle.data.images import Images
    from upcycle.predictors import Predictor


@dataclass(kw_only=True, eq=False, repr=False)
class DINE(Method):
    """DINE: Domain Adaptation from Single and Multiple Black-box Predictors (Liang, Hu, Feng, He; arXiv:2104.01539).

    0. *Ask.* Each predictor m answers once for each unlabelled image of the target: p_m. The memory is
       P = mean_m AdaLS(p_m, r): the r largest probabilities, the rest evenly over the other classes.
    1. *Distil.* The student is a backbone with a bottleneck (linear, BatchNorm) and a weight-normalised linear
       classifier. On augmented images it descends :func:`~upcycle.adaptation.black_box.training.distil_loss`, with
       λ ~ Beta(a, a) and one permutation a batch. At every tenth of the way P ← γ P + (1 - γ) softmax(z), z on the
       images as they are. P is not smoothed again.
    2. *Fine-tune.* The student goes on with L_im alone until its predictions stop changing, see
       :func:`~upcycle.adaptation.black_box.training.tune`.

    In the end bottleneck and classifier are folded into one linear layer: the student's own architecture. No label is
    read. Several predictors are averaged plainly, and ``partial`` drops the diversity term (both *reconstructed*: the
    released code does neither).

    Departure: MixUp's images do not reach the running statistics of BatchNorm, see ``distil_loss``.

    Args:
        predictors: black boxes with the classes of the data, in any order.
        student: of any architecture that ends in a linear layer, which is replaced; pretrained on something or fresh.
        r: number of probabilities kept of each answer; 0 keeps all ("full").
        gamma: share γ of the memory P that stays when it moves, from 0 to 1; 1 leaves P as it is.
        mix: weight β of MixUp's term; 0 leaves it out.
        mix_beta: parameter a of Beta(a, a), from which MixUp's λ is drawn.
        partial: drop the diversity term, for a target that may lack classes.
        bottleneck: width of the layer before the classifier, and the backbone's share of the learning rate.
        epochs_tune: the most epochs of step 2; 0 leaves it out.
        recipe: optimiser, learning rate of the head, batch size and the epochs of step 1. Its schedule has no part:
            rates fall as :func:`~upcycle.adaptation.black_box.training.rate` and ``late_rate`` say.
    """

    predictors: tuple[Predictor, ...]
    student: Model | nn.Module
    r: int = 1
    gamma: float = 0.6
    mix: float = 1.0
    mix_beta: float = 0.3
    partial: bool = False
    bottleneck: Bottleneck = field(default_factory=Bottleneck)
    epochs_tune: int = 30
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=30, batch_size=64, lr=0.01, weight_decay=1e-3))

    roles: ClassVar[tuple[str, ...]] = ("student",)
    given: ClassVar[tuple[str, ...]] = ("predictors",)
    card = Card(
        name="dine",
        title="DINE: Domain Adaptation from Single and Multiple Black-box Predictors",
        paper="Liang, Hu, Feng, He; CVPR 2022; arXiv:2104.01539",
        verb="adapt",
        needs=Needs(
            data="unlabelled",
            teacher="predictions",
            architectures="any predictor; any student that ends in a linear layer",
        ),
        summary="A network of your own for a new domain, from one prediction an image of somebody else's.",
        cost="one query an image, then two forwards and backwards a step, and one in the second half",
        published="Office-Home, ResNet-50 to ResNet-50, mean of 12 tasks: 60.6 → 69.7, with all probabilities 70.6 "
        "(table 2)",
    )
    refuses = {"any": "each batch updates its memory of the predictor's answers"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For another domain; and, for any goal, the way to weights of one's own where a network only answers."""
        reason = (
            "a network of your choice learns from what MODEL says of your images, and then from how sure it is of them "
            "itself; no image of the old domain and no weight of MODEL is needed."
        )
        networks = "MODEL --student STUDENT"
        if have.goal == "domain":
            partial = " Classes that do not occur are not forced to (--partial)." if have.present == "some" else ""
            return Fit(10, reason + partial, "--partial" if partial else "", networks=networks)
        if have.teacher != "predictions" or (have.data != "unlabelled" and have.goal not in ("smaller", "better")):
            return None
        if have.goal in ("smaller", "better"):
            return Fit(8 if have.data == "unlabelled" else 15, reason, networks=networks)
        first = (
            "the first step where MODEL only answers: STUDENT's weights are yours, so ask again then with --teacher "
            f"weights. As to it, {reason}"
        )
        return Fit(50, first, networks=networks)

    def __post_init__(self) -> None:
        self.predictors = tuple(self.predictors)
        ranges(self, not_negative=("r", "mix", "epochs_tune"), share=("gamma",), positive=("mix_beta",))
        ranges(self.bottleneck, positive=("backbone_rate",))

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and no predictor: none is asked while options are checked."""
        return {**super().stand_ins(), "predictors": ()}

    def check(self, data: Images) -> list[str]:
        """Classes of predictors and data must be the same, and the student must end in a linear layer."""
        of_student = problems_of(self.model("student", data), data)
        return check_predictors(self.predictors, data, self.r) + of_student

    def steps(self, n: int) -> int:
        """The updates of both steps, if the second does not end early."""
        return self.recipe.steps(n) // self.recipe.epochs * (self.recipe.epochs + self.epochs_tune)

    def work(self, n: int, teacher: int, student: int) -> float:
        """One answer an image; step 1 trains on twice as many images; and twenty predictions of all images."""
        passes = 6 * self.recipe.epochs + 3 * self.epochs_tune + 20
        return float(n * (len(self.predictors) * teacher + passes * student))

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        P = ask(run, self.predictors, data, self.r).to(run.device)
        seed_everything(run.seed, "head")  # whatever has been asked before
        network = self.bottleneck.place(self.model("student", data), len(data.classes), norm=True, weight_norm=True)

        found = run.stored("distil", weights_of(network))
        if found is None:
            with run.open_stage("distil") as found:
                _, optimizer = run.setup(network, lambda network: self.bottleneck.optimizer(network, self.recipe))
                tenth = torch.ones((), dtype=torch.int64)
                run.register("memory", P)
                run.register("tenth", tenth)
                for _ in run.epochs(self.recipe.epochs):
                    network.train()
                    for images, _, index in run.batches(data.train, self.recipe.batch_size):
                        if due(run, tenth):
                            ema_update(P, predict_logits(network, data.train).softmax(1).to(P), self.gamma)
                        set_rate(optimizer, rate(run.progress))
                        index, draw = run.gather(index), run.generator(f"mixup {run.progress}")
                        order, lam = torch.randperm(len(index), generator=draw), draw_beta(self.mix_beta, draw)
                        loss = distil_loss(
                            network,
                            images,
                            P[index],
                            order=order.to(run.device),
                            lam=lam,
                            mix=self.mix,
                            diversity=not self.partial,
                            run=run,
                        )
                        run.step(loss, optimizer, reduction="global")
                    run.evaluate(network, data.validation)
                found |= network.state_dict()
        network.load_state_dict(found, assign=True)

        if self.epochs_tune:
            tune(
                run,
                network,
                data,
                recipe=self.recipe,
                epochs=self.epochs_tune,
                bottleneck=self.bottleneck,
                schedule=late_rate,
                diversity=not self.partial,
            )
        run.plain(network)
        return network.folded()

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student with new weights and the classes of the data."""
        return dataclasses.replace(with_classes(self.model("student", data), data.classes), module=module)
