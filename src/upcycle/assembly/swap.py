"""Swap: a block is put into a trained network, or in place of a part of it, and the network is tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from upcycle.assembly.swapping.budget import cost_of, within
from upcycle.assembly.swapping.control import TrainedOn
from upcycle.assembly.swapping.regress import prepare, regress
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of, own_copy
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.measure.cost import Budget
from upcycle.measure.units import amount
from upcycle.surgery.inserts.base import How, Start
from upcycle.surgery.operate import Cut, inserts, operate, start_error
from upcycle.surgery.places import block_of
from upcycle.surgery.signals import Signal

if TYPE_CHECKING:
    from upcycle.data.images import Images

HELD = 64
"""Validation images that the network is compared with its source on, at most."""
ANY = Signal("map", 64, (8, 8))
"""A signal by which to ask whether a block has weights at all."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A network that could be made.

    Args:
        name: how tables would call it.
        parameters, macs: its cost, see :class:`~upcycle.measure.cost.Cost`.
    """

    name: str
    parameters: int
    macs: int


@dataclass(kw_only=True, eq=False, repr=False)
class Swap(Method):
    """A published block in a trained network, which is then tuned with the original as its teacher.

    1. *Surgery.* The block is made for every place that the patterns name, and stands before, behind or in place of the
       module there, or as a gate on what that gives. Where it can, the network starts at its own function: answers
       before and after differ by 1e-6 of the largest at most, or the surgery is refused.
    2. *Regression*, where no such start exists: each block alone learns to give what the network gives at its place,
       from the network's own activations, by mean_b |y - t|² / |t|².
    3. *Tuning* of all weights on

           L = w_ce L_ce + w_kd T² mean_b KL(softmax(z_t / T) || softmax(z_s / T)) + what blocks add,

       with z_t of the network as it was. A block may change while it is tuned, such as the step of an ODE or the share
       of tokens that are kept.

    The control is the network without the block, trained on for as many updates with the same loss: what the block is
    worth shows against that, since training on changes a network too.

    Chosen here: papers train networks with their blocks from random weights, and put none into trained ones. The loss
    of step 2 and the teacher of step 3 are those of network grafting and of distillation.

    Args:
        source: a trained classifier of images.
        block: the name of the block; see upcycle blocks.
        at: patterns of module names, as in a shell, where * matches dots too. Of modules inside each other the outer
            one is meant; one that a wildcard names and that is no place for the block is passed over.
        how: before, after or in place of (replace) each module, or as a gate on what it gives. If not given, what the
            block is made for.
        settings: options of the block by their names, see upcycle blocks NAME.
        start: same, at the network's own function; fresh, at another one, which is regressed first. auto takes same
            where the block has such a start.
        params: the most parameters, as a number or as 0.5M; 0 sets no bound.
        flops: the most multiply-adds of one image, which papers call FLOPs, as a number or as 5M; 0 sets no bound.
        regress_epochs: epochs of step 2; 0 leaves it out.
        regress_lr: the highest rate of Adam there.
        terms: temperature and weights of the two terms of step 3.
        recipe: training of all weights in step 3.
    """

    source: Model | nn.Module
    block: str = ""
    at: tuple[str, ...] = ()
    how: Literal["auto", "gate", "replace", "before", "after"] = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    start: Literal["auto", "same", "fresh"] = "auto"
    params: float | str = 0.0
    flops: float | str = 0.0
    regress_epochs: int = 1
    regress_lr: float = 1e-3
    terms: Terms = field(default_factory=Terms)
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=5, lr=0.01))

    roles: ClassVar[tuple[str, ...]] = ("source",)
    admits = EVERY
    card = Card(
        name="swap",
        title="Published blocks in trained networks",
        paper="coordinate attention (Hou, Zhou, Feng; arXiv:2103.02907), MetaFormer (Yu et al.; arXiv:2210.13452), "
        "TisODE (Yan et al.; arXiv:1910.05513) and others: upcycle blocks lists them",
        verb="reassemble",
        needs=Needs(
            data="unlabelled",
            teacher="weights",
            architectures="one classifier of images, and a block for signals that it has",
        ),
        summary="A trained network with a block put into it, or in place of a part, tuned with itself as the teacher.",
        cost="training + one forward of the network a step, and an epoch before where nothing keeps its function",
        published="none: the papers train networks with their blocks from random weights",
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To change the architecture of a trained network; what that gains is for its control to say."""
        if have.goal == "join":
            return "it takes one network, and puts a block into that."
        if have.goal not in ("better", "smaller"):
            return None
        if have.architecture == "same":
            return "it changes the architecture, by a block."
        if have.goal == "better":
            if have.data != "labelled":
                return "a network that only imitates itself gets no better by a block."
            reason = (
                "a block of a published architecture, such as coordinate attention, is put into the trained network, "
                "which starts at its own function and is tuned; upcycle blocks lists what fits where."
            )
            return Fit(45, reason, "--block coord --at 'MODULES'", networks="--source MODEL")
        if have.architecture != "transformer":
            return "its blocks make a network smaller only in place of attention."
        reason = (
            "attention of the trained network is replaced by a mixer with fewer multiply-adds, which learns to stand "
            "for it; a student of its own saves more."
        )
        return Fit(45, reason, "--block sepconv --at 'MODULES'", networks="--source MODEL")

    def __post_init__(self) -> None:
        self.at = tuple(self.at)
        require(
            bool(self.block), "swap puts a block into a network: give --block NAME; upcycle blocks lists what there is."
        )
        ranges(
            self,
            not_negative=("regress_epochs",),
            positive=("regress_lr",),
            one_of={"how": ("auto", *get_args(How)), "start": ("auto", *get_args(Start))},
        )
        block, how, _ = block_of(self.cut)
        require(bool(self.at), f"swap needs places for {block.name}: give --at PATTERN, of names of modules.")
        require(
            self.start != "same" or how in block.exact,
            f"{block.name} has no start at the network's own function with --how {how}; leave out --start same.",
        )
        self._budget()
        self._made: Model | None = None

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """One network."""
        return {"source": nn.Identity()}

    @property
    def cut(self) -> Cut:
        """The operation, as plain data."""
        return Cut(at=self.at, block=self.block, how="" if self.how == "auto" else self.how, options=self.settings)

    @property
    def begins(self) -> Start:
        """Whether the network starts at its own function."""
        block, how, _ = block_of(self.cut)
        if self.start != "auto":
            return self.start
        return "same" if how in block.exact else "fresh"

    @property
    def regression(self) -> Recipe | None:
        """The training of step 2; ``None`` where that is left out, as for a block without weights."""
        block, _, options = block_of(self.cut)
        if self.begins == "same" or not self.regress_epochs or not block.parameters(ANY, **options):
            return None
        return Recipe(
            epochs=self.regress_epochs,
            batch_size=self.recipe.batch_size,
            optimizer="adam",
            lr=self.regress_lr,
            weight_decay=0.0,
        )

    def _budget(self) -> Budget | None:
        if not amount(self.params) and not amount(self.flops):
            return None
        return Budget(params=amount(self.params) or math.inf, macs=amount(self.flops) or math.inf)

    def steps(self, n: int) -> int:
        """The number of updates on ``n`` samples, of regression and tuning."""
        return self.recipe.steps(n) + (0 if self.regression is None else self.regression.steps(n))

    def controls(self) -> dict[str, Control]:
        """The source, trained on for as many updates."""
        epochs = self.recipe.epochs + (0 if self.regression is None else self.regress_epochs)
        made = TrainedOn(source=own_copy(self.source), terms=self.terms, recipe=replace(self.recipe, epochs=epochs))
        return {"control": Control(method=made, words="trained on")}

    def check(self, data: Images) -> list[str]:
        """Places for the block, its start, and the budget; something to learn from."""
        source = self.model("source", data)
        problems = []
        if not self.terms.w_kd and not (data.train.labels >= 0).any():
            problems.append("w_kd is 0 and there are no labels, so nothing is left to learn from")
        if source.input_shape != data.shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (source.input_shape, data.shape))
            return [*problems, f"{source.name} takes images of {ours} and the data have {theirs}"]
        try:
            self._operated(source, 0)
        except UserError as error:
            problems.append(str(error).rstrip("."))
        return problems

    def planned(self, data: Images) -> Planned:
        """The network that would be made, and its cost when its tuning is over."""
        made = self._operated(self.model("source", data), 0)
        cost = cost_of(made)
        return Planned(name=made.name, parameters=cost.parameters, macs=cost.macs)

    def _operated(self, source: Model, seed: int, run: Run | None = None) -> Model:
        cut, budget = self.cut, self._budget()
        if budget is not None:
            cut = within(source, cut, self.begins, budget)
        return operate(source, cut, self.begins, seed=seed, say=(lambda text: None) if run is None else run.note)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network with the block."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        source = replace(source, module=copy_of(source.module).requires_grad_(True))
        made = self._operated(source, run.seed, run)
        names = [place["name"] for place in made.options["cut"]["places"]]
        if self.regression is not None:
            regress(run, source, made, names, data, self.regression)
        self._tell(run, source, made, names, data)

        teacher = run.frozen(source, data.validation)
        student, optimizer = run.setup(made.module, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            student.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                prepare(run, student, run.progress)
                loss = self.terms(student(images), teacher(images), y, reduction=run.reduction)
                added = penalties(student)
                run.step(loss if added is None else loss + added, optimizer, self.recipe)
            run.evaluate(student, data.validation)
        prepare(run, student, 1.0)
        self._made = made
        return run.plain(student)

    def _tell(self, run: Run, source: Model, made: Model, names: list[str], data: Images) -> None:
        """Leave how far the network is from its source before it is tuned, on held-out images."""
        held = data.validation if len(data.validation) else data.train
        images = held.batch(torch.arange(min(HELD, len(held))), device=torch.device("cpu")).images
        off = start_error(source, made, images)
        run.leave("start error", off)
        at = f"'{names[0]}'" if len(names) == 1 else f"{len(names)} places, '{names[0]}' to '{names[-1]}'"
        when = "after the regression" if self.regression is not None else "before any training"
        run.note(
            f"{self.block} stands at {at}; {when} the answers differ from the source's by {off:.1e} of the largest, on "
            f"{len(images)} held-out images."
        )

    def product(self, module: nn.Module, data: Images) -> Model:
        """The network with the block, rebuilt from its source and the record of the surgery."""
        assert self._made is not None, "fit comes first"
        return replace(self._made, module=module)


def penalties(network: nn.Module) -> Tensor | None:
    """The sum of what the blocks in a network add to its loss; ``None`` where none does."""
    found = [term for block in inserts(network) if (term := block.penalty()) is not None]
    return torch.stack(found).sum() if found else None
