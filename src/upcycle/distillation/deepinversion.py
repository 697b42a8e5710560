"""DeepInversion: pixels descended until a trained network recognises them and finds its statistics in them."""

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
from upcycle.distillation.inversion import (
    Normalise,
    Statistics,
    bn_loss,
    check_teacher,
    check_values,
    only_inputs,
    work,
)
from upcycle.distillation.synthesis import Synthesis

if TYPE_CHECKING:
    from upcycle.data.images import Images

BETAS = (0.5, 0.99)


def js_divergence(z_s: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"], T: float = 3.0) -> Float[Tensor, ""]:
    """JS = mean_b (KL(m || p_s) + KL(m || p_t)) / 2 with m = (p_s + p_t) / 2 and softened p = softmax(z / T).

    In [0, log 2] where the logarithm is taken of m; the authors' code takes the divergences from m, as here.
    """
    log_s, log_t = F.log_softmax(z_s / T, 1), F.log_softmax(z_t / T, 1)
    m = (log_s.exp() + log_t.exp()) / 2
    log_m = m.log()
    return ((m * (log_m - log_s)).sum(1) + (m * (log_m - log_t)).sum(1)).mean() / 2


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
    with the lowest loss go to the pool, and the student takes ``kd_steps`` steps on all made so far.

    It is the baseline that generators are measured against: no image helps to make the next. The benchmark's
    schedule is 200 rounds; the default makes a tenth of these images.

    Weights and interleaving are those of the benchmark code of arXiv:2105.08584 and 2112.06253, whose terms differ
    from the original's in L_bn (norms summed over all layers alike) and have no l2 term.

    Args:
        teacher: a trained classifier with BatchNorm.
        student: any network with the same classes.
        rounds: batches of images to make, as long as the student trains.
        warmup: rounds before the student's training and the adversarial term begin.
        batch: images a round.
        g_steps: steps a batch; 1000 to 2000 in the papers.
        lr_x: rate of the pixels.
        bn, oh, adv, tv: weights of the four terms.
        kd_steps: the student's updates a round.
        temperature: T of the student's loss.
        capacity: the most images that the pool keeps.
        views: let the student's augmentation repeat after so many passes; 0 never repeats.
        recipe: of the student; ``epochs`` counts rounds with training.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    rounds: int = 20
    warmup: int = 0
    batch: int = 256
    g_steps: int = 1000
    lr_x: float = 0.1
    bn: float = 10.0
    oh: float = 1.0
    adv: float = 1.0
    tv: float = 1e-3
    kd_steps: int = 400
    temperature: float = 20.0
    capacity: int = 65_536
    views: int = 16
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

    def __post_init__(self) -> None:
        check_values(self, counts=("rounds", "g_steps", "kd_steps"), weights=("bn", "oh", "adv", "tv", "lr_x"))

    def check(self, data: Images) -> list[str]:
        """The teacher must have BatchNorm with statistics; classes and channels must agree."""
        return check_teacher(self.model("teacher", data), self.model("student", data))

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.recipe.epochs * self.kd_steps

    def work(self, n: int, teacher: float, student: float) -> float:
        """Multiply-adds of synthesis (forward and input gradients) and of the student's training."""
        return work(self, self.g_steps * (2 * teacher + 2 * student), teacher, student)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student."""
        model = self.model("teacher", data)
        teacher, normalise = run.frozen(model, None, input_grad=True, keep_bn=True), Normalise(model.mean, model.std)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        made = Synthesis(run, self, model, data, capacity=self.capacity, views=self.views)
        statistics = Statistics(teacher, run.gather)
        shape = (self.batch, *model.input_shape)
        zero = torch.zeros(1, *model.input_shape, dtype=torch.float64 if run.precision == "64-true" else torch.float32)
        black, white = normalise(zero).to(run.device), normalise(zero + 1).to(run.device)

        def inverted(e: int) -> tuple[Tensor, Tensor]:
            """Round ``e``: the images kept, and the classes of all."""
            mine, random = run.mine(self.batch), run.generator("views")
            x = nn.Parameter(torch.randn(shape, generator=run.generator("noise")).to(black))
            y = torch.randint(len(model.classes), (self.batch,), generator=run.generator("classes")).to(run.device)
            descent = torch.optim.Adam([x], lr=self.lr_x, betas=BETAS, fused=True)
            lowest, kept = torch.full((), torch.inf, device=run.device), x.detach()
            for _ in range(self.g_steps):
                view = jittered(x[mine], random)
                z_t = run.gather(teacher(view))
                L = self.bn * bn_loss(statistics.read(), statistics.running()) + self.oh * F.cross_entropy(z_t, y)
                if self.adv and e >= self.warmup:
                    L = L - self.adv * js_divergence(run.gather(student(view)), z_t)
                if self.tv:
                    L = L + self.tv * run.gather(total_variation(view)[None]).mean()
                kept = torch.where(L.detach() < lowest, x.detach(), kept)
                lowest = torch.minimum(L.detach(), lowest)
                run.backward(L, reduction="global")
                run.update(descent)
                with torch.no_grad():
                    x.copy_(torch.minimum(torch.maximum(x, black), white))
            return normalise.inverse(kept[mine]), y

        for e in run.epochs(self.warmup + self.recipe.epochs):
            if e < self.rounds:
                with made.clock(), only_inputs(student), statistics:
                    images, classes = inverted(e)
                made.append(images, classes)
            if e >= self.warmup:
                made.learn(student, optimizer, self.recipe, e - self.warmup, self.kd_steps, self.temperature)
        return made.finish(student)


def jittered(x: Float[Tensor, "b c h w"], random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """The batch rolled by up to an eighth of its sides, the same for all, and mirrored with probability 1/2."""
    down, across = (int(torch.randint(-(side // 8), side // 8 + 1, (), generator=random)) for side in x.shape[2:])
    rolled = torch.roll(x, (down, across), (2, 3))
    return rolled.flip(3) if bool(torch.rand((), generator=random) < 0.5) else rolled
