"""BA3US: a labelled source with many classes, an unlabelled target with some of them, and nobody says which."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.adaptation.black_box.training import set_rate
from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import problems_of
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import with_classes
from upcycle.core.losses import entropy
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.reversal import grad_reverse, ramp
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data import Images

TENTHS = 10
"""E, the parts of a training: the class weights m and the number ρ of middle images change between them."""


def middle_size(batch: int, mu: int, tenth: int) -> int:
    """Give the number of middle images ρ(e) = ⌊⌊B / μ⌋ (1 - e / E)⌋; none for μ = 0, always ⌊B / |μ|⌋ for μ < 0."""
    if mu <= 0:
        return batch // -mu if mu else 0
    return batch // mu * (TENTHS - tenth) // TENTHS


def class_weights(p: Float[Tensor, "n k"], floor: float = 1e-6) -> Float[Tensor, " k"]:
    """Estimate m = normalise(Σ_i p_i) over the target's images; it sums to 1 and has no gradient.

    Args:
        p: class probabilities of each image.
        floor: the least weight of a class, so that an early mistake can be mended and no batch weighs nothing.
    """
    m = p.detach().sum(0)
    m = (m / m.sum()).clamp_min(floor)
    return m / m.sum()


def certainty(p: Float[Tensor, "n k"], kappa: float) -> Float[Tensor, " n"]:
    """Give u = 1 + exp(-H(p)), whose gradient to H comes back multiplied by -κ (entropy conditioning, as in CDAN+E)."""
    return 1 + (-grad_reverse(entropy(p), kappa)).exp()


def balance_weights(
    u_s: Float[Tensor, " s"], c: Float[Tensor, " s"], u_t: Float[Tensor, " t"]
) -> tuple[Float[Tensor, " s"], Float[Tensor, " t"]]:
    """Weigh source and middle by ω, which sum to s / t = 1 + ρ / B, and the target by ω, which sum to 1.

    Args:
        u_s: certainties of the s = B + ρ images of the source.
        u_t: certainties of the t = B images of the target.
        c: weight m of each source image's class.

    No gradient goes through the sums that they are divided by.
    """
    w = u_s * c
    return len(u_s) / len(u_t) * w / w.sum().detach(), u_t / u_t.sum().detach()


def alignment_loss(
    discriminator: Callable[[Tensor], Tensor],
    z_s: Float[Tensor, "s width"],
    z_t: Float[Tensor, "t width"],
    omega_s: Float[Tensor, " s"],
    omega_t: Float[Tensor, " t"],
    kappa: float,
) -> Float[Tensor, ""]:
    """Give L_adv = Σ ω BCE(D(reverse_κ(z)), d) / Σ ω: d = 1 for the first t source images, 0 for all others.

    Args:
        discriminator: the network D, from features (s + t, width) to logits (s + t,).
        z_s: features of the source images, the ρ = s - t middle ones last.
        z_t: features of the target's images.
        omega_s: weights of the source images, see :func:`balance_weights`.
        omega_t: weights of the target's images.
        kappa: coefficient κ of the reversed gradient.
    """
    d = (torch.arange(len(z_s) + len(z_t), device=z_s.device) < len(z_t)).to(z_s.dtype)
    omega = torch.cat([omega_s, omega_t])
    logits = discriminator(grad_reverse(torch.cat([z_s, z_t]), kappa))
    return (omega * F.binary_cross_entropy_with_logits(logits, d, reduction="none")).sum() / omega.sum().detach()


def complement(p: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Give the complement entropy ℓ = Σ_{c≠y} p̃_c log p̃_c / log(k - 1) with p̃ = p / (1 - p_y), for k >= 3.

    It is -1 where all wrong classes are equal and 0 where one has all that is left (Chen et al., ICLR 2019).
    """
    rest = p / (1 - p.gather(1, y[:, None]) + 1e-7)
    terms = (rest * (rest + 1e-10).log()).scatter(1, y[:, None], 0.0)
    return terms.sum(1) / math.log(p.shape[1] - 1)


def doubt(p: Float[Tensor, "n k"], y: Int[Tensor, " n"], m: Float[Tensor, " k"], alpha: float) -> Float[Tensor, " n"]:
    """Give a = m_y (1 - p_y)^α, normalised to sum 1 (all zero if every p_y is 1); no gradient."""
    a = m[y] * (1 - p.detach().gather(1, y[:, None])[:, 0]).clamp_min(0) ** alpha
    return a / a.sum().clamp_min(torch.finfo(a.dtype).tiny)


