"""SimpleCIL: a frozen network whose classifier is the mean features of each class."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.embeddings.prototypes import UNSEEN
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.recipes import plain_recipe
from upcycle.continual.protocol.tasks import learnt, of_task, problems, start, tasks
from upcycle.core.advice import Fit, Situation, if_labelled
from upcycle.core.errors import require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import classifier, linear
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import ImageSplit
from upcycle.data.streams import Stream


def mean_directions(sums: Float[Tensor, "k d"], length: float, scale: float) -> Float[Tensor, "k d"]:
    """The rows of a linear classifier without bias that decides as cosines to class means do.

    A row is scale / length · p / |p|, with p the mean feature of the class; zeros for a class without features. The
    largest of the outputs scale · cos(φ, p) · |φ| / length is at the largest cosine, since |φ| is the same for all.

    Args:
        sums: sum of the features of each class; how many they are does not matter to the direction.
        length: the length of features at which the output is ``scale`` times the cosine.
        scale: factor on the cosine.
    """
    return scale / length * torch.nn.functional.normalize(sums, dim=1)


@dataclass(kw_only=True, eq=False, repr=False)
class SimpleCIL(Method):
    """SimpleCIL of Revisiting Class-Incremental Learning with Pre-Trained Models (Zhou et al.; arXiv:2303.07338).

    The network is frozen. When a task comes, the classifier's row of each of its classes becomes the mean p_c of the
    features φ(x) of the class' training images, and an image belongs to the class with the largest cosine

        cos(φ(x), p_c)

    The direction of no earlier row changes, so an image is only ever lost to a class that came later; the order of the
    tasks does not matter, nor where one ends. A class that comes again is averaged over all of its images: the sums of
    features are kept. Means are of features as they are, of images without augmentation, as in the authors' toolbox
    LAMDA-PILOT.

    *The network that is returned* is an ordinary one with a linear classifier. The factor 1/|φ(x)| of a cosine is no
    linear layer; but it is the same for all classes of an image, so it is left out and every decision stays, see
    :func:`mean_directions`. How sure an answer is does change: the logit is the cosine times ``scale`` and |φ(x)|
    over its mean. Classes that were never shown have the logit -10⁴, if the classifier has a bias.

    Departures: the factor on the cosine is 1 in that toolbox, where only the largest output counts; ``scale`` gives
    probabilities that say something. ``train_first`` is ours, for networks whose weights were trained on nothing; the
    paper's own remedy for a network from afar, APER, adds the features of a tuned copy.

    Args:
        student: network whose features are used; the better they are, the better the classes come apart.
        past: state that an earlier stream left with the network.
        scale: logit of an image in the direction of a class mean; no answer depends on it, only how sure it is.
        train_first: train the whole network on the first task before it is frozen, by ``recipe``.
        recipe: training on the first task, where there is any, and that of the bounds shown beside it.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    scale: float = 16.0
    train_first: bool = False
    recipe: Recipe = field(default_factory=plain_recipe)

    card = Card(
        name="simplecil",
        title="Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity Are All "
        "You Need",
        paper="Zhou, Cai, Ye, Zhan, Liu; arXiv:2303.07338",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="A frozen network that gets a class mean as the output of each new class, and forgets nothing.",
        cost="one forward of each image",
        published="CIFAR-100, 20 tasks of 5 classes, ViT-B/16 of ImageNet-21k: 81.26 % after the last (from memory, "
        "unchecked)",
    )
    refuses = {"any": "only its first task trains weights"}
    runs_on = ("few",)

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """First where nothing of earlier tasks may be kept and the task of an image is not known."""
        if have.goal != "extend":
            return None
        reason = (
            "MODEL is frozen, and the mean of its features over the images of a class is what finds the class: what "
            "was learnt stays, no image is kept, nothing is trained, and a few images are enough. It is as good as the "
            "features that MODEL brings; one with fresh weights needs --train_first."
        )
        if have.task_id == "known":
            rank = 18
        elif have.store == "nothing":
            rank = 0
        else:
            rank = 8 if have.data == "few" else 15
        return Fit(rank, if_labelled(have, reason))

    def __post_init__(self) -> None:
        ranges(self, positive=("scale",))

    def steps(self, n: int) -> int:
        """The updates of the first task, if it is trained; ``n`` are its images."""
        return self.recipe.steps(n) if self.train_first else 0

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward of each image, and the training if there is any."""
        return float(n * student) + super().work(n, 0, student)

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, by the same recipe."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        name = classifier(net)
        layer = linear(net.module, name)
        sums = torch.zeros(len(data.classes), layer.in_features, dtype=torch.float64)
        lengths = torch.zeros(2, dtype=torch.float64)  # the sum over all images, and how many these are
        keep = {"sums": sums, "lengths": lengths}
        for t, task in tasks(self, run, data, net, keep=keep, allowed="no memory"):
            if self.train_first and learnt(self) + t == 0:
                student, optimizer = run.setup(net.module, self.recipe)
                for _ in run.epochs(self.recipe.epochs):
                    student.train()
                    for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                        loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                        run.step(loss, optimizer, self.recipe, "sum")
                run.plain(net.module).to(run.device)  # features as of a run that resumes here: not in mixed precision
            f, y = features(run, net.module, name, task.train), task.train.labels
            require(bool(f.isfinite().all()), f"The features of task {t} are not finite numbers.")
            sums.index_add_(0, y[y >= 0], f[y >= 0])
            lengths += torch.tensor([float(f.norm(dim=1).sum()), len(f)])
            with torch.no_grad():
                layer.weight.copy_(mean_directions(sums, float(lengths[0] / lengths[1]), self.scale))
                if layer.bias is not None:
                    layer.bias.copy_(torch.where(sums.any(1), 0.0, UNSEEN))
        return run.plain(net.module)


def features(run: Run, network: nn.Module, name: str, split: ImageSplit) -> Float[Tensor, "n d"]:
    """The inputs of the classifier ``name`` for every image of a split, float64 on the CPU, by all processes."""
    layer = linear(network, name)
    mine = torch.arange(len(split)).tensor_split(run.world_size)[run.rank]
    network.set_submodule(name, nn.Identity())
    try:
        found = run.gather(predict_logits(network, split.subset(mine), run.device).to(run.device))
    finally:
        network.set_submodule(name, layer)
    return found.cpu().double()
