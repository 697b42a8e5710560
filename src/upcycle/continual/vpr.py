"""VPR: each class as a Gaussian in embedding space beside a few images, and both replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.continual.baselines import bounds
from upcycle.continual.embeddings.prototypes import (
    UNSEEN,
    Embedder,
    Memory,
    Snapshot,
    closeness,
    gaussian_head,
    places_by_class,
    prototype_loss,
)
from upcycle.continual.protocol.advice import kept
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.tasks import learnt, problems, start, tasks
from upcycle.core.advice import Fit, Situation, if_labelled
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import classifier, linear
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import ImageSplit
from upcycle.data.streams import Stream


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

    A replay makes one step for each earlier task (T - 1 of them), every ``replay_every`` episodes. The authors' code
    nests its loops, so that the same prototypes come T - 1 times over, and one of its settings replays after each
    episode; ``replay_every=1`` is the nearest to that. Which is better differs from set to set.

    Departures: ℓ is clamped to [-10, 5] and begins about -4, since at 0 the draws drown what μ tells apart; BatchNorm
    keeps its statistics after the first task; all tasks but the first have the same number of episodes (the authors'
    CIFAR-10 schedule halves it each task). An episode of the first task has ``images`` of each class, one of a later
    task at least twice as many as are stored of a class, as in the authors' CIFAR-10 protocol.

    Several processes embed a share each of an episode's images; the loss is that of the gathered episode.

    Args:
        student: network whose trunk is trained.
        past: state that an earlier stream left with the network.
        memory: stored images in all; domain-incremental, of each task.
        width: d, numbers of an embedding.
        draws: n, draws of each Gaussian.
        images: images of each class in an episode of the first task, at least 2; half are support, half queries.
        episodes: episodes of each epoch of the first task.
        later: episodes of each epoch of every other task.
        replay_every: episodes from one replay to the next; 0 for no replay.
        replay_tasks: earlier tasks of one replay, drawn anew each time; 0 for all, so that its cost grows with them.
        tau: temperature τ of the squared distances.
        prototypes: images that a new class' prototype is of, exemplars (the stored ones) or images (all);
            domain-incremental, always all.
        variance: embeddings have a variance; without it σ = 0: deterministic prototypes with the same replay.
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
    refuses = {"any": "it trains on prototypes that it draws anew"}

    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For the smallest memory and a handful of labelled images a class."""
        reason = (
            "each class is kept as a Gaussian among the network's features and an image or so: for the smallest "
            "memory, and for a handful of labelled images a class."
        )
        return kept(have, 16, if_labelled(have, reason), boundaries=True)

    def __post_init__(self) -> None:
        ranges(
            self,
            at_least={"memory": 1, "width": 1, "draws": 1, "images": 2, "episodes": 1, "later": 1},
            not_negative=("replay_every", "replay_tasks"),
            positive=("tau",),
            one_of={"prototypes": ("exemplars", "images")},
        )

    def steps(self, n: int) -> int:
        """The episodes of the first task; those of others depend on the stream."""
        return self.recipe.epochs * self.episodes

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the memory hold one image of each class, and tasks have an end."""
        if found := problems(self, data, memory=self.memory):
            return found
        student = self.model("student", data)
        if linear(student.module, classifier(student)).bias is None:
            found.append("the student's classifier has no bias, which distances to prototypes need")
        if data.scenario == "general":
            found.append("an episode draws images of a whole task, and this stream shows each once; use er or derpp")
        if self.past is not None:
            width = len(self.past.state["head"]["bias"]) // 2
            if width != self.width:
                found.append(f"the prototypes that were kept have {width} numbers; say --width {width}")
            if (self.past.streams[0]["scenario"] == "domain") != (data.scenario == "domain"):
                found.append(
                    f"what was kept is {self.past.streams[0]['scenario']}-incremental and the stream is "
                    f"{data.scenario}-incremental; go on as it began"
                )
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net, before, domain = start(self, data), learnt(self), data.scenario == "domain"
        name, memory = classifier(net), Memory(data.train)
        head = gaussian_head(linear(net.module, name).in_features, self.width, run.generator("head"))
        embedder = Embedder(run, net.module, name, head, memory, draws=self.draws, variance=self.variance)
        allowed = f"memory {self.memory} images{' a task' if domain else ''} and prototypes of each task"
        allowed += ", told the task of each image" if domain and self.told else ""
        keep, answers = {"head": head, "memory": memory}, partial(self._answers, run, data, embedder)
        for t, task in tasks(self, run, data, net, keep=keep, answers=answers, allowed=allowed, passes=memory.passes):
            now, places = before + t, places_by_class(task.train, data.tasks[t], t)
            embedder.put_head()
            _, optimizer = run.setup(net.module, self.recipe)
            steps = Steps(run, embedder, optimizer, self.tau)
            columns, stored = torch.tensor(data.tasks[t]), memory.exemplars()
            old = memory.snapshots[-1] if now and not domain else None
            known = columns if old is None else old.columns
            size = max(self.images, 2 * (self.memory // len(known))) if now else self.images
            episodes = self.later if now else self.episodes
            for epoch in run.epochs(self.recipe.epochs):
                train_mode(net.module, statistics=not now)
                for step in range(episodes):
                    rng, number = run.generator(f"episode {step}"), epoch * episodes + step
                    view = (run.seed, number)
                    self.recipe.schedule_rate(optimizer, number / (self.recipe.epochs * episodes))
                    support, queries = draw_episode(places, size, rng)
                    index, n_support = torch.cat(support + queries), sum(map(len, support))
                    new, new_y = task.train.batch(index, device=run.device, view=view).images, task.train.labels[index]
                    images, y = new, new_y
                    if old is not None:
                        everything = stored.batch(torch.arange(len(stored)), device=run.device, view=view).images
                        images, y = torch.cat([images, everything]), torch.cat([y, stored.labels])
                    mu, ell = embedder.embed(images)
                    z = embedder.draw(mu, ell, rng)
                    p = torch.stack([part.mean((0, 1)) for part in z[:n_support].split([len(s) for s in support])])
                    among = columns
                    if old is not None:
                        p = torch.cat([p, embedder.draw_prototypes(old, rng).to(p)])
                        among = torch.cat([columns, old.columns])
                    run.track(sigma=(ell / 2).exp().mean())
                    steps.descend(z[n_support:], y[n_support:], among, p)
                    if now and self.replay_every and (number + 1) % self.replay_every == 0:
                        for s in torch.randperm(now, generator=rng)[: self.replay_tasks or now].sort().values.tolist():
                            steps.replay(memory.snapshots[s], stored, s if domain else None, view, rng)
                        if domain:
                            steps.towards(memory.snapshots[0], new, new_y, rng)
                            steps.replay(memory.snapshots[0], stored, None, view, rng)
            self._remember(run, data, embedder, t, task.train, places)
            last = memory.snapshots[-1]
            embedder.fold(*(memory.averaged() if domain else (last.columns, last.mu)), self.tau)
        return run.plain(net.module)

    def _remember(
        self, run: Run, data: Stream, embedder: Embedder, t: int, train: ImageSplit, places: list[Tensor]
    ) -> None:
        """Store images of task t, and a snapshot of the prototypes."""
        memory, domain = embedder.memory, data.scenario == "domain"
        columns = sorted({*data.tasks[t], *(() if domain else memory.labels.tolist())})
        quota, rng = self.memory // len(columns), run.generator("exemplars")
        chosen = torch.cat([p[torch.randperm(len(p), generator=rng)[:quota]] for p in places])
        memory.came += len(train)
        memory.store(learnt(self) + t, train, chosen, self.memory if domain else quota)
        split = train if domain or self.prototypes == "images" else memory.exemplars()
        mu, ell = embedder.embed_split(split)
        require(bool(mu.isfinite().all()), f"The embeddings of task {t} are not finite numbers; lower lr.")
        found = {
            c: (mu[split.labels == c].mean(0), ell[split.labels == c].mean(0))
            for c in columns
            if bool((split.labels == c).any())
        }
        if memory.snapshots and not domain:  # what there is no image for stays
            found = {int(c): (m, e) for c, m, e in zip(*memory.snapshots[-1], strict=True)} | found
        mus, ells = zip(*(found[c] for c in columns), strict=True)
        memory.snapshots.append(Snapshot(torch.tensor(columns), torch.stack(mus), torch.stack(ells)))

    def _answers(self, run: Run, data: Stream, embedder: Embedder, split: ImageSplit, t: int) -> Tensor:
        """Logits (n, k) by the nearest prototypes: the last ones, or those of all tasks or of the image's own."""
        snapshots, domain = embedder.memory.snapshots, data.scenario == "domain"
        if not snapshots:
            return predict_logits(embedder.module, split, run.device)
        near, own = snapshots if domain else snapshots[-1:], learnt(self) + t
        if domain and self.told and own < len(snapshots):
            near = [snapshots[own]]
        embedder.put_head()
        mu = predict_logits(embedder.module, split, run.device)[:, : self.width]
        embedder.put_classifier()
        z = closeness(mu, torch.cat([s.mu for s in near]).to(mu), self.tau)
        columns = torch.cat([s.columns for s in near]).expand(len(z), -1)
        return torch.full((len(z), len(data.classes)), UNSEEN).scatter_reduce(1, columns, z, "amax")


