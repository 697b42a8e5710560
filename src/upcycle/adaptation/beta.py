"""BETA: two students of a black box clean each other's labels, by dividing the target into easy and hard."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.adaptation.black_box import beta, mixed, moved
from upcycle.adaptation.dine import ask, check_predictors, distil_loss, groups, rate, set_rate, tune
from upcycle.core.checks import problems_of
from upcycle.core.errors import require
from upcycle.core.evaluate import judged, predict_logits
from upcycle.core.heads import WithBottleneck, with_classes
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of, fresh_copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.reversal import grad_reverse, ramp
from upcycle.core.run import Run, seed_everything

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit
    from upcycle.predictors import Predictor

NAMES = ("head", "second head")
"""What each student's random numbers are drawn by; the first begins as DINE's student does."""

# -- easy or hard ----------------------------------------


def easiness(losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """w: how probably each label is right, from its losses under a network.

    Losses are scaled to [0, 1], a mixture of two Gaussians is fitted to them (at most 10 iterations, tolerance 1e-2,
    variances of at least 5e-4 more), and w is the posterior of the one with the smaller mean. Where all losses or both
    means are equal nothing tells labels apart, and all are easy.

    Raises:
        UserError: a loss that is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    require(bool(losses.isfinite().all()), "A loss of the target's images is not finite; lower lr.")
    low, high = losses.double().aminmax()
    if high - low < 1e-8:
        return torch.ones_like(losses)
    x = ((losses.double() - low) / (high - low)).cpu().numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads would add up in any order
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    means = mixture.means_[:, 0]
    if abs(means[0] - means[1]) < 1e-6:
        return torch.ones_like(losses)
    return torch.from_numpy(mixture.predict_proba(x)[:, means.argmin()]).to(losses)


def divided(w: Float[Tensor, " n"], tau: float) -> tuple[Int[Tensor, " e"], Int[Tensor, " h"]]:
    """Positions of the easy (w >= τ) and of the hard samples."""
    easy: Bool[Tensor, " n"] = w >= tau
    return easy.nonzero()[:, 0], (~easy).nonzero()[:, 0]


# -- targets and losses ----------------------------------------


