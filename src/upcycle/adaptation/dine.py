"""DINE: a student for a new domain from the predictions of black boxes, then from its own certainty alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.black_box import adaptive_smoothing, beta, mixed, moved
from upcycle.core.checks import problems_of
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import WithBottleneck, with_classes
from upcycle.core.losses import divergence, information
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.norms import unrecorded
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run, seed_everything

if TYPE_CHECKING:
    from upcycle.data.images import Images
    from upcycle.predictors import Answers, Predictor


def rate(progress: float) -> float:
    """(1 + 10 p)^-1.5: the factor on the learning rate of step 1 after a share p of it."""
    return (1 + 10 * progress) ** -1.5


def late_rate(progress: float) -> float:
    """(11 + 10 p)^-0.75: that of step 2, which goes on low, from 0.17 to 0.10."""
    return (11 + 10 * progress) ** -0.75


def distil_loss(
    network: nn.Module,
    images: Float[Tensor, "b c h w"],
    p: Float[Tensor, "n k"],
    *,
    order: Int[Tensor, " n"],
    lam: float,
    mix: float,
    diversity: bool,
    run: Run | None = None,
) -> Float[Tensor, ""]:
    """L = KL(P ‖ q) + L_im + β KL(λ q + (1 - λ) q_π ‖ q̃), with q of the images and q̃ of λ x + (1 - λ) x_π.

    L_im is :func:`~upcycle.core.losses.information`. No gradient goes to P or to the target of q̃. BatchNorm
    normalises the mixed images by their own statistics and does not remember them: what the released code means to do
    (its switch is one that BatchNorm ignores, so there mixed images reach the running statistics).

    Args:
        network: in training mode, gives logits.
        images: this process' share of the batch.
        p: P of the whole batch of n samples, of all processes together (n = b on one).
        order: π, a permutation of the whole batch.
        lam: λ.
        mix: β; 0 leaves the term out.
        diversity: see ``information``.
        run: whose processes share the batch; the loss is the same on each, so its backward is "global".
    """

    def whole(x: Tensor) -> Tensor:
        return run.gather(x) if run is not None else x

    z = whole(network(images))
    loss = divergence(p.to(z), z) + information(z, diversity=diversity)
    if not mix:
        return loss
    target, both = mixed(z.detach().softmax(1), order, lam), mixed(whole(images), order, lam)
    mine = both.tensor_split(run.world_size)[run.rank] if run is not None else both  # as Run.batches does
    with unrecorded(network):
        z_mix = whole(network(mine))
    return loss + mix * divergence(target, z_mix)


# -- what the black boxes say ----------------------------------------


def ask(run: Run, predictors: tuple[Predictor, ...], data: Images, r: int) -> Float[Tensor, "n k"]:
    """P: the mean over the predictors of their smoothed answers to the training images, columns in ``data``'s order.

    Each predictor is asked once for each image, by the first process, in a stage of its own: a resumed run does not
    ask again.

    Args:
        r: probabilities that stay, see :func:`~upcycle.adaptation.black_box.adaptive_smoothing`; 0 keeps all.

    Raises:
        UserError: answers that are none, or one class for all images, from which there is nothing to learn.
    """
    k, rows = len(data.classes), []
    for i, predictor in enumerate(predictors, 1):

        def answers(predictor: Predictor = predictor) -> list[Tensor]:
            found = predictor.predict(data.train) if run.rank == 0 else None
            found = run.fabric.broadcast(found) if run.world_size > 1 else found
            assert found is not None
            _check_answers(found, predictor, len(data.train))
            return [found.classes, found.probabilities]

        classes, probabilities = run.stage(f"answers {i}", answers)
        t = classes.shape[1]
        if t < min(r or k, k):
            run.note(f"{predictor.name} answers with {t} of {k} classes, fewer than the {r or k} that are to stay.")
        columns = torch.tensor([data.classes.index(name) for name in predictor.classes])
        rows.append(adaptive_smoothing(columns[classes], probabilities, k, r or k))
    # In float64, so that the mean of equal rows is that row.
    p = torch.stack(rows).double().mean(0).float()
    labels = p.argmax(1)
    require(bool((labels != labels[0]).any()), f"All {len(p)} images of {data.name} are taken for "
            f"'{data.classes[int(labels[0])]}', so there is nothing to learn from the predictions; bring images of "
            "more classes, or another predictor.")  # fmt: skip
    return p


def _check_answers(found: Answers, predictor: Predictor, n: int) -> None:
    classes, p, k = found.classes, found.probabilities, len(predictor.classes)
    require(classes.shape == p.shape and len(p) == n and p.ndim == 2 and 1 <= p.shape[1] <= k,
            f"{predictor.name} answers {n} images with classes {tuple(classes.shape)} and probabilities "
            f"{tuple(p.shape)}; ({n}, t) of each is needed, with t from 1 to {k}.")  # fmt: skip
    broken = int((~p.isfinite()).any(1).sum())
    require(broken == 0, f"{predictor.name} answers {broken} of {n} images with what is not a finite probability; "
            "look at those images, and at the predictor.")  # fmt: skip
    right = (p >= 0).all() and (p.sum(1) <= 1 + 1e-3).all() and (classes >= 0).all() and (classes < k).all()
    require(bool(right), f"{predictor.name} gives probabilities that are negative or sum to more than 1, or classes "
            f"outside of its {k}; a predictor answers with probabilities, not logits.")  # fmt: skip


def check_predictors(predictors: tuple[Predictor, ...], data: Images, r: int) -> list[str]:
    """What keeps predictors from naming the classes of ``data``, in words; r as in :func:`ask`."""
    problems = [] if predictors else ["it needs at least one predictor"]
    for predictor in predictors:
        if sorted(predictor.classes) != sorted(data.classes):
            apart = sorted(set(predictor.classes) ^ set(data.classes)) or ["one of them twice"]
            problems.append(f"{predictor.name} has {len(predictor.classes)} classes and {data.name} "
                            f"{len(data.classes)}, and they differ ({', '.join(apart[:3])}); the data take the "
                            "predictors' classes, also where they have no image of some")  # fmt: skip
    if r > len(data.classes):
        problems.append(f"r = {r} keeps more classes than the {len(data.classes)} that there are; 0 keeps all")
    return problems


# -- training ----------------------------------------


def groups(network: WithBottleneck, recipe: Recipe, backbone_rate: float) -> torch.optim.Optimizer:
    """The recipe's optimiser, whose rate for the backbone is ``backbone_rate`` times that of the head."""
    parts = ((network.backbone, backbone_rate), (network.head, 1.0))
    return recipe.make([{"params": [p for p in part.parameters() if p.requires_grad], "lr": recipe.lr * share}
                        for part, share in parts])  # fmt: skip


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate: what it began with, times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def due(run: Run, tenth: Tensor) -> bool:
    """Whether the stage's loop has come to its ``tenth`` of ten parts; then ``tenth`` becomes the next one.

    Args:
        tenth: int64, registered with the run: 0 to begin with the start, 1 to leave that out.
    """
    now = int(10 * run.progress + 1e-9)
    found = now >= int(tenth)
    if found:
        tenth.fill_(now + 1)
    return found


