"""Quadratic penalties on leaving the weights of earlier tasks: elastic weight consolidation and synaptic intelligence.

Both keep for each trainable parameter where it was after the last task, θ*, and how much it matters, Ω, and add the
gradient of c Σ Ω (θ - θ*)² to that of the loss. What is kept does not grow with the number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.continual.finetune import bounds, plain_recipe
from upcycle.continual.fisher import fisher
from upcycle.continual.scores import Scores
from upcycle.continual.tasks import Past, follow, of_task, problems, restore, start
from upcycle.core.collective import average_gradients
from upcycle.core.errors import require
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images
from upcycle.data.streams import Stream

Tensors = list[Tensor] | tuple[Tensor, ...]


@torch.no_grad()
def pull(parameters: Tensors, importance: Tensors, anchor: Tensors, strength: float) -> None:
    """Add to the gradients that of strength · Σ Ω (θ - θ*)²: 2 · strength · Ω (θ - θ*), in place and without a graph.

    Args:
        parameters: θ, with gradients.
        importance: Ω, of the same shapes.
        anchor: θ*, of the same shapes.
    """
    apart = torch._foreach_sub(parameters, anchor)
    torch._foreach_addcmul_(gradients(parameters), importance, apart, value=2 * strength)


def gradients(parameters: Tensors) -> list[Tensor]:
    """The gradient of each; zeros where the loss does not reach, as on several processes."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def clip(gradients: Tensors, most: float = 1.0) -> None:
    """Bring each number into [-most, most], in place; one that is not finite becomes NaN, so that it shows."""
    bad = torch._foreach_sub(gradients, gradients)  # zeros, or NaN
    torch._foreach_clamp_min_(gradients, -most)
    torch._foreach_clamp_max_(gradients, most)
    torch._foreach_add_(gradients, bad)


