"""DeepInversion: pixels descended until a trained network recognises them and finds its statistics in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
    bn_loss,
    check_teacher,
)
from upcycle.distillation.data_free.making import Making
from upcycle.distillation.data_free.synthesis import Synthesis

if TYPE_CHECKING:
    from upcycle.data.images import Images

BETAS = (0.5, 0.99)
CLAMP = (0.01, 0.99)


def js_divergence(z_s: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"], T: float = 3.0) -> Float[Tensor, ""]:
    """JS = mean_b (KL(m || p_s) + KL(m || p_t)) / 2 with m = (p_s + p_t) / 2 and softened p = softmax(z / T).

    As in the authors' code and in that of arXiv:2105.08584: the divergences are those from m, and p_s, p_t and m are
    clamped to [0.01, 0.99] first, which ends the reward of an ever larger gap (1.6 nats at most with ten classes). The
    first also clamps JS to 1; the second, whose weights are the defaults here, does not.
    """
    p_s, p_t = F.softmax(z_s / T, 1), F.softmax(z_t / T, 1)
    m = ((p_s + p_t) / 2).clamp(*CLAMP)
    apart = [m * (m.log() - p.clamp(*CLAMP).log()) for p in (p_s, p_t)]
    return (apart[0] + apart[1]).sum(1).mean() / 2


def total_variation(x: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """R_tv: mean absolute differences to the right, below and both diagonal neighbours, added up."""
    return (
        (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().mean()
        + (x[:, :, 1:] - x[:, :, :-1]).abs().mean()
        + (x[:, :, 1:, 1:] - x[:, :, :-1, :-1]).abs().mean()
        + (x[:, :, 1:, :-1] - x[:, :, :-1, 1:]).abs().mean()
    )


@dataclass(kw_only=True, eq=False, repr=False)
class DeepInversion(Method):
    """Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin and others; arXiv:1912.08795).

    Round e draws a batch of normalised noise x and classes y, and for ``g_steps`` steps descends in the pixels on

        bn L_bn + oh L_oh + adv (-JS(p_s, p_t)) + tv R_tv

    of x rolled and mirrored at random: L_bn is the distance of the activations' statistics to the teacher's, L_oh
    the teacher's cross-entropy to y, R_tv the total variation. Pixels are clipped to what an image can be. The x
    with the lowest loss go to the pool, and the student takes ``making.kd_steps`` steps on all made so far.

    It is the baseline that generators are measured against: no image helps to make the next. The benchmark's
    schedule is 200 rounds; the default makes a tenth of these images.

    Weights and interleaving are those of the benchmark code of arXiv:2105.08584 and 2112.06253, whose terms differ
    from the original's in L_bn (norms summed over all layers alike) and have no l2 term.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        making: rounds of images, and the student's training on them.
        g_steps: steps of descent for each batch; 1000 to 2000 in the papers.
        lr_x: learning rate of the pixels.
        bn: weight of L_bn.
        oh: weight of L_oh.
        adv: weight of the divergence from the student, after the warm-up; 0 leaves it out.
        tv: weight of R_tv; 0 leaves it out.
        recipe: training of the student; ``epochs`` counts rounds with training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    making: Making = field(default_factory=lambda: Making(rounds=20))
    g_steps: int = 1000
    lr_x: float = 0.1
    bn: float = 10.0
    oh: float = 1.0
    adv: float = 1.0
    tv: float = 1e-3
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=20, batch_size=128, lr=0.1, weight_decay=1e-4))

    card = Card(
        name="deepinversion",
        title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        paper="Yin, Molchanov, Li, Alvarez, Mallya, Hoiem, Jha, Kautz; CVPR 2020; arXiv:1912.08795",
        verb="distill",
        needs=Needs(data="none", teacher="weights", architectures="a teacher with BatchNorm, any student"),
        summary="A student from a trained network alone: images are descended from noise, pixel by pixel.",
        cost="student training + a thousand steps of teacher and student a batch of images",
        published="CIFAR-10 WRN-40-2 → WRN-16-1 83.04 in 16.9 h of synthesis; FastDFKD 88.90 in 0.08 h (FastDFKD's "
        "official README)",
    )
    refuses = {"any": "it makes its images itself, by other optimisers in the same loop"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """The baseline of those that make their own images."""
        reason = (
            "each batch of pixels is descended by itself, without a generator, in a thousand steps: the baseline that "
            "the others are measured against."
        )
        return from_the_teacher(have, 3, reason)

    def __post_init__(self) -> None:
        ranges(self, at_least={"g_steps": 1}, not_negative=("bn", "oh", "adv", "tv", "lr_x"))

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.making.steps(self.recipe)

    def work(self, n: int, teacher: int, student: int) -> float:
        """Multiply-adds of synthesis (forward and input gradients) and of the student's training."""
        image = self.g_steps * (2 * teacher + 2 * student)
        return self.making.work(self.recipe, image, teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        made = Synthesis(run, self, data)
        teacher, statistics, normalise, N = made.teacher, made.statistics, made.normalise, self.making.batch
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        zero = torch.zeros(1, *made.model.input_shape, dtype=run.dtype)
        black, white = normalise(zero).to(run.device), normalise(zero + 1).to(run.device)

        for e in made.rounds(student, optimizer):
            with made.inverting(student):
                mine, random, y = run.mine(N), run.generator("views"), made.classes()
                noise = torch.randn(N, *made.model.input_shape, generator=run.generator("noise"))
                x = nn.Parameter(noise.to(black))
                descent = torch.optim.Adam([x], lr=self.lr_x, betas=BETAS, fused=True)
                best = Best()
                for _ in range(self.g_steps):
                    view = jittered(x[mine], random)
                    z_t = run.gather(teacher(view))
                    L = self.bn * bn_loss(statistics.read(), statistics.running()) + self.oh * F.cross_entropy(z_t, y)
                    if self.adv and e >= self.making.warmup:
                        L = L - self.adv * js_divergence(run.gather(student(view)), z_t)
                    if self.tv:
                        L = L + self.tv * run.gather(total_variation(view)[None]).mean()
                    best.keep(L, x.detach())
                    run.backward(L, reduction="global")
                    run.update(descent)
                    with torch.no_grad():
                        x.copy_(torch.minimum(torch.maximum(x, black), white))
                images = normalise.inverse(best.kept[0][mine])
            made.append(images, y)
        return made.finish(student)


def jittered(x: Float[Tensor, "b c h w"], random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """The batch rolled by up to an eighth of its sides, the same for all, and mirrored with probability 1/2."""
    down, across = (int(torch.randint(-(side // 8), side // 8 + 1, (), generator=random)) for side in x.shape[2:])
    rolled = torch.roll(x, (down, across), (2, 3))
    return rolled.flip(3) if bool(torch.rand((), generator=random) < 0.5) else rolled
