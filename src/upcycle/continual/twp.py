"""Topology-aware weight preserving: weights resist change as far as old losses and old attention to edges need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from upcycle.continual.baselines import bounds
from upcycle.continual.protocol.advice import held
from upcycle.continual.protocol.kept_optimizer import KeptOptimizer
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.tasks import of_task, problems, start, tasks
from upcycle.continual.weights.penalty import ParameterState, Tensors, pull
from upcycle.core.advice import Fit, Situation
from upcycle.core.edge_attention import FirstAttention, attention_problem
from upcycle.core.errors import require
from upcycle.core.losses import cross_entropy
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.streams import Stream


def importance(
    g_l: Tensors, g_s: Tensors, lambda_l: float, lambda_t: float, *, accumulate: bool = False
) -> list[Tensor]:
    """I = λ_l (∂L/∂w)² + λ_t (∂s/∂w)² of each parameter.

    Args:
        g_l: gradients of the mean loss L over a task.
        g_s: gradients of s = ‖e‖, the norm of the attention to all edges.
        lambda_l, lambda_t: weights of the two.
        accumulate: ∂s/∂w comes on top of ∂L/∂w before it is squared, as in the authors' code.

    Raises:
        UserError: I is too large for its number format.
    """
    both = [a + b for a, b in zip(g_l, g_s, strict=True)] if accumulate else g_s
    found = [lambda_l * a.square() + lambda_t * b.square() for a, b in zip(g_l, both, strict=True)]
    require(
        all(bool(i.isfinite().all()) for i in found),
        f"The importance of some weights is not a finite number; lower lambda_l ({lambda_l:g}) or lambda_t "
        f"({lambda_t:g}).",
    )
    return found


@torch.no_grad()
def merge(total: Tensors, anchor: Tensors, new: Tensors, weights: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """One anchor for all tasks: Ω' = Ω + I, θ̄' = θ̄ + I / Ω' (w - θ̄).

    Σ_n I_n (w - w*_n)² and Ω (w - θ̄)² differ by what does not depend on w, so their gradients are the same, and what is
    kept does not grow with the tasks.

    Args:
        total, anchor: Ω and θ̄ so far.
        new: I of the task that was learnt.
        weights: w after it.
    """
    sums = [o + i for o, i in zip(total, new, strict=True)]
    shares = [i / o.clamp_min(torch.finfo(o.dtype).tiny) for i, o in zip(new, sums, strict=True)]
    return sums, [a + share * (w - a) for a, share, w in zip(anchor, shares, weights, strict=True)]


def sparsity(run: Run, loss: Tensor, weights: Tensors) -> Tensor:
    """This process' part of Σ |∂L/∂w|, with a graph for a second derivative.

    Args:
        loss: this process' part of L.
        weights: w.
    """
    g = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    known = [x for x in g if x is not None]
    signs = [run.gather(x.detach()[None]).sum(0).sign() for x in known]  # of the whole gradient
    return sum(((sign * x).sum() for sign, x in zip(signs, known, strict=True)), loss.new_zeros(()))


@dataclass(kw_only=True, eq=False, repr=False)
class TWP(Method):
    """Topology-aware weight preserving (Liu, Yang, Wang; AAAI 2021; arXiv:2012.06002).

    A network over graphs learns a task by descending

        L + Σ_n Σ_w I_n (w - w*_n)² + β Σ_w |∂L/∂w|

    over the tasks n before, with one optimiser for the whole stream. After a task, with L its mean loss and s the norm
    of the attention e that the first message-passing layer pays to all edges,

        I = λ_l (∂L/∂w)² + λ_t (∂s/∂w)²

    at the final weights, from one gradient over all training samples, in training mode. A layer without attention gets
    one for this alone: e_ij = softmax_j LeakyReLU((W h_j)ᵀ tanh(W h_i)). With λ_t = 0 it is elastic weight
    consolidation with the square of the mean gradient.

    The norm is that of the first layer and not squared, as in the authors' code (``hhliu79/TWP``), for which the values
    of λ_t stand; the paper squares it. That code also takes both gradients together and descends 2 L
    (``accumulate``), and its β term is of a detached gradient, so a constant: here it is off, and exact where it is on.

    Departures: the tasks' anchors are kept as one, which has the same gradient. Attention is read without its dropout.
    In sets of graphs s is over all of them, and both gradients are sums over batches; the authors' code takes the last
    batch. BatchNorm's statistics are not protected, as there. Steps are explicit, so with SGD 2 I times the learning
    rate must stay below 2; Adam bounds its steps.

    Args:
        student: network over graphs or nodes, with an output for every class.
        past: state that an earlier stream left with the network.
        lambda_l: weight λ_l of what the loss of a task needs.
        lambda_t: weight λ_t of what the attention to edges needs; the authors take 10,000, 100 or 10.
        beta: weight β of the new task's own gradient, which is kept small; it costs a second derivative.
        accumulate: the form of the authors' code: (∂L/∂w + ∂s/∂w)² in I, and twice the loss.
        recipe: training on each task.
    """

    roles = ("student",)
    given = ("past",)

    student: Model | nn.Module
    past: Past | None = None
    lambda_l: float = 1e4
    lambda_t: float = 1e4
    beta: float = 0.0
    accumulate: bool = False
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=200, batch_size=0, optimizer="adam", lr=0.005, schedule="constant")
    )

    card = Card(
        name="twp",
        title="Overcoming Catastrophic Forgetting in Graph Neural Networks",
        paper="Liu, Yang, Wang; AAAI 2021; arXiv:2012.06002",
        verb="extend",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="layers of message passing, an output for every class or a linear classifier",
            inputs=("graphs",),
        ),
        summary="A network over graphs whose weights resist change as far as earlier answers and attention need them.",
        cost="plain training + one pass over each task",
        published="GAT on Corafull, 9 tasks, told the task: 89.0 %, fine-tuning 51.6 %, EWC 86.9 % (authors' README)",
    )

    refuses = {"any": "its penalty is that of plain steps, by one optimiser for all tasks"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Without graphs of earlier tasks, best where the task is known."""
        reason = "weights that earlier answers and attention to edges depend on are held: no image is kept."
        return held(have, 16, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("lambda_l", "lambda_t", "beta"))

    def check(self, data: Stream) -> list[str]:
        """The classes must fit, and attention must lead to weights where it counts."""
        found = problems(self, data)
        student = self.model("student", data)
        if self.lambda_t and (problem := attention_problem(student.module, student.example())):
            found.append(f"{problem}; --lambda_t 0 leaves attention out")
        return found

    def controls(self) -> dict[str, Control]:
        """Fine-tuning and joint training, as long as this."""
        return bounds(self)

    def fit(self, run: Run, data: Stream) -> nn.Module:
        """The algorithm; returns the student."""
        net = start(self, data)
        beside, adam = ParameterState(net.module, "importance", "anchor"), KeptOptimizer(net.module, self.recipe)
        keep = {"beside": beside, "optimizer": adam}
        for t, task in tasks(self, run, data, net, keep=keep, allowed="no memory"):
            student, _ = run.setup(net.module)
            beside.match()
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for graphs, labels, _ in run.batches(task.train, self.recipe.batch_size):
                    self.recipe.schedule_rate(adam.inner, run.progress)
                    loss = cross_entropy(*of_task(student(graphs), labels, data, t), run.count)
                    whole = 2 * loss if self.accumulate else loss
                    if self.beta:
                        whole = whole + self.beta * sparsity(run, loss, beside.parameters)
                    run.backward(whole, "sum")
                    pull(beside.parameters, beside["importance"], beside["anchor"], 1.0)
                    run.update(adam.inner)
                    run.track(loss=loss * run.world_size)
            g_l, g_s = self.gradients(run, student, data, t)
            new = importance(g_l, g_s, self.lambda_l, self.lambda_t, accumulate=self.accumulate)
            merged = merge(beside["importance"], beside["anchor"], new, beside.parameters)
            for name, values in zip(("importance", "anchor"), merged, strict=True):
                beside.copy_in(name, values)
        return run.plain(net.module)

    def gradients(self, run: Run, student: nn.Module, data: Stream, t: int) -> tuple[list[Tensor], list[Tensor]]:
        """∂L/∂w and ∂s/∂w over all training samples of task t, in training mode; zeros for s where λ_t is 0.

        The draws of dropout are those of this place in the run, and BatchNorm's statistics stay.
        """
        split = data.task(t).train
        weights: list[Tensor] = [p for p in student.parameters() if p.requires_grad]
        g_l, g_q = ([torch.zeros_like(p) for p in weights] for _ in range(2))
        q = torch.zeros((), device=run.device, dtype=run.dtype)  # s²
        share = 1 / run.world_size if split.together else 1.0  # of a process in s², where each sees the whole graph
        pieces = -(-len(split) // (self.recipe.batch_size or len(split)))
        torch.manual_seed(run.generator("importance").initial_seed() + run.rank)
        student.train()
        with _same_buffers(student):
            for index in torch.arange(len(split)).tensor_split(pieces):
                graphs, labels, _ = split.batch(index.tensor_split(run.world_size)[run.rank], device=run.device)
                graphs = graphs.double() if run.precision == "64-true" else graphs
                with FirstAttention(student) if self.lambda_t else contextlib.nullcontext() as first:
                    z = student(graphs)
                _add(g_l, cross_entropy(*of_task(z, labels, data, t), len(split)), weights)
                if first is not None:
                    part = share * first.attention()[0].square().sum()
                    _add(g_q, part, weights)
                    q += part.detach()
        if run.world_size > 1:
            g_l, g_q, [q] = ([run.gather(x[None]).sum(0) for x in found] for found in (g_l, g_q, [q]))
        twice = (2 * q.sqrt()).clamp_min(torch.finfo(q.dtype).tiny)
        return g_l, [g / twice for g in g_q]


def _add(total: Tensors, value: Tensor, weights: Tensors) -> None:
    """Add the gradient of ``value`` to ``total``, in place; its graph is used again."""
    for sum_, g in zip(total, torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True), strict=True):
        if g is not None:
            sum_ += g


@contextlib.contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Within, buffers may change, such as the statistics of BatchNorm; after, they are as before."""
    before = [b.clone() for b in module.buffers()]
    yield
    for b, old in zip(module.buffers(), before, strict=True):
        b.copy_(old)