def tune(
    run: Run,
    network: WithBottleneck,
    data: Images,
    *,
    recipe: Recipe,
    epochs: int,
    backbone_rate: float,
    schedule: Callable[[float], float],
    diversity: bool,
) -> None:
    """Step 2, a stage of its own: ``network`` descends L_im alone, with an optimiser of its own.

    At every tenth of the way, also at its start, it predicts the whole training split as it is; two equal predictions
    in a row end it.

    Args:
        network: trained in place; left on the CPU.
        recipe: its optimiser, lr and batch size.
        epochs: at most.
        backbone_rate: see :func:`groups`.
        schedule: the factor on the rates by the share of the epochs that is done; :func:`late_rate` for DINE.
        diversity: see :func:`~upcycle.core.losses.information`.
    """

    def stage() -> dict[str, Tensor]:
        _, optimizer = run.setup(network, lambda network: groups(network, recipe, backbone_rate))
        before, tenth = torch.full((len(data.train),), -1), torch.zeros((), dtype=torch.int64)
        run.register("labels", before)
        run.register("tenth", tenth)
        for _ in run.epochs(epochs):
            network.train()
            for images, _, _ in run.batches(data.train, recipe.batch_size, save_within=True):
                if due(run, tenth):
                    now = predict_logits(network, data.train).argmax(1)
                    if torch.equal(now, before):
                        run.note(f"Fine-tuning ended after {run.progress:.0%} of its {epochs} epochs: the predictions "
                                 "no longer changed.")  # fmt: skip
                        return network.state_dict()
                    before.copy_(now)
                set_rate(optimizer, schedule(run.progress))
                loss = information(run.gather(network(images)), diversity=diversity)
                run.backward(loss, "global")
                run.update(optimizer)
                run.track(information=loss)
            run.evaluate(network, data.validation)
        return network.state_dict()

    network.load_state_dict(run.stage("tune", stage), assign=True)  # with its number format


