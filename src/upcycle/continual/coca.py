"""CoCa: replay whose stored images teach each other, beside two tasks that need no label."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import kept
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.replay import Replay, logit_loss
from upcycle.continual.protocol.tasks import problems, start, tasks
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.heads import classifier, linear
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything, uniform
from upcycle.core.taps import Taps
from upcycle.data.buffer import Drawn
from upcycle.data.streams import Stream

R = 4
"""Transforms that the equivariant head tells apart: rotations by 0, 90, 180 and 270 degrees."""
EMBEDDING = 64
"""Length of the invariant head's answers."""


class CalibrationHead(nn.Sequential):
    """Layers d → d with BatchNorm and ReLU, twice, then → outputs: trained beside the network and left behind."""

    def __init__(self, d: int, outputs: int) -> None:
        super().__init__(
            *(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU()),
            *(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU()),
            nn.Linear(d, outputs),
        )


# -- collaborative distillation ---------------------------------------------------------------------------------


def affinity(V: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """A = softmax_row(V Vᵀ - 0.1 I) of rows of unit length: an image is a little less like itself than 1."""
    return (V @ V.T - 0.1 * torch.eye(len(V), dtype=V.dtype, device=V.device)).softmax(1)


@torch.no_grad()
def propagate_logits(Z: Float[Tensor, "m k"], V: Float[Tensor, "m d"], omega: float) -> Float[Tensor, "m k"]:
    """S = (1 - ω)(I - ωA)⁻¹ Z: average logits among similar images, again and again; no gradient goes there.

    The limit of S ← ωAS + (1 - ω)Z. A linear system is solved, which has a solution for ω < 1: A's rows sum to one.

    Args:
        Z: logits of all images.
        V: their features, of unit length.
        omega: ω in [0, 1); 0 leaves Z.
    """
    system = torch.eye(len(V), dtype=V.dtype, device=V.device) - omega * affinity(V)
    return (1 - omega) * torch.linalg.solve_ex(system, Z.to(V.dtype)).result  # solve would wait for the device


def distillation_loss(
    run: Run, z: Float[Tensor, "m k"], h: Float[Tensor, "m d"], old: Drawn, v: nn.Module, *, omega: float, gamma: float
) -> Float[Tensor, ""]:
    """MSE(z, (1-γ) ẑ + γ S): this process' part of the mean over the images of all processes.

    Args:
        z: logits of the images that were drawn.
        h: their features.
        old: the draw, with the stored logits ẑ.
        v: the invariant head, which says which images are similar.
        omega: ω of :func:`propagate_logits`.
        gamma: γ; 0 leaves the target of DER.
    """
    target = old.logits
    if gamma:
        with torch.no_grad():
            V = run.gather(F.normalize(v(h)))
        S = propagate_logits(run.gather(z.detach()), V, omega)
        mine = S.tensor_split(run.world_size)[run.rank]
        target = (1 - gamma) * target.to(mine.dtype) + gamma * mine
    return logit_loss(z, target, old.total)


# -- collaborative self-supervision -----------------------------------------------------------------------------


def assign_rotations(u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Choose the rotation of each of n images, equally many of each: 0, 1, ..., R-1, 0, 1, ... permuted.

    Args:
        u: random numbers whose order is the permutation.
    """
    return (torch.arange(len(u)) % R)[u.argsort(stable=True)]


def rotate(images: Float[Tensor, "n c h w"], s: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Rotate each image by s · 90 degrees; images are square."""
    turns = torch.stack([images.rot90(turn, (2, 3)) for turn in range(R)])
    return turns[s, torch.arange(len(images), device=images.device)]


def random_crop(images: Float[Tensor, "n c h w"], u: Float[Tensor, "n 3"]) -> Float[Tensor, "n c h w"]:
    """Cut a square of 66 to 67 % of each image's area, anywhere in it, and enlarge it to the image's size bilinearly.

    Args:
        u: random numbers in [0, 1): area, column and row.
    """
    side = (0.66 + 0.01 * u[:, 0]).sqrt()
    theta = torch.zeros(len(images), 2, 3, dtype=u.dtype)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (2 * u[:, 1:] - 1) * (1 - side)[:, None]
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    # At the image's border half a pixel is missing, and zeros would darken it.
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def supcon_loss(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], y: Int[Tensor, " n"], tau: float
) -> Float[Tensor, ""]:
    """SupCon (Khosla et al., arXiv:2004.11362, eq. 2) of two views of n images, without its factor of temperature.

    For each of the 2n vectors the mean over its positives, the others of its class, of -log softmax over all others;
    averaged over the 2n. Each has a positive at least: its other view.

    Args:
        first: one view, rows of unit length.
        second: the other view.
        y: classes.
        tau: temperature.
    """
    v, y = torch.cat([first, second]), torch.cat([y, y])
    own = torch.eye(len(v), dtype=torch.bool, device=v.device)
    log_p = (v @ v.T / tau).masked_fill(own, -torch.inf).log_softmax(1)
    positive = (y[:, None] == y) & ~own
    return -(log_p.where(positive, 0).sum(1) / positive.sum(1)).mean()


def invariance_loss(
    run: Run, h: Float[Tensor, "n d"], h_T: Float[Tensor, "n d"], y: Int[Tensor, " n"], v: nn.Module, tau: float
) -> Float[Tensor, ""]:
    """L_sc = SupCon(v(U), v(T_s(U))): this process' share of it.

    It couples all images, so every process has the whole of it, and counts a share.

    Args:
        h: features of the images U.
        h_T: features of the transformed images.
        y: classes.
        v: the invariant head.
        tau: temperature.
    """
    first, second = (run.gather(F.normalize(v(x))) for x in (h, h_T))
    return supcon_loss(first, second, run.gather(y), tau) / run.world_size


def equivariance_loss(h_T: Float[Tensor, "n d"], s: Int[Tensor, " n"], e: nn.Module, total: int) -> Float[Tensor, ""]:
    """L_rot = CE(e(T_s(U)), s): this process' part of the mean over ``total`` images."""
    return cross_entropy(e(h_T), s, total)


# -- the method -------------------------------------------------------------------------------------------------


def without(k: int, columns: tuple[int, ...]) -> Bool[Tensor, " k"]:
    """The mask of those of k outputs that are not ``columns``; their logits are set to -∞ where only these compete."""
    rest = torch.ones(k, dtype=torch.bool)
    rest[list(columns)] = False
    return rest


@dataclass(kw_only=True, eq=False, repr=False)
class CoCa(Method):
    """Complementary Calibration (Ji, Li, Wang, Zhang; IEEE TIP 2023; arXiv:2109.02426).

    Dark experience replay (DER++), calibrated twice. Each step takes the stream's batch x and two batches x_m, x_r
    from the memory, which stores images as they are and the logits ẑ that the network gave when they came, and descends

        CE(z(x), y) + α MSE(z(x_m), (1-γ) ẑ_m + γ S) + β CE(z(x_r), y_r) + w_sc L_sc + w_rot L_rot.

    *Collaborative distillation*: S are the logits of x_m averaged among images that the invariant head v finds
    similar (:func:`propagate_logits`). *Collaborative self-supervision*: U = [x; x_r] is transformed, T_s(U), and the
    equivariant head e says how, L_rot = CE(e(T_s(U)), s), while v finds the class in both views whatever was done to
    them, L_sc = SupCon(v(U), v(T_s(U))). Then x is offered to the memory. The heads read the feature h that the
    network's classifier reads; they go on from task to task, and are not in what :meth:`fit` returns. x, x_m, x_r and
    T_s(U) go through the network one after another, so each has BatchNorm statistics of its own; the heads see U whole.

    Reconstructed: the published code is a variant that knows where a task ends (``boundaries``); without that, labels
    compete among all outputs. As in that code, U is x alone while the memory is empty, and v(U) comes from the h of
    the two batches above, without another forward. Without γ and the weights of the last two terms it is DER++, step by
    step. With the paper's γ = 0.01, S moves the target little.

    Departures: the network's classifier keeps its bias, if it has one (the paper's has none), so that the product is
    the architecture that came in. The four crops that make sixteen transforms for Tiny-ImageNet are left out.

    Args:
        student: network that learns the tasks.
        past: state that an earlier stream left with the network.
        replay: memory of earlier images, and how many of them each of the two draws takes.
        alpha: weight α of the loss on stored logits; 0 leaves it out.
        beta: weight β of the loss on stored labels; 0 leaves it out.
        omega: ω, how far logits spread among similar images; at least 0 and below 1.
        gamma: γ, the share of the spread logits in the target; 0 takes the stored ones alone.
        w_sc: weight of L_sc, which makes the features of a class alike; 0 leaves it out.
        w_rot: weight of L_rot, which tells rotations apart; 0 leaves it out.
        tau: temperature of L_sc.
        zoom: T also cuts out two thirds of the image and enlarges them, as the paper does on CIFAR-10.
        boundaries: labels of the stream compete among the classes of their task, and those of the memory among all
            classes seen so far; results of the two are not comparable.
        recipe: training on each task; the paper's is 50 epochs.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    replay: Replay = field(default_factory=Replay)
    alpha: float = 0.1
    beta: float = 0.5
    omega: float = 0.1
    gamma: float = 0.01
    w_sc: float = 0.3
    w_rot: float = 0.3
    tau: float = 0.07
    zoom: bool = True
    boundaries: bool = False
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="coca",
        title="Complementary Calibration: Boosting General Continual Learning with Collaborative Distillation and "
        "Self-Supervision",
        paper="Ji, Li, Wang, Zhang; IEEE TIP 2023; arXiv:2109.02426",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier; square images"),
        summary="Replay of images and logits whose images teach each other, and that learns from how they are turned.",
        cost="5 × plain training",
        published="no figure at hand; what it builds on, Split CIFAR-10, class-/task-incremental, memory 200: DER++ "
        "64.88 / 91.92 % (arXiv:2004.07211)",
    )
    refuses = {"any": "each batch also fills and reads its memory, once"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After derpp, for twice the time."""
        reason = (
            "derpp whose replayed images also teach each other, with two self-supervised tasks beside: about twice the "
            "time. Try it after derpp, and compare."
        )
        return kept(have, 12, reason)

    def __post_init__(self) -> None:
        ranges(
            self,
            not_negative=("alpha", "beta", "w_sc", "w_rot"),
            below_one=("omega",),
            share=("gamma",),
            positive=("tau",),
        )
        require(self.replay.draw != 1, "replay.draw must be 0 or at least 2 (BatchNorm needs two), and it is 1.")

    def check(self, data: Stream) -> list[str]:
        """As for other replay; images must be square to be turned, and boundaries need tasks."""
        found = problems(self, data, memory=self.replay.images, option="replay.images")
        _, height, width = data.shape
        if height != width and (self.w_sc or self.w_rot):
            found.append(
                f"images are turned by 90 degrees, so they must be square, not {height} x {width}; crop or "
                "resize them, or set --w_sc 0 --w_rot 0"
            )
        if self.boundaries and data.ordered:
            found.append("a general stream has no boundaries between tasks; leave out --boundaries")
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        last = classifier(net)  # h is what it reads
        seed_everything(run.seed, "heads")  # whatever was drawn before
        d = linear(net.module, last).in_features
        e, v = (CalibrationHead(d, outputs).to(run.device, run.dtype) for outputs in (R, EMBEDDING))
        buffer = self.replay.buffer(data.train, run.seed, logits=len(data.classes))
        calibrate = self.w_sc > 0 or self.w_rot > 0
        trained = nn.ModuleList([net.module, e, v] if calibrate else [net.module])
        keep = {"buffer": buffer, "e": e, "v": v}
        passes = 1.0 + (self.alpha > 0) + (self.beta > 0 or calibrate) + 2 * calibrate
        allowed = f"memory {self.replay.images} images with logits" + ", told the boundaries" * self.boundaries
        for t, task in tasks(self, run, data, net, keep=keep, allowed=allowed, passes=passes):
            run.setup(e)
            run.setup(v)
            student, optimizer = run.setup(net.module, lambda _: self.recipe.make(trained))
            rest, rest_old = (without(len(data.classes), c).to(run.device) for c in self._competing(data, t))
            with Taps(student, [last], kind="input") as taps:
                for _ in run.epochs(self.recipe.epochs):
                    student.train()
                    for x, y, index in run.batches(task.train, self.recipe.batch_size):
                        z, h_U = student(x), taps[last]
                        U, Y, places, total = x, y, share(run, run.count), run.count
                        loss = cross_entropy(z.masked_fill(rest, -torch.inf), y, total)
                        if self.alpha and len(buffer):
                            old = buffer.draw(run, self.replay.draw or run.count)
                            z_m, h = student(old.images), taps[last]
                            loss = loss + self.alpha * distillation_loss(
                                run, z_m, h, old, v, omega=self.omega, gamma=self.gamma
                            )
                        if (self.beta or calibrate) and len(buffer):
                            old = buffer.draw(run, self.replay.draw or run.count)
                            z_r, h = student(old.images).masked_fill(rest_old, -torch.inf), taps[last]
                            loss = loss + self.beta * cross_entropy(z_r, old.labels, old.total)
                            U, Y, h_U = (torch.cat(pair) for pair in ((x, old.images), (y, old.labels), (h_U, h)))
                            places, total = torch.cat([places, total + share(run, old.total)]), total + old.total
                        if calibrate:
                            T_U, s = self._transform(run, U, places, total)
                            student(T_U)
                            loss = loss + self.w_sc * invariance_loss(run, h_U, taps[last], Y, v, self.tau)
                            loss = loss + self.w_rot * equivariance_loss(taps[last], s, e, total)
                        run.step(loss, optimizer, self.recipe, "sum")
                        buffer.add(run, task.train, index, z)
        return run.plain(net.module)

    def _transform(self, run: Run, U: Tensor, places: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """T_s(U) and s, each image by its place among the ``total`` images of all processes."""
        u = uniform(run.seed, run.updates, torch.arange(total), "transforms", 4)
        s = assign_rotations(u[:, 0])[places].to(run.device)
        return rotate(random_crop(U, u[places, 1:]) if self.zoom else U, s), s

    def _competing(self, data: Stream, t: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The columns among which a label of the stream competes in task t, and one of the memory."""
        if not self.boundaries:
            return (tuple(range(len(data.classes))),) * 2
        return data.tasks[t], (*data.before, *data.seen(t))


def share(run: Run, n: int) -> Int[Tensor, " m"]:
    """This process' positions in n things of all processes, on the CPU."""
    return torch.arange(n).tensor_split(run.world_size)[run.rank]
