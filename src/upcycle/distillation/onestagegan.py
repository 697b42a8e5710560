"""Data-free adversarial distillation in one stage: generator and student learn from the same backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.reversal import grad_reverse
from upcycle.core.run import Run
from upcycle.distillation.data_free.advice import from_the_teacher
from upcycle.distillation.data_free.inversion import adam, bn_loss, check_teacher
from upcycle.distillation.data_free.making import Making, generator_work
from upcycle.distillation.data_free.synthesis import Synthesis
from upcycle.zoo.generator import Generator

if TYPE_CHECKING:
    from upcycle.data.images import Images


def balance_loss(z_t: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """sum_k pbar_k log pbar_k of the batch's mean prediction: lowest, -log k, where all classes are made alike."""
    log_p = torch.logsumexp(F.log_softmax(z_t, 1), 0) - torch.log(torch.tensor(float(len(z_t))))
    return (log_p.exp() * log_p).sum()


@dataclass(kw_only=True, eq=False, repr=False)
class OneStageGAN(Method):
    """Training GANs in One Stage (Shen, Yin, Wang, Li, Song, Song; arXiv:2103.00430), applied to distillation.

    The student S is the discriminator of a generator G: on x = G(z) it descends in the distance to the teacher,

        d = mean |T(x) - S(x)|                                       (DFAD, arXiv:1912.11006)

    which G ascends. L_G = -L_D is the symmetric case: one forward of each network and one backward, in which the
    gradient of d changes its sign on its way to G. To keep images on the teacher's ground G also descends in

        R = bn L_bn + oh L_oh + balance sum_k pbar_k log pbar_k,

    the distance of BatchNorm statistics, the teacher's cross-entropy to its own top class, and the negative entropy
    of its mean prediction; their gradients at x are added with their own sign. Each round makes ``g_steps`` such
    updates of both networks, leaves the last batch in the pool, and gives the student ``making.kd_steps`` on the pool.

    The combination with R is reconstructed: the paper's distillation experiments were not published as code. Its
    weights are those of DFQ in the benchmark of arXiv:2105.08584. Training on a pool of earlier images is
    ours: without it the student forgets what G has left behind. The student's own part of a one-stage update cannot
    be told from the generator's, so it counts among the seconds of synthesis.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        making: rounds of images, and the student's further training on them. Its ``batch`` is that of a step, of
            which the last one of a round goes to the pool; there is no warm-up, since the student makes the images.
        g_steps: one-stage updates in each round.
        lr_g: learning rate of the generator.
        adv: weight of d.
        bn: weight of L_bn in R.
        oh: weight of L_oh in R.
        balance: weight of the negative entropy in R.
        nz: length of the noise.
        ngf: base width of the generator.
        recipe: training of the student; ``epochs`` counts rounds.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    making: Making = field(default_factory=lambda: Making(rounds=60, kd_steps=100))
    g_steps: int = 40
    lr_g: float = 1e-3
    adv: float = 1.0
    bn: float = 1.0
    oh: float = 1.0
    balance: float = 20.0
    nz: int = 256
    ngf: int = 64
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=100, batch_size=256, lr=0.1, weight_decay=1e-4))

    card = Card(
        name="onestagegan",
        title="Training Generative Adversarial Networks in One Stage",
        paper="Shen, Yin, Wang, Li, Song, Song; CVPR 2021; arXiv:2103.00430",
        verb="distill",
        needs=Needs(data="none", teacher="weights", architectures="a teacher with BatchNorm, any student"),
        summary="A student from a trained network alone: it is the discriminator of a generator, in one stage.",
        cost="student training + a step of generator, teacher and student for each of its updates",
        published="GANs about 1.5 times faster at comparable quality (abstract); no figure of its distillation seen",
    )
    refuses = {"any": "it makes its images itself, by other optimisers in the same loop"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Last of those that make their own images: no choice of their classes."""
        reason = (
            "generator and student learn from the same pass, one against the other: no step is spent on the generator "
            "alone, and which classes its images are of is not chosen."
        )
        return from_the_teacher(have, 4, reason)

    def __post_init__(self) -> None:
        ranges(self, at_least={"g_steps": 1, "nz": 1, "ngf": 1}, not_negative=("adv", "bn", "oh", "balance", "lr_g"))
        require(self.making.warmup == 0, "onestagegan has no warm-up, since its student makes the images: warmup is 0.")

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.making.steps(self.recipe) + min(self.making.rounds, self.recipe.epochs) * self.g_steps

    def work(self, n: int, teacher: int, student: int) -> float:
        """Multiply-adds of the one-stage updates and of the student's training on the pool."""
        image = self.g_steps * (3 * generator_work(self.teacher, self.nz, self.ngf) + 2 * teacher + 3 * student)
        return self.making.work(self.recipe, image, teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        made = Synthesis(run, self, data)
        teacher, statistics, N = made.teacher, made.statistics, self.making.batch
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        G = Generator(made.model.input_shape, self.nz, self.ngf)
        G, g_optimizer = run.setup(G, lambda G: adam(G.parameters(), self.lr_g))
        G.reset(run.generator("weights"))

        for e in made.rounds(student, optimizer):
            student.train()
            mine, noise = run.mine(N), run.generator("noise")
            with made.clock(), statistics:
                for i in range(self.g_steps):
                    self.recipe.schedule_rate(optimizer, (e + i / self.g_steps) / self.recipe.epochs)
                    z = torch.randn(N, self.nz, generator=noise)[mine].to(next(G.parameters()))
                    x = G(z)
                    inputs = made.normalise(x)
                    t = teacher(inputs)
                    R = self.bn * bn_loss(statistics.read(), statistics.running())
                    z_t = run.gather(t)
                    R = R + self.oh * F.cross_entropy(z_t, z_t.argmax(1)) + self.balance * balance_loss(z_t)
                    # Behind T and before S the sign changes, so that S descends in d and G ascends.
                    s = student(grad_reverse(inputs))
                    d = (run.gather(grad_reverse(t)) - run.gather(s)).abs().mean()
                    run.backward(self.adv * d + R, reduction="global")
                    run.update(optimizer)
                    run.update(g_optimizer)
            made.append(x, z_t.argmax(1))
        return made.finish(student)