@dataclass
class Steps:
    """The updates of one task: on the queries of an episode, and towards the prototypes of a snapshot."""

    run: Run
    embedder: Embedder
    optimizer: torch.optim.Optimizer
    tau: float

    def descend(
        self, z: Float[Tensor, "q n d"], y: Int[Tensor, " q"], columns: Int[Tensor, " c"], p: Float[Tensor, "c d"]
    ) -> None:
        """Take one step on query draws z of the classes y, those among ``columns``, whose prototypes are p."""
        among = torch.isin(y, columns)
        if not bool(among.any()):  # a domain may lack a class
            return
        rows = (y[among, None] == columns).int().argmax(1)
        loss = prototype_loss(z[among.to(z.device)], rows.to(z.device), p, self.tau)
        self.run.step(loss, self.optimizer, reduction="global")

    def towards(self, then: Snapshot, images: Tensor, y: Tensor, rng: torch.Generator) -> None:
        """Take one step of images of the classes y towards prototypes drawn from a snapshot."""
        z = self.embedder.draw(*self.embedder.embed(images), rng)
        self.descend(z, y, then.columns, self.embedder.draw_prototypes(then, rng).to(z))

    def replay(
        self, then: Snapshot, stored: ImageSplit, task: int | None, view: tuple[int, int], rng: torch.Generator
    ) -> None:
        """Take one step of one stored image of each class of a snapshot, of one task or of any, towards it."""
        index = self.embedder.memory.one_of_each(then.columns, task, rng)
        images = stored.batch(index, device=self.run.device, view=view).images
        self.towards(then, images, stored.labels[index], rng)


def draw_episode(places: list[Tensor], size: int, rng: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Draw ``size`` images of each class, or all there are: positions of the first half, the support, and the rest."""
    chosen = [p[torch.randperm(len(p), generator=rng)[:size]] for p in places]
    return [c[: len(c) // 2] for c in chosen], [c[len(c) // 2 :] for c in chosen]


def train_mode(module: nn.Module, *, statistics: bool) -> None:
    """Set a network to training; without ``statistics`` BatchNorm keeps its own: those of a few images are none."""
    module.train()
    for m in module.modules():
        if isinstance(m, _BatchNorm) and not statistics:
            m.eval()


def with_embedding(model: Model, kept: Past) -> nn.Module:
    """Put the embedding in place of the classifier of a copy: images to μ and ℓ side by side, (b, 2d).

    Args:
        model: a product of :class:`VPR`.
        kept: the state that was left with it.
    """
    weight = kept.state["head"]["weight"]
    head = nn.Linear(*weight.T.shape)
    head.load_state_dict(kept.state["head"])
    module = copy_of(model.module)
    module.set_submodule(classifier(model), head)
    return module
