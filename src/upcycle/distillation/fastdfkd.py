"""Up to 100x faster data-free distillation: one generator that is a few steps away from every batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.inversion import (
    Normalise,
    Statistics,
    adam,
    bn_loss,
    check_teacher,
    check_values,
    crop_flip,
    decision_adversarial,
    only_inputs,
    work,
)
from upcycle.distillation.synthesis import Synthesis
from upcycle.measure.cost import count
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
    teacher's cross-entropy to y, and L_adv = -mean 1{s = t} KL(p_t || p_s) begins after ``warmup`` rounds, as does
    the student's training: ``kd_steps`` a round on all images made so far. Synthesis ends after ``rounds``, the
    student's training after ``warmup + recipe.epochs``; so a budget can make fewer images and train on.

    With ``reuse="sequential"`` the generator is trained on from batch to batch; with ``none`` it is drawn anew for
    each, as in CMI: the paper's ablations.

    The schedule is cut down to what two cores can do; the paper's is 220 rounds, 20 of
    them warm-up, 400 updates a round and no repeating views: ``recipes/fastdfkd_cifar10_paper.yaml``.

    Departures: the augmented views of the pool repeat (``views``), so that the teacher answers each once; the
    momentum is Nesterov's; cosine ends at 0 instead of 2e-4. Reptile's factor c = 67 is left out, since Adam
    divides it away but for its epsilon.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        k: inner steps a batch; the paper's are 2, 5 and 10.
        reuse: what is carried from batch to batch.
        rounds: batches of images to make, as long as the student trains.
        warmup: rounds before the student's training and the adversarial term begin.
        reset: rounds after ``warmup`` at which the generator's first layers are drawn anew, where there are so many; -1
            for never.
        batch: N, images a round.
        lr_g: inner rate of the generator; the meta rate is k times it. The paper's: 5e-3, 3e-3, 2e-3 for k = 2, 5, 10.
        lr_z: inner rate of the noise. The paper's: 0.015, 0.01, 0.01.
        bn, oh, adv: weights of the three losses (the paper's for a WRN-40-2 teacher).
        bn_mmt: m, momentum of the statistics of the stream.
        nz, ngf: length of the noise and base width of the generator.
        kd_steps: the student's updates a round.
        temperature: T of the student's loss.
        capacity: the most images that the pool keeps.
        views: see above; 0 never repeats.
        recipe: of the student; ``epochs`` counts rounds with training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    k: int = 5
    reuse: Literal["meta", "reptile", "sequential", "none"] = "meta"
    rounds: int = 70
    warmup: int = 10
    reset: int = 120
    batch: int = 256
    lr_g: float = 3e-3
    lr_z: float = 1e-2
    bn: float = 10.0
    oh: float = 0.4
    adv: float = 1.1
    bn_mmt: float = 0.9
    nz: int = 256
    ngf: int = 64
    kd_steps: int = 100
    temperature: float = 20.0
    capacity: int = 65_536
    views: int = 12
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

    def __post_init__(self) -> None:
        check_values(self, counts=("k", "rounds", "nz", "ngf", "kd_steps"), weights=("bn", "oh", "adv", "lr_g", "lr_z"))
        require(0 <= self.bn_mmt < 1, f"bn_mmt must lie in [0, 1), not {self.bn_mmt}.")
        require(self.reset >= -1, f"reset must be -1 (never) or more, not {self.reset}.")

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.recipe.epochs * self.kd_steps

    def work(self, n: int, teacher: float, student: float) -> float:
        """Multiply-adds of synthesis (forward and input gradients) and of the student's training."""
        shape = self.teacher.input_shape if isinstance(self.teacher, Model) else (3, 32, 32)
        generator = count(Generator(shape, self.nz, self.ngf), (self.nz,)).macs
        image = self.k * (3 * generator + 2 * teacher + 2 * student)
        return work(self, image, teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        model = self.model("teacher", data)
        teacher, normalise = run.frozen(model, None, input_grad=True, keep_bn=True), Normalise(model.mean, model.std)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        made = Synthesis(run, self, model, data, capacity=self.capacity, views=self.views)
        statistics = Statistics(teacher, run.gather)
        momentum = Momentum(self.bn_mmt, statistics.running())
        run.register("momentum", momentum)
        G = Generator(model.input_shape, self.nz, self.ngf)
        G, meta = run.setup(G, lambda G: adam(G.parameters(), self.lr_g * self.k))
        G.reset(run.generator("weights"))
        G_i = copy.deepcopy(G)
        kind = next(G.parameters())

        def inverted(e: int) -> tuple[Tensor, Tensor]:
            """Steps 1 to 3 of round ``e``: the images kept, and the classes of all."""
            if self.reset >= 0 and e == self.warmup + self.reset:
                G.reset_first(run.generator("reset"))
            if self.reuse == "none":
                G.reset(run.generator("weights"))
            copy_state(G, G_i)
            mine, random = run.mine(self.batch), run.generator("views")
            z = nn.Parameter(torch.randn(self.batch, self.nz, generator=run.generator("noise")).to(kind))
            y = torch.randint(len(model.classes), (self.batch,), generator=run.generator("classes")).to(run.device)
            inner = adam([{"params": G_i.parameters()}, {"params": [z], "lr": self.lr_z}], self.lr_g)
            lowest, kept = torch.full((), torch.inf, device=run.device), torch.zeros(0, device=run.device)
            for i in range(self.k):
                x = G_i(z[mine])
                view = normalise(crop_flip(x, random, mine, self.batch))
                z_t = run.gather(teacher(view))
                batch = statistics.read()
                L = self.bn * bn_loss(momentum.blend(batch), statistics.running()) + self.oh * F.cross_entropy(z_t, y)
                if self.adv and e >= self.warmup:
                    L = L + self.adv * decision_adversarial(z_t, run.gather(student(view)))
                kept = torch.where(L.detach() < lowest, x.detach(), kept) if i else x.detach()
                lowest = torch.minimum(L.detach(), lowest)
                run.backward(L, reduction="global")
                if self.reuse == "meta":
                    for p, q in zip(G.parameters(), G_i.parameters(), strict=True):
                        assert q.grad is not None
                        p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
                run.update(inner)
            momentum.update(batch)
            if self.reuse == "reptile":
                for p, q in zip(G.parameters(), G_i.parameters(), strict=True):
                    p.grad = p.detach() - q.detach()
            if self.reuse in ("meta", "reptile"):
                run.update(meta)
            if self.reuse == "sequential":
                copy_state(G_i, G)
            return kept, y

        for e in run.epochs(self.warmup + self.recipe.epochs):
            if e < self.rounds:
                with made.clock(), only_inputs(student), statistics:
                    images, classes = inverted(e)
                made.append(images, classes)
            if e >= self.warmup:
                made.learn(student, optimizer, self.recipe, e - self.warmup, self.kd_steps, self.temperature)
        return made.finish(student)


@torch.no_grad()
def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the weights and BatchNorm buffers of ``source``; no graph between them."""
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        ours.copy_(theirs)
