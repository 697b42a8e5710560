"""BLIP: after each task, of every weight as many leading bits are frozen as the task taught it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import untold
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.tasks import learnt, of_task, problems, start, tasks
from upcycle.continual.weights.fisher import squared_gradients
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import require
from upcycle.core.heads import classifier
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.data.images import ImageSplit
from upcycle.data.streams import Stream

MOST = 20
"""Bits of a weight."""
_MARGIN = 1e-6  # of an information gain: less is rounding, and would cost a whole bit


def quantise(w: Float[Tensor, "*s"], bits: Int8[Tensor, "*s"], bound: Float[Tensor, ""]) -> Float[Tensor, "*s"]:
    """Q_b(θ) = Bd · round(2^b θ / Bd) / 2^b: round to a grid with steps of Bd / 2^b; Q_0 = 0."""
    levels = 2 ** bits.int()
    return torch.where(bits > 0, (w / bound * levels).round() / levels * bound, 0.0)


def limits(
    before: Float[Tensor, "*s"], bits: Int8[Tensor, "*s"], bound: Float[Tensor, ""]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """The lowest and highest value of each weight in a task: one step Bd / 2^b about ``before``, and |θ| < Bd."""
    step, most = bound / 2 ** bits.int(), float(bound) * (1 - 2.0**-MOST)
    return (before - step).clamp_min(-most), (before + step).clamp_max(most)


def information_gain(fisher: Float[Tensor, "*s"], prior: Float[Tensor, "*s"], t: int) -> Float[Tensor, "*s"]:
    """IG = ½ log₂((F + (t+1) F̄) / ((t+2) F̄)): bits that task t, from 0, tells of each weight."""
    return 0.5 * torch.log2((fisher + (t + 1) * prior) / ((t + 2) * prior))


def frozen_bits(bits: Int8[Tensor, "*s"], gain: Float[Tensor, "*s"]) -> Int8[Tensor, "*s"]:
    """b ← min(20, b + max(0, ⌈IG⌉))."""
    return (bits + (gain - _MARGIN).ceil().clamp(0, MOST)).clamp_max(MOST).to(torch.int8)


def sample_labels(p: Float[Tensor, "n k"], u: Float[Tensor, "n 1"]) -> Int[Tensor, " n"]:
    """Draw a class from each row of probabilities ``p``, by uniform numbers ``u`` in [0, 1)."""
    return (p.cumsum(1) <= u).sum(1).clamp_max(p.shape[1] - 1)


def trunk(net: Model) -> dict[str, int]:
    """The fan-in of each weight and bias of all linear and convolution layers but the classifier, by its name."""
    head, found = classifier(net), dict[str, int]()
    for layer, m in net.module.named_modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer != head:
            found |= {f"{layer}.{name}": m.weight[0].numel() for name, _ in m.named_parameters(recurse=False)}
    return found


def _recipe() -> Recipe:
    return Recipe(epochs=8, batch_size=64, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


@dataclass(kw_only=True, eq=False, repr=False)
class BLIP(Method):
    """Continual Learning via Bit-Level Information Preserving (Shi, Yuan, Chen, Feng; CVPR 2021; arXiv:2105.04444).

    A weight θ lies in ±Bd, Bd = 6 / √fan_in (a bias in ±1), and b of its 20 bits are frozen, at first none. Task t = 0,
    1, ... trains in full precision with cross-entropy over its own classes, and after every step

        θ ← θ_prev + clamp(θ - θ_prev, ±Bd / 2^b),  |θ| ≤ Bd (1 - 2^-20)

    so that frozen bits change by at most one unit in their last place. After the task:

        F = mean_n (∂ℓ_n/∂θ)²                           of single images, labels drawn from the network's own softmax
        b ← min(20, b + max(0, ⌈IG⌉)),                  IG = ½ log₂((F + (t+1) F̄) / ((t+2) F̄))
        θ ← Bd round(2^b θ / Bd) / 2^b                  0 where b = 0: a weight of which nothing was learnt is pruned
        F̄ ← ((t+1) F̄ + F) / (t+2)                       from F0 · fan_in: the prior counts as a task

    Beside the network, b (a byte) and F̄ are kept, however many tasks there are. The heads of all tasks are rows of one
    linear classifier; each is trained in its own task only, which is why momentum and weight decay must be 0: they
    would move the rows of other tasks too.

    Departures. The authors' code squares gradients of a mean over 100 images, so its F and its F0 are 10^-4 of those
    here. A bound is no smaller than the largest weight that the layer comes with, so trained networks are not cut;
    ``fresh`` draws the paper's initial weights instead. Other parameters of the trunk (scales of GroupNorm, position
    embeddings), of which the paper says nothing, are learnt in the first task and stand still afterwards. Training
    follows the recipe to its end; the authors divide the rate by 3 after 5 epochs without a lower validation loss, and
    return to the best weights.

    Args:
        student: network that learns the tasks, without BatchNorm.
        past: state that an earlier stream left with the network.
        f0: F0, the prior Fisher information; smaller freezes more bits in the first task. The paper's 1e-15 for MLPs is
            1e-11 here, its 5e-16 and 5e-17 for convolutional networks 5e-12 and 5e-13.
        samples: training images of a task that F is measured on, all where there are fewer.
        fresh: training begins with weights from N(0, 1/fan_in) and biases of 0, not with those that the network brings.
        recipe: training on each task; sgd without momentum and weight decay. (Paper: rate 0.01 to 0.05, up to 200
            epochs.)
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    f0: float = 1e-11
    samples: int = 8000
    fresh: bool = False
    recipe: Recipe = field(default_factory=_recipe)

    card = Card(
        name="blip",
        title="Continual Learning via Bit-Level Information Preserving",
        paper="Shi, Yuan, Chen, Feng; CVPR 2021; arXiv:2105.04444",
        verb="extend",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="linear and convolution layers without BatchNorm, ends in a linear classifier",
        ),
        summary="A network of constant size that learns task after task with next to no forgetting, told the task.",
        cost="plain training + gradients of 8,000 single images a task",
        published="near-zero forgetting at constant memory overhead (abstract, which gives no figure)",
    )
    refuses = {"any": "each update is cut to what bits of earlier tasks leave"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Where the task of an image is known and nothing may grow; not for transformers."""
        if have.goal != "extend":
            return None
        if why := untold(have):
            return why
        if have.architecture == "transformer":
            return "it freezes the bits of linear layers and convolutions; for a transformer there is meat."
        reason = (
            "after each task as many leading bits of each weight are frozen as it has taught: no images are kept, and "
            "no more memory with more tasks. The network must be without BatchNorm."
        )
        return Fit(4, reason)

    def __post_init__(self) -> None:
        r = self.recipe
        require(
            r.optimizer == "sgd" and r.momentum == 0 and r.weight_decay == 0,
            "blip trains with sgd, momentum 0 and weight_decay 0, since all else moves what is frozen, not with "
            f"{r.optimizer}, {r.momentum} and {r.weight_decay}.",
        )
        ranges(self, positive=("f0",), at_least={"samples": 1})

    def check(self, data: Stream) -> list[str]:
        """Images must come with their task; the trunk must have layers to quantise, and no BatchNorm."""
        found = problems(self, data)
        if data.scenario != "task":
            found.append(
                f"it learns task-incremental streams alone, and {data.name} is {data.scenario}-incremental; "
                "use --scenario task, where each task brings classes of its own"
            )
        net = self.model("student", data)
        if any(isinstance(m, _BatchNorm) for m in net.module.modules()):
            found.append(
                "the student has BatchNorm, whose statistics every task overwrites; choose a network with GroupNorm, "
                "such as zoo:convnet_groupnorm, or none, such as zoo:mlp"
            )
        if not found and not trunk(net):
            found.append("the student has no linear or convolution layer before its classifier; choose a deeper one")
        if self.fresh and self.past is not None:
            found.append("fresh weights would overwrite what the network has learnt; leave out --fresh")
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net, done = start(self, data), learnt(self)
        fan_in, head = trunk(net), classifier(net)
        module = net.module.to(run.device, run.dtype)
        weights = WeightBits(module, fan_in, self.f0, run.generator("fresh") if self.fresh else None)
        others = [p for name, p in module.named_parameters() if name not in fan_in and not name.startswith(f"{head}.")]
        used = torch.zeros(len(weights.theta), done + len(data), device=run.device)
        keep = {**weights.tensors(), "used": used}
        passes = 1 + 1 / self.recipe.epochs
        for t, task in tasks(self, run, data, net, keep=keep, allowed="no memory", passes=passes):
            within = weights.limits()
            student, optimizer = run.setup(module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    if done + t:
                        for p in others:
                            p.grad = None
                    run.update(optimizer)
                    weights.clamp(within)
                    run.track(loss=loss * run.world_size)
            columns = data.tasks[t]
            among = slice(columns[0], columns[-1] + 1)
            fisher = self.fisher(run, student, list(weights.theta), task.train, among, done + t)
            weights.freeze(fisher, done + t)
            used[:, done + t] = weights.used().to(used)
            for name in weights.pruned():
                run.note(
                    f"Task {t} taught {name} too little to keep a bit of any weight, so all are 0; "
                    f"lower --f0 (now {self.f0:g})."
                )
        run.picture("bits", bits_picture(used, list(weights.theta)))
        return run.plain(module)

    def fisher(
        self, run: Run, net: nn.Module, names: list[str], split: ImageSplit, among: slice, t: int
    ) -> dict[str, Tensor]:
        """F of some parameters: over ``samples`` images, with labels drawn from what the network says of each.

        Args:
            among: the outputs of the task.
            t: its number, from 0.
        """
        net.eval()
        sums = {name: torch.zeros_like(net.get_parameter(name)) for name in names}
        chosen = torch.randperm(len(split), generator=run.generator("fisher"))[: self.samples]
        for index in chosen.tensor_split(run.world_size)[run.rank].split(128):
            x = split.batch(index, device=run.device).images.to(sums[names[0]].dtype)
            with torch.no_grad():
                p = net(x)[:, among].softmax(1)
            y = sample_labels(p, uniform(run.seed, t, index, "blip").to(run.device, p.dtype))
            squares = squared_gradients(net, x, y, lambda z, y: F.cross_entropy(z[:, among], y, reduction="none"))
            for name in names:
                sums[name] += squares[name]
        return {name: run.gather(total[None]).sum(0) / len(chosen) for name, total in sums.items()}


class WeightBits:
    """The bits that are frozen of each weight and bias of a trunk, and what decides how many.

    Args:
        module: the network, on its device already.
        fan_in: the fan-in of each weight and bias by name, see :func:`trunk`.
        f0: F0, of which the prior F̄ is a multiple.
        fresh: draws the paper's initial weights, N(0, 1/fan_in) cut at the bound, and biases of 0; ``None`` keeps those
            that came.

    Attributes:
        theta: the weights and biases by name.
        bits: b of each, int8.
        prior: F̄ of each.
        bound: Bd of each tensor.
    """

    def __init__(self, module: nn.Module, fan_in: dict[str, int], f0: float, fresh: torch.Generator | None) -> None:
        self.theta = {name: module.get_parameter(name) for name in fan_in}
        least = {name: 6 / math.sqrt(fan_in[name]) if p.dim() > 1 else 1.0 for name, p in self.theta.items()}
        if fresh is not None:
            with torch.no_grad():
                for name, p in self.theta.items():
                    z = torch.randn(p.shape, generator=fresh) / math.sqrt(fan_in[name])
                    p.copy_(z.clamp(-least[name], least[name]) if p.dim() > 1 else torch.zeros(p.shape))
        self.bits = {name: torch.zeros_like(p, dtype=torch.int8) for name, p in self.theta.items()}
        self.prior = {name: torch.full_like(p.detach(), f0 * fan_in[name]) for name, p in self.theta.items()}
        self.bound = {name: p.detach().abs().max().clamp_min(least[name]) for name, p in self.theta.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are kept from task to task, by name; changed in place."""
        kinds = {"bits": self.bits, "prior": self.prior, "bound": self.bound}
        return {f"{kind} {name}": kept[name] for kind, kept in kinds.items() for name in self.theta}

    @torch.no_grad()
    def limits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The lowest and highest values of a task, see :func:`limits`."""
        return {
            name: limits(quantise(p, self.bits[name], self.bound[name]), self.bits[name], self.bound[name])
            for name, p in self.theta.items()  # on the grid already, but for the weights that come
        }

    @torch.no_grad()
    def clamp(self, within: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Bring the weights between their limits."""
        for name, p in self.theta.items():
            p.clamp_(*within[name])

    @torch.no_grad()
    def freeze(self, fisher: dict[str, Tensor], t: int) -> None:
        """Freeze as many bits as task t, from 0, told of each weight, and round the weights to them."""
        for name, p in self.theta.items():
            gain = information_gain(fisher[name], self.prior[name], t)
            self.bits[name].copy_(frozen_bits(self.bits[name], gain))
            p.copy_(quantise(p, self.bits[name], self.bound[name]))
            self.prior[name].mul_(t + 1).add_(fisher[name]).div_(t + 2)

    def used(self) -> Tensor:
        """The share of all bits that is frozen, the mean of each tensor."""
        return torch.stack([b.float().mean() / MOST for b in self.bits.values()])

    def pruned(self) -> list[str]:
        """The names of the weights that have no bit at all."""
        return [name for name, p in self.theta.items() if p.dim() > 1 and not bool(self.bits[name].any())]


def bits_picture(used: Tensor, layers: list[str]) -> dict[str, Any]:
    """The heatmap of the bits used (layers, tasks)."""
    return {
        "kind": "heatmap",
        "title": "Bits used",
        "caption": f"The share of the {MOST} bits of each weight that is frozen, mean over a layer.",
        "values": [[round(share, 4) for share in row] for row in used.tolist()],
        "digits": 2,
        "rows": layers,
        "columns": [f"after task {t}" for t in range(used.shape[1])],
    }
