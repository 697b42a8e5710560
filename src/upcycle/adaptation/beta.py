"""BETA: two students of a black box clean each other's labels, by dividing the target into easy and hard."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.black_box.answers import ask, check_predictors
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.adaptation.black_box.division import easiness, split_easy_hard
from upcycle.adaptation.black_box.strong_view import strong_augment
from upcycle.adaptation.black_box.training import distil_loss, draw_beta, ema_update, mixup, rate, set_rate, tune
from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import problems_of
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import WithBottleneck, with_classes
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, fresh_copy_of
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.reversal import grad_reverse, ramp
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.core.task import judged

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit
    from upcycle.predictors import Predictor

NAMES = ("head", "second head")
"""What each student's random numbers are drawn by; the first begins as DINE's student does."""


def sharpen(p: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """Sharpen each row to p^(1/T), scaled to sum 1 again."""
    power = p ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


def refine_labels(
    labels: Int[Tensor, " n"], w: Float[Tensor, " n"], q: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, "n k"]:
    """Refine the labels of easy samples to the targets w onehot(ŷ) + (1 - w) q, sharpened.

    Args:
        labels: the classes ŷ that the predictor said.
        w: trust of the other network in each ŷ, from 0 to 1.
        q: the network's own answer, the mean over two views.
        temperature: temperature T of the sharpening.
    """
    y = F.one_hot(labels, q.shape[1]).to(q)
    return sharpen(w[:, None] * y + (1 - w[:, None]) * q, temperature)


def draw_major_share(alpha: float, generator: torch.Generator) -> float:
    """Draw λ = max(λ', 1 - λ') with λ' ~ Beta(α, α): the first of two mixed samples stays the major one."""
    lam = draw_beta(alpha, generator)
    return max(lam, 1 - lam)


