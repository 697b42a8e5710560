"""VPR: each class as a Gaussian in embedding space beside a few images, and both replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.continual.finetune import bounds
from upcycle.continual.scores import Scores
from upcycle.continual.tasks import Past, follow, learnt, problems, start
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits, undisturbed
from upcycle.core.heads import classifier
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images, ImageSplit
from upcycle.data.streams import Stream

LEAST, MOST = -10.0, 5.0
"""Bounds of ℓ, which no term of the loss holds back."""
UNSEEN = -1e4
"""The logit of a class without prototype."""


def draws(
    mu: Float[Tensor, "b d"], ell: Float[Tensor, "b d"], eps: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:  # fmt: skip
    """z = μ + exp(ℓ/2) ε: n draws of N(μ, exp ℓ) each; ℓ = -∞ gives μ itself."""
    return mu[:, None] + (ell / 2).exp()[:, None] * eps


def closeness(z: Float[Tensor, "*b d"], p: Float[Tensor, "c d"], tau: float) -> Float[Tensor, "*b c"]:
    """-|z - p|²/τ but for -|z|²/τ, which is the same for all classes: what softmax makes P(c|z) of; linear in z."""
    return (2 * z @ p.T - p.square().sum(1)) / tau


def prototype_loss(
    z: Float[Tensor, "q n d"], y: Int[Tensor, " q"], p: Float[Tensor, "c d"], tau: float
) -> Float[Tensor, ""]:
    """-log P(y|z), the mean over all draws of all queries; ``y`` are rows of ``p``."""
    q, n, _ = z.shape
    return F.cross_entropy(closeness(z, p, tau).view(q * n, -1), y.repeat_interleave(n))


@torch.no_grad()
def nearest(head: nn.Linear, p: Float[Tensor, "c d"], tau: float) -> tuple[Float[Tensor, "c f"], Float[Tensor, " c"]]:
    """Weight and bias of the linear layer that gives :func:`closeness` of μ, from the features before the head."""
    d = p.shape[1]
    p, w, b = p.to(head.weight.device).double(), head.weight[:d].double(), head.bias[:d].double()
    return (2 / tau * p @ w).to(head.weight), ((2 * p @ b - p.square().sum(1)) / tau).to(head.weight)


class _Whole(nn.Linear):
    """A linear layer whose output autocast does not round: distances are small differences of squares."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def gaussian_head(features: int, width: int, generator: torch.Generator) -> nn.Linear:
    """One layer whose first ``width`` outputs are μ and whose others are ℓ.

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
    """What is remembered: the prototypes of each task, and a few images.

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
        self.images = like.images[:0].clone()
        self.labels = self.tasks = torch.empty(0, dtype=torch.int64)
        self.came = self.shown = 0

    def of(self, column: int, task: int | None = None) -> Tensor:
        """Where the exemplars of a class lie, int64; of one task, or of all."""
        found = self.labels == column
        return (found if task is None else found & (self.tasks == task)).nonzero()[:, 0]

    def exemplars(self) -> ImageSplit:
        """The images as a split."""
        return ImageSplit(images=self.images, labels=self.labels, ids=torch.arange(len(self.labels)),
                          mean=self.like.mean, std=self.like.std, augment=self.like.augment)  # fmt: skip

    def store(self, task: int, split: ImageSplit, chosen: Tensor, quota: int) -> None:
        """Add the images ``chosen`` of ``split``; of those before, the first ``quota`` of each class and task stay."""
        groups = dict.fromkeys(zip(self.labels.tolist(), self.tasks.tolist(), strict=True))
        stay = torch.cat([chosen[:0], *(self.of(c, t)[:quota] for c, t in groups)])
        self.images = torch.cat([self.images[stay], split.images[chosen]])
        self.labels = torch.cat([self.labels[stay], split.labels[chosen]])
        self.tasks = torch.cat([self.tasks[stay], torch.full_like(chosen, task)])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and two numbers."""
        return {"images": self.images, "labels": self.labels, "tasks": self.tasks, "came": self.came,
                "shown": self.shown, "snapshots": [list(s) for s in self.snapshots]}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse.

        Raises:
            UserError: it holds other images than the stream brings.
        """
        ours, theirs = self.like.images, state["images"]
        require(ours.shape[1:] == theirs.shape[1:] and ours.dtype == theirs.dtype, "The exemplars are images of "
                f"{tuple(theirs.shape[1:])} and the stream brings {tuple(ours.shape[1:])}; --size brings them to one "
                "size.")  # fmt: skip
        self.images, self.labels, self.tasks = theirs, state["labels"], state["tasks"]
        self.came, self.shown = state["came"], state["shown"]
        self.snapshots = [Snapshot(*s) for s in state["snapshots"]]