@dataclass(kw_only=True, eq=False, repr=False)
class DINE(Method):
    """DINE: Domain Adaptation from Single and Multiple Black-box Predictors (Liang, Hu, Feng, He; arXiv:2104.01539).

    0. *Ask.* Each predictor m answers once for each unlabelled image of the target: p_m. The memory is
       P = mean_m AdaLS(p_m, r): the r largest probabilities, the rest evenly over the other classes.
    1. *Distil.* The student, a backbone with a bottleneck (linear, BatchNorm) and a weight-normalised linear
       classifier, descends :func:`distil_loss` on augmented images, with λ ~ Beta(a, a) and one permutation a batch.
       At every tenth of the way P ← γ P + (1 - γ) softmax(z), z on the images as they are. P is not smoothed again.
    2. *Fine-tune.* The student goes on with L_im alone until its predictions stop changing, see :func:`tune`.

    In the end bottleneck and classifier are folded into one linear layer: the student's own architecture. No label is
    read. Several predictors are averaged plainly, and ``partial`` drops the diversity term (both *reconstructed*: the
    released code does neither).

    Departure: MixUp's images do not reach the running statistics of BatchNorm, see :func:`distil_loss`.

    Args:
        predictors: black boxes with the classes of the data, in any order.
        student: of any architecture that ends in a linear layer, which is replaced; pretrained on something or fresh.
        r: probabilities kept of each answer; 0 keeps all ("full").
        gamma: γ; 1 leaves P as it is.
        mix: β, weight of MixUp's term.
        mix_beta: a.
        partial: the target may lack classes, so do not ask that all occur.
        bottleneck: features between backbone and classifier.
        backbone_rate: the backbone's learning rate over the head's; 1 suits a fresh network.
        epochs_tune: of step 2, at most; 0 leaves it out.
        recipe: optimiser, head's lr, batch size and the epochs of step 1. Its schedule has no part: the rate falls
            as :func:`rate` and :func:`late_rate` say.
    """

    predictors: tuple[Predictor, ...]
    student: Model | nn.Module
    r: int = 1
    gamma: float = 0.6
    mix: float = 1.0
    mix_beta: float = 0.3
    partial: bool = False
    bottleneck: int = 256
    backbone_rate: float = 0.1
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

    def __post_init__(self) -> None:
        self.predictors = tuple(self.predictors)
        require(self.r >= 0, f"r must be at least 1, or 0 for all probabilities, not {self.r}.")
        require(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], not {self.gamma}.")
        require(0 <= self.mix < math.inf, f"mix must be zero or positive, not {self.mix}.")
        for name in ("mix_beta", "backbone_rate"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be positive, not {value}.")
        require(self.bottleneck >= 1, f"bottleneck must be at least 1, not {self.bottleneck}.")
        require(self.epochs_tune >= 0, f"epochs_tune must be zero or more, not {self.epochs_tune}.")

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and no predictor: none is asked while options are checked."""
        return {**super().stand_ins(), "predictors": ()}

    def check(self, data: Images) -> list[str]:
        """Classes of predictors and data must be the same, and the student must end in a linear layer."""
        of_student = problems_of(self.model("student", data), data.shape[0])
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
        start = self.model("student", data)
        seed_everything(run.seed, "head")  # whatever has been asked before
        network = WithBottleneck(
            dataclasses.replace(start, module=copy_of(start.module)),
            len(data.classes),
            self.bottleneck,
            norm=True,
            weight_norm=True,
        )

        def distil() -> dict[str, Tensor]:
            _, optimizer = run.setup(network, lambda network: groups(network, self.recipe, self.backbone_rate))
            tenth = torch.ones((), dtype=torch.int64)
            run.register("memory", P)
            run.register("tenth", tenth)
            for _ in run.epochs(self.recipe.epochs):
                network.train()
                for images, _, index in run.batches(data.train, self.recipe.batch_size, save_within=True):
                    if due(run, tenth):
                        moved(P, predict_logits(network, data.train).softmax(1).to(P), self.gamma)
                    set_rate(optimizer, rate(run.progress))
                    index, draw = run.gather(index), run.generator(f"mixup {run.progress}")
                    order, lam = torch.randperm(len(index), generator=draw), beta(self.mix_beta, draw)
                    loss = distil_loss(network, images, P[index], order=order.to(run.device), lam=lam, mix=self.mix,
                                       diversity=not self.partial, run=run)  # fmt: skip
                    run.backward(loss, "global")
                    run.update(optimizer)
                    run.track(loss=loss)
                run.evaluate(network, data.validation)
            return network.state_dict()

        network.load_state_dict(run.stage("distil", distil), assign=True)
        if self.epochs_tune:
            tune(run, network, data, recipe=self.recipe, epochs=self.epochs_tune, backbone_rate=self.backbone_rate,
                 schedule=late_rate, diversity=not self.partial)  # fmt: skip
        plain = run.plain(network)
        assert isinstance(plain, WithBottleneck)
        return plain.folded()

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student with new weights and the classes of the data."""
        return dataclasses.replace(with_classes(self.model("student", data), data.classes), module=module)
