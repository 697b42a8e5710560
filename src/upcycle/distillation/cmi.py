"""Contrastive model inversion: images out of a trained network that differ from all those made before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.losses import contrastive_loss
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
    resized_crop,
)
from upcycle.distillation.data_free.making import Making, generator_work
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.zoo.generator import Generator

if TYPE_CHECKING:
    from upcycle.data.images import Images


class Bank:
    """A ring of the features of earlier images, two views each: (v_loc, v_glo), in float16 on the CPU.

    Args:
        size: pairs kept; the oldest make room.
        c: length of a feature.
    """

    def __init__(self, size: int, c: int) -> None:
        self.size, self.made = size, 0
        self._pairs = torch.empty(2, size, c, dtype=torch.float16)

    def __len__(self) -> int:
        return min(self.made, self.size)

    def append(self, v_loc: Float[Tensor, "n c"], v_glo: Float[Tensor, "n c"]) -> None:
        """Add pairs."""
        places = (self.made + torch.arange(len(v_loc))) % self.size
        self._pairs[:, places] = torch.stack([v_loc, v_glo]).detach().half().cpu()
        self.made += len(v_loc)

    def draw(self, n: int, random: torch.Generator) -> Float[Tensor, "2 m c"]:
        """Up to ``n`` pairs without replacement, of those that are there."""
        return self._pairs[:, torch.randperm(len(self), generator=random)[:n]]

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made, "pairs": self._pairs[:, : len(self)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]
        self._pairs[:, : len(self)] = state["pairs"]


class Head(nn.Sequential):
    """h: the projection in which images are told apart; Linear, ReLU, Linear to 256, then unit length."""

    def __init__(self, c: int) -> None:
        super().__init__(nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 256))

    def forward(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n 256"]:
        projected = super().forward(v)
        return F.normalize(projected if projected.dtype == torch.float64 else projected.float())


@dataclass(kw_only=True, eq=False, repr=False)
class CMI(Method):
    """Contrastive Model Inversion for Data-Free KD (Fang, Song, Wang, Shen, Wang, Song; arXiv:2105.08584).

    Round e draws a fresh generator g, noise z and classes y, and for ``g_steps`` steps descends in g and z

        L = bn L_bn + oh L_oh + adv L_adv + cr L_cr

    on x = g(z): L_bn is the distance of the activations' statistics to the teacher's, L_oh the teacher's
    cross-entropy to y, L_adv = -mean 1{s = t} KL(p_t || p_s), each on a global view (crop and flip). L_cr tells
    images apart: the features of a local view (resized crop) must find those of the same image's global view
    among all images' of this batch and ``n_neg`` earlier ones, projected by a head h that is trained along. The
    x with the lowest L go to the pool, and the student takes ``making.kd_steps`` steps on all made so far.

    Gradients reach the images only through the rows of the batch at hand. The rows of earlier images train the
    head alone; they, and the projections of their keys, are computed every ``bank_every`` steps (the paper: each).

    The paper's schedule is 200 rounds and no repeating views: ``recipes/cmi_cifar10_paper.yaml``.

    Departures: Nesterov's momentum; views of the pool repeat (``making.views``) so that the teacher answers each once.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        making: rounds of N images, and the student's training on them.
        g_steps: steps of descent for each batch; 200 in the authors' scripts, 500 in their timing.
        lr_g: learning rate of generator, noise and head.
        bn: weight of L_bn.
        oh: weight of L_oh. The paper's best figure, on top of images inverted before, takes 0.5.
        adv: weight of L_adv; 0 leaves it out.
        cr: weight of L_cr; 0 leaves it out, which halves the teacher's work.
        tau: temperature of L_cr.
        n_neg: number of earlier images that each one is told from.
        bank: number of earlier images whose features are kept; at least N.
        bank_every: steps between two computations of the rows and keys of earlier images.
        nz: length of the noise.
        ngf: base width of the generator.
        recipe: training of the student; ``epochs`` counts rounds with training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    making: Making = field(default_factory=Making)
    g_steps: int = 200
    lr_g: float = 1e-3
    bn: float = 1.0
    oh: float = 1.0
    adv: float = 0.5
    cr: float = 0.8
    tau: float = 0.1
    n_neg: int = 4096
    bank: int = 40_960
    bank_every: int = 5
    nz: int = 256
    ngf: int = 64
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=40, batch_size=128, lr=0.1, weight_decay=1e-4))

    card = Card(
        name="cmi",
        title="Contrastive Model Inversion for Data-Free Knowledge Distillation",
        paper="Fang, Song, Wang, Shen, Wang, Song; IJCAI 2021; arXiv:2105.08584",
        verb="distill",
        needs=Needs(data="none", teacher="weights", architectures="a teacher with BatchNorm, any student"),
        summary="A student from a trained network alone: images are inverted out of it, each unlike all before.",
        cost="student training + hundreds of steps of generator, teacher (twice) and student a batch of images",
        published="CIFAR-10 WRN-40-2 → WRN-16-1 88.82 from scratch, 90.01 on top of 50,000 images inverted before; "
        "teacher 94.87 (official README)",
    )
    refuses = {"any": "it makes its images itself, by other optimisers in the same loop"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Second of those that make their own images: more diverse, and many times the synthesis."""
        reason = (
            "like fastdfkd with a new generator and hundreds of steps for every batch, held apart from all images "
            "before: more diverse, for many times the synthesis. Try it when fastdfkd falls short and there are hours "
            "to spend."
        )
        return from_the_teacher(have, 2, reason)

    def __post_init__(self) -> None:
        ranges(
            self,
            at_least=dict.fromkeys(("g_steps", "n_neg", "bank", "bank_every", "nz", "ngf"), 1),
            not_negative=("bn", "oh", "adv", "cr", "lr_g"),
            positive=("tau",),
        )
        N = self.making.batch
        require(self.bank >= N, f"batch must be at most bank ({self.bank}), and it is {N}.")

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.making.steps(self.recipe)

    def work(self, n: int, teacher: int, student: int) -> float:
        """Multiply-adds of synthesis (forward and input gradients) and of the student's training."""
        generator = generator_work(self.teacher, self.nz, self.ngf)
        image = self.g_steps * (3 * generator + (4 if self.cr else 2) * teacher + 2 * student)
        return self.making.work(self.recipe, image, teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        made = Synthesis(run, self, data)
        teacher, statistics, normalise, N = made.teacher, made.statistics, made.normalise, self.making.batch
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        g, _ = run.setup(Generator(made.model.input_shape, self.nz, self.ngf))
        c = sum(len(mean) for mean, _ in statistics.running())
        h, head_optimizer = run.setup(Head(c), lambda h: torch.optim.Adam(h.parameters(), lr=self.lr_g, fused=True))
        bank = Bank(self.bank, c)
        run.register("bank", bank)

        for e in made.rounds(student, optimizer):
            with made.inverting(student):
                g.reset(run.generator("weights"))
                mine, random, drawn = run.mine(N), run.generator("views"), run.generator("bank")
                z, y = made.noise(self.nz, like=g), made.classes()
                optimizer_g = adam([*g.parameters(), z], self.lr_g)
                best, keys = Best(), torch.empty(0, 256, device=run.device)
                for i in range(self.g_steps):
                    x = g(z[mine])
                    glo = normalise(crop_flip(x, random, mine, N))
                    z_t = run.gather(teacher(glo))
                    L = self.bn * bn_loss(statistics.read(), statistics.running()) + self.oh * F.cross_entropy(z_t, y)
                    if self.adv and e >= self.making.warmup:
                        L = L + self.adv * decision_adversarial(z_t, run.gather(student(glo)))
                    now, L_head = [x.detach()], torch.zeros((), device=run.device)
                    if self.cr:
                        v_glo = run.gather(statistics.features().detach())
                        teacher(normalise(resized_crop(x, random, mine, N)))
                        v_loc = run.gather(statistics.features())
                        with torch.no_grad():
                            w = h(v_glo)
                        if len(bank) and i % self.bank_every == 0:
                            v_loc_n, v_glo_n = bank.draw(self.n_neg, drawn).to(run.device, v_glo.dtype)
                            with torch.no_grad():
                                keys = h(v_glo_n)
                            # Rows of earlier images train the head alone: the images have no part in their loss.
                            L_head = self.cr * contrastive_loss(h(v_loc_n), torch.cat([w, keys]), self.tau, len(w))
                        L = L + self.cr * contrastive_loss(h(v_loc), torch.cat([w, keys.to(w)]), self.tau)
                        now += [v_loc.detach(), v_glo]
                    best.keep(L, *now)
                    run.backward(L + L_head, reduction="global")
                    run.update(optimizer_g)
                    if self.cr:
                        run.update(head_optimizer)
                if self.cr:
                    bank.append(*best.kept[1:])
            made.append(best.kept[0], y)
        return made.finish(student)