@dataclass(kw_only=True, eq=False, repr=False)
class VPR(Method):
    """Variational Prototype Replays for Continual Learning (Zhang, Wang, Lim, Kreiman, Feng; arXiv:1905.09447).

    The student without its classifier, and a linear head, embed an image x as N(μ(x), exp ℓ(x)), of which n draws
    z = μ + exp(ℓ/2) ε are taken. A draw belongs to class c with

        P(c|z) = softmax_c(-|z - p_c|² / τ)

    *Episode.* Of each class of the task some images: the first half, the support, gives p_c, the mean of all their
    draws; the others are queries. Each earlier class o takes part with a prototype p_o, the mean of n draws of its
    stored N(μ_o, exp ℓ_o), and with its stored images as queries. The loss is -log P(y|z), the mean over all draws
    of all queries.

    *Prototype replay.* After every ``replay_every``-th episode, for each earlier task in turn, one more step: one
    stored image of each class known then, against prototypes drawn from the snapshot of that task.

    *After a task* one snapshot: for each class the means of μ(x) and ℓ(x) over its stored images, ⌊memory / classes⌋.
    That is what the authors' code does, so in the end a prototype is the embedding of one image. With ``prototypes``
    = "images" that of a new class is of all its images, and stays what it was (ours).

    *Domain-incremental* (the same classes in each task): earlier prototypes take no part in an episode; a task keeps
    ⌊memory / classes⌋ images a class of its own; its snapshot is of all its images. Each replay has two steps more,
    which hold the space to the first task's prototypes: for the images of the episode, and for one stored image of
    each class, of any earlier task (how many the authors take is reconstructed).

    *Answers* come from μ, without draws: -|μ - p_c|²/τ is linear in the features but for what all classes share, so
    head and prototypes fold into the student's classifier. Domain-incremental, the nearest of the prototypes of all
    tasks decides while training, or with ``told`` those of the image's own task, as the authors test; the network
    that is returned has one prototype a class, the mean over tasks. Classes that were never shown have the logit -10⁴,
    also those that the student came with.

    Departures: ℓ is clamped to [-10, 5] and begins about -4, since at 0 the draws drown what μ tells apart; BatchNorm
    keeps its statistics after the first task; all tasks but the first have the same number of episodes (the authors'
    CIFAR-10 schedule halves it each task). An episode of the first task has ``images`` of each class, one of a later
    task at least twice as many as are stored of a class, as in the authors' CIFAR-10 protocol.

    Several processes embed a share each of an episode's images; the loss is that of the gathered episode.

    Args:
        student: the network whose trunk is trained.
        past: what an earlier stream left.
        memory: stored images in all; domain-incremental, of each task.
        width: d, numbers of an embedding.
        draws: n.
        images: of each class in an episode of the first task, at least; half are support.
        episodes: of each epoch of the first task.
        later: episodes of each epoch of every other task.
        replay_every: episodes from one replay to the next; 0 for no replay.
        replay_tasks: earlier tasks of one replay, drawn anew each time; 0 for all, so that its cost grows with them.
        tau: τ.
        prototypes: see above; domain-incremental, always of all images.
        variance: False takes σ = 0: deterministic prototypes with the same replay.
        told: domain-incremental: the task of a test image is known.
        recipe: epochs and optimiser of each task; an epoch has as many episodes as said above, whatever the batch size.
            The defaults make as many episodes as the authors' permuted MNIST.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    memory: int = 10
    width: int = 64
    draws: int = 10
    images: int = 2
    episodes: int = 300
    later: int = 5
    replay_every: int = 2
    replay_tasks: int = 0
    tau: float = 2.0
    prototypes: Literal["exemplars", "images"] = "exemplars"
    variance: bool = True
    told: bool = False
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=20, lr=0.02, momentum=0.0, weight_decay=0.0, schedule="constant")
    )
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="vpr",
        title="Variational Prototype Replays for Continual Learning",
        paper="Zhang, Wang, Lim, Kreiman, Feng; arXiv:1905.09447",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier with a bias"),
        summary="A network that learns classes from few images each and keeps one image and a Gaussian of each.",
        cost="its own number of episodes; replay grows with the square of the number of tasks",
        published="no figure could be read; compared with iCaRL and others on permuted MNIST, split CIFAR-10 and "
        "mini-ImageNet (code of the authors)",
    )

    def __post_init__(self) -> None:
        for name in ("memory", "width", "draws", "episodes", "later"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}.")
        require(self.images >= 2, f"images must be at least 2, one to support and one to ask, not {self.images}.")
        for name in ("replay_every", "replay_tasks"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}.")
        require(self.tau > 0, f"tau must be positive, not {self.tau}.")
        require(self.prototypes in ("exemplars", "images"), "prototypes must be exemplars or images, not "
                f"'{self.prototypes}'.")  # fmt: skip

    def steps(self, n: int) -> int:
        """The episodes of the first task; those of others depend on the stream."""
        return self.recipe.epochs * self.episodes

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the memory hold one image of each class, and tasks have an end."""
        if found := problems(self, data, memory=self.memory):
            return found
        student = self.model("student", data)
        if student.module.get_submodule(classifier(student)).bias is None:
            found.append("the student's classifier has no bias, which distances to prototypes need")
        if data.scenario == "general":
            found.append("an episode draws images of a whole task, and this stream shows each once; use er or derpp")
        if self.past is not None:
            width = len(self.past.state["head"]["bias"]) // 2
            if width != self.width:
                found.append(f"the prototypes that were kept have {width} numbers; say --width {width}")
            if (self.past.streams[0]["scenario"] == "domain") != (data.scenario == "domain"):
                found.append(f"what was kept is {self.past.streams[0]['scenario']}-incremental and the stream is "
                             f"{data.scenario}-incremental; go on as it began")  # fmt: skip
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net, before, domain = start(self, data), learnt(self), data.scenario == "domain"
        name = classifier(net)
        linear: nn.Linear = net.module.get_submodule(name)  # type: ignore[assignment]
        head = gaussian_head(linear.in_features, self.width, run.generator("head"))
        memory = Memory(data.train)

        def embedded(images: Tensor) -> tuple[Tensor, Tensor]:
            """μ and ℓ of images (b, c, h, w), each process embedding its share."""
            memory.shown += len(images) if net.module.training else 0
            mine = images.tensor_split(run.world_size)[run.rank]
            mu, ell = run.gather(net.module(mine)).chunk(2, 1)
            return mu, ell.clamp(LEAST, MOST) if self.variance else torch.full_like(mu, -torch.inf)

        def drawn(mu: Tensor, ell: Tensor, rng: torch.Generator) -> Tensor:
            eps = torch.randn(len(mu), self.draws, self.width, generator=rng)
            return draws(mu, ell, eps.to(mu))

        def learn(t: int, task: Images) -> None:
            now, places = before + t, places_of(task.train, data.tasks[t], t)
            net.module.set_submodule(name, head)
            embed, optimizer = run.setup(net.module, self.recipe)
            old = memory.snapshots[-1] if now and not domain else None
            known = data.tasks[t] if domain else () if old is None else old.columns.tolist()
            size = max(self.images, 2 * (self.memory // len(known))) if now else self.images
            stored = memory.exemplars()
            episodes = self.later if now else self.episodes

            def descend(z: Tensor, y: Tensor, columns: Tensor, p: Tensor) -> None:
                """One step on the query draws z (q, n, d) of the classes y among ``columns``."""
                among = torch.isin(y, columns)
                if not bool(among.any()):  # a domain may lack a class
                    return
                rows = (y[among, None] == columns).int().argmax(1)
                loss = prototype_loss(z[among.to(z.device)], rows.to(z.device), p, self.tau)
                run.backward(loss, "global")
                run.update(optimizer)
                run.track(loss=loss)

            def towards(then: Snapshot, rng: torch.Generator, images: Tensor, y: Tensor) -> None:
                """One step of images towards prototypes drawn from a snapshot."""
                z = drawn(*embedded(images), rng)
                descend(z, y, then.columns, drawn(then.mu, then.ell, rng).mean(1).to(z))

            def one_of_each(
                then: Snapshot, task: int | None, view: tuple[int, int], rng: torch.Generator
            ) -> tuple[Tensor, Tensor]:
                """One stored image of each class of a snapshot, of one task or of any, and their classes."""
                found = [p for c in then.columns.tolist() if len(p := memory.of(c, task))]
                index = torch.stack([p[torch.randint(len(p), (), generator=rng)] for p in found])
                return stored.batch(index, device=run.device, view=view).images, stored.labels[index]

            for epoch in run.epochs(self.recipe.epochs):
                embed.train()
                for m in embed.modules():
                    if now and isinstance(m, _BatchNorm):
                        m.eval()  # statistics of a few images are none
                for step in range(episodes):
                    rng, number = run.generator(f"episode {step}"), epoch * episodes + step
                    view = (run.seed, number)
                    self.recipe.schedule_rate(optimizer, number / (self.recipe.epochs * episodes))
                    chosen = [p[torch.randperm(len(p), generator=rng)[:size]] for p in places]
                    support, queries = [c[: len(c) // 2] for c in chosen], [c[len(c) // 2 :] for c in chosen]
                    index, n_support = torch.cat(support + queries), sum(map(len, support))
                    images, y = task.train.batch(index, device=run.device, view=view).images, task.train.labels[index]
                    new, new_y = images, y
                    columns = torch.tensor(data.tasks[t])
                    if old is not None:
                        everything = stored.batch(torch.arange(len(stored)), device=run.device, view=view).images
                        images, y = torch.cat([images, everything]), torch.cat([y, stored.labels])
                        columns = torch.cat([columns, old.columns])
                    mu, ell = embedded(images)
                    z = drawn(mu, ell, rng)
                    p = torch.stack([part.mean((0, 1)) for part in z[:n_support].split([len(s) for s in support])])
                    if old is not None:
                        p = torch.cat([p, drawn(old.mu, old.ell, rng).mean(1).to(p)])
                    run.track(sigma=(ell / 2).exp().mean())
                    descend(z[n_support:], y[n_support:], columns, p)

                    if not now or not self.replay_every or (number + 1) % self.replay_every:
                        continue
                    order = torch.randperm(now, generator=rng)[: self.replay_tasks or now].sort().values
                    for s in order.tolist():
                        then = memory.snapshots[s]
                        towards(then, rng, *one_of_each(then, s if domain else None, view, rng))
                    if domain:
                        first = memory.snapshots[0]
                        towards(first, rng, new, new_y)
                        towards(first, rng, *one_of_each(first, None, view, rng))
            remember(now, t, task.train, places)
            answer_with(*answering(memory, domain))

        def remember(now: int, t: int, train: ImageSplit, places: list[Tensor]) -> None:
            """Images of this task, and a snapshot."""
            columns = sorted({*data.tasks[t], *(() if domain else memory.labels.tolist())})
            quota, rng = self.memory // len(columns), run.generator("exemplars")
            chosen = torch.cat([p[torch.randperm(len(p), generator=rng)[:quota]] for p in places])
            memory.came += len(train)
            memory.store(now, train, chosen, self.memory if domain else quota)
            split = train if domain or self.prototypes == "images" else memory.exemplars()
            with undisturbed(net.module):
                parts = [embedded(split.batch(index, device=run.device).images)
                         for index in torch.arange(len(split)).split(512)]  # fmt: skip
            mu, ell = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
            require(bool(mu.isfinite().all()), f"The embeddings of task {t} are not finite numbers; lower lr.")
            found = {c: (mu[split.labels == c].mean(0), ell[split.labels == c].mean(0)) for c in columns
                     if bool((split.labels == c).any())}  # fmt: skip
            if memory.snapshots and not domain:  # what there is no image for stays
                found = {int(c): (m, e) for c, m, e in zip(*memory.snapshots[-1], strict=True)} | found
            mus, ells = zip(*(found[c] for c in columns), strict=True)
            memory.snapshots.append(Snapshot(torch.tensor(columns), torch.stack(mus), torch.stack(ells)))

        @torch.no_grad()
        def answer_with(columns: Tensor, mu: Tensor) -> None:
            """Put the classifier back that finds the nearest prototype."""
            weight, bias = nearest(head, mu, self.tau)
            linear.weight.zero_()
            linear.bias.fill_(UNSEEN)
            linear.weight[columns], linear.bias[columns] = weight, bias
            net.module.set_submodule(name, linear)

        def answers(split: ImageSplit, t: int) -> Tensor:
            if not memory.snapshots:
                return predict_logits(net.module, split, run.device)
            near = memory.snapshots if domain else memory.snapshots[-1:]
            if domain and self.told and before + t < len(memory.snapshots):
                near = [memory.snapshots[before + t]]
            net.module.set_submodule(name, head)
            mu = predict_logits(net.module, split, run.device)[:, : self.width]
            net.module.set_submodule(name, linear)
            z = closeness(mu, torch.cat([s.mu for s in near]).to(mu), self.tau)
            columns = torch.cat([s.columns for s in near]).expand(len(z), -1)
            return torch.full((len(z), len(data.classes)), UNSEEN).scatter_reduce(1, columns, z, "amax")

        allowed = f"memory {self.memory} images{' a task' if domain else ''} and prototypes of each task"
        allowed += ", told the task of each image" if domain and self.told else ""
        made = follow(self, run, data, net, learn, keep={"head": head, "memory": memory}, answers=answers,
                      allowed=allowed)  # fmt: skip
        self.scores.passes = memory.shown / memory.came
        return made


def answering(memory: Memory, domain: bool) -> tuple[Tensor, Tensor]:
    """The columns (c,) and means (c, d) of the classifier: the last ones, or of each class the mean over tasks."""
    if not domain:
        return memory.snapshots[-1].columns, memory.snapshots[-1].mu
    every, mu = (torch.cat([s[i] for s in memory.snapshots]) for i in (0, 1))
    columns = every.unique()
    return columns, torch.stack([mu[every == c].mean(0) for c in columns])


def places_of(split: ImageSplit, columns: tuple[int, ...], t: int) -> list[Tensor]:
    """Where the images of each class lie, int64.

    Raises:
        UserError: a class has a single image, or none.
    """
    places = [(split.labels == c).nonzero()[:, 0] for c in columns]
    least = min(map(len, places))
    require(least >= 2, f"A class of task {t} has {least} training images; an episode takes one to support and one to "
            "ask.")  # fmt: skip
    return places


def embedder(model: Model, kept: Past) -> nn.Module:
    """The network with its embedding in place of its classifier: images to μ and ℓ side by side, (b, 2d).

    Args:
        model: what :class:`VPR` returned.
        kept: what it left beside.
    """
    weight = kept.state["head"]["weight"]
    head = nn.Linear(*weight.T.shape)
    head.load_state_dict(kept.state["head"])
    module = copy_of(model.module)
    module.set_submodule(classifier(model), head)
    return module
