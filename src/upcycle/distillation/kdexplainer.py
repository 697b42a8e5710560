"""KDExplainer: which classes share which expert, with and without a teacher."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.batches import Batch
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError, require
from upcycle.core.ingredients import asked
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import Values
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.zoo.tree import Tree, routing

if TYPE_CHECKING:
    from upcycle.core.frozen import Frozen
    from upcycle.data.images import Images


def entropy(A: Float[Tensor, "c p"]) -> Float[Tensor, ""]:
    """H = mean over children of -Σ_p A log A, in nats: 0 where each child hears one parent, at most log P."""
    return torch.special.entr(A).sum(dim=1).mean()


def soft_factors(epoch: int, epochs: int) -> tuple[float, float]:
    """Factors on the learning rates of weights and of branching matrices in stage 1.

    A quarter, a half and the whole in the first three epochs, the matrices only from the third; then, from every
    second epoch on, 1 - (e - 1) / (1.03093 E).

    Args:
        epoch: e, from 1.
        epochs: E.

    The published code. That the odd epochs are the second ones, and that both rates fall, is our reading.
    """
    if epoch <= 3:
        return (0.25, 0.5, 1.0)[epoch - 1], float(epoch == 3)
    e = epoch if epoch % 2 else epoch - 1
    factor = 1.0 if e == 3 else 1 - (e - 1) / (1.03093 * epochs)
    return factor, factor


def tree_of(module: nn.Module) -> list[list[int]]:
    """The hard tree of a :class:`~upcycle.zoo.tree.Tree`: for each level, from the first, the block of each class.

    Raises:
        UserError: another network.
    """
    if not isinstance(module, Tree):
        raise UserError(f"{type(module).__name__} has no branching matrices to read a tree from; zoo:tree has.")
    found: list[Tensor] = []
    for S in reversed(list(module.branching)):
        parent = S.detach().argmax(dim=1)
        found.insert(0, parent[found[0]] if found else parent)
    return [level.tolist() for level in found]


@dataclass(kw_only=True, eq=False, repr=False)
class KDExplainer(Method):
    """KDExplainer (Xue et al., IJCAI 2021; arXiv:2105.04181): what soft targets change inside a network.

    The student is a :class:`~upcycle.zoo.tree.Tree` of experts with branching matrices S between its levels. Both
    stages descend L = w_ce L_ce + w_kd L_kd.

    1. *Soft.* Everything is trained, with A = softmax(log(pi) / t), pi = softmax(S / 0.5) and t = τ / epoch: routing
       that starts near uniform and sharpens towards a tree.
    2. *Hard.* Every S is frozen at the argmax of its rows, all other weights are drawn anew, and the tree is trained.

    Compare the read-outs of ``w_kd = 0`` and of the defaults at equal epochs: t makes the entropy of A fall by
    itself, so that of pi is logged as well. Weight decay holds for S too, and pulls towards uniform routing where the
    loss does not care. Accuracy in stage 1 is that of the soft routing at the epoch's t.

    Departures: stage 2 starts from the S of the last epoch of stage 1; the code takes the best one's, by which data is
    not said. The momentum of stage 2 is Nesterov's, as everywhere here. All layers begin as torch's do, in both
    stages; the code has an initialisation of its own, which could not be read.

    Args:
        teacher: a trained classifier; only its logits are used.
        student: ``zoo:tree``, ``zoo:tree_small`` or another Tree.
        terms: temperature of the soft targets and weights of the two terms; ``w_kd = 0`` is ordinary training.
        smoothing: label smoothing of L_ce, the paper's third arm (with ``w_kd = 0``).
        epochs_soft: epochs of stage 1, at least 3 (300 in the code).
        lr_soft: Adam's rate for the weights in stage 1, under the published schedule.
        lr_branching: Adam's rate for S in stage 1, under the published schedule.
        tau: τ, from which routing sharpens; 10 in the code. A short stage 1 ends warm, at t = 1/3 after 30 epochs; a
            lower τ ends sharper.
        recipe: training in stage 2; its batch size and weight decay hold for both. The code has 300 epochs and halves
            the rate every 30, which is ten times the default's.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    terms: Terms = field(default_factory=Terms)
    smoothing: float = 0.0
    epochs_soft: int = 30
    lr_soft: float = 0.05
    lr_branching: float = 0.01
    tau: float = 10.0
    recipe: Recipe = field(
        default_factory=lambda: Recipe(lr=0.05, schedule="step", milestones=tuple(range(3, 30, 3)), decay=0.5)
    )

    card = Card(
        name="kdexplainer",
        title="KDExplainer: A Task-oriented Attention Model for Explaining Knowledge Distillation",
        paper="Xue, Song, Wang, Chen, Wang, Song; IJCAI 2021; arXiv:2105.04181",
        verb="distill",
        needs=Needs(data="labelled", teacher="predictions", architectures="a tree of experts as student: zoo:tree"),
        summary="A student that shows what soft targets change: which classes share which expert, how sharply.",
        cost="training the tree twice + one teacher forward a step",
        published="CIFAR-10: KD gains about 3.8 points over ordinary training of the same tree (secondary notes, "
        "unchecked)",
    )
    admits = frozenset({"sharpness", "dropping", "sampler"})
    refuses = {"any": "its first stage, in which classes find their experts, would learn without"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To see what soft targets change; its student serves no other end."""
        if have.goal in ("smaller", "better"):
            return "its student is a tree of experts, made to be looked at; ask for --goal explain."
        if have.goal != "explain":
            return None
        if have.architecture in ("same", "transformer"):
            return "its student is a tree of convolutional experts, zoo:tree."
        reason = (
            "a tree of experts learns from the teacher, and shows which classes share which expert. For what a trained "
            "network looks at: upcycle diagnose MODEL."
        )
        return Fit(0, reason, networks="--teacher TEACHER --student zoo:tree")

    def __post_init__(self) -> None:
        ranges(self, below_one=("smoothing",), positive=("lr_soft", "lr_branching", "tau"))
        require(self.epochs_soft >= 3, "epochs_soft must be at least 3, since branching matrices learn from the third "
                f"epoch; it is {self.epochs_soft}.")  # fmt: skip

    def check(self, data: Images) -> list[str]:
        """The student must be a tree, with the teacher's classes; ``w_ce > 0`` needs labels."""
        student = self.model("student", data)
        problems = same_classes(self.model("teacher", data), student)
        if not isinstance(student.module, Tree):
            problems.append(f"it explains trees of experts, and the student is a {type(student.module).__name__}: give "
                            "--student zoo:tree, or zoo:tree_small")  # fmt: skip
        if self.terms.w_ce and not (data.train.labels >= 0).any():
            problems.append("no training image has a label; --terms.w_ce 0 learns from the teacher alone")
        return problems

    def steps(self, n: int) -> int:
        """Of both stages."""
        return self.recipe.steps(n) * (self.epochs_soft + self.recipe.epochs) // self.recipe.epochs

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the hard tree."""
        teacher = run.frozen(self.model("teacher", data), data.validation)
        tree = self.model("student", data).module
        assert isinstance(tree, Tree)  # as check has found
        branching = tuple(Values(tuple(S.shape)) for S in tree.branching)
        like = {"branching": branching, "entropies": Values((self.epochs_soft, 2, len(branching)))}
        soft = run.stage("soft", lambda: self._soft(run, data, teacher, copy.deepcopy(tree)), like)
        for m in tree.modules():
            if callable(reset := getattr(m, "reset_parameters", None)):
                reset()
        for S, found in zip(tree.branching, soft["branching"], strict=True):
            S.data.copy_(found)
            S.requires_grad_(False)
        self._show(run, tree, data.classes, soft["entropies"])
        tree.harden()
        if asked(self.recipe):
            run.note("Sharpness and sampler act in the second stage alone; the first has an optimiser of its own.")
        student, optimizer = run.setup(tree, lambda m: self.recipe.make(m.weights()))
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for batch in run.batches(data.train, self.recipe):
                run.step(self._loss(student, teacher, batch), optimizer, self.recipe)
            run.evaluate(student, data.validation)
        for S in tree.branching:
            S.requires_grad_(True)
        return run.plain(student)

    def _soft(self, run: Run, data: Images, teacher: Frozen, tree: Tree) -> dict[str, Any]:
        """Stage 1: the branching matrices, and the entropies of each epoch."""
        student, optimizer = run.setup(tree, self._adam)
        entropies = torch.zeros(self.epochs_soft, 2, len(tree.branching))  # of pi and of A
        run.register("entropies", entropies)
        for epoch in run.epochs(self.epochs_soft):
            student.train()
            for batch in run.batches(data.train, self.recipe.batch_size):
                self._anneal(student, optimizer, epoch + 1)  # in here, so that the epoch has save points within
                run.step(self._loss(student, teacher, batch), optimizer)
            run.evaluate(student, data.validation)
            for i, S in enumerate(student.branching):
                entropies[epoch, 0, i] = pi = entropy(routing(S.detach(), 1.0)).cpu()
                entropies[epoch, 1, i] = a = entropy(routing(S.detach(), student.t)).cpu()
                run.log(**{f"entropy_pi_{i + 1}": pi, f"entropy_a_{i + 1}": a})
        return {"branching": [S.detach() for S in student.branching], "entropies": entropies}

    def _adam(self, tree: Tree) -> torch.optim.Optimizer:
        """The optimiser of stage 1, with a group for the weights and one for the branching matrices."""
        groups = [
            {"params": tree.weights(), "lr": self.lr_soft},
            {"params": tree.branching, "lr": self.lr_branching},
        ]
        return torch.optim.Adam(groups, weight_decay=self.recipe.weight_decay, fused=True)

    def _anneal(self, tree: Tree, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Set t and the learning rates of stage 1 for ``epoch``, counted from 1."""
        tree.t.fill_(self.tau / epoch)
        rates, factors = (self.lr_soft, self.lr_branching), soft_factors(epoch, self.epochs_soft)
        for group, lr, factor in zip(optimizer.param_groups, rates, factors, strict=True):
            group["lr"] = lr * factor

    def _loss(self, student: Tree, teacher: Frozen, batch: Batch) -> Tensor:
        """L = w_ce L_ce + w_kd L_kd; labels of -1 add nothing to L_ce."""
        z = student(batch.images)
        z_t = teacher(batch.images) if self.terms.w_kd else z
        return self.terms(z, z_t, batch.labels, self.smoothing)

    def _show(self, run: Run, tree: Tree, classes: tuple[str, ...], entropies: Tensor) -> None:
        """The pictures: the hard tree, the branching matrices that it was read from, and their entropies."""
        levels, blocks = tree_of(tree), [S.shape[1] for S in tree.branching]
        used = ", ".join(f"{len(set(at))} of {n}" for at, n in zip(levels, blocks, strict=True))
        run.picture("1-tree", {
            "kind": "tree", "title": "Which classes share which expert",
            "caption": f"Each block hears one block of the level before it. Blocks in use, by level: {used}.",
            "levels": [f"level {i + 1}" for i in range(len(levels))], "leaf": "class", "leaves": list(classes),
            "paths": [[block + 1 for block in path] for path in zip(*levels, strict=True)]})  # fmt: skip
        for i, S in enumerate(tree.branching):
            last = i + 1 == len(blocks)
            run.picture(f"2-branching-{i + 1}", {
                "kind": "heatmap", "title": f"Branching, {'classes' if last else f'level {i + 2}'} from level {i + 1}",
                "caption": "pi: the share of each block of the level before (columns) in what a row hears, before it "
                "was sharpened.",
                "rows": list(classes) if last else [f"block {c + 1}" for c in range(len(S))],
                "columns": [str(p + 1) for p in range(S.shape[1])], "digits": 2,
                "values": routing(S.detach(), 1.0).tolist()})  # fmt: skip
        x = list(range(1, self.epochs_soft + 1))
        for j, (name, what) in enumerate((("pi", "as learnt"), ("A", "as used, sharpened by the epoch's t"))):
            run.picture(f"3-entropy-{name}", {
                "kind": "lines", "title": f"Entropy of {name}, {what}",
                "caption": "Mean over the rows, in nats: 0 when each child hears one parent.", "x": "epoch",
                "y": "entropy", "series": [
                    {"name": f"level {i + 1} (at most {math.log(n):.2f})", "x": x,
                     "y": entropies[:, j, i].tolist()} for i, n in enumerate(blocks)]})  # fmt: skip