def soft_cross_entropy(z: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Give L_x, the mean over rows of -Σ y log softmax(z)."""
    return -(y * z.log_softmax(1)).sum(1).mean()


def squared_error(z: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Give L_u, the mean over rows and classes of (softmax(z) - y)²."""
    return (z.softmax(1) - y).square().mean()


def imbalance(z: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Give L_pen = KL(uniform ‖ mean softmax(z)): zero where all classes are predicted equally often."""
    n, k = z.shape
    log_mean = z.log_softmax(1).logsumexp(0) - math.log(n)
    return -math.log(k) - log_mean.mean()


@dataclass
class Student:
    """One of the two networks, and what trains it.

    Args:
        name: what its random numbers are drawn by.
        network: the network.
        optimizer: its optimiser.
        discriminator: what tells easy from hard features, where these are aligned.
        discriminator_optimizer: that of the discriminator.
        w: each sample's easiness, as of this epoch's division.
    """

    name: str
    network: WithBottleneck
    optimizer: torch.optim.Optimizer
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    w: Tensor = field(default_factory=lambda: torch.empty(0))

    def set_rate(self, factor: float) -> None:
        """Set the learning rates of network and discriminator: those that they began with, times ``factor``."""
        set_rate(self.optimizer, factor)
        if self.discriminator_optimizer is not None:
            set_rate(self.discriminator_optimizer, factor)

    def descend(self, run: Run, loss: Tensor, name: str) -> None:
        """Take a step of the network down ``loss`` of the whole batch, and track it as ``name``."""
        run.backward(loss, "global")
        run.update(self.optimizer)
        run.track(**{name: loss})


def tune_rate(progress: float) -> float:
    """Give the factor on the learning rate after a share p of the fine-tuning: (1 + 10 p)^-0.75."""
    return (1 + 10 * progress) ** -0.75


def ensemble(networks: tuple[nn.Module, ...], split: ImageSplit) -> Float[Tensor, "n k"]:
    """The mean of the networks' logits of images as they are, on the CPU."""
    return torch.stack([predict_logits(network, split) for network in networks]).mean(0)


@dataclass(kw_only=True, eq=False, repr=False)
class BETA(Method):
    """Divide to Adapt: Mitigating Confirmation Bias for Domain Adaptation of Black-Box Predictors (Yang, Peng, Wang,
    Zhu, Feng, Xie, You; ICLR 2023; arXiv:2205.14467).

    The predictor answers once for each image: ŷ, its class, stays; the memory P, as in DINE, moves. Each epoch,
    two networks f1 and f2

    1. at ten epochs of the run: P ← γ P + (1 - γ) softmax((z1 + z2) / 2), on the images as they are;
    2. *distil* P, each in one pass, by :func:`~upcycle.adaptation.black_box.training.distil_loss`;
    3. *divide*: each network's losses of ŷ give w (``easiness``); its easy samples have w >= τ, the rest are hard;
    4. *teach each other*: network k takes batches of its easy samples, once, beside as many of its hard ones, in a
       weak and a strong view of each. Easy ones are learnt as y = w' ŷ + (1 - w') q (:func:`refine_labels`), w' from
       the other network; hard ones as the mean of both networks' answers to both views, sharpened. All are mixed
       (MixMatch), λ >= 1/2, and the network descends

           L_x + λ_u L_u + λ_p L_pen + λ_t L_adv

       with L_x over what is mainly easy and L_u over what is mainly hard. L_adv lets a discriminator tell easy from
       hard features, through a reversed gradient.

    ``warmup`` epochs before are cross-entropy on ŷ. Afterwards f1 alone is fine-tuned by mutual information, until its
    predictions stop changing, and is the product. The mean of both networks' logits is often better: its accuracy on
    the validation images is logged as ``ensemble_accuracy``, and :meth:`adapt` gives both networks.

    The released configurations set λ_u = λ_t = 0, as do the defaults here: hard images then enter only as the minor
    part of a mixture. The network that is taught is in training mode when it answers, so its BatchNorms see these
    images too, as in the released code.

    Departures and decisions. *Reconstructed*: the strong view (``strong_augment``); L_adv, since the released
    discriminator is made anew each epoch, is never trained and sees two permutations of one mixture: here each
    network has one for the whole run, with an optimiser of its own, on weak, unmixed images. Both networks are taught
    by the other as it was when the target was divided, so that it does not matter which one is called first. P does
    not move in the first epoch, in which the networks have learnt nothing. A pass is of whole batches, filled up from
    the next one. λ_u rises from epoch to epoch, where it is not 0; in the released code it rises within them, too.

    Args:
        predictors: black boxes with the classes of the data, in any order; several are averaged as in DINE.
        student: as for DINE; both networks have its architecture, and a head of their own.
        tau: threshold τ on w from which a sample is easy; at 0 all samples are, above 1 none is.
        warmup: number of first epochs with cross-entropy on the predictors' classes alone.
        rampup: epochs after the warm-up in which λ_u grows to its value.
        temperature: temperature T of the sharpening.
        alpha: parameter α of Beta(α, α), from which MixMatch's λ is drawn.
        lambda_u: weight λ_u of the squared error on hard samples; 0 leaves it out.
        lambda_p: weight λ_p of the penalty on unevenly predicted classes.
        lambda_t: weight λ_t of the adversarial alignment of easy and hard features; 0 leaves it out.
        gamma: share γ of the memory P that stays when it moves, from 0 to 1.
        mix: weight β of MixUp's term in the distillation, as in DINE.
        mix_beta: parameter a of Beta(a, a), from which the distillation's λ is drawn, as in DINE.
        r: number of probabilities kept of each answer, as in DINE; 0 keeps all.
        fresh: the second network's backbone begins with random weights of its own. For a fresh student; a pretrained
            one keeps its weights in both.
        bottleneck: width of the layer before the classifier, and the backbone's share of the learning rate.
        epochs_tune: the most epochs of the fine-tuning; 0 leaves it out.
        lr_tune: learning rate at which the fine-tuning begins. It is the paper's, since at the rate that suits the
            rest it can undo it.
        recipe: optimiser, learning rate of the head, batch size and the epochs before the fine-tuning. Its schedule
            has no part.
    """

    predictors: tuple[Predictor, ...]
    student: Model | nn.Module
    tau: float = 0.8
    warmup: int = 0
    rampup: int = 5
    temperature: float = 0.5
    alpha: float = 1.0
    lambda_u: float = 0.0
    lambda_p: float = 1.0
    lambda_t: float = 0.0
    gamma: float = 0.6
    mix: float = 1.0
    mix_beta: float = 0.3
    r: int = 1
    fresh: bool = False
    bottleneck: Bottleneck = field(default_factory=Bottleneck)
    epochs_tune: int = 30
    lr_tune: float = 0.01
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=50, batch_size=64, lr=0.01, weight_decay=1e-3))

    roles: ClassVar[tuple[str, ...]] = ("student",)
    given: ClassVar[tuple[str, ...]] = ("predictors",)
    card = Card(
        name="beta",
        title="Divide to Adapt: Mitigating Confirmation Bias for Domain Adaptation of Black-Box Predictors",
        paper="Yang, Peng, Wang, Zhu, Feng, Xie, You; ICLR 2023; arXiv:2205.14467",
        verb="adapt",
        needs=Needs(
            data="unlabelled",
            teacher="predictions",
            architectures="any predictor; any student that ends in a linear layer",
        ),
        summary="As DINE, where the predictor is often wrong: two networks find out which answers to trust.",
        cost="one query an image; two networks, each three to four times DINE's work an epoch",
        published="Office-Home, mean of 12 tasks: about 72, DINE 69.7 (from memory, unchecked)",
    )
    refuses = {"any": "two networks divide each batch between them"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For another domain on which the network is often wrong."""
        if have.goal != "domain":
            return None
        if have.present == "some":
            return "it expects every class in every batch; dine --partial does not."
        reason = (
            "for when MODEL is wrong on a quarter of your images or more: two networks sort its answers into likely "
            "right and likely wrong, and each cleans the other's; about five times the time of dine."
        )
        return Fit(20, reason, networks="MODEL --student STUDENT")

    def __post_init__(self) -> None:
        self.predictors = tuple(self.predictors)
        ranges(
            self,
            not_negative=("tau", "lambda_u", "lambda_p", "lambda_t", "mix", "r", "rampup", "epochs_tune"),
            positive=("temperature", "alpha", "mix_beta", "lr_tune"),
            share=("gamma",),
        )
        ranges(self.bottleneck, positive=("backbone_rate",))
        require(
            0 <= self.warmup <= self.recipe.epochs,
            f"warmup must lie between 0 and the {self.recipe.epochs} epochs, not {self.warmup}.",
        )

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and no predictor: none is asked while options are checked."""
        return {**super().stand_ins(), "predictors": ()}

    def check(self, data: Images) -> list[str]:
        """Classes of predictors and data must be the same, and the student must end in a linear layer."""
        of_student = problems_of(self.model("student", data), data)
        return check_predictors(self.predictors, data, self.r) + of_student

    def steps(self, n: int) -> int:
        """The updates of both networks, at most: as if all samples were easy, and the fine-tuning did not end early."""
        a_pass = self.recipe.steps(n) // self.recipe.epochs
        return a_pass * (4 * self.recipe.epochs - 2 * self.warmup + self.epochs_tune)

    def work(self, n: int, teacher: int, student: int) -> float:
        """One answer an image; per network and epoch, at most, 6 forwards to distil, 1 to divide and 12 to teach."""
        a_pass = 19 + 6 * bool(self.lambda_u) + 6 * bool(self.lambda_t)
        passes = 2 * a_pass * self.recipe.epochs + 3 * self.epochs_tune + 30
        return float(n * (len(self.predictors) * teacher + passes * student))

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the first network, fine-tuned."""
        network, _ = self.adapt(run, data)
        if self.epochs_tune:
            tune(
                run,
                network,
                data,
                recipe=dataclasses.replace(self.recipe, lr=self.lr_tune),
                epochs=self.epochs_tune,
                bottleneck=self.bottleneck,
                schedule=tune_rate,
                diversity=True,
            )
        run.plain(network)
        return network.folded()

    def adapt(self, run: Run, data: Images) -> tuple[WithBottleneck, WithBottleneck]:
        """All but the fine-tuning; returns both networks, whose mean logits are the ensemble."""
        P = ask(run, self.predictors, data, self.r).to(run.device)
        labels = P.argmax(1)  # ŷ
        networks, E = self._networks(run, data), self.recipe.epochs

        found = run.stored("adapt", {"networks": tuple(map(weights_of, networks))})
        if found is None:
            with run.open_stage("adapt") as found:
                students = [self._set_up(run, name, network) for name, network in zip(NAMES, networks, strict=True)]
                run.register("memory", P)
                for epoch in run.epochs(E):
                    e = epoch + 1
                    for s in students:
                        s.set_rate(rate(e / E))
                    if e > 1 and 10 * e // E > 10 * (e - 1) // E:
                        ema_update(P, ensemble(networks, data.train).softmax(1).to(P), self.gamma)
                    if e <= self.warmup:
                        for s in students:
                            for images, index in self._pass(run, data, f"warm up, {s.name}", s):
                                loss = F.cross_entropy(run.gather(s.network(images)), labels[index])
                                s.descend(run, loss, "warmup_loss")
                    else:
                        for s in students:
                            draw = run.generator(f"distil, {s.name}")
                            for images, index in self._pass(run, data, f"distil, {s.name}", s):
                                s.descend(run, self._distil_loss(run, s, images, P[index], draw), "distil_loss")
                        for s in students:
                            z = predict_logits(s.network, data.train)
                            s.w = easiness(F.cross_entropy(z, labels.cpu(), reduction="none"))
                        self._log_division(run, data, students, labels)
                        first, second = students
                        before = dataclasses.replace(first, network=copy.deepcopy(first.network))
                        self._teach(run, data, first, second, labels, e)
                        self._teach(run, data, second, before, labels, e)
                    if run.evaluate(networks[0], data.validation) is not None:
                        z = ensemble(networks, data.validation)
                        run.log(ensemble_accuracy=judged(z, data.validation.labels, name="the ensemble").accuracy)
                found["networks"] = [network.state_dict() for network in networks]
        for network, state in zip(networks, found["networks"], strict=True):
            network.load_state_dict(state)
        return networks

    def _networks(self, run: Run, data: Images) -> tuple[WithBottleneck, WithBottleneck]:
        """f1, which begins as DINE's student does, and f2, with a head and perhaps a backbone of its own."""
        made = []
        for i, name in enumerate(NAMES):
            start = self.model("student", data)
            seed_everything(run.seed, name)
            if i and self.fresh:
                start = dataclasses.replace(start, module=fresh_copy_of(start.module))
            made.append(self.bottleneck.place(start, len(data.classes), norm=True, weight_norm=True))
        return made[0], made[1]

    def _set_up(self, run: Run, name: str, network: WithBottleneck) -> Student:
        _, optimizer = run.setup(network, lambda network: self.bottleneck.optimizer(network, self.recipe))
        if not self.lambda_t:
            return Student(name, network, optimizer)
        seed_everything(run.seed, f"discriminator of the {name}")  # its own draws, in whatever order
        discriminator = nn.Sequential(
            nn.Linear(self.bottleneck.width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 1)
        )
        return Student(name, network, optimizer, *run.setup(discriminator, self.recipe))

    def _pass(self, run: Run, data: Images, name: str, s: Student) -> Iterator[tuple[Tensor, Tensor]]:
        """Train ``s`` on about each image once: this process' images of each batch, and the whole batch's positions."""
        s.network.train()
        batches = run.others(data.train, self.recipe.batch_size, name)
        for images, _, index in itertools.islice(batches, math.ceil(len(data.train) / self.recipe.batch_size)):
            yield images, run.gather(index)

    def _distil_loss(self, run: Run, s: Student, images: Tensor, p: Tensor, draw: torch.Generator) -> Tensor:
        order, lam = torch.randperm(len(p), generator=draw).to(run.device), draw_beta(self.mix_beta, draw)
        return distil_loss(s.network, images, p, order=order, lam=lam, mix=self.mix, diversity=True, run=run)

    def _log_division(self, run: Run, data: Images, students: list[Student], labels: Tensor) -> None:
        """Log the share of easy samples, and how many of their ŷ are right where labels are known: only to see it."""
        easy = torch.stack([s.w >= self.tau for s in students])
        right, known = labels.cpu() == data.train.labels, data.train.labels >= 0
        run.log(easy_share=easy.float().mean())
        if (easy & known).any():
            run.log(easy_label_accuracy=right.expand_as(easy)[easy & known].float().mean())

    def _teach(self, run: Run, data: Images, s: Student, other: Student, labels: Tensor, e: int) -> None:
        """Step 4 for one network; the other one only answers."""
        easy, hard = split_easy_hard(s.w, self.tau)
        B, steps = self.recipe.batch_size, len(easy) // self.recipe.batch_size
        if not steps or len(hard) < B:
            return
        s.network.train()
        other.network.eval()
        draw, w = run.generator(f"teach, {s.name}"), other.w.to(run.device)
        easy_batches = run.others(data.train, B, f"easy, {s.name}", among=easy)
        hard_batches = run.others(data.train, B, f"hard, {s.name}", among=hard)
        for step, (x_e, _, i_e), (x_h, _, _) in zip(range(steps), easy_batches, hard_batches, strict=False):
            u = torch.rand(2, B, 9, generator=draw)
            u_e, u_h = (numbers.tensor_split(run.world_size)[run.rank] for numbers in u)
            views = [x_e, strong_augment(x_e, u_e), x_h, strong_augment(x_h, u_h)]
            y_e, y_h = self._targets(s.network, other.network, views, labels[i_e], w[i_e])
            order, lam = torch.randperm(4 * B, generator=draw).to(run.device), draw_major_share(self.alpha, draw)
            x = mixup(torch.cat([run.gather(x) for x in views]), order, lam)
            y = mixup(torch.cat([run.gather(y) for y in (y_e, y_e, y_h, y_h)]), order, lam)
            loss = self._mixed_loss(run, s.network, x, y, e)
            if s.discriminator is not None:
                kappa = ramp((e - 1 + step / steps) / self.recipe.epochs)
                loss = loss + self.lambda_t * self._adversarial_loss(run, s, x_e, x_h, kappa)
            s.descend(run, loss, "teach_loss")
            if s.discriminator_optimizer is not None:
                run.update(s.discriminator_optimizer)

    @torch.no_grad()
    def _targets(
        self, f: WithBottleneck, other: WithBottleneck, views: list[Tensor], labels: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Targets of the easy and of the hard samples, from the answers of both networks."""
        q = [f(x).softmax(1) for x in views]
        q_other = [other(x).softmax(1) for x in views[2:]]
        y_e = refine_labels(labels, w, (q[0] + q[1]) / 2, self.temperature)
        return y_e, sharpen((q[2] + q[3] + q_other[0] + q_other[1]) / 4, self.temperature)

    def _mixed_loss(self, run: Run, f: WithBottleneck, x: Tensor, y: Tensor, e: int) -> Tensor:
        """L_x + λ_u L_u + λ_p L_pen of mixed samples, of which the first half are mainly easy."""
        half = len(x) // 2
        used = len(x) if self.lambda_u else half
        z = run.gather(f(x[:used].tensor_split(run.world_size)[run.rank]))
        loss = soft_cross_entropy(z[:half], y[:half]) + self.lambda_p * imbalance(z)
        if self.lambda_u:
            rise = min(1.0, (e - self.warmup) / self.rampup) if self.rampup else 1.0
            loss = loss + self.lambda_u * rise * squared_error(z[half:], y[half:])
        return loss

    def _adversarial_loss(self, run: Run, s: Student, x_e: Tensor, x_h: Tensor, kappa: float) -> Tensor:
        """L_adv: a discriminator tells easy from hard features, whose gradient comes back reversed by κ."""
        assert s.discriminator is not None
        told = s.discriminator(grad_reverse(s.network.parts(torch.cat([x_e, x_h]))[0], kappa))
        is_easy = torch.cat([torch.ones(len(x_e)), torch.zeros(len(x_h))])[:, None].to(told)
        return F.binary_cross_entropy_with_logits(run.gather(told), run.gather(is_easy))

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student with new weights and the classes of the data."""
        return dataclasses.replace(with_classes(self.model("student", data), data.classes), module=module)
