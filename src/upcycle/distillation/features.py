"""Feature distillation: layers of a student learn from layers of a teacher, beside its class probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation, imitates
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen, folds_across
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.outputs import innermost
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.layer_pairs.pairs import Both, Pair, chosen, comparable, compared, spots

if TYPE_CHECKING:
    from upcycle.data.images import Images

LOOK = 64
"""Validation images at most that features are looked at on, before and after training."""


# -- losses -----------------------------------------------------------------------------------------------------


def hint_loss(f_s: Float[Tensor, "b c h w"], f_t: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """L = mean over samples, channels and places of (f_s - f_t)².

    Args:
        f_s: features of the student, translated to the teacher's width.
        f_t: features of the teacher; no gradient goes there.

    Romero et al. (FitNets), arXiv:1412.6550, equation 3, which sums where this takes the mean, and halves.
    """
    return F.mse_loss(f_s, f_t.detach())


def attention_loss(f_s: Float[Tensor, "b c1 h w"], f_t: Float[Tensor, "b c2 h w"]) -> Float[Tensor, ""]:
    """L = mean_b || q_s / |q_s| - q_t / |q_t| ||², where q = Σ_c f_c² has a number for each place; in [0, 2].

    It sees where a layer is active, not in which channels, and not how strongly.

    Args:
        f_s: features of the student.
        f_t: features of the teacher, of whatever width; no gradient goes there.

    Zagoruyko and Komodakis, arXiv:1612.03928, equation 2 with p = 2. The norm is squared, as in the authors' code,
    which takes the mean over places where this sums; the paper does not square it.
    """
    q_s, q_t = (F.normalize(f.square().sum(1).flatten(1), dim=1) for f in (f_s, f_t.detach()))
    return (q_s - q_t).square().sum(1).mean()


def relation_loss(f_s: Float[Tensor, "b c1 h1 w1"], f_t: Float[Tensor, "b c2 h2 w2"]) -> Float[Tensor, ""]:
    """L = 1 - <K, L> / (|K| |L|), K and L the inner products (b, b) of the samples' features without their mean.

    This is 1 - linear CKA; in [0, 1]. It sees which samples of the batch are alike, and neither rotations of the
    channels nor scales; two samples alone are always as alike as others. All samples of the batch must be given.

    Args:
        f_s: features of the student.
        f_t: features of the teacher, of whatever width and grid; no gradient goes there.

    That similarities within a batch are to be kept is Tung and Mori's (arXiv:1907.09682); they compare inner products
    whose rows have norm one, without centring. The measure is that of Kornblith et al. (arXiv:1905.00414), biased
    upwards where there are few samples and many features.
    """
    K, L = (_gram(f) for f in (f_s, f_t.detach()))
    return 1 - (K * L).sum()


def _gram(f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b b"]:
    """The inner products of centred rows, of norm one together; zero where the rows are equal."""
    rows = f.flatten(1)
    rows = rows - rows.mean(0)
    return F.normalize((rows @ rows.T).flatten(), dim=0).unflatten(0, (len(rows), len(rows)))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": hint_loss,
    "attention": attention_loss,
    "relations": relation_loss,
}


class Translator(nn.Module):
    """A linear map of the student's channels to the teacher's, at each place; used in training alone.

    Args:
        inputs: width of the student.
        outputs: width of the teacher.
        random: the generator that the weights are drawn from.

    Attributes:
        scale: what the teacher's features are divided by, so that a weight means the same for any teacher.
    """

    scale: Tensor

    def __init__(self, inputs: int, outputs: int, random: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.normal_(self.linear.weight, std=inputs**-0.5, generator=random)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def of(cls, pairs: Sequence[Pair], random: torch.Generator) -> nn.ModuleList:
        """One for each pair."""
        return nn.ModuleList(cls(pair.student.width, pair.teacher.width, random) for pair in pairs)

    def fit(self, f_t: Float[Tensor, "b c h w"]) -> None:
        """Set the scale: the standard deviation of these features, each channel about its own mean."""
        deviation = (f_t - f_t.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(
        self, f_s: Float[Tensor, "b c1 h w"], f_t: Float[Tensor, "b c2 h w"]
    ) -> tuple[Float[Tensor, "b c2 h w"], Float[Tensor, "b c2 h w"]]:
        """Both sides, ready for :func:`hint_loss`."""
        return self.linear(f_s.movedim(1, -1)).movedim(-1, 1), f_t / self.scale


# -- the method -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class Features(Method):
    """FitNets: Hints for Thin Deep Nets (Romero et al.; arXiv:1412.6550), and two later losses on features.

    Each step draws one augmented batch x, shows the same x to teacher and student, and descends

        L = w_ce L_ce + w_kd L_kd + weight · mean over pairs of layers of D(f_s, f_t),

    where f_s and f_t are what both layers give. The first two terms are those of ``kd``; with ``weight = 0`` the
    student is that of ``kd`` with ``cache off``, bit for bit. D is one of

    - *relations*, the default: how far apart both are in which images of the batch they hold alike
      (:func:`relation_loss`);
    - *hint*: the mean squared error of W f_s + b and f_t, a linear map of channels at each place, which is trained with
      the student and then left out (:func:`hint_loss`);
    - *attention*: how far apart both are in where they are active (:func:`attention_loss`).

    Networks may be of any two kinds. Maps, channels last, tokens (b, n, d) and vectors are brought to (b, c, h, w), and
    the larger map is average-pooled to the grid of the smaller; a run notes what is compared, and how. The teacher
    gives its logits and its features in one forward.

    Departures: FitNets trains up to the hint first and distils afterwards, and this does both at once. Its regressor is
    a convolution that brings one grid to the other, and this pools. The teacher's features are divided by their
    standard deviation on a few images, so that a hint no better than a constant costs about 1 for any teacher. The mean
    over pairs is taken where attention transfer sums. Where the paper names layers by hand, these may be chosen; that
    choice is ours.

    Args:
        teacher: a trained classifier whose layers can be read.
        student: any network with the same classes.
        terms: temperature and weights of the two terms of KD.
        loss: what D compares: images with one another (relations), values (hint), or places (attention).
        weight: how much D counts, not negative; at 0 this is kd.
        layers: the teacher's layers, by the names of its submodules; none given: chosen by depth and shape.
        student_layers: the student's layers, one for each of the teacher's; none given: the same names.
        pairs: how many layers are chosen where none are named, the deepest first.
        recipe: ordinary training of the student, and of the linear maps.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    terms: Terms = field(default_factory=Terms)
    loss: Literal["relations", "hint", "attention"] = "relations"
    weight: float = 0.3
    layers: tuple[str, ...] = ()
    student_layers: tuple[str, ...] = ()
    pairs: int = 1
    recipe: Recipe = field(default_factory=Recipe)

    card = Card(
        name="features",
        title="FitNets: Hints for Thin Deep Nets",
        paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio; ICLR 2015; arXiv:1412.6550",
        verb="distill",
        needs=Needs(data="unlabelled", teacher="features"),
        summary="KD with layers that learn from the teacher's layers: their values, places or similarities.",
        cost="KD + a few per cent",
        published="CIFAR-100 ResNet-56 → ResNet-20, without KD: hints 69.21, attention 70.55, similarities 69.67; KD "
        "alone 70.66 (RepDistiller repository; from memory, unchecked but for the last)",
    )
    admits = EVERY - {"selection"}
    refuses = {"selection": "one of its losses compares the samples of a batch with one another"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """After kd, where the teacher's layers can be read."""
        if have.goal not in ("smaller", "better"):
            return None
        if why := imitates(have):
            return why
        reason = (
            "kd whose student also learns from layers of the teacher, of any two networks; they are chosen by depth "
            "and shape where none are named."
        )
        return Fit(15, reason, "" if have.data == "labelled" else "--terms.w_ce 0")

    def __post_init__(self) -> None:
        ranges(self, not_negative=("weight",), at_least={"pairs": 1}, one_of={"loss": LOSSES})
        named, others = len(self.layers), len(self.student_layers)
        require(
            named > 0 or not others,
            "student_layers are named and layers, the teacher's, are not; name both, or neither and they are chosen.",
        )
        require(
            others in (0, named),
            f"layers are {named} and student_layers {others}; name as many, in the order in which they go together.",
        )
        problem = f"pairs {self.pairs} has no effect where layers are named; leave it out."
        require(self.pairs == 1 or not named, problem)

    def check(self, data: Images) -> list[str]:
        """KD's conditions, and layers on both sides that can be compared."""
        problems = same_classes(self.model("teacher", data), self.model("student", data))
        if not self.terms.w_kd and not (data.train.labels >= 0).any():
            problems.append("w_kd is 0 and there are no labels, so nothing teaches the student's classifier")
        if self.weight and not problems:
            try:
                self.found(data)
            except UserError as error:
                problems.append(str(error).rstrip("."))
        return problems

    def found(self, data: Images) -> list[Pair]:
        """The pairs of layers: those that are named, or else those that :func:`chosen` gives.

        Raises:
            UserError: a layer that there is not, or two that cannot be compared.
        """
        x = data.validation.batch(torch.arange(min(2, len(data.validation))), device=torch.device("cpu")).images
        teacher = spots(self.model("teacher", data), x, self.layers)
        try:
            student = spots(self.model("student", data), x, self.student_layers or self.layers)
        except UserError as error:
            if self.student_layers or not self.layers:
                raise
            raise UserError(
                f"{error} If the student's layers have other names, give these by --student_layers."
            ) from error
        both = list(zip(student, teacher, strict=True)) if self.layers else chosen(student, teacher, self.pairs)
        pairs = [comparable(s, t) for s, t in both]
        for pair in pairs:
            if self.loss == "attention" and math.prod(pair.grid) == 1:
                raise UserError(
                    f"attention compares places, and {pair.student.words()} of the student and {pair.teacher.words()} "
                    "of the teacher have but one in common; name layers with larger maps, or take --loss hint."
                )
        return pairs

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student without the linear maps."""
        model, network = self.model("teacher", data), self.model("student", data).module
        pairs = self.found(data) if self.weight else []
        for pair in pairs:
            run.note(pair.words(self.loss))
        folded = folds_across(innermost(model.module), [pair.teacher.place.name for pair in pairs])
        teacher = run.frozen(model, data.validation, keep_modules=bool(pairs), keep_bn=folded)
        translators = Translator.of(pairs if self.loss == "hint" else [], run.generator("translators"))
        student, optimizer = run.setup(network, partial(self._optimizer, translators))
        if len(translators):
            run.setup(translators)
        gathers = bool(pairs) and self.loss == "relations"  # its D is one of the whole batch, over all processes
        with compared(pairs, student, teacher) as features:
            before = self._look(run, data, student, teacher, features, translators)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, y, _ in run.batches(data.train, self.recipe):
                    z_s, z_t = student(images), teacher(images)
                    both = features()
                    if gathers:
                        z_s, z_t, y = run.gather(z_s), run.gather(z_t), run.gather(y)
                        both = [(run.gather(f_s), run.gather(f_t)) for f_s, f_t in both]
                    loss = self.terms(z_s, z_t, y)
                    if pairs:
                        D = self.distance(both, translators)
                        loss = loss + self.weight * D
                        run.track(features=D)
                    run.step(loss, optimizer, self.recipe, "global" if gathers else "mean")
                run.evaluate(student, data.validation)
            after = self._look(run, data, student, teacher, features)
        if pairs:
            run.picture("features", picture(pairs, before, after))
        return run.plain(student)

    def distance(self, both: Both, translators: nn.ModuleList) -> Float[Tensor, ""]:
        """The mean of D over the pairs.

        Args:
            both: their features.
            translators: of hints, one for each pair.
        """
        if self.loss == "hint":
            both = [translator(f_s, f_t) for translator, (f_s, f_t) in zip(translators, both, strict=True)]
        return torch.stack([LOSSES[self.loss](f_s, f_t) for f_s, f_t in both]).mean()

    def _optimizer(self, translators: nn.Module, student: nn.Module) -> torch.optim.Optimizer:
        """One for the student, as ``kd`` has it, and for the linear maps."""
        return self.recipe.make([p for m in (student, translators) for p in m.parameters() if p.requires_grad])

    def _look(
        self,
        run: Run,
        data: Images,
        student: nn.Module,
        teacher: Frozen,
        features: Callable[[], Both],
        translators: Iterable[Any] = (),
    ) -> list[float]:
        """The linear CKA of each pair on some validation images, in evaluation mode.

        Args:
            translators: are fitted to the teacher's features there.
        """
        if not self.weight:
            return []
        index = torch.arange(min(LOOK, len(data.validation)))
        images = data.validation.batch(index, device=run.device).images.to(run.dtype)
        with undisturbed(student):
            student(images), teacher(images)
            both = features()
        for translator, (_, f_t) in zip(translators, both, strict=False):
            translator.fit(f_t)
        return [1 - float(relation_loss(*one)) for one in both]


def picture(pairs: Sequence[Pair], before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """How alike both layers of each pair are, for the report.

    Args:
        before, after: linear CKA of each pair, before and after training.
    """
    items = [
        {"name": f"{pair.student.place.name} beside {pair.teacher.place.name}, {when}", "value": round(value, 3)}
        for pair, *both in zip(pairs, before, after, strict=True)
        for when, value in zip(("before training", "after it"), both, strict=True)
    ]
    caption = (
        f"Linear CKA of the student's layer and the teacher's, on at most {LOOK} validation images: 1 where both hold "
        "the same images alike, whatever their channels."
    )
    return {"kind": "bars", "title": "Features of student and teacher", "caption": caption, "items": items}