def suppression_loss(
    p: Float[Tensor, "n k"], y: Int[Tensor, " n"], m: Float[Tensor, " k"], alpha: float
) -> Float[Tensor, ""]:
    """Give L_aus = Σ a ℓ of :func:`complement` and :func:`doubt`: small where wrong classes are equally unlikely."""
    return (doubt(p, y, m, alpha) * complement(p, y)).sum()


class Discriminator(nn.Module):
    """Linear, ReLU, dropout twice, and a linear layer: from features (n, inputs) to logits (n,) of "source".

    Args:
        inputs: width of the features.
        hidden: width of both hidden layers.
        dropout: share of activations that are dropped; always, as it is never used but to train.
    """

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        widths = (inputs, hidden, hidden, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = dropout
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """``generator`` is what dropout draws from, on the CPU, so that processes with the same z do the same."""
        for layer in self.layers[:-1]:
            z = F.relu(layer(z))
            kept = torch.rand(z.shape, generator=generator) >= self.dropout
            z = z * kept.to(z) / (1 - self.dropout)
        return self.layers[-1](z)[:, 0]


@dataclass(kw_only=True, eq=False, repr=False)
class BA3US(Method):
    """A Balanced and Uncertainty-aware Approach for Partial Domain Adaptation (Liang et al.; arXiv:2003.02541).

    Features z come from a backbone and a bottleneck, p = softmax of a linear classifier on z. In ten parts of I / 10
    updates; in the e-th, B + ρ(e) labelled source images and B unlabelled target images a step descend

        L_s + L_adv + η_t L_t + η_a L_aus,

    L_s: cross-entropy of the B source images, Σ m_y CE / Σ m_y.
    L_adv: balanced adversarial alignment. A discriminator D tells source (1) from target (0) and the gradient of z
        is reversed by κ = 2 / (1 + exp(-γ i / I)) - 1. The ρ "middle" images are source images that are called
        target, so that early both sides hold all classes. Weights ω: :func:`balance_weights`, :func:`certainty`.
    L_t: mean entropy of p on the target.
    L_aus: adaptive uncertainty suppression on the source, :func:`suppression_loss`.

    The class weights m are uniform in the first part and then :func:`class_weights` of p on all target images, anew
    after each part. In the end bottleneck and classifier are folded into one linear layer: the student's own
    architecture. The target's training labels are never read.

    ``BA3US(mu=0, class_weights=False, conditioning=False, eta_t=0, eta_a=0)`` is DANN (Ganin, Lempitsky; 2015), and
    ``gamma=0`` besides is training on the source alone.

    Chosen here, where card and code leave it open: m has a floor, so that no batch weighs nothing (the released code
    skips such batches); source and middle images pass the network together, target images apart, so that BatchNorm
    sees one domain at a time; 1e-5 is added within the logarithm of an entropy, as everywhere here (the
    released code: 1e-7); the released code saves the last model, although it calls that the best one, and the
    last is what is returned here unless ``select`` says otherwise.

    Args:
        student: of any architecture that ends in a linear layer, which is replaced; pretrained on something or fresh.
        source_data: labelled images, with the target's classes in the same order and the same normalisation; only
            its train split is used.
        iterations: number I of all updates; a multiple of 10 (Office-Home: 5000, Office-31: 2000).
        batch_size: number B of images of each domain in a step.
        mu: divisor μ of B in the number of middle images; 0 draws none, and μ < 0 always B / |μ|.
        alpha: exponent α, by which uncertain samples weigh more in L_aus.
        eta_a: weight η_a of the uncertainty suppression L_aus (Office-31: 5); 0 leaves it out.
        eta_t: weight η_t of the mean entropy L_t on the target.
        gamma: steepness γ with which κ rises; 0 reverses no gradient.
        class_weights: weigh by m; otherwise all classes alike, and m is only reported.
        conditioning: weigh by certainty; otherwise u = 1.
        bottleneck: width of the features z, and the backbone's share of the learning rate.
        hidden: width of the discriminator's two hidden layers.
        dropout: share of the discriminator's activations that are dropped, from 0 to below 1.
        lr: learning rate of bottleneck, classifier and D, ten times the paper's lr0; it falls as (1 + 0.001 i)^-0.75.
        momentum: Nesterov's momentum of SGD, from 0 to below 1.
        weight_decay: weight decay of SGD, on every parameter.
        select: the model after the last update, or the one of lowest mean entropy on the target among the ten. Low
            entropy needs no label, and prefers collapsed models.
    """

    student: Model | nn.Module
    source_data: Images
    iterations: int = 5000
    batch_size: int = 36
    mu: int = 4
    alpha: float = 1.0
    eta_a: float = 1.0
    eta_t: float = 0.1
    gamma: float = 10.0
    class_weights: bool = True
    conditioning: bool = True
    bottleneck: Bottleneck = field(default_factory=Bottleneck)
    hidden: int = 1024
    dropout: float = 0.5
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-3
    select: Literal["last", "entropy"] = "last"

    roles: ClassVar[tuple[str, ...]] = ("student",)
    given: ClassVar[tuple[str, ...]] = ("source_data",)
    card = Card(
        name="ba3us",
        title="A Balanced and Uncertainty-aware Approach for Partial Domain Adaptation",
        paper="Liang, Wang, Hu, He, Feng; ECCV 2020; arXiv:2003.02541",
        verb="adapt",
        needs=Needs(data="unlabelled", teacher="none", architectures="any student that ends in a linear layer"),
        summary="A network for a target that has only some of a labelled source's classes, and which these are.",
        cost="a little over twice the training on the source, and ten predictions of all target images",
        published="ResNet-50, means: Office-Home 75.98, Office-31 97.81 (from memory, unchecked); DANN 47.4 and 43.4, "
        "no adaptation 53.7 and 75.6 (README of TLlib)",
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For another domain that has only some of the classes, with labelled images of the old one."""
        if have.goal != "domain":
            return None
        if have.source == "none":
            return "it needs labelled images of the old domain (--source labelled)."
        reason = (
            "made for a new domain in which only some of the old classes occur, which it finds out; it learns from "
            "labelled images of the old domain and unlabelled ones of the new."
        )
        place = 5 if have.present == "some" else 25
        return Fit(place, reason, networks="--student STUDENT --source_data SOURCE")

    def __post_init__(self) -> None:
        require(
            self.iterations >= TENTHS and self.iterations % TENTHS == 0,
            f"iterations must be a positive multiple of {TENTHS}, not {self.iterations}.",
        )
        ranges(
            self,
            at_least={"batch_size": 2, "hidden": 1},
            not_negative=("alpha", "eta_a", "eta_t", "gamma", "weight_decay"),
            below_one=("dropout", "momentum"),
            positive=("lr",),
        )

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and a source without images."""
        return {**super().stand_ins(), "source_data": Images.none((1, 8, 8), ("a", "b"), (0.0,), (1.0,))}

    def check(self, data: Images) -> list[str]:
        """Source, target and student must fit each other; the source must be labelled."""
        source, problems = self.source_data, []
        if source.classes != data.classes:
            problems.append(
                f"{source.name} and {data.name} must have the same classes in the same order; the target "
                "takes all of the source's, also those that it may have no image of"
            )
        if len(source.classes) < 3 and self.eta_a > 0:
            problems.append(
                "uncertainty suppression compares wrong classes, and with two classes there is one; give --eta_a 0"
            )
        for name, split in ((source.name, source.train), (data.name, data.train)):
            if not len(split):
                problems.append(f"{name} has no training images")
        if (source.train.labels < 0).any():
            problems.append(f"{source.name} has training images without labels; the source needs all of them")
        if source.shape != data.shape:
            problems.append(
                f"the images of {source.name} are {source.shape} (channels, height, width) and those of "
                f"{data.name} {data.shape}; --size brings images to one size"
            )
        elif (source.train.mean, source.train.std) != (data.train.mean, data.train.std):
            problems.append(f"{source.name} and {data.name} are normalised differently; normalise both alike")
        return problems + problems_of(self.model("student", data), data)

    def steps(self, n: int) -> int:
        """I, however many images there are."""
        return self.iterations

    def work(self, n: int, teacher: int, student: int) -> float:
        """Every step trains on 2 B + ρ images, and every part predicts all n."""
        seen = sum(2 * self.batch_size + middle_size(self.batch_size, self.mu, e) for e in range(TENTHS))
        return float(student * (3 * self.iterations // TENTHS * seen + TENTHS * n))

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        B, k, steps = self.batch_size, len(data.classes), self.iterations // TENTHS
        seed_everything(run.seed, "head")
        net = self.bottleneck.place(self.model("student", data), k, norm=False, weight_norm=False)
        D = Discriminator(self.bottleneck.width, self.hidden, self.dropout)
        run.setup(net.backbone)  # by itself, so that the run's precision reaches it
        _, optimizer = run.setup(nn.ModuleList([net.head, D]), lambda heads: self._optimizer(net.backbone, heads))
        estimates = next(net.head.parameters()).new_full((TENTHS + 1, k), 1 / k)  # m of each part, and at the end
        run.register("class weights", estimates)
        kept = copy.deepcopy(net) if self.select == "entropy" else net
        lowest = torch.full((), math.inf, dtype=torch.float64)
        if kept is not net:
            run.register("kept", kept)
            run.register("lowest", lowest)

        for e in run.epochs(TENTHS):
            m = estimates[e if self.class_weights else 0]
            source = run.others(self.source_data.train, B + middle_size(B, self.mu, e), "source")
            target = run.others(data.train, B, "target")
            draws = run.generator("dropout")
            net.train()
            for step, (x_s, y, _), (x_t, _, _) in zip(range(steps), source, target, strict=False):
                i = e * steps + step
                set_rate(optimizer, (1 + 0.001 * i) ** -0.75)
                kappa = ramp(i / self.iterations, self.gamma)
                # The sums run over the whole batch, so every process computes the loss of all of it.
                z_s, logits_s = map(run.gather, net.parts(x_s))
                z_t, logits_t = map(run.gather, net.parts(x_t))
                y, p_s, p_t = run.gather(y), logits_s.softmax(1), logits_t.softmax(1)
                L_s = F.cross_entropy(logits_s[:B], y[:B], weight=m)
                u_s, u_t = (certainty(p, kappa) if self.conditioning else torch.ones_like(p[:, 0]) for p in (p_s, p_t))
                L_adv = alignment_loss(partial(D, generator=draws), z_s, z_t, *balance_weights(u_s, m[y], u_t), kappa)
                loss = L_s + L_adv + self.eta_t * entropy(p_t).mean()
                if self.eta_a:
                    loss = loss + self.eta_a * suppression_loss(p_s[:B], y[:B], m, self.alpha)
                run.backward(loss, "global")
                run.update(optimizer)
                run.track(loss=loss, source_loss=L_s, alignment_loss=L_adv)
            p = predict_logits(net, data.train).double().softmax(1)
            estimates[e + 1] = class_weights(p)
            H = entropy(p).mean()
            run.log(target_entropy=H)
            if kept is not net and bool(lowest > H):
                lowest.copy_(H)
                kept.load_state_dict(net.state_dict())
            run.evaluate(net, data.validation)
        _pictures(run, estimates.cpu(), data.classes)
        run.plain(kept)
        return kept.folded()

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student with new weights and the classes of the data."""
        return dataclasses.replace(with_classes(self.model("student", data), data.classes), module=module)

    def _optimizer(self, backbone: nn.Module, heads: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.bottleneck.groups(backbone, heads, self.lr),
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
            fused=True,
        )


def _pictures(run: Run, estimates: Float[Tensor, "parts k"], classes: tuple[str, ...]) -> None:
    """The final class weights as bars, and their way there as lines; of many classes the heaviest."""
    order = estimates[-1].argsort(descending=True, stable=True).tolist()
    less = " (the heaviest classes)"
    run.picture(
        "1-classes",
        {
            "kind": "bars",
            "title": "Classes found in the target" + less * (len(order) > 30),
            "caption": "Share of each class in what the network says of all target images, at the end. "
            f"If all were alike, each would have {1 / len(order):.3g}.",
            "items": [{"name": classes[c], "value": float(estimates[-1, c])} for c in sorted(order[:30])],
        },
    )
    run.picture(
        "2-class-weights",
        {
            "kind": "lines",
            "title": "Class weights over the training" + less * (len(order) > 10),
            "caption": "From equal weights towards the classes that the target has.",
            "x": "tenth of the updates",
            "y": "weight",
            "unit": "percent",
            "series": [
                {"name": classes[c], "x": list(range(len(estimates))), "y": estimates[:, c].tolist()}
                for c in sorted(order[:10])
            ],
        },
    )
