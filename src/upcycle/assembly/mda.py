"""Disassembling of Model LEGO: the part of a CNN that knows chosen classes, as a smaller network.

What it is good for, each in one call:

- a smaller network for some classes, or for all of them with a larger ``beta`` (compression): :class:`MDA`
- a start for training on other data (transfer): the component is an ordinary student of every method
- a new class without touching the old ones (incremental learning): ``assemble((old, component))`` of
  :mod:`upcycle.surgery.assembling` leaves the old logits as they are
- a drawing of which channels serve which class: :func:`~upcycle.assembly.disassembly.routes.route_picture`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from upcycle.assembly.disassembly.component import class_indices, cut_component, find_confident
from upcycle.assembly.disassembly.routes import Score, find_routes, route_picture
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import evaluate
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import Columns
from upcycle.core.patterns import Values
from upcycle.core.ranges import ranges
from upcycle.core.run import Run
from upcycle.data.labels import match_classes
from upcycle.measure.units import si
from upcycle.surgery.assembling import with_origin
from upcycle.surgery.following import follow_channels
from upcycle.surgery.logits import class_positions

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

ALPHAS = tuple(alpha / 100 for alpha in range(70, 8, -2))
"""Values that ``tolerance`` chooses alpha from, the largest first."""


@dataclass(kw_only=True, eq=False, repr=False)
class MDA(Method):
    """Disassembling of Model LEGO (Hu et al.; arXiv:2203.13453, v2): the part of a CNN that knows chosen classes.

    1. *Samples.* Of each class the images that the network recognises most surely.
    2. *Contribution.* s[b,k,p] = relu(Σ (W[k,p] * x[b,p])), summed over the samples of a class:
       :mod:`upcycle.assembly.disassembly.contribution`.
    3. *Routes.* Relative contributions above alpha, accumulated backward from the logit; inputs above beta stay:
       :func:`~upcycle.assembly.disassembly.routes.contribution_route`.
    4. *Component.* The channels on the route of some class, and the rows of these classes; all else is removed.

    Nothing is trained. Departures: the walk follows the network's graph, so that flatten, sums, concatenations and
    gates keep a route where the paper's code forgets or misplaces it; the rows of other classes go (the code keeps
    them); a layer that would be left without a channel keeps its largest. Only samples that the network gets right
    count. ``score="gradient"`` is v1, reconstructed from its abstract and unchecked.

    The accuracy of a component is that among its classes. Compare it with the source restricted to the same classes
    (:func:`~upcycle.assembly.disassembly.component.restrict`): that alone raises accuracy a lot.

    Args:
        source: a trained CNN that torch.fx can trace.
        classes: names of the classes that stay, in the order of the new logits. None: all, in the source's order,
            which with a larger beta compresses it.
        samples: images of each class that routes are read from (the paper: 1 % of the training images, 50 on
            CIFAR-10).
        alpha: threshold of relative contributions to outputs of convolutions, below 1. A larger one leaves less; a
            negative one leaves everything.
        beta: threshold of accumulated votes for inputs of convolutions, below 1; likewise.
        alpha_linear: threshold of relative contributions to outputs of linear layers, below 1; likewise.
        beta_linear: threshold of accumulated votes for inputs of linear layers, below 1; likewise.
        score: measure of what a channel gives to a class: contribution (v2) or gradient (v1, which knows no beta).
        tolerance: largest fall of accuracy on validation images of the classes, as a share (0.02: two points). Alpha,
            of all layers, is then the largest of 31 between 0.7 and 0.1 that keeps it; 0 takes the thresholds as
            given.
    """

    source: Model | nn.Module
    classes: tuple[str, ...] = ()
    samples: int = 50
    alpha: float = 0.3
    beta: float = 0.2
    alpha_linear: float = 0.4
    beta_linear: float = 0.3
    score: Score = "contribution"
    tolerance: float = 0.0

    roles: ClassVar[tuple[str, ...]] = ("source",)
    trains = ()
    card = Card(
        name="mda",
        title="Model LEGO: Creating Models Like Disassembling and Assembling Building Blocks",
        paper="Hu, Gao, Ye, Gao, Wang, Feng, Song; NeurIPS 2024; arXiv:2203.13453",
        verb="disassemble",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="a CNN of convolutions, BatchNorm, linear layers, sums and concatenations",
        ),
        summary="The part of a classifier that knows chosen classes, as a smaller network, without training.",
        cost="one forward over the training images of these classes; no training",
        published="components match or surpass the baseline (abstract of v2; no table at hand)",
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To cut out a part; as a smaller network it is second to one that is trained."""
        if have.goal not in ("part", "smaller", "better"):
            return None
        if have.architecture == "transformer":
            return "it follows the channels of convolutions, and a transformer has next to none."
        if have.goal == "better":
            return "it cuts a part out of a network and makes none better."
        if have.goal == "part":
            reason = (
                "the channels that chosen classes need are cut out as a smaller network of its own, without training."
            )
            return Fit(0, reason, "--classes CLASS1,CLASS2")
        reason = (
            "it shrinks a network without training by leaving out channels that no class needs much; kd makes better "
            "small networks, and takes a training. For a network of some classes only, ask for --goal part."
        )
        return Fit(35, reason, "--beta 0.3")

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        ranges(self, below_one=("tolerance",), at_least={"samples": 1}, one_of={"score": get_args(Score)})
        for name in ("alpha", "beta", "alpha_linear", "beta_linear"):
            value = getattr(self, name)
            require(value < 1, f"{name} must be below 1 (relative contributions are), not {value}.")

    def steps(self, n: int) -> int:
        """None: nothing is trained."""
        return 0

    def work(self, n: int, teacher: int, student: int) -> float:
        """One forward of the source for each training image; the routes add a few per cent."""
        return float(n * max(teacher, student))

    def check(self, data: Images) -> list[str]:
        """The classes must exist, in the network and with labelled images, and the network must be understood."""
        source = self.model("source", data)
        try:
            labels, _ = self._labels(source, data)
            follow_channels(source.module, source.example(2))
        except UserError as error:
            return [str(error).rstrip(".")]
        problems = []
        if source.input_shape[0] != data.shape[0]:
            problems.append(
                f"{source.name} takes {source.input_shape[0]} input channels and the images have {data.shape[0]}"
            )
        none = [source.classes[c] for c, label in labels.items() if not (data.train.labels == label).any()]
        if none:
            problems.append(f"{data.name} has no labelled training image of {', '.join(none[:3])}")
        if self.tolerance and not torch.isin(data.validation.labels, torch.tensor(list(labels.values()))).any():
            problems.append("tolerance is measured on validation images of the classes, and there are none with labels")
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the component."""
        source = self.model("source", data)
        labels, note = self._labels(source, data)
        split = data.train.normalised(source.mean, source.std)
        module = copy_of(source.module).to(dtype=run.dtype)
        channels = follow_channels(module, source.example(2))

        stored = run.stored("samples", {str(c): Values((None,), 0, len(split) - 1, whole=True) for c in labels})
        if stored is None:
            with run.open_stage("samples") as stored:
                found = find_confident(run.frozen(source, split), split, labels, self.samples, run.device)
                stored |= {str(c): index for c, index in found.items()}
        samples = {int(c): index for c, index in stored.items()}
        for c, index in samples.items():
            require(
                len(index) > 0,
                f"{source.name} recognises no training image of class '{source.classes[c]}', so it has no route; leave "
                "that class out, or check the network's normalisation.",
            )

        options: dict[str, Any] = {
            "beta": self.beta,
            "beta_linear": self.beta_linear,
            "score": self.score,
            "device": run.device,
        }
        find = partial(find_routes, module, channels, split, samples, **options)
        cut = partial(cut_component, module, channels, classes=list(samples), example=source.example(4))
        if self.tolerance:
            held = _of_classes(data.validation.normalised(source.mean, source.std), labels)
            whole = Columns(module, torch.tensor(list(samples)))
            search = partial(self._tightest_routes, run, find, cut, whole, held)
        else:
            search = partial(find, alpha=self.alpha, alpha_linear=self.alpha_linear)
        routes = run.stage("routes", search, Values((len(samples), channels.n), 0, 1, whole=True))
        made = cut(routes)
        run.picture("routes", route_picture(channels, routes, [source.classes[c] for c in samples]))
        self._note(run, source, samples, made, note)
        return run.plain(made)

    def _tightest_routes(
        self,
        run: Run,
        find: Callable[..., Tensor],
        cut: Callable[[Tensor], nn.Module],
        whole: nn.Module,
        held: ImageSplit,
    ) -> Tensor:
        """The routes of the largest alpha whose component is about as accurate on ``held`` images as ``whole``."""
        least = evaluate(whole, held).accuracy - self.tolerance
        points = f"{100 * self.tolerance:g} points"
        for alpha in ALPHAS:
            routes = find(alpha=alpha, alpha_linear=alpha)
            if evaluate(cut(routes), held).accuracy >= least:
                run.note(
                    f"alpha = {alpha} is the largest of {len(ALPHAS)} at which validation accuracy falls by no more "
                    f"than {points}."
                )
                return routes
        run.note(f"No alpha keeps validation accuracy within {points}; the thresholds are those given.")
        return find(alpha=self.alpha, alpha_linear=self.alpha_linear)

    def _note(self, run: Run, source: Model, samples: Mapping[int, Tensor], made: nn.Module, note: str) -> None:
        """Say how large the component is, and where few samples make its routes less sure; ``note`` is on classes."""
        before, after = (sum(p.numel() for p in m.parameters()) for m in (source.module, made))
        run.note(
            f"The component for {len(samples)} of {len(source.classes)} classes has {si(after)} of {si(before)} "
            f"parameters ({after / before:.0%})."
        )
        if note:
            run.note(note)
        few = min(map(len, samples.values()))
        if few < self.samples:
            run.note(
                f"Some class has only {few} training images that {source.name} recognises, fewer than {self.samples}; "
                "its route is less sure."
            )

    def product(self, module: nn.Module, data: Images) -> Model:
        """The component with its classes; rebuilt from the source's architecture and its own widths."""
        source = self.model("source", data)
        names = tuple(source.classes[c] for c in class_indices(source, self.classes))
        part = f"{source.name}[{','.join(names)}]" if self.classes else f"{source.name}-mda"
        return with_origin(dataclasses.replace(source, module=module, classes=names, lineage=None, name=part), source)

    def _labels(self, source: Model, data: Images) -> tuple[dict[int, int], str]:
        """The label in ``data`` of each chosen class, by its logit; and a note, where names did not decide."""
        chosen, note = class_indices(source, self.classes), ""
        if len(source.classes) == len(data.classes):
            labels, note = match_classes(data.classes, source.classes)
        else:
            labels = class_positions(source.classes, data.classes)
        for c in chosen:
            if labels[c] < 0:
                raise unknown(f"class of {data.name}", source.classes[c], data.classes)
        return {c: int(labels[c]) for c in chosen}, note


def _of_classes(split: ImageSplit, labels: Mapping[int, int]) -> ImageSplit:
    """The images of some classes, labelled by the place of their class among ``labels``: old labels, by logit."""
    order = torch.tensor(list(labels.values()))
    index = torch.isin(split.labels, order).nonzero().flatten()
    places = (split.labels[index, None] == order).long().argmax(1)
    return dataclasses.replace(split.subset(index), labels=places)
