"""FactorGCN: a classifier of graphs that shows which relations it finds behind one kind of edge."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle import zoo
from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError, require
from upcycle.core.losses import Terms, kd_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.core.task import MULTILABEL
from upcycle.core.undisturbed import undisturbed
from upcycle.measure.factors import TRUTH, Disentanglement, disentanglement, matrices, random_factors
from upcycle.zoo.factorgcn import Factors, layers_of, seen_factors

if TYPE_CHECKING:
    from upcycle.data.graphs import GraphSet, GraphSplit, NodeSplit

DRAWN, LARGEST, BESIDE = 3, 40, 4
"""Test graphs whose factors are drawn, the most nodes that such a graph may have, and factors side by side."""


# -- disentangling ----------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """A guess from which of L factor graphs features come; cooperative, so it and the layer descend the same loss.

    g_e = tanh(mean over nodes of C_2(C_1(h'; E_e); E_e)) with C_k(x; E)[i] = tanh(Σ_{j→i} E[j → i] deg(j)^-1/2
    (U_k x_j + c_k)), and logits V g_e + v. All factors start from the same h', so edges alone tell them apart.

    Sums over neighbours are linear, so that of C_1 is the layer's own, U_1 z_e + c_1 s_e with s_e the sum of what
    messages are multiplied with.

    Args:
        d: width of h'; that between the convolutions is d / 2.
        factors: L.
    """

    def __init__(self, d: int, factors: int) -> None:
        super().__init__()
        self.U_1, self.U_2 = nn.Linear(d, max(d // 2, 1)), nn.Linear(max(d // 2, 1), d)
        self.V = nn.Linear(d, factors)

    def forward(self, found: Factors, batch: Tensor, n: int) -> Float[Tensor, "n L L"]:
        """Logits of the factors (last) for each graph and factor.

        Args:
            found: the factors of a layer.
            batch: the graph of each node, (N,).
            n: graphs.
        """
        x = found.over.convolved_twice(found.z, found.sent, self.U_1, self.U_2, batch, n)
        return self.V(torch.tanh(x))


def disentangling_loss(logits: Float[Tensor, "n L L"]) -> Float[Tensor, ""]:
    """L_d: the mean cross-entropy of logits (n, e, :) against e. At least log L where factors cannot be told apart."""
    n, L, _ = logits.shape
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.flatten(0, 1), torch.arange(L, device=logits.device).repeat(n))


class Discriminated(nn.Module):
    """A network, and a :class:`Discriminator` of each of its layers with two or more factors.

    Takes graphs and gives the network's answer z and Σ L_d over these layers.

    Args:
        network: with a :class:`upcycle.zoo.factorgcn.FactorConv` in it.
        on: whether there are discriminators at all.
    """

    def __init__(self, network: nn.Module, on: bool = True) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layer for layer in layers_of(network) if on and layer.factors > 1)
        self.discriminators = nn.ModuleList(
            Discriminator(layer.project.out_features, layer.factors) for layer in self.layers
        )

    def forward(self, graphs: Any) -> tuple[Tensor, Tensor]:
        with seen_factors(self.network) as seen:
            z = self.network(graphs)
        L_d = z.new_zeros(())
        for layer, discriminator in zip(self.layers, self.discriminators, strict=True):
            if layer in seen:
                L_d = L_d + disentangling_loss(discriminator(seen[layer], graphs.batch, graphs.n))
        return z, L_d


def soft_loss(
    z: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"], temperature: float, several: bool = False
) -> Float[Tensor, ""]:
    """T² times the divergence from a teacher's softened answers: of one distribution, or of k answers by themselves.

    Args:
        z, z_t: logits of student and teacher.
        temperature: T.
        several: k yes-or-no labels; else classes, with the loss of ``kd``.
    """
    if not several:
        return kd_loss(z, z_t, temperature)
    p = torch.sigmoid(z_t.detach() / temperature).to(z.dtype)
    return temperature**2 * F.binary_cross_entropy_with_logits(z / temperature, p)


# -- the method -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class FactorGCN(Method):
    """Factorizable Graph Convolutional Networks (Yang, Feng, Song, Wang; NeurIPS 2020; arXiv:2010.05421).

    Each layer of the student chooses edges softly for each of L factors, convolves in each of these graphs by itself
    and lays the results side by side (:class:`upcycle.zoo.factorgcn.FactorConv`). Training descends

        L = L_task + λ Σ_layers L_d,

    where L_d is the cross-entropy of a :class:`Discriminator` that says from which factor features come. Nothing is
    detached: scorers, projections and discriminators descend together. Layers with one factor have no L_d. The product
    is the student without discriminators. At λ = 0 it is, bit for bit, that of ``plain``.

    With a teacher and ``terms.w_kd`` above 0, L_task is ``w_ce`` L_labels + ``w_kd`` L_soft: the factors then show
    which relations a trained network makes use of. That is an extension of ours, off by default.

    The numbers of factors mean nothing and differ from run to run. Where data have the graphs of their relations, as
    ``factors:4`` has, the run leaves C-Score and GED_E of the first layer on test graphs, beside random edge weights:
    without beating these nothing was told apart, however good the answers are.

    Departure: a layer adds loops by itself; the authors have them in their data.

    Args:
        teacher: a trained classifier of the same graphs, for ``terms.w_kd`` above 0; none is needed.
        student: ``zoo:factorgcn``, ``zoo:factorgcn_5_64`` or any network with a ``FactorConv`` in it.
        factors: L of the first layer, a divisor of its width; a network of the zoo is built anew for another number
            than its own, with fresh weights. 0 leaves the student as it is.
        lambda_d: λ, the weight of telling factors apart; their scripts have 0.2 to 1.
        terms: weights of labels and teacher in L_task, and the temperature of the teacher's answers.
        recipe: training of the student, as theirs on synthetic graphs but for the batch of 1,000.
    """

    teacher: Model | nn.Module | None = None
    student: Model | nn.Module
    factors: int = 0
    lambda_d: float = 0.2
    terms: Terms = field(default_factory=lambda: Terms(temperature=4.0, w_kd=0.0, w_ce=1.0))
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=80, batch_size=64, optimizer="adam", lr=0.005, weight_decay=5e-5, schedule="constant"
        )
    )

    card = Card(
        name="factorgcn",
        title="Factorizable Graph Convolutional Networks",
        paper="Yang, Feng, Song, Wang; NeurIPS 2020; arXiv:2010.05421",
        verb="distill",
        needs=Needs(
            data="labelled",
            teacher="none",
            architectures="a student of layers with factors",
            inputs=("graphs",),
            tasks=("classification", "multilabel"),
        ),
        summary="A classifier of graphs that shows, edge by edge, which relations it finds behind one kind of edge.",
        cost="student training, and two small convolutions a factor and layer",
        published="ZINC MAE 0.366; IMDB-B 75.3, COLLAB 81.2, MUTAG 89.9, the best epoch of the mean over 10 folds "
        "(paperswithcode listing)",
    )

    admits = frozenset({"sharpness", "dropping", "sampler"})
    refuses = {"selection": "the loss that tells factors apart is one number a batch", "mix": "graphs are not mixed"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To look inside graphs; as a classifier behind ordinary training."""
        student = "--student zoo:factorgcn"
        if have.goal == "explain":
            reason = (
                "it shows which relations hide behind one kind of edge, and with --terms.w_kd which a teacher uses."
            )
            return Fit(5, reason, teacher=False, networks=student)
        if have.goal not in ("smaller", "better"):
            return None
        reason = (
            "no teacher, your labels alone: for when one kind of edge may hide several relations that you want to see."
        )
        return Fit(85, reason, teacher=False, networks=student)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("factors", "lambda_d"))
        require(
            self.teacher is None or self.terms.w_kd > 0,
            "Nothing is learnt from the teacher while terms.w_kd is 0: set that, or leave out the teacher.",
        )
        if self.factors and isinstance(self.student, Model):
            self.student = with_factors(self.student, self.factors)

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student alone: the options say whether there has to be a teacher."""
        return {**super().stand_ins(), "teacher": None}

    def check(self, data: GraphSet) -> list[str]:
        """A student with factors, labels or a teacher to learn from, and the same classes."""
        student, found = self.model("student", data), layers_of(self.model("student", data).module)
        if not found:
            return [f"{student.name} has no layer with factors; take zoo:factorgcn, or build it of FactorConv"]
        problems = []
        if self.factors not in (0, found[0].factors):
            problems.append(f"{student.name} has {found[0].factors} factors, and factors is {self.factors}")
        if self.lambda_d and all(layer.factors == 1 for layer in found):
            problems.append("one factor alone has no other to be told from; take 2 or more, or lambda_d 0")
        if self.terms.w_ce and not data.train.labelled:
            problems.append("there are no labels; with a teacher, terms.w_kd 1 and terms.w_ce 0 none are needed")
        if self.terms.w_kd and self.teacher is None:
            problems.append("terms.w_kd is for the answers of a teacher, and there is none")
        if self.teacher is not None:
            problems += same_classes(self.model("teacher", data), student)
        return problems

    def fit(self, run: Run, data: GraphSet) -> nn.Module:
        """The algorithm; returns the student."""
        task, terms = data.train.task, self.terms
        teacher = run.frozen(self.model("teacher", data), data.validation) if terms.w_kd else None
        seed_everything(run.seed, "discriminators")
        whole = Discriminated(self.model("student", data).module, on=self.lambda_d > 0)
        net, optimizer = run.setup(whole, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            net.train()
            for graphs, y, _ in run.batches(data.train, self.recipe):
                z, L_d = net(graphs)
                L = terms.w_ce * task.loss(z, y) if terms.w_ce else z.new_zeros(())
                if teacher is not None:
                    L = L + terms.w_kd * soft_loss(z, teacher(graphs), terms.temperature, task == MULTILABEL)
                if self.lambda_d:
                    L = L + self.lambda_d * L_d
                    run.track(disentangling_loss=L_d)
                run.step(L, optimizer, self.recipe)
            run.evaluate(net.network, data.validation)
        run.plain(net)
        self._tell(run, data, net.network)
        return net.network

    def _tell(self, run: Run, data: GraphSet, student: nn.Module) -> None:
        """Leave factors of some test graphs as pictures, and how well they stand for relations that are known."""
        if data.takes.level != "graph" or not len(data.test):
            return
        nodes = data.test.batch(torch.arange(len(data.test)), device=torch.device("cpu")).inputs.starts[0].diff()
        truth = data.test.columns[TRUTH][data.test.ids] if TRUTH in data.test.columns else None
        for i in (nodes <= LARGEST).nonzero()[:DRAWN, 0].tolist():
            known = {} if truth is None else dict(zip(data.classes, truth[i], strict=True))
            matrix = factor_graphs(student, data.test, torch.tensor([i]))[0]
            if run.rank == 0:
                run.picture(f"factors-{i}", picture(matrix, known, f"The factors of test graph {i}"))
        if truth is None:
            return
        try:
            found, chance = told_apart(student, data)
        except ValueError as error:
            run.note(f"How well factors stand for relations was not measured: {error}.")
            return
        run.leave("shown", {"C-Score": found.c_score})
        if run.rank == 0:
            run.picture("factors", shares(found, chance, data.classes))


def with_factors(model: Model, factors: int) -> Model:
    """A network of the zoo with so many factors in its first layer: itself, or built anew with fresh weights.

    Args:
        model: ``zoo:factorgcn`` or another of its family.
        factors: L.

    Raises:
        UserError: another network, or a number that its width cannot be divided among.
    """
    own = layers_of(model.module)
    if own and own[0].factors == factors:
        return model
    kind, _, name = (model.reference or "").partition(":")
    if kind != "zoo" or not name.startswith(zoo.FACTORED):
        raise UserError(
            f"{model.name} cannot be built with {factors} factors: leave out factors, or take zoo:factorgcn or "
            "zoo:factorgcn_5_64."
        )
    made = zoo.build(name, pretrained=False, num_classes=len(model.classes), takes=model.takes, factors=factors)
    return replace(model, module=made.takes.adapted(made.module), options=made.options)


# -- what is shown ----------------------------------------------------------------------------------------------------


def factor_graphs(
    network: nn.Module, split: GraphSplit | NodeSplit, index: Tensor | None = None
) -> Float[Tensor, "b L s s"]:
    """The factor graphs of a network's first layer: symmetric weights in [0, 1], zeros where there is no edge.

    Args:
        network: on the CPU, with a ``FactorConv`` in it.
        split: of graphs.
        index: which of them; all if not given. s is the number of nodes of the largest.
    """
    index = torch.arange(len(split)) if index is None else index
    graphs = split.batch(index, device=torch.device("cpu")).inputs.to(next(network.parameters()).dtype)
    with undisturbed(network), seen_factors(network) as seen:
        network(graphs)
    first = seen[layers_of(network)[0]]
    size = int(graphs.starts[0].diff().max())
    source, target = first.edge_index.unbind()
    weight = first.over.listed(first.weight)[: len(source)]  # without loops
    return matrices(weight, source, target, graphs.batch, graphs.n, size)


def told_apart(network: nn.Module, data: GraphSet) -> tuple[Disentanglement, Disentanglement]:
    """How well factors stand for the relations of test graphs, and how well random weights of the same edges do.

    Args:
        network: see :func:`factor_graphs`.
        data: whose relations are known, such as ``factors:4``.

    Raises:
        ValueError: more relations in a graph than factors.
    """
    truth, predicted = data.test.columns[TRUTH][data.test.ids], factor_graphs(network, data.test)
    chance = random_factors(predicted, torch.Generator().manual_seed(0))
    return disentanglement(truth, predicted), disentanglement(truth, chance)


def picture(factors: Float[Tensor, "L s s"], known: dict[str, Tensor], title: str) -> dict[str, object]:
    """The edges of one graph, of its relations where they are known, and below these of each factor, as a map.

    Args:
        factors: of the graph.
        known: the relations by name; those without an edge are left out.
        title: of the picture.
    """
    L, size, _ = factors.shape
    own = {"graph": (factors.sum(0) > 0).float(), **{name: m.float() for name, m in known.items() if m.any()}}
    lines = {", ".join(own): [*own.values()]}
    for e in range(0, L, BESIDE):
        last = min(e + BESIDE, L)
        lines[f"factors {e + 1} to {last}" if last > e + 1 else f"factor {last}"] = [*factors[e:last]]
    wide = max(map(len, lines.values()))
    values = [torch.cat([*line, factors.new_zeros(size, size * (wide - len(line)))], 1) for line in lines.values()]
    return {
        "kind": "map",
        "title": title,
        "caption": "Weights of edges between its nodes, from 0 to 1. Each factor of the first layer may keep or leave "
        "any edge.",
        "rows": [str(i) if i else name for name in lines for i in range(size)],
        "columns": [str(j) for _ in range(wide) for j in range(size)],
        "values": [[round(v, 3) if v else None for v in row] for row in torch.cat(values).tolist()],
        "row_breaks": list(range(0, len(lines) * size, size)),
        "column_breaks": list(range(0, wide * size, size)),
        "x": "nodes",
    }


def shares(found: Disentanglement, chance: Disentanglement, classes: tuple[str, ...]) -> dict[str, object]:
    """Which factor stands for which relation, as a heat map.

    Args:
        found: of the student.
        chance: of random weights.
        classes: the relations.
    """
    return {
        "kind": "heatmap",
        "title": "Which factor stands for which relation",
        "caption": "Share of the test graphs with a relation in which a factor of the first layer is matched with it. "
        f"C-Score {found.c_score:.2f} (random weights: {chance.c_score:.2f}); edit distance GED_E {found.ged:.1f} "
        f"± {found.spread:.1f} (random weights: {chance.ged:.1f}).",
        "rows": list(classes),
        "columns": [f"factor {e + 1}" for e in range(len(found.shares[0]))],
        "values": [[round(v, 4) for v in row] for row in found.shares],
        "digits": 2,
    }