def sharpened(p: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """p^(1/T) of each row, to sum 1 again."""
    power = p ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


def refined(
    labels: Int[Tensor, " n"], w: Float[Tensor, " n"], q: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, "n k"]:
    """Targets of easy samples: w onehot(ŷ) + (1 - w) q, sharpened.

    Args:
        labels: ŷ, what the predictor said.
        w: how far the other network trusts ŷ.
        q: the network's own answer, the mean over two views.
    """
    y = F.one_hot(labels, q.shape[1]).to(q)
    return sharpened(w[:, None] * y + (1 - w[:, None]) * q, temperature)


def major_share(alpha: float, generator: torch.Generator) -> float:
    """λ = max(λ', 1 - λ'), λ' ~ Beta(α, α): the first of two mixed samples stays the major one."""
    lam = beta(alpha, generator)
    return max(lam, 1 - lam)


def soft_cross_entropy(z: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """L_x: mean over rows of -Σ y log softmax(z)."""
    return -(y * z.log_softmax(1)).sum(1).mean()


def squared_error(z: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """L_u: mean over rows and classes of (softmax(z) - y)²."""
    return (z.softmax(1) - y).square().mean()


def imbalance(z: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """L_pen = KL(uniform ‖ mean softmax(z)): zero where all classes are predicted equally often."""
    n, k = z.shape
    log_mean = z.log_softmax(1).logsumexp(0) - math.log(n)
    return -math.log(k) - log_mean.mean()


def strong(images: Float[Tensor, "b c h w"], u: Float[Tensor, "b 9"]) -> Float[Tensor, "b c h w"]:
    """The strong view of weakly augmented, normalised images, grey or colour.

    Each is turned by up to 20°, sheared by up to 0.2, zoomed by up to 15 %, moved by up to an eighth of its sides,
    given up to half more or less contrast and up to 0.3 standard deviations more or less brightness, and a square of a
    quarter of its sides is cut out. What comes from outside is 0, the mean colour.

    *Reconstructed*: the released code takes ImageNet's AutoAugment, which was searched for colour photographs.

    Args:
        u: random numbers in [0, 1) that decide all of it.
    """
    b, c, h, w = images.shape
    u = u.to(images)
    v = 2 * u - 1
    angle, shear, zoom, zero = math.pi / 9 * v[:, 0], 0.2 * v[:, 1], 1 + 0.15 * v[:, 2], torch.zeros_like(v[:, 0])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(b, 2, 2)
    stretch = torch.stack([zoom, shear, zero, zoom], 1).view(b, 2, 2)
    theta = torch.cat([turn @ stretch, v[:, 3:5, None] / 4], 2)  # sides are 2 long there
    x = F.grid_sample(images, F.affine_grid(theta, [b, c, h, w], align_corners=False), align_corners=False)
    contrast, brightness = 1 + 0.5 * v[:, 5].view(b, 1, 1, 1), 0.3 * v[:, 6].view(b, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + contrast * (x - mean) + brightness
    rows, columns = (((torch.arange(n, device=x.device) + 0.5) / n - u[:, i, None]).abs() < 1 / 8
                     for n, i in ((h, 7), (w, 8)))  # fmt: skip
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


# -- the method ----------------------------------------


@dataclass
class Student:
    """One of the two: its network, its optimiser, and, where easy and hard are aligned, what tells them apart.

    ``w`` is each sample's easiness, as of this epoch's division.
    """

    name: str
    network: WithBottleneck
    optimizer: torch.optim.Optimizer
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    w: Tensor = field(default_factory=lambda: torch.empty(0))


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
    2. *distil* P, each in one pass, by :func:`~upcycle.adaptation.dine.distil_loss`;
    3. *divide*: each network's losses of ŷ give w (:func:`easiness`); its easy samples have w >= τ, the rest are hard;
    4. *teach each other*: network k takes batches of its easy samples, once, beside as many of its hard ones, in a
       weak and a strong view of each. Easy ones are learnt as y = w' ŷ + (1 - w') q (:func:`refined`), w' from the
       other network; hard ones as the mean of both networks' answers to both views, sharpened. All are mixed
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

    Departures and decisions. *Reconstructed*: the strong view (:func:`strong`); L_adv, since the released
    discriminator is made anew each epoch, is never trained and sees two permutations of one mixture: here each
    network has one for the whole run, with an optimiser of its own, on weak, unmixed images. Both networks are taught
    by the other as it was when the target was divided, so that it does not matter which one is called first. P does
    not move in the first epoch, in which the networks have learnt nothing. A pass is of whole batches, filled up from
    the next one.

    Args:
        predictors: black boxes with the classes of the data, in any order; several are averaged as in DINE.
        student: as for DINE; both networks have its architecture, and a head of their own.
        tau: τ; at 0 all samples are easy, above 1 none is.
        warmup: see above.
        rampup: epochs after the warm-up in which λ_u grows to its value.
        temperature: T, of the sharpening.
        alpha: of Beta(α, α) in MixMatch.
        lambda_u, lambda_p, lambda_t: weights of L_u, L_pen and L_adv.
        gamma, mix, mix_beta, r: γ, and β, a, r of the distillation, as in DINE.
        fresh: the second network's backbone begins with random weights of its own. For a fresh student; a pretrained
            one keeps its weights in both.
        bottleneck, backbone_rate: as for DINE.
        epochs_tune, lr_tune: of the fine-tuning, at most so many; 0 leaves it out. It begins at a rate of its own,
            the paper's, since at the rate that suits the rest it can undo it.
        recipe: optimiser, head's lr, batch size and the epochs before the fine-tuning. Its schedule has no part.
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
    bottleneck: int = 256
    backbone_rate: float = 0.1
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

    def __post_init__(self) -> None:
        self.predictors = tuple(self.predictors)
        for name in ("tau", "lambda_u", "lambda_p", "lambda_t", "mix"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} must be zero or positive, not {value}.")
        for name in ("temperature", "alpha", "mix_beta", "backbone_rate", "lr_tune"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be positive, not {value}.")
        require(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], not {self.gamma}.")
        require(self.r >= 0, f"r must be at least 1, or 0 for all probabilities, not {self.r}.")
        require(self.bottleneck >= 1, f"bottleneck must be at least 1, not {self.bottleneck}.")
        for name in ("rampup", "epochs_tune"):
            require(getattr(self, name) >= 0, f"{name} must be zero or more, not {getattr(self, name)}.")
        require(0 <= self.warmup <= self.recipe.epochs,
                f"warmup must lie between 0 and the {self.recipe.epochs} epochs, not {self.warmup}.")  # fmt: skip

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and no predictor: none is asked while options are checked."""
        return {**super().stand_ins(), "predictors": ()}

    def check(self, data: Images) -> list[str]:
        """Classes of predictors and data must be the same, and the student must end in a linear layer."""
        of_student = problems_of(self.model("student", data), data.shape[0])
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
            gently = dataclasses.replace(self.recipe, lr=self.lr_tune)
            tune(run, network, data, recipe=gently, epochs=self.epochs_tune, backbone_rate=self.backbone_rate,
                 schedule=lambda p: (1 + 10 * p) ** -0.75, diversity=True)  # fmt: skip
        plain = run.plain(network)
        assert isinstance(plain, WithBottleneck)
        return plain.folded()

    def adapt(self, run: Run, data: Images) -> tuple[WithBottleneck, WithBottleneck]:
        """All but the fine-tuning; returns both networks, whose mean logits are the ensemble."""
        P = ask(run, self.predictors, data, self.r).to(run.device)
        labels = P.argmax(1)  # ŷ
        networks, E = self._networks(run, data), self.recipe.epochs

        def stage() -> list[dict[str, Tensor]]:
            students = [self._set_up(run, name, network) for name, network in zip(NAMES, networks, strict=True)]
            run.register("memory", P)
            for epoch in run.epochs(E):
                e = epoch + 1
                for s in students:
                    set_rate(s.optimizer, rate(e / E))
                    if s.discriminator_optimizer is not None:
                        set_rate(s.discriminator_optimizer, rate(e / E))
                if e > 1 and 10 * e // E > 10 * (e - 1) // E:
                    moved(P, ensemble(networks, data.train).softmax(1).to(P), self.gamma)
                if e <= self.warmup:
                    for s in students:
                        self._warm_up(run, data, s, labels)
                else:
                    for s in students:
                        self._distil(run, data, s, P)
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
            return [network.state_dict() for network in networks]

        for network, state in zip(networks, run.stage("adapt", stage), strict=True):
            network.load_state_dict(state)
        return networks

    def _networks(self, run: Run, data: Images) -> tuple[WithBottleneck, WithBottleneck]:
        """f1, which begins as DINE's student does, and f2, with a head and perhaps a backbone of its own."""
        made = []
        for i, name in enumerate(NAMES):
            start = self.model("student", data)
            seed_everything(run.seed, name)
            module = fresh_copy_of(start.module) if i and self.fresh else copy_of(start.module)
            made.append(
                WithBottleneck(
                    dataclasses.replace(start, module=module),
                    len(data.classes),
                    self.bottleneck,
                    norm=True,
                    weight_norm=True,
                )
            )
        return made[0], made[1]

    def _set_up(self, run: Run, name: str, network: WithBottleneck) -> Student:
        _, optimizer = run.setup(network, lambda network: groups(network, self.recipe, self.backbone_rate))
        if not self.lambda_t:
            return Student(name, network, optimizer)
        seed_everything(run.seed, f"discriminator of the {name}")  # its own draws, in whatever order
        discriminator = nn.Sequential(
            nn.Linear(self.bottleneck, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 1)
        )
        return Student(name, network, optimizer, *run.setup(discriminator, self.recipe))

    def _pass(self, run: Run, data: Images, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' images of each batch, and the positions of the whole batch's: about each image once."""
        batches = run.others(data.train, self.recipe.batch_size, name)
        for images, _, index in itertools.islice(batches, math.ceil(len(data.train) / self.recipe.batch_size)):
            yield images, run.gather(index)

    def _warm_up(self, run: Run, data: Images, s: Student, labels: Tensor) -> None:
        s.network.train()
        for images, index in self._pass(run, data, f"warm up, {s.name}"):
            loss = F.cross_entropy(run.gather(s.network(images)), labels[index])
            run.backward(loss, "global")
            run.update(s.optimizer)
            run.track(warmup_loss=loss)

    def _distil(self, run: Run, data: Images, s: Student, P: Tensor) -> None:
        s.network.train()
        draw = run.generator(f"distil, {s.name}")
        for images, index in self._pass(run, data, f"distil, {s.name}"):
            order, lam = torch.randperm(len(index), generator=draw).to(run.device), beta(self.mix_beta, draw)
            loss = distil_loss(s.network, images, P[index], order=order, lam=lam, mix=self.mix, diversity=True, run=run)
            run.backward(loss, "global")
            run.update(s.optimizer)
            run.track(distil_loss=loss)

    def _log_division(self, run: Run, data: Images, students: list[Student], labels: Tensor) -> None:
        """The share of easy samples, and how many of their ŷ are right: where labels are known, only to see it."""
        easy = torch.stack([s.w >= self.tau for s in students])
        right, known = labels.cpu() == data.train.labels, data.train.labels >= 0
        run.log(easy_share=easy.float().mean())
        if (easy & known).any():
            run.log(easy_label_accuracy=right.expand_as(easy)[easy & known].float().mean())

    def _teach(self, run: Run, data: Images, s: Student, other: Student, labels: Tensor, e: int) -> None:
        """Step 4 for one network; the other one only answers."""
        easy, hard = divided(s.w, self.tau)
        B, f, T = self.recipe.batch_size, s.network, self.temperature
        steps = len(easy) // B
        if not steps or len(hard) < B:
            return
        f.train()
        other.network.eval()
        draw, w, name = run.generator(f"teach, {s.name}"), other.w.to(run.device), s.name
        streams = [run.others(data.train, B, f"{kind}, {name}", among=among)
                   for kind, among in (("easy", easy), ("hard", hard))]  # fmt: skip
        rise = min(1.0, (e - self.warmup) / self.rampup) if self.rampup else 1.0
        for step, (x_e, _, i_e), (x_h, _, _) in zip(range(steps), *streams, strict=False):
            u = torch.rand(2, B, 9, generator=draw)
            u_e, u_h = (numbers.tensor_split(run.world_size)[run.rank] for numbers in u)
            views = [x_e, strong(x_e, u_e), x_h, strong(x_h, u_h)]
            with torch.no_grad():
                q = [f(x).softmax(1) for x in views]
                q_other = [other.network(x).softmax(1) for x in views[2:]]
                y_e = refined(labels[i_e], w[i_e], (q[0] + q[1]) / 2, T)
                y_h = sharpened((q[2] + q[3] + q_other[0] + q_other[1]) / 4, T)
            order, lam = torch.randperm(4 * B, generator=draw).to(run.device), major_share(self.alpha, draw)
            x = mixed(torch.cat([run.gather(x) for x in views]), order, lam)
            y = mixed(torch.cat([run.gather(y) for y in (y_e, y_e, y_h, y_h)]), order, lam)
            used = 4 * B if self.lambda_u else 2 * B
            z = run.gather(f(x[:used].tensor_split(run.world_size)[run.rank]))
            loss = soft_cross_entropy(z[: 2 * B], y[: 2 * B]) + self.lambda_p * imbalance(z)
            if self.lambda_u:
                loss = loss + self.lambda_u * rise * squared_error(z[2 * B :], y[2 * B :])
            if s.discriminator is not None:
                kappa = ramp((e - 1 + step / steps) / self.recipe.epochs)
                told = s.discriminator(grad_reverse(f.parts(torch.cat([x_e, x_h]))[0], kappa))
                is_easy = torch.cat([torch.ones(len(x_e)), torch.zeros(len(x_h))])[:, None].to(told)
                adversarial = F.binary_cross_entropy_with_logits(run.gather(told), run.gather(is_easy))
                loss = loss + self.lambda_t * adversarial
            run.backward(loss, "global")
            run.update(s.optimizer)
            if s.discriminator_optimizer is not None:
                run.update(s.discriminator_optimizer)
            run.track(teach_loss=loss)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student with new weights and the classes of the data."""
        return dataclasses.replace(with_classes(self.model("student", data), data.classes), module=module)
