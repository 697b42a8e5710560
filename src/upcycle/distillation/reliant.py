"""RELIANT: a student of a graph's nodes that decides less by a sensitive attribute than its teacher does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from numpy.polynomial.legendre import leg2poly
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.inputs import of_tensor
from upcycle.core.losses import Terms, balanced_targets
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, source_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.distillation.data_free.inversion import only_inputs
from upcycle.surgery.constants import REFERENCE, Constants, beside
from upcycle.surgery.widening import widened

if TYPE_CHECKING:
    from upcycle.data.graphs import GraphSet

# 1/2 + 1/2 P_1 - 1/8 P_3 + 1/16 P_5 - 5/128 P_7 + 7/256 P_9, as published, by powers of x.
PHI: tuple[float, ...] = tuple(leg2poly([1 / 2, 1 / 2, 0, -1 / 8, 0, 1 / 16, 0, -5 / 128, 0, 7 / 256]))


CAPTION = (
    "In per cent, on the test nodes: how far apart both groups are in how often class 1 is decided (Δ_SP), the same "
    "among nodes of class 1 (Δ_EO), and both rates. With one decision for all, no difference is no merit: see accuracy."
)


# -- bias -------------------------------------------------------------------------------------------------------


def phi(p: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """A smooth stand-in for the decision 1[p ≥ 1/2]: a polynomial of degree 9 in x = 2p - 1 that grows on [0, 1].

    Its Legendre coefficients are the inner products of the step with P_n without the factor (2n + 1) / 2, as published;
    with it the series would overshoot and not grow everywhere. φ(0) = 0.074, φ(1/2) = 1/2, φ(1) = 0.926.
    """
    x = 2 * p - 1
    total = torch.full_like(x, PHI[-1])
    for coefficient in reversed(PHI[:-1]):
        total = total * x + coefficient
    return total


def bias(p: Float[Tensor, "n k"], s: Int[Tensor, " n"], among: Bool[Tensor, " n"] | None = None) -> Float[Tensor, ""]:
    """B = Σ_c (mean over s = 0 of φ(p_c) - mean over s = 1 of φ(p_c))²: 0 where both groups are treated alike.

    Args:
        p: probabilities.
        s: the sensitive attribute, 0 or 1.
        among: which samples count, such as those with y = 1; ``None`` for all. Both groups must occur.
    """
    among = torch.ones_like(s, dtype=torch.bool) if among is None else among
    decided = phi(p)
    zero, one = (decided[among & (s == group)].mean(0) for group in (0, 1))
    return (zero - one).square().sum()


def fairness(decided: Int[Tensor, " n"], s: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> dict[str, float]:
    """How unlike two groups are treated by decisions for class 0 or 1, as shares.

    Δ_SP = |P(ŷ = 1 | s = 0) - P(ŷ = 1 | s = 1)|, Δ_EO the same among those with y = 1, and the two rates of ŷ = 1.

    Args:
        decided: ŷ.
        s: the sensitive attribute, 0 or 1.
        y: labels, -1 where unknown. A rate of none is NaN.
    """
    rates = [(decided[s == group] == 1).double().mean().item() for group in (0, 1)]
    right = [(decided[(s == group) & (y == 1)] == 1).double().mean().item() for group in (0, 1)]
    return {
        "Δ_SP": abs(rates[0] - rates[1]),
        "Δ_EO": abs(right[0] - right[1]),
        "rate of 0": rates[0],
        "rate of 1": rates[1],
    }


# -- the method -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class RELIANT(Method):
    """RELIANT: Fair Knowledge Distillation for Graph Neural Networks (Dong, Zhang, Yuan, Zou, Wang, Li; SDM 2023).

    Each node i has a proxy of bias q_i, appended to its features: the *personal* view [X | Q], and the *neutral* view
    [X | 1 q̄] in which all nodes have the mean one. With the differentiable bias B of a student f's probabilities (see
    :func:`bias`), each epoch takes two steps over the whole graph:

    1. of the student, on the neutral view: L_KD(f, teacher) + α B(softmax f) descends; Q stands still.
    2. of the proxy, on the personal view: α B(softmax f) *ascends* in Q; the student stands still, in evaluation mode.

    So bias that the student could send through the proxy is gone once all have the same, and B in step 1 removes what
    is left. The product is the student with q̄ kept in it: it takes the features as they are, and needs no attribute.
    L_KD is that of ``kd``; B looks at the training nodes.

    The attribute is used in training and measuring alone, and that of unseen nodes in measuring alone, unless
    ``transductive``. A column of the features that holds it is *not* removed. A low Δ can be had by deciding alike for
    everybody: look at the accuracy and at both rates too.

    Departures: the proxy is appended, while one of the authors' instances drops the last real features for it; their
    code evaluates B on test nodes, for Δ_EO with their labels.

    Args:
        teacher: a trained classifier of nodes; only its logits are used.
        student: any network that can be built anew with more features a node.
        sensitive: the column of the data that holds the attribute, 0 or 1 for each node.
        objective: what B measures: statistical parity (sp), or equal opportunity (eo), among those with label 1.
        alpha: α, the weight of B; at 0 it is plain distillation.
        proxy: the number of features of a proxy; at 0 there is none, and B alone works.
        lr_proxy: learning rate of the proxy (Adam).
        transductive: let B look at all nodes, also those that are measured on; for ``objective`` sp alone.
        balanced: weigh labels so that each class counts alike, however many nodes it has.
        terms: temperature of the soft targets, and weights of the two terms of L_KD.
        recipe: training of the student.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    sensitive: str = ""
    objective: Literal["sp", "eo"] = "sp"
    alpha: float = 100.0
    proxy: int = 2
    lr_proxy: float = 0.01
    transductive: bool = False
    balanced: bool = False
    terms: Terms = field(default_factory=lambda: Terms(temperature=1.0, w_kd=1.0, w_ce=1.0))
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=150, batch_size=0, optimizer="adam", lr=0.01, schedule="constant")
    )

    card = Card(
        name="reliant",
        title="RELIANT: Fair Knowledge Distillation for Graph Neural Networks",
        paper="Dong, Zhang, Yuan, Zou, Wang, Li; SDM 2023; arXiv:2301.01150",
        verb="distill",
        needs=Needs(
            data="labelled",
            teacher="predictions",
            architectures="classifiers of nodes with two classes; a student that can be built wider",
            inputs=("graphs",),
        ),
        summary="A student of a graph's nodes that decides less by a sensitive attribute than its teacher.",
        cost="student training with three forwards a step in place of one",
        published="Credit, GraphAKD with a GCN: accuracy 77.4 → 77.8, Δ_SP 13.3 → 2.6 against the teacher, one seed "
        "(official README, which has no plain student)",
    )
    refuses = {"any": "two optimisers take turns on each batch"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For nodes with an attribute that decisions should not follow."""
        if have.goal != "smaller":
            return None
        reason = (
            "for nodes in two groups that are to be treated alike, such as by age: the student decides less by that "
            "attribute than its teacher. --sensitive names its column."
        )
        return Fit(40, reason, "--sensitive COLUMN")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("alpha", "proxy"), positive=("lr_proxy",))
        require(
            not (self.transductive and self.objective == "eo"),
            "objective eo looks at labels, which unseen nodes must not give; leave out transductive, or take sp.",
        )

    def check(self, data: GraphSet) -> list[str]:
        """Two classes of nodes, and a column of the data that is 0 or 1, with both groups among the training nodes."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        problems = same_classes(teacher, student)
        if data.takes.level != "node":
            problems.append("it is about the nodes of a graph, and the data have labels of whole graphs")
        if len(data.classes) != 2:
            problems.append(f"Δ_SP and Δ_EO need two classes, and the data have {len(data.classes)}")
        return problems or self._column_problems(data) or _wide_problems(student, self.proxy)

    def _column_problems(self, data: GraphSet) -> list[str]:
        """List what is wrong with the sensitive attribute, in words."""
        there = ", ".join(data.columns) or "none"
        if not self.sensitive:
            return [f"--sensitive has to name the attribute; the data have the columns {there}"]
        if self.sensitive not in data.columns:
            return [f"the data have no column '{self.sensitive}'; there are {there}"]
        s = data.columns[self.sensitive]
        if not ((s == 0) | (s == 1)).all():
            return [f"'{self.sensitive}' must be 0 or 1 for every node, and it has other values"]
        among = self._among(data)
        if not among.any() or s[among].min() == s[among].max():
            which = " with label 1" if self.objective == "eo" else ""
            return [f"one group of '{self.sensitive}' has no training nodes{which}, so there is nothing to compare"]
        return self._test_problems(data)

    def _test_problems(self, data: GraphSet) -> list[str]:
        """List what is wrong with the attribute of test nodes of another graph, in words."""
        if not data.measured or not data.test.labelled:
            return []
        s = data.test.columns.get(self.sensitive)
        if s is None:
            there = ", ".join(data.test.columns) or "none"
            return [f"the test data {data.measured} have no column '{self.sensitive}'; there are {there}"]
        if not ((s == 0) | (s == 1)).all():
            return [f"'{self.sensitive}' of the test data {data.measured} must be 0 or 1, and it has other values"]
        return []

    def _among(self, data: GraphSet) -> Bool[Tensor, " n"]:
        """The nodes that B looks at."""
        nodes, count = data.train.ids, len(data.columns[self.sensitive])
        if self.transductive:
            return torch.ones(count, dtype=torch.bool)
        if self.objective == "eo":
            nodes = nodes[data.train.labels == 1]
        return torch.zeros(count, dtype=torch.bool).index_fill(0, nodes, True)

    def inputs(self, data: GraphSet) -> dict[str, str]:
        """The digests of networks and data, and of the attribute."""
        found = {f"the column {self.sensitive}": of_tensor(data.columns[self.sensitive])}
        if data.measured and self.sensitive in data.test.columns:
            found[f"the column {self.sensitive} of {data.measured}"] = of_tensor(data.test.columns[self.sensitive])
        return super().inputs(data) | found

    def controls(self) -> dict[str, Control]:
        """Plain distillation, and B without a proxy, which has most of the effect."""
        if not (self.alpha and self.proxy):
            return {}
        return {
            "distilled": Control(method=replace(self, alpha=0.0, proxy=0), words="distilled plainly"),
            "no proxy": Control(method=replace(self, proxy=0), words="with B and no proxy"),
        }

    def fit(self, run: Run, data: GraphSet) -> nn.Module:
        """The algorithm; returns the student with the mean proxy kept in it."""
        everyone = torch.arange(len(data.columns[self.sensitive]), device=run.device)
        s, among = (t.to(run.device) for t in (data.columns[self.sensitive].long(), self._among(data)))
        teacher = run.frozen(self.model("teacher", data), data.validation)
        wide = widened(self.model("student", data), self.proxy, run.seed)
        y = data.train.labels
        targets = (balanced_targets(y, len(data.classes)) if self.balanced else y).to(run.device)
        z_t = teacher(data.train.batch(torch.arange(len(data.train)), device=run.device).inputs)
        student, optimizer = run.setup(wide.module, self.recipe)
        proxy, optimizer_q = run.setup(
            Proxy(len(everyone), self.proxy, run.generator("proxy")),
            lambda proxy: torch.optim.Adam([proxy.Q], self.lr_proxy, weight_decay=self.recipe.weight_decay),
        )
        for _ in run.epochs(self.recipe.epochs):
            for graphs, _, index in run.batches(data.train, self.recipe.batch_size):
                nodes, index = run.gather(graphs.at), run.gather(index.to(run.device))
                graphs = replace(graphs, at=everyone)
                student.train()
                z = student(beside(graphs, proxy.mean().expand(len(everyone), -1)))
                L = self.terms(z[nodes], z_t[index], targets[index])
                if self.alpha:
                    L = L + self.alpha * bias(z.softmax(1), s, among)
                run.step(L, optimizer, self.recipe, "global")
                if self.alpha and self.proxy:
                    with only_inputs(student):
                        B = bias(student(beside(graphs, proxy.Q)).softmax(1), s, among)
                        run.backward(-self.alpha * B, "global")
                    run.update(optimizer_q)
                    run.track(proxy_bias=B)
            run.evaluate(Constants(student, proxy.mean()), data.validation)
        made = Constants(run.plain(student), proxy.mean().cpu()).eval()
        self._tell(run, data, made)
        return made if self.proxy else made.network

    def product(self, module: nn.Module, data: GraphSet) -> Model:
        """The student as it takes the data: with the mean proxy kept in it, where there is one."""
        made = super().product(module, data)
        if not self.proxy:
            return made
        source = source_of(widened(self.model("student", data), self.proxy, 0))
        return replace(made, reference=REFERENCE, options={"source": source, "constants": self.proxy})

    def _tell(self, run: Run, data: GraphSet, student: nn.Module) -> None:
        """Leave how unlike both groups are treated, by teacher and student, where there are labelled test nodes."""
        if not data.test.labelled:
            return
        s, y = data.test.columns[self.sensitive].long()[data.test.ids], data.test.labels
        teacher = self.model("teacher", data)
        found = {
            name: fairness(predict_logits(network, data.test).argmax(1), s, y)
            for name, network in ((teacher.name, teacher.module), ("student", student))
        }
        rates = {f"rate of {group}": f"rate, {self.sensitive} {group}" for group in (0, 1)}
        for left, name in (("shown", "student"), ("shown of the teacher", teacher.name)):
            run.leave(left, {rates.get(key, key): value for key, value in found[name].items()})
        if run.rank == 0:
            run.picture("fairness", picture(found, self.sensitive))


def _wide_problems(student: Model, more: int) -> list[str]:
    """List why a student cannot be built wider, in words."""
    try:
        widened(student, more, 0)
    except UserError as error:
        return [str(error).rstrip(".")]
    return []


def picture(found: dict[str, dict[str, float]], sensitive: str) -> dict[str, object]:
    """How unlike two groups are treated, for the report.

    Args:
        found: by network, what :func:`fairness` gives.
        sensitive: the name of the attribute.
    """
    items = [
        {"name": f"{key}, {name}", "value": round(100 * values[key], 2)}
        for key in next(iter(found.values()))
        for name, values in found.items()
    ]
    return {
        "kind": "bars",
        "title": f"Decisions by {sensitive}",
        "caption": CAPTION,
        "items": items,
    }


class Proxy(nn.Module):
    """Q: a few numbers for each node that take up what bias a student can express through them.

    Args:
        n: nodes.
        width: numbers for each.
        random: the generator that they are drawn from, U(0, 1).
    """

    def __init__(self, n: int, width: int, random: torch.Generator) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.rand(n, width, generator=random))

    def mean(self) -> Float[Tensor, " width"]:
        """q̄, the same for all nodes; without gradients to Q."""
        return self.Q.detach().mean(0)