class Beside:
    """Numbers beside each trainable parameter of a network, such as importances: ``beside["importance"]`` is a list in
    the parameters' order, each tensor of its parameter's shape.

    Saved by the parameters' names, so that they fit again after the classifier has grown.

    Args:
        names: what is kept; zeros at first.
    """

    def __init__(self, module: nn.Module, *names: str) -> None:
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = tuple(p for p in module.parameters() if p.requires_grad)
        self._lists: dict[str, list[Tensor]] = {name: self._zeros() for name in names}

    def __getitem__(self, name: str) -> list[Tensor]:
        return self._lists[name]

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self.parameters]

    @torch.no_grad()
    def put(self, name: str, values: Tensors) -> None:
        """Copy values into a list."""
        torch._foreach_copy_(self._lists[name], values)

    @torch.no_grad()
    def arrange(self) -> None:
        """Bring everything to the device, number format and memory layout of the parameters, once these are set up."""
        for name, values in self._lists.items():
            self._lists[name] = self._zeros()
            self.put(name, values)

    def state_dict(self) -> dict[str, Any]:
        """By kind and the parameters' names."""
        return {kind: dict(zip(self._names, values, strict=True)) for kind, values in self._lists.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; outputs that are new since then have zeros.

        Raises:
            UserError: it belongs to another network.
        """
        for kind in self._lists:
            require(list(state[kind]) == self._names, "What was kept beside the parameters belongs to another network.")
            self._lists[kind] = self._zeros()
            for name, mine in zip(self._names, self._lists[kind], strict=True):
                restore(mine, state[kind][name], f"{kind} of {name}")


@dataclass(kw_only=True, eq=False, repr=False)
class EWC(Method):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv:1612.00796), online (Schwarz et al., arXiv:1805.06370).

    While it learns a task, the network descends the cross-entropy plus λ Σ F̄ (θ - θ*)². After the task

        F = 1/n Σ_n p(y_n | x_n) (∂ log p(y_n | x_n) / ∂θ)²,  F̄ ← γ F̄ + F,  θ* ← θ

    in the form of Mammoth, with the gradient of each example by itself; libraries that square the gradients of batches
    depend on the batch size. Cross-entropy and F are of the task's outputs where the task of an image will be known,
    else of all. λ has no half before it, as in Mammoth.

    Chosen here: F is of images without augmentation and of the network in evaluation mode. Steps are explicit, so
    2 λ F̄ times the learning rate must stay below 2 in every number, or the weights run away.

    Args:
        student: the network.
        past: what an earlier stream left.
        lam: weight λ; 0 is plain fine-tuning.
        gamma: share γ of F̄ that stays.
        samples: images that F is estimated from, drawn from the task; 0 takes all.
        weighted: with p(y_n | x_n) before the square; else the empirical Fisher information.
        recipe: of each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    lam: float = 10.0
    gamma: float = 1.0
    samples: int = 0
    weighted: bool = True
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="oewc",
        title="Progress & Compress: A scalable framework for continual learning",
        paper="Schwarz et al., ICML 2018; arXiv:1805.06370; after Kirkpatrick et al., PNAS 2017; arXiv:1612.00796",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="A network whose weights resist change as far as earlier tasks depend on them; no image is stored.",
        cost="plain training + one pass over each task",
        published="Split CIFAR-10, class-/task-incremental: 19.49 / 68.29 % (arXiv:2004.07211)",
    )

    def __post_init__(self) -> None:
        require(self.lam >= 0, f"lam must not be negative, it is {self.lam}.")
        require(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], it is {self.gamma}.")
        require(self.samples >= 0, f"samples must not be negative, it is {self.samples}; 0 takes all.")

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        beside = Beside(net.module, "importance", "anchor")

        def learn(t: int, task: Images) -> None:
            student, optimizer = run.setup(net.module, self.recipe)
            beside.arrange()
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                     save_within=True):  # fmt: skip
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    if self.lam:
                        pull(beside.parameters, beside["importance"], beside["anchor"], self.lam)
                    run.update(optimizer)
                    run.track(loss=loss * run.world_size)
            f = fisher(run, student, task.train, lambda z, y: of_task(z, y, data, t), samples=self.samples,
                       weighted=self.weighted)  # fmt: skip
            torch._foreach_mul_(beside["importance"], self.gamma)
            torch._foreach_add_(beside["importance"], f)
            beside.put("anchor", beside.parameters)

        return follow(self, run, data, net, learn, keep={"beside": beside}, allowed="no memory")


@dataclass(kw_only=True, eq=False, repr=False)
class SI(Method):
    """Synaptic intelligence (Zenke, Poole, Ganguli; ICML 2017; arXiv:1703.04200), in the form of Mammoth.

    Every step adds to ω how much each parameter's own move lowered the loss, and after the task

        ω ← ω + g (θ_before - θ_after),  Ω ← Ω + ω / ((θ - θ*)² + ξ),  ω ← 0,  θ* ← θ

    where g is the gradient of the cross-entropy alone. The step descends g + 2 c Ω (θ - θ*), clipped to [-1, 1] in each
    number. Cross-entropy is over the task's outputs where the task of an image will be known, else over all.

    Chosen here: g in ω is not clipped, since it is the loss that ω is about; moves by weight decay and momentum count.
    A sum ω may be negative, and then counts against earlier tasks' Ω, as in the paper's equation 4.

    Args:
        student: the network.
        past: what an earlier stream left.
        c: weight of the penalty.
        xi: damping ξ, positive.
        recipe: of each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    c: float = 0.1
    xi: float = 0.1
    recipe: Recipe = field(default_factory=plain_recipe)
    scores: Scores = field(init=False)
    kept: Past = field(init=False)

    card = Card(
        name="si",
        title="Continual Learning Through Synaptic Intelligence",
        paper="Zenke, Poole, Ganguli; ICML 2017; arXiv:1703.04200",
        verb="extend",
        needs=Needs(data="labelled", teacher="weights", architectures="ends in a linear classifier"),
        summary="A network whose weights resist change as far as their moves lowered earlier losses; no image stored.",
        cost="plain training",
        published="Split CIFAR-10, class-/task-incremental: 19.48 / 68.05 % (arXiv:2004.07211)",
    )

    def __post_init__(self) -> None:
        require(self.c >= 0, f"c must not be negative, it is {self.c}.")
        require(self.xi > 0, f"xi must be positive, it is {self.xi}.")

    def check(self, data: Stream) -> list[str]:
        """The classifier must be replaceable, and the images must fit."""
        return problems(self, data)

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        beside = Beside(net.module, "importance", "anchor", "path")
        beside.put("anchor", beside.parameters)

        def learn(t: int, task: Images) -> None:
            student, optimizer = run.setup(net.module, self.recipe)
            beside.arrange()
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, _ in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                     save_within=True):  # fmt: skip
                    self.recipe.schedule_rate(optimizer, run.progress)
                    loss = cross_entropy(*of_task(student(images), labels, data, t), run.count)
                    run.backward(loss, "sum")
                    if run.world_size > 1:  # before the clip, which is not linear
                        average_gradients(list(beside.parameters), run.world_size)
                    g = [x.clone() for x in gradients(beside.parameters)]
                    before = [p.detach().clone() for p in beside.parameters]
                    pull(beside.parameters, beside["importance"], beside["anchor"], self.c)
                    clip(gradients(beside.parameters))
                    run.update(optimizer)
                    torch._foreach_addcmul_(beside["path"], g, _apart(before, beside.parameters))
                    run.track(loss=loss * run.world_size)
            beside.put("importance", omega(beside["importance"], beside["path"],
                                           _apart(beside.parameters, beside["anchor"]), self.xi))  # fmt: skip
            beside.put("anchor", beside.parameters)
            torch._foreach_zero_(beside["path"])

        return follow(self, run, data, net, learn, keep={"beside": beside}, allowed="no memory")


@torch.no_grad()
def _apart(a: Tensors, b: Tensors) -> tuple[Tensor, ...]:
    return torch._foreach_sub(a, b)


def omega(importance: Tensors, path: Tensors, moved: Tensors, xi: float) -> list[Tensor]:
    """Ω + ω / (Δθ² + ξ) of each parameter (SI, equation 5)."""
    return [o + w / (d.square() + xi) for o, w, d in zip(importance, path, moved, strict=True)]
