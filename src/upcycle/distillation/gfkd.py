"""Graph-free knowledge distillation: graphs out of a trained network, edges and features, and a student from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.errors import require
from upcycle.core.graphs import GraphTakes
from upcycle.core.losses import kd_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.graph_free.answers import Answers
from upcycle.distillation.graph_free.blocks import Places
from upcycle.distillation.graph_free.pool import joined, leave
from upcycle.distillation.graph_free.structure import Features, Made, balanced, one_hot_entropy, structure_gradient

if TYPE_CHECKING:
    from upcycle.data.graphs import GraphSet


@dataclass(kw_only=True, eq=False, repr=False)
class GFKD(Method):
    """Graph-Free Knowledge Distillation for Graph Neural Networks (Deng, Zhang; IJCAI 2021; arXiv:2105.07519).

    Each graph has logits Φ of its edges, A ~ Bernoulli(σ(Φ)), features X from logits V, and a class y. All graphs of
    a batch descend together, for ``iterations`` steps:

    1. V takes a step of Adam on L = CE(t(A, X), y) + α L_bn + γ H(X) with A = 1[σ(Φ) ≥ 1/2], where L_bn is the distance
       of the statistics of all nodes to the teacher's in each BatchNorm (norms, not squared), and H the entropy of the
       rows of X where these are to be one-hot.
    2. Φ takes a step of Adam by forward passes alone: with u ~ U(0, 1), A¹ = 1[u > σ(-Φ)] and A² = 1[u < σ(Φ)],

           ĝ = (CE(A¹) - CE(A²) + α L_bn(A¹) - α L_bn(A²)) (u - 1/2)

       is an unbiased estimate of dE[L]/dΦ. So any teacher serves, also one that takes a list of edges.

    The A and X of the lowest L become the graphs, X hardened to one-hot rows. The student then descends
    T² KL(softmax(t / T) || softmax(s / T)) on them; no label is used, and the last epoch counts.

    Departures: A and X are kept from the same step, while the authors' code keeps the best A and the last X; classes
    are balanced, not drawn one by one. Reconstructed: degree features, and teachers without BatchNorm (α = 0). Made
    graphs are directed and dense, as the paper's are, unless they are ``symmetric``.

    Args:
        teacher: a trained classifier of graphs, best with BatchNorm.
        student: any network with the same features a node and the same classes.
        graphs: N, the number of graphs to make.
        batch: graphs that descend together, and whose statistics are compared with the teacher's.
        sizes: the fewest and the most nodes of a graph, drawn evenly; if not given, those that the teacher was
            trained on.
        features: what the rows of X are: one-hot classes of nodes, real numbers, or the one-hot degree.
        iterations: steps of descent of each batch.
        decay_every: both learning rates fall to a tenth each time that so many steps are done.
        lr_structure: learning rate of Φ; at 0 edges stay as they were drawn.
        lr_features: learning rate of V; at 0 features stay as they were drawn.
        alpha: α, the weight of L_bn.
        gamma: γ, the weight of the entropy of one-hot rows. Both α and γ want to be tuned by teacher and data.
        symmetric: each edge goes both ways, as in most data; the published method makes directed graphs.
        temperature: T of the student's loss.
        recipe: training of the student on the graphs.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    graphs: int = 131
    batch: int = 131
    sizes: tuple[int, int] | None = None
    features: Features = "one_hot"
    iterations: int = 1500
    decay_every: int = 700
    lr_structure: float = 1.0
    lr_features: float = 0.01
    alpha: float = 0.01
    gamma: float = 1e-6
    symmetric: bool = False
    temperature: float = 2.0
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=300, batch_size=32, optimizer="adam", lr=0.01, weight_decay=0.0, schedule="linear"
        )
    )

    card = Card(
        name="gfkd",
        title="Graph-Free Knowledge Distillation for Graph Neural Networks",
        paper="Deng, Zhang; IJCAI 2021; arXiv:2105.07519",
        verb="distill",
        needs=Needs(
            data="none",
            teacher="weights",
            architectures="classifiers of graphs, the teacher best with BatchNorm",
            inputs=("graphs",),
        ),
        summary="A student from a trained graph network alone: graphs are made that the teacher finds typical.",
        cost="student training + thousands of forwards of the teacher over all graphs at once",
        published="no figure at hand; the best of the data-free baselines, random graphs among them (abstract)",
    )
    refuses = {"any": "it makes its samples itself, and their labels with them"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a smaller graph network, from a trained one alone."""
        if have.goal != "smaller":
            return None
        reason = (
            "graphs are made out of the teacher, edges and features, and the student learns its answers to them; "
            "measure it on a few labelled graphs, since some students fail."
        )
        return Fit(10 if have.data == "none" else 60, reason, data=False)

    def __post_init__(self) -> None:
        ranges(
            self,
            at_least={"graphs": 2, "batch": 2, "iterations": 1, "decay_every": 1},
            not_negative=("lr_structure", "lr_features", "alpha", "gamma"),
            positive=("temperature",),
        )
        if self.sizes is not None:
            self.sizes = (self.sizes[0], self.sizes[1])
            low, high = self.sizes
            require(2 <= low <= high, f"sizes must be the fewest (2 or more) and the most nodes, not {low} and {high}.")

    def check(self, data: GraphSet) -> list[str]:
        """Teacher and student must classify whole graphs with the same features and classes."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        problems = same_classes(teacher, student)
        assert isinstance(teacher.takes, GraphTakes)
        if teacher.takes.level != "graph":
            problems.append("the teacher answers about single nodes, and gfkd makes whole graphs")
        if teacher.takes.edges:
            problems.append("the teacher takes features of edges, and gfkd makes none")
        return problems

    def steps(self, n: int) -> int:
        """The student's updates."""
        return self.recipe.steps(self.graphs)

    def work(self, n: int, teacher: int, student: int) -> float:
        """Multiply-adds of making the graphs (four forwards and a backward a step) and of the student's training."""
        return float(self.graphs * (self.iterations * 5 * teacher + self.recipe.epochs * 3 * student))

    def fit(self, run: Run, data: GraphSet) -> nn.Module:
        """The algorithm; returns the student."""
        answers = Answers(run, self.model("teacher", data))
        if not answers.layers:
            run.note("The teacher has no BatchNorm with statistics, so graphs are made for its answers alone.")
        random = run.generator("graphs")
        low, high = self.sizes or answers.takes.nodes
        sizes = torch.randint(low, high + 1, (self.graphs,), generator=random)
        classes = balanced(self.graphs, len(data.classes), random)
        made = []
        for b, members in enumerate(torch.arange(self.graphs).split(self.batch)):
            places = Places(sizes[members].to(run.device))
            found = run.stored(f"graphs {b}", places.pattern(answers.d))
            if found is None:
                with run.open_stage(f"graphs {b}") as found:
                    found |= self._make(run, answers, places, classes[members].to(run.device))
            made.append(places.graphs(found["x"], found["edge_index"]))

        pool = joined(made, classes)
        z_t = answers.logits(pool.batch(torch.arange(self.graphs), device=run.device).inputs)
        student, optimizer = run.setup(self.model("student", data).module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for graphs, _, index in run.batches(pool, self.recipe.batch_size):
                run.step(kd_loss(student(graphs), z_t[index], self.temperature), optimizer, self.recipe)
            run.evaluate(student, data.validation)
        leave(run, self.card, answers.model, pool)
        return run.plain(student)

    def _make(self, run: Run, answers: Answers, places: Places, y: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Graphs of the classes ``y``, all descended together: steps 1 and 2."""
        start = run.generator("start")
        made = Made(places, answers.d, self.features, symmetric=self.symmetric, random=start, dtype=run.dtype)
        made, optimizer = run.setup(made, lambda made: torch.optim.Adam([made.V], self.lr_features, fused=True))
        optimizer_phi = torch.optim.Adam([made.phi], self.lr_structure, fused=True)
        run.register("structure", optimizer_phi)
        for i in run.epochs(self.iterations):
            for one, lr in ((optimizer, self.lr_features), (optimizer_phi, self.lr_structure)):
                one.param_groups[0]["lr"] = lr * 0.1 ** (i // self.decay_every)
            A = made.structure()
            X = made.features(A)
            z, L_bn = answers(A, X, places)
            L = F.cross_entropy(z, y) + self.alpha * L_bn
            if self.features == "one_hot":
                L = L + self.gamma * one_hot_entropy(X)
            made.keep(L, A, X)
            if L.requires_grad and self.lr_features:
                run.backward(L, "global")
                run.update(optimizer)
            if self.lr_structure:
                u = made.draw(run.generator("u")).to(made.phi)
                with torch.no_grad():
                    first, second = (self._objective(answers, A, made.features(A), places, y) for A in made.samples(u))
                made.phi.grad = structure_gradient(first, second, u) * places.pairs
                run.update(optimizer_phi)
            if i % 50 == 0:
                run.log(loss=L.detach())
        return made.result()

    def _objective(self, answers: Answers, A: Tensor, X: Tensor, places: Places, y: Tensor) -> Float[Tensor, " b"]:
        """CE + α L_bn of each graph, where L_bn is one number for all of them."""
        z, L_bn = answers(A, X, places)
        return F.cross_entropy(z, y, reduction="none") + self.alpha * L_bn
