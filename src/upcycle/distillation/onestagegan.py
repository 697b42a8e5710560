"""Data-free adversarial distillation in one stage: generator and student learn from the same backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.inversion import Normalise, Statistics, adam, bn_loss, check_teacher, check_values, work
from upcycle.distillation.synthesis import Synthesis
from upcycle.measure.cost import count
from upcycle.training.one_stage_gan import reverse
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
    updates of both networks, leaves the last batch in the pool, and gives the student ``kd_steps`` on the pool.

    The combination with R is reconstructed: the paper's distillation experiments were not published as code. Its
    weights are those of DFQ in the benchmark of arXiv:2105.08584. ``kd_steps`` on a pool of earlier images is
    ours: without it the student forgets what G has left behind. The student's own part of a one-stage update cannot
    be told from the generator's, so it counts among the seconds of synthesis.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        rounds: of synthesis.
        batch: images a step, and images that a round leaves in the pool.
        g_steps: one-stage updates a round.
        lr_g: rate of the generator.
        adv, bn, oh, balance: weights of d and of the three terms of R.
        nz, ngf: length of the noise and base width of the generator.
        kd_steps: the student's further updates a round.
        temperature: T of the student's loss on the pool.
        capacity: the most images that the pool keeps.
        views: let the student's augmentation repeat after so many passes; 0 never repeats.
        recipe: of the student; ``epochs`` counts rounds.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    rounds: int = 60
    batch: int = 256
    g_steps: int = 40
    lr_g: float = 1e-3
    adv: float = 1.0
    bn: float = 1.0
    oh: float = 1.0
    balance: float = 20.0
    nz: int = 256
    ngf: int = 64
    kd_steps: int = 100
    temperature: float = 20.0
    capacity: int = 65_536
    views: int = 16
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

    def __post_init__(self) -> None:
        check_values(self, counts=("rounds", "g_steps", "nz", "ngf", "kd_steps"),
                     weights=("adv", "bn", "oh", "balance", "lr_g"))  # fmt: skip

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.recipe.epochs * self.kd_steps + min(self.rounds, self.recipe.epochs) * self.g_steps

    def work(self, n: int, teacher: float, student: float) -> float:
        """Multiply-adds of the one-stage updates and of the student's training on the pool."""
        shape = self.teacher.input_shape if isinstance(self.teacher, Model) else (3, 32, 32)
        generator = count(Generator(shape, self.nz, self.ngf), (self.nz,)).macs
        return work(self, self.g_steps * (3 * generator + 2 * teacher + 3 * student), teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        model = self.model("teacher", data)
        teacher, normalise = run.frozen(model, None, input_grad=True, keep_bn=True), Normalise(model.mean, model.std)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        made = Synthesis(run, self, model, data, capacity=self.capacity, views=self.views)
        statistics = Statistics(teacher, run.gather)
        G = Generator(model.input_shape, self.nz, self.ngf)
        G, g_optimizer = run.setup(G, lambda G: adam(G.parameters(), self.lr_g))
        G.reset(run.generator("weights"))

        for e in run.epochs(self.recipe.epochs):
            if e < self.rounds:
                student.train()
                mine, noise = run.mine(self.batch), run.generator("noise")
                with made.clock(), statistics:
                    for i in range(self.g_steps):
                        self.recipe.schedule_rate(optimizer, (e + i / self.g_steps) / self.recipe.epochs)
                        z = torch.randn(self.batch, self.nz, generator=noise)[mine].to(next(G.parameters()))
                        x = G(z)
                        inputs = normalise(x)
                        t = teacher(inputs)
                        R = self.bn * bn_loss(statistics.read(), statistics.running())
                        z_t = run.gather(t)
                        R = R + self.oh * F.cross_entropy(z_t, z_t.argmax(1)) + self.balance * balance_loss(z_t)
                        # Behind T and before S the sign changes, so that S descends in d and G ascends.
                        s = student(reverse(inputs))
                        d = (run.gather(reverse(t)) - run.gather(s)).abs().mean()
                        run.backward(self.adv * d + R, reduction="global")
                        run.update(optimizer)
                        run.update(g_optimizer)
                made.append(x, z_t.argmax(1))
            made.learn(student, optimizer, self.recipe, e, self.kd_steps, self.temperature)
        return made.finish(student)
