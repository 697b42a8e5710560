"""Up to 100x faster data-free distillation: one generator that is a few steps away from every batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.data_free.advice import from_the_teacher
from upcycle.distillation.data_free.inversion import (
    Best,
    adam,
    bn_loss,
    check_teacher,
    crop_flip,
    decision_adversarial,
)
from upcycle.distillation.data_free.making import Making, generator_work
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.zoo.generator import Generator

if TYPE_CHECKING:
    from upcycle.data.images import Images


class Momentum:
    """The BatchNorm statistics of the stream of batches: L_bn asks of it, not of each batch, to be the teacher's.

    Per layer, L_bn compares the running statistics with (1 - m) (mu, var) + m (mu~, var~), where (mu~, var~) are
    those of the batches before; the first batch is taken as it is.

    Args:
        m: momentum; 0 takes each batch by itself.
        running: the teacher's statistics by layer, whose shapes these have.
    """

    def __init__(self, m: float, running: list[tuple[Tensor, Tensor]]) -> None:
        self.m = m
        self.started = False
        self.stream = [(mean.clone(), var.clone()) for mean, var in running]

    def blend(self, batch: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """(1 - m) batch + m stream; gradients go to the batch."""
        if not self.started:
            return batch
        return [((1 - self.m) * mu + self.m * mean, (1 - self.m) * var + self.m * variance)
                for (mu, var), (mean, variance) in zip(batch, self.stream, strict=True)]  # fmt: skip

    def update(self, batch: list[tuple[Tensor, Tensor]]) -> None:
        """Let the stream take in a batch, at the end of a round."""
        self.stream = [(mu.detach(), var.detach()) for mu, var in self.blend(batch)]
        self.started = True

    def state_dict(self) -> dict[str, Any]:
        return {"started": self.started, "stream": self.stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.started = state["started"]
        self.stream = [(mean.to(old), var.to(old)) for (mean, var), (old, _) in
                       zip(state["stream"], self.stream, strict=True)]  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class FastDFKD(Method):
    """Up to 100x Faster Data-Free Knowledge Distillation (Fang, Mo, Wang, Song, Bei, Zhang, Song; arXiv:2112.06253).

    Round e makes one batch of N images, from noise z and classes y drawn at random:

    1. theta' <- theta, the meta-generator's weights;
    2. k times: x = G(z; theta'), a view v of x, L = bn L_bn + oh L_oh + adv L_adv, one Adam step on theta' and z;
       the x with the lowest L is kept;
    3. one Adam step on theta with sum_i dL_i/dtheta'_i (``meta``: first-order MAML as in the authors' code, whose
       textbook form takes the last summand alone) or with theta - theta'_k (``reptile``).

    L_bn compares the teacher's BatchNorm statistics with those of the stream of batches (``bn_mmt``), L_oh is the
    teacher's cross-entropy to y, and L_adv = -mean 1{s = t} KL(p_t || p_s) begins after ``making.warmup`` rounds,
    as does the student's training on all images made so far.

    With ``reuse="sequential"`` the generator is trained on from batch to batch; with ``none`` it is drawn anew for
    each, as in CMI: the paper's ablations.

    The schedule is cut down to what two cores can do; the paper's is 220 rounds, 20 of
    them warm-up, 400 updates a round and no repeating views: ``recipes/fastdfkd_cifar10_paper.yaml``.

    Departures: the augmented views of the pool repeat (``making.views``), so that the teacher answers each once; the
    momentum is Nesterov's; cosine ends at 0 instead of 2e-4. Reptile's factor c = 67 is left out, since Adam
    divides it away but for its epsilon. L_adv and the reset begin with the first round after the warm-up; the authors'
    counter of rounds is one ahead, so that theirs begin a round earlier, before the student has learnt anything.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        making: rounds of N images, and the student's training on them.
        k: inner steps for each batch; the paper's are 2, 5 and 10.
        reuse: part of the generator that goes from batch to batch: meta-learned weights (meta, reptile), the last
            weights (sequential), or none.
        reset: rounds after the warm-up at which the generator's first layers are drawn anew, where there are so many;
            -1 for never.
        lr_g: inner rate of the generator; the meta rate is k times it. The paper's: 5e-3, 3e-3, 2e-3 for k = 2, 5, 10.
        lr_z: inner rate of the noise. The paper's: 0.015, 0.01, 0.01 for k = 2, 5, 10.
        bn: weight of L_bn; the defaults of this and the next two are the paper's for a WRN-40-2 teacher.
        oh: weight of L_oh.
        adv: weight of L_adv; 0 leaves it out.
        bn_mmt: m, momentum of the statistics of the stream; 0 takes each batch by itself.
        nz: length of the noise.
        ngf: base width of the generator.
        recipe: training of the student; ``epochs`` counts rounds with training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    making: Making = field(default_factory=lambda: Making(rounds=70, warmup=10, kd_steps=100, views=12))
    k: int = 5
    reuse: Literal["meta", "reptile", "sequential", "none"] = "meta"
    reset: int = 120
    lr_g: float = 3e-3
    lr_z: float = 1e-2
    bn: float = 10.0
    oh: float = 0.4
    adv: float = 1.1
    bn_mmt: float = 0.9
    nz: int = 256
    ngf: int = 64
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=70, batch_size=256, lr=0.2, weight_decay=1e-4))

    card = Card(
        name="fastdfkd",
        title="Up to 100x Faster Data-Free Knowledge Distillation",
        paper="Fang, Mo, Wang, Song, Bei, Zhang, Song; AAAI 2022; arXiv:2112.06253",
        verb="distill",
        needs=Needs(data="none", teacher="weights", architectures="a teacher with BatchNorm, any student"),
        summary="A student from a trained network alone: images are inverted out of it, a few steps a batch.",
        cost="student training + k steps of generator, teacher and student a batch of images",
        published="CIFAR-10 WRN-40-2 → WRN-16-1 88.90 with k = 5, 89.29 with k = 10; CMI 90.01, teacher 94.87 "
        "(official README)",
    )
    refuses = {"any": "it makes its images itself, by other optimisers in the same loop"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """First of those that make their own images: the least synthesis."""
        reason = (
            "images are inverted out of the teacher by a generator that is a few steps away from each batch, and the "
            "student learns on them: few steps a batch, so most of the time is the student's (--dry_run says how much)."
        )
        return from_the_teacher(have, 1, reason)

    def __post_init__(self) -> None:
        ranges(
            self,
            at_least={"k": 1, "nz": 1, "ngf": 1, "reset": -1},
            not_negative=("bn", "oh", "adv", "lr_g", "lr_z"),
            below_one=("bn_mmt",),
        )

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.making.steps(self.recipe)

    def work(self, n: int, teacher: int, student: int) -> float:
        """Multiply-adds of synthesis (forward and input gradients) and of the student's training."""
        generator = generator_work(self.teacher, self.nz, self.ngf)
        image = self.k * (3 * generator + 2 * teacher + 2 * student)
        return self.making.work(self.recipe, image, teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        made = Synthesis(run, self, data)
        teacher, statistics, normalise, N = made.teacher, made.statistics, made.normalise, self.making.batch
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        momentum = Momentum(self.bn_mmt, statistics.running())
        run.register("momentum", momentum)
        G = Generator(made.model.input_shape, self.nz, self.ngf)
        G, meta = run.setup(G, lambda G: adam(G.parameters(), self.lr_g * self.k))
        G.reset(run.generator("weights"))
        G_i = copy.deepcopy(G)

        for e in made.rounds(student, optimizer):
            with made.inverting(student):
                if self.reset >= 0 and e == self.making.warmup + self.reset:
                    G.reset_first(run.generator("reset"))
                if self.reuse == "none":
                    G.reset(run.generator("weights"))
                copy_state(G, G_i)  # step 1
                mine, random = run.mine(N), run.generator("views")
                z, y, best = made.noise(self.nz, like=G), made.classes(), Best()
                inner = adam([{"params": G_i.parameters()}, {"params": [z], "lr": self.lr_z}], self.lr_g)
                for _ in range(self.k):  # step 2
                    x = G_i(z[mine])
                    view = normalise(crop_flip(x, random, mine, N))
                    z_t, batch = run.gather(teacher(view)), statistics.read()
                    L_bn = bn_loss(momentum.blend(batch), statistics.running())
                    L = self.bn * L_bn + self.oh * F.cross_entropy(z_t, y)
                    if self.adv and e >= self.making.warmup:
                        L = L + self.adv * decision_adversarial(z_t, run.gather(student(view)))
                    best.keep(L, x.detach())
                    run.backward(L, reduction="global")
                    if self.reuse == "meta":
                        add_gradients(G_i, G)
                    run.update(inner)
                momentum.update(batch)
                if self.reuse == "reptile":
                    for p, q in zip(G.parameters(), G_i.parameters(), strict=True):
                        p.grad = p.detach() - q.detach()
                if self.reuse in ("meta", "reptile"):
                    run.update(meta)  # step 3
                if self.reuse == "sequential":
                    copy_state(G_i, G)
            made.append(best.kept[0], y)
        return made.finish(student)


def add_gradients(source: nn.Module, target: nn.Module) -> None:
    """Add the gradients of ``source`` to those of ``target``, which has the same parameters."""
    for p, q in zip(target.parameters(), source.parameters(), strict=True):
        assert q.grad is not None
        p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad


@torch.no_grad()
def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the weights and BatchNorm buffers of ``source``; no graph between them."""
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        ours.copy_(theirs)
