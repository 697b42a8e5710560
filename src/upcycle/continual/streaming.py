"""Sequential self-supervised pre-training: an encoder that goes on learning from unlabelled images as they come."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.embeddings.two_views import Objective, Projection, Views
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.probing import Probing, concatenate
from upcycle.continual.protocol.tasks import learnt, problems, start, tasks
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.heads import classifier, linear
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.data.augment import OPERATIONS
from upcycle.data.images import ImageSplit
from upcycle.data.streams import Stream

IMAGES = 256
"""Images of a chunk that importance is measured on at most; each costs a backward of its own."""


def importance(encoder: nn.Module, weights: Sequence[Tensor], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " p"]:
    """Ω_j = mean_x |∂ |e(x)|² / ∂θ_j| (MAS: Aljundi et al., ECCV 2018, arXiv:1711.09601, eq. 3 and the text after it).

    Zero for weights that the output does not depend on. The gradient is each image's own, so the encoder must be in
    evaluation mode.

    Args:
        encoder: e.
        weights: its weights θ.
        images: x.

    Returns:
        the importance of all weights, one after another.
    """
    total = torch.zeros_like(flat(weights))
    for image in images.split(1):
        grads = torch.autograd.grad(encoder(image).square().sum(), list(weights), allow_unused=True)
        total += torch.cat(
            [
                torch.zeros_like(w).reshape(-1) if g is None else g.abs().reshape(-1)
                for g, w in zip(grads, weights, strict=True)
            ]
        )
    return total / len(images)


def penalty(omega: Float[Tensor, " p"], theta: Float[Tensor, " p"], anchor: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """½ Σ_j Ω_j (θ_j - θ*_j)²."""
    return (omega * (theta - anchor).square()).sum() / 2


def flat(weights: Sequence[Tensor]) -> Tensor:
    """All numbers of ``weights``, one after another."""
    return torch.cat([w.reshape(-1) for w in weights])


class UnlabelledMemory:
    """A share of the images of each chunk so far, without labels; it grows with the stream.

    Args:
        like: a split of the stream: shape and type of images, normalisation.
    """

    def __init__(self, like: ImageSplit) -> None:
        none = like.subset(torch.arange(0))
        self.kept = dataclasses.replace(none, images=none.pixels(), labels=torch.empty(0, dtype=torch.int64))

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.kept.pixels().nbytes + self.kept.ids.nbytes

    def add(self, split: ImageSplit, share: float, seed: int, chunk: int) -> None:
        """Keep ``share`` of the images, drawn by (seed, chunk)."""
        order = uniform(seed, chunk, torch.arange(len(split)), "kept")[:, 0].argsort(stable=True)
        drawn = split.subset(order[: round(share * len(split))].sort().values)
        unknown = torch.full_like(drawn.labels, -1)
        self.kept = concatenate([self.kept, dataclasses.replace(drawn, images=drawn.pixels(), labels=unknown)])

    def state_dict(self) -> dict[str, Any]:
        """Images and their numbers."""
        return {"images": self.kept.images, "ids": self.kept.ids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        shape = tuple(self.kept.images.shape[1:])
        require(
            tuple(state["images"].shape[1:]) == shape,
            f"The memory holds images of {tuple(state['images'].shape[1:])} and the stream brings {shape}; --size "
            "brings them to one size.",
        )
        self.kept = dataclasses.replace(self.kept, **state, labels=torch.full((len(state["ids"]),), -1))


def _recipe() -> Recipe:
    return Recipe(epochs=20, batch_size=256, optimizer="adam", lr=1e-3, weight_decay=0.0)


@dataclass(kw_only=True, eq=False, repr=False)
class StreamingSSL(Method):
    """How Well Does Self-Supervised Pre-Training Perform with Streaming Data? (Hu et al., ICLR 2022; arXiv:2104.12081).

    A task of the stream is a chunk of images. For each chunk D_i the encoder and its projection go on from where they
    are and descend, over a full schedule with a fresh optimiser,

        SSL(D_i ∪ replay) + λ/2 Σ_j Ω_j (θ_j - θ*_j)²

    where replay is a share of each earlier chunk, θ* the encoder's weights before the chunk, and Ω the importance of
    :func:`importance`, divided by its mean and averaged over the chunks so far. ``replay_share=0`` is plain sequential
    training (ST), ``mas=λ`` ST with MAS, both together MAS+; ``joint`` trains anew on all chunks so far (JT), which is
    the reference: with as many epochs it makes as many times more updates as there are chunks.

    Labels play no part in training: the encoder is bitwise the same without them. The encoder is the network below its
    linear classifier. After each chunk, and at the end for the classifier that is returned, a linear probe (see
    :func:`linear_probe`) is fitted to frozen features of labelled training images of *all* chunks of the stream, where
    there are any; accuracies are those of the probes, so they measure the encoder and not a classifier that forgets.
    Where no training image has a label, the classifier is left as it came.

    There is no public code, and only the abstract was at hand. Reconstructed: the share of 10 %, the projection that is
    carried over, the fresh schedule, the normalised running mean of Ω. The objective is Barlow Twins or SimSiam, which
    need neither queue nor momentum encoder; the paper's is MoCo-v2. MAS counts at most 256 images of a chunk.

    Args:
        student: network whose weights are where the first chunk begins.
        past: state that an earlier stream left with the network; joint training cannot see its images.
        objective: objective on two views, barlow (Barlow Twins) or simsiam.
        projection: width of the projection, at least 2.
        replay_share: share of the images of each chunk that is kept for the next ones; 0 for no replay.
        mas: λ, the weight of the penalty on weights that matter; 0 for none.
        joint: training begins anew on all chunks so far, each time; nothing is replayed or held on to.
        view: operations that make a view, any of crop, flip, color; whatever the stream says.
        scale: smallest share of the area in a view's random window, above 0; 1 for no window.
        probes: labelled images at most that a probe is fitted to, at least 2.
        recipe: training on each chunk.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    objective: Objective = "barlow"
    projection: int = 128
    replay_share: float = 0.1
    mas: float = 0.0
    joint: bool = False
    view: tuple[str, ...] = ("flip", "color")
    scale: float = 0.4
    probes: int = 2000
    recipe: Recipe = field(default_factory=_recipe)

    card = Card(
        name="streaming",
        title="How Well Does Self-Supervised Pre-Training Perform with Streaming Data?",
        paper="Hu, Yan, Lu, Hong, Hu, Zhang, Li, Wang, Feng; ICLR 2022; arXiv:2104.12081",
        verb="extend",
        needs=Needs(data="unlabelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="An encoder that is pre-trained without labels on images as they come, instead of on all of them anew.",
        cost="2 × plain training, and a linear probe after each chunk",
        published="with replay or MAS mostly on par with joint training; forgets much less than supervised training "
        "(abstract, which gives no figure)",
    )
    refuses = {"any": "each image comes once, in two views"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For images without labels."""
        if have.goal != "extend":
            return None
        reason = (
            "for images without labels: the features go on learning by themselves, chunk after chunk; where there are "
            "labels, a classifier on them is trained at the end, on all tasks at once."
        )
        options = "--replay 0" if have.store == "nothing" else ""
        return Fit(2 if have.data == "unlabelled" else 85, reason, options)

    def __post_init__(self) -> None:
        ranges(
            self,
            one_of={"objective": get_args(Objective), "view": OPERATIONS},
            at_least={"projection": 2, "probes": 2},
            share=("replay_share", "scale"),
            not_negative=("mas",),
            positive=("scale",),
        )

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, the images must fit, the projection must be that of the past."""
        found = problems(self, data)
        if not found:
            student = self.model("student", data)
            layer = linear(student.module, classifier(student))
            if layer.bias is None:
                found.append("the student's classifier has no bias, which a probe needs")
            if self.past is not None and self.past.method == self.card.name:
                fresh = Projection(self.objective, layer.in_features, self.projection).state_dict()
                before = self.past.state["head"]
                if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in fresh.items()}:
                    found.append(
                        "the earlier stream was learnt with another projection; give the --objective and --projection "
                        "it had"
                    )
        return found

    def work(self, n: int, teacher: int, student: int) -> float:
        """The multiply-adds for two views of each image."""
        return 2 * super().work(n, teacher, student)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the encoder with a linear probe as its classifier."""
        net = start(self, data)
        name = classifier(net)
        layer = linear(net.module, name)
        net.module.set_submodule(name, nn.Identity())  # from here on the network is the encoder e
        head = Projection(self.objective, layer.in_features, self.projection)
        scratch = copy.deepcopy((net.module.state_dict(), head.state_dict()))
        theta = [p for p in net.module.parameters() if p.requires_grad]
        omega = torch.zeros(sum(p.numel() for p in theta), dtype=run.dtype, device=run.device)
        memory, probe = UnlabelledMemory(data.train), Probing(net.module, data, self.probes)
        for t, chunk in tasks(
            self,
            run,
            data,
            net,
            keep={"head": head, "memory": memory, "omega": omega},
            answers=probe.answers,
            held=lambda _: memory.nbytes + (omega.nbytes if self.mas else 0),
            allowed="all chunks so far" if self.joint else f"replay {self.replay_share:g}, mas {self.mas:g}",
            passes=len(data) + 1.0 if self.joint else 2 + self.replay_share * (len(data) - 1),
        ):
            before = learnt(self) + t  # chunks that the encoder has learnt
            if self.joint:
                net.module.load_state_dict(scratch[0])
                head.load_state_dict(scratch[1])
            earlier = [data.task(i).train for i in range(t)] if self.joint else [memory.kept]
            split = dataclasses.replace(concatenate([*earlier, chunk.train]), augment=self.view)
            run.setup(head)
            encoder, optimizer = run.setup(net.module, lambda _: self.recipe.make([*theta, *head.parameters()]))
            anchor = flat(theta).detach()
            hold = self.mas > 0 and before > 0 and not self.joint
            for _ in run.epochs(self.recipe.epochs):
                encoder.train()
                for images, _, _ in run.batches(Views(split, self.scale), self.recipe.batch_size):
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = head.loss(*(run.gather(head(encoder(view))) for view in images.unbind(1)))
                    run.track(ssl=loss)
                    if hold:
                        loss = loss + self.mas * penalty(omega, flat(theta), anchor)
                    run.backward(loss, "global")
                    run.update(optimizer)
            encoder.eval()
            if self.mas and not self.joint:
                some = uniform(run.seed, before, torch.arange(len(chunk.train)), "importance")[:, 0].argsort()[:IMAGES]
                images = chunk.train.batch(some, device=run.device).images.to(run.dtype)
                new = importance(encoder, theta, images)
                omega.mul_(before).add_(new / new.mean().clamp_min(1e-30)).div_(before + 1)
            if self.replay_share and not self.joint:
                memory.add(chunk.train, self.replay_share, run.seed, before)
            probe.forget()
        encoder = run.plain(net.module)
        probe.forget()
        if (last := probe.fitted()) is None:
            run.note("No two classes of training images are labelled, so the classifier was left as it came.")
        else:
            layer.to(run.dtype).load_state_dict({"weight": last.weight, "bias": last.bias})
        encoder.set_submodule(name, layer)
        return run.plain(encoder)
