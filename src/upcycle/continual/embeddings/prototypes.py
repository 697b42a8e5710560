"""Prototypes of classes: Gaussians in embedding space, the head that gives them, and the memory that holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.core.heads import linear
from upcycle.core.portions import portions
from upcycle.core.run import Run
from upcycle.core.undisturbed import undisturbed
from upcycle.data.images import ImageSplit

LEAST, MOST = -10.0, 5.0
"""Bounds of ℓ, which no term of the loss holds back."""
UNSEEN = -1e4
"""The logit of a class without prototype."""


def draw_gaussian(
    mu: Float[Tensor, "b d"], ell: Float[Tensor, "b d"], eps: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """z = μ + exp(ℓ/2) ε: n draws of N(μ, exp ℓ) each; ℓ = -∞ gives μ itself."""
    return mu[:, None] + (ell / 2).exp()[:, None] * eps


def closeness(z: Float[Tensor, "*b d"], p: Float[Tensor, "c d"], tau: float) -> Float[Tensor, "*b c"]:
    """The logits of P(c|z): -|z - p|²/τ but for -|z|²/τ, which is the same for all classes; linear in z."""
    return (2 * z @ p.T - p.square().sum(1)) / tau


def prototype_loss(
    z: Float[Tensor, "q n d"], y: Int[Tensor, " q"], p: Float[Tensor, "c d"], tau: float
) -> Float[Tensor, ""]:
    """-log P(y|z), the mean over all draws of all queries; ``y`` are rows of ``p``."""
    q, n, _ = z.shape
    return F.cross_entropy(closeness(z, p, tau).view(q * n, -1), y.repeat_interleave(n))


@torch.no_grad()
def fold_prototypes(
    head: nn.Linear, p: Float[Tensor, "c d"], tau: float
) -> tuple[Float[Tensor, "c f"], Float[Tensor, " c"]]:
    """Fold head and prototypes into one linear layer: weight and bias that give :func:`closeness` of μ."""
    d = p.shape[1]
    p, w, b = p.to(head.weight.device).double(), head.weight[:d].double(), head.bias[:d].double()
    return (2 / tau * p @ w).to(head.weight), ((2 * p @ b - p.square().sum(1)) / tau).to(head.weight)


class _Whole(nn.Linear):
    """A linear layer whose output autocast does not round: distances are small differences of squares."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def gaussian_head(features: int, width: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose first ``width`` outputs are μ and whose others are ℓ.

    Drawn as torch draws linear layers, ℓ shifted to begin about -4 (σ = 0.14), where draws tell classes apart.
    """
    head, bound = _Whole(features, 2 * width), features**-0.5
    with torch.no_grad():
        for p in (head.weight, head.bias):
            p.uniform_(-bound, bound, generator=generator)
        head.bias[width:] -= 4
    return head


class Snapshot(NamedTuple):
    """The prototypes after one task, on the CPU, a row a class; never changed again.

    Attributes:
        columns: int64 (c,), the classes.
        mu: (c, d), the mean of μ over images.
        ell: (c, d), the mean of ℓ over images: a mean of log-variances, not the spread between images.
    """

    columns: Tensor
    mu: Tensor
    ell: Tensor


class Memory:
    """The prototypes of each task, and a few images.

    Args:
        like: a split of the stream: shape and type of images, normalisation, augmentation.

    Attributes:
        snapshots: one a task.
        images: the exemplars as the stream has them.
        labels, tasks: int64 (n,), their columns, and the task that each is of.
        came, shown: images that tasks brought, and those that were learnt from, each time counted.
    """

    def __init__(self, like: ImageSplit) -> None:
        self.like = like
        self.snapshots: list[Snapshot] = []
        self.images = torch.empty(0, *like.images.shape[1:], dtype=like.images.dtype)
        self.labels = self.tasks = torch.empty(0, dtype=torch.int64)
        self.came = self.shown = 0

    def places(self, column: int, task: int | None = None) -> Tensor:
        """Find where the exemplars of a class lie, int64; of one task, or of all."""
        found = self.labels == column
        return (found if task is None else found & (self.tasks == task)).nonzero()[:, 0]

    def exemplars(self) -> ImageSplit:
        """The images as a split."""
        return ImageSplit(
            images=self.images,
            labels=self.labels,
            ids=torch.arange(len(self.labels)),
            mean=self.like.mean,
            std=self.like.std,
            augment=self.like.augment,
        )

    def store(self, task: int, split: ImageSplit, chosen: Tensor, quota: int) -> None:
        """Add the images ``chosen`` of ``split``; of those before, the first ``quota`` of each class and task stay."""
        groups = dict.fromkeys(zip(self.labels.tolist(), self.tasks.tolist(), strict=True))
        stay = torch.cat([chosen[:0], *(self.places(c, t)[:quota] for c, t in groups)])
        self.images = torch.cat([self.images[stay], split.images.index_select(0, chosen)])
        self.labels = torch.cat([self.labels[stay], split.labels[chosen]])
        self.tasks = torch.cat([self.tasks[stay], torch.full_like(chosen, task)])

    def one_of_each(self, columns: Tensor, task: int | None, rng: torch.Generator) -> Tensor:
        """Choose one exemplar of each of some classes, of one task or of any; classes without one are left out."""
        found = [p for c in columns.tolist() if len(p := self.places(c, task))]
        return torch.stack([p[torch.randint(len(p), (), generator=rng)] for p in found])

    def averaged(self) -> tuple[Tensor, Tensor]:
        """The columns (c,) of all classes, and the mean over tasks of their μ (c, d)."""
        every, mu = (torch.cat([s[i] for s in self.snapshots]) for i in (0, 1))
        columns = every.unique()
        return columns, torch.stack([mu[every == c].mean(0) for c in columns])

    def passes(self) -> float:
        """Images that were learnt from, for one that came."""
        return self.shown / self.came

    def state_dict(self) -> dict[str, Any]:
        """Tensors and two numbers."""
        return {
            "images": self.images,
            "labels": self.labels,
            "tasks": self.tasks,
            "came": self.came,
            "shown": self.shown,
            "snapshots": [list(s) for s in self.snapshots],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse.

        Raises:
            UserError: it holds other images than the stream brings.
        """
        ours, theirs = self.like.images, state["images"]
        require(
            ours.shape[1:] == theirs.shape[1:] and ours.dtype == theirs.dtype,
            f"The exemplars are images of {tuple(theirs.shape[1:])} and the stream brings {tuple(ours.shape[1:])}; "
            "--size brings them to one size.",
        )
        self.images, self.labels, self.tasks = theirs, state["labels"], state["tasks"]
        self.came, self.shown = state["came"], state["shown"]
        self.snapshots = [Snapshot(*s) for s in state["snapshots"]]


def places_by_class(split: ImageSplit, columns: tuple[int, ...], t: int) -> list[Tensor]:
    """Find where the images of each class lie, int64.

    Raises:
        UserError: a class has a single image, or none.
    """
    places = [(split.labels == c).nonzero()[:, 0] for c in columns]
    least = min(map(len, places))
    require(
        least >= 2,
        f"A class of task {t} has {least} training images; an episode takes one to support and one to ask.",
    )
    return places


class Embedder:
    """A network whose classifier is a Gaussian head while it learns and embeds, and a linear layer when it answers.

    Args:
        run: whose processes embed a share each.
        module: the network, changed in place.
        name: of its classifier.
        head: from features to μ and ℓ.
        memory: counts the images that are learnt from.
        draws: n, the draws of each Gaussian.
        variance: without it, σ = 0.
    """

    def __init__(
        self, run: Run, module: nn.Module, name: str, head: nn.Linear, memory: Memory, *, draws: int, variance: bool
    ) -> None:
        self.run, self.module, self.name, self.head, self.memory = run, module, name, head, memory
        self.linear = linear(module, name)
        self.draws, self.variance = draws, variance

    def put_head(self) -> None:
        """Let the network embed."""
        self.module.set_submodule(self.name, self.head)

    def put_classifier(self) -> None:
        """Let the network answer."""
        self.module.set_submodule(self.name, self.linear)

    @torch.no_grad()
    def fold(self, columns: Tensor, mu: Tensor, tau: float) -> None:
        """Make the classifier that finds the nearest of the prototypes μ of ``columns``, and put it back."""
        weight, bias = fold_prototypes(self.head, mu, tau)
        self.linear.weight.zero_()
        self.linear.bias.fill_(UNSEEN)
        self.linear.weight[columns], self.linear.bias[columns] = weight, bias
        self.put_classifier()

    def embed(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """μ and ℓ of images, each process embedding its share."""
        self.memory.shown += len(images) if self.module.training else 0
        mine = images.tensor_split(self.run.world_size)[self.run.rank]
        mu, ell = self.run.gather(self.module(mine)).chunk(2, 1)
        return mu, ell.clamp(LEAST, MOST) if self.variance else torch.full_like(mu, -torch.inf)

    def embed_split(self, split: ImageSplit) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """μ and ℓ of every image of a split in evaluation mode, on the CPU."""
        with undisturbed(self.module):
            parts = [
                self.embed(split.batch(index, device=self.run.device).images)
                for index in portions(self.module, len(split))
            ]
        mu, ell = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return mu, ell

    def draw(self, mu: Float[Tensor, "b d"], ell: Float[Tensor, "b d"], rng: torch.Generator) -> Float[Tensor, "b n d"]:
        """n draws of each Gaussian."""
        eps = torch.randn(len(mu), self.draws, mu.shape[1], generator=rng)
        return draw_gaussian(mu, ell, eps.to(mu))

    def draw_prototypes(self, then: Snapshot, rng: torch.Generator) -> Float[Tensor, "c d"]:
        """The mean of n draws of each prototype of a snapshot, on the CPU."""
        return self.draw(then.mu, then.ell, rng).mean(1)
