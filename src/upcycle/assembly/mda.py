"""Disassembling of Model LEGO: the part of a CNN that knows chosen classes, as a smaller network.

What it is good for, each in one call:

- a smaller network for some classes, or for all of them with a larger ``beta`` (compression): :class:`MDA`
- a start for training on other data (transfer): the component is an ordinary student of every method
- a new class without touching the old ones (incremental learning): ``assemble((old, component))`` of
  :mod:`upcycle.assembly.joining` leaves the old logits as they are
- a drawing of which channels serve which class: :func:`~upcycle.assembly.routing.route_picture`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.assembly.joining import places, recorded
from upcycle.assembly.routing import Score, route_picture, routes
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import evaluate, margin
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import Columns
from upcycle.core.run import Run
from upcycle.data.labels import match_classes
from upcycle.measure.units import si
from upcycle.surgery.channels import Channels, follow
from upcycle.surgery.resizing import shrink

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

ALPHAS = tuple(alpha / 100 for alpha in range(70, 8, -2))
"""What ``tolerance`` chooses from, the largest first."""


# -- samples ----------------------------------------


def confident(
    network: nn.Module, split: ImageSplit, labels: Mapping[int, int], n: int, device: torch.device | str = "cpu"
) -> dict[int, Int[Tensor, " s"]]:
    """The ``n`` images of each class that a network recognises with the largest probability.

    Args:
        network: on ``device``, in eval mode.
        labels: the label in ``split`` of each class, by its logit.

    Returns:
        positions in ``split`` by logit, the surest first; fewer than ``n``, or none, where fewer are recognised.
    """
    wanted = torch.tensor(list(labels.values()))
    index = torch.isin(split.labels, wanted).nonzero().flatten()
    logits = []
    with torch.no_grad():
        for part in index.split(512):
            logits.append(network(split.batch(part, device=torch.device(device)).images).cpu().double())
    z = torch.cat(logits)
    found = {}
    for target, label in labels.items():
        own = ((split.labels[index] == label) & (z.argmax(1) == target)).nonzero().flatten()
        surest = margin(z[own], torch.full_like(own, target))
        found[target] = index[own[surest.argsort(descending=True, stable=True)[:n]]]
    return found


# -- the component ----------------------------------------


def component(
    module: nn.Module,
    channels: Channels,
    routes: Bool[Tensor, "k n"],
    classes: Sequence[int],
    *,
    example: Float[Tensor, "b c h w"],
) -> nn.Module:
    """The part of a network on the routes of some classes: a smaller network with their logits, in their order.

    Args:
        routes: of these classes.
        classes: their logits in ``module``.
        example: images on which the result is checked, see :func:`~upcycle.surgery.resizing.shrink`.
    """
    return shrink(module, channels, routes.any(0), classes, example=example)


def restricted(model: Model, classes: Sequence[str]) -> Model:
    """A network of which only the logits of some classes are read: what a component must be compared with."""
    columns = torch.tensor(chosen_classes(model, classes))
    return dataclasses.replace(model, module=Columns(model.module, columns), reference=None, options={},
                               classes=tuple(model.classes[i] for i in columns.tolist()))  # fmt: skip


def chosen_classes(model: Model, classes: Sequence[str]) -> list[int]:
    """The logits of the classes by their names; all of them when none is named.

    Raises:
        UserError: for a name that there is not, with the nearest, or one that is named twice.
    """
    for name in classes:
        if name not in model.classes:
            raise unknown(f"class of {model.name}", name, model.classes)
    require(len({*classes}) == len(classes), f"classes names one class twice: {', '.join(classes)}.")
    return [model.classes.index(name) for name in classes] or list(range(len(model.classes)))


# -- the method ----------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class MDA(Method):
    """Disassembling of Model LEGO (Hu et al.; arXiv:2203.13453, v2): the part of a CNN that knows chosen classes.

    1. *Samples.* Of each class the images that the network recognises most surely.
    2. *Contribution.* s[b,k,p] = relu(Σ (W[k,p] * x[b,p])), summed over the samples of a class:
       :func:`~upcycle.assembly.routing.contribution_conv`, :func:`~upcycle.assembly.routing.summed_contribution`.
    3. *Routes.* Relative contributions above alpha, accumulated backward from the logit; inputs above beta stay:
       :func:`~upcycle.assembly.routing.route`.
    4. *Component.* The channels on the route of some class, and the rows of these classes; all else is removed.

    Nothing is trained. Departures: the walk follows the network's graph, so that flatten, sums, concatenations and
    gates keep a route where the paper's code forgets or misplaces it; the rows of other classes go (the code keeps
    them); a layer that would be left without a channel keeps its largest. Only samples that the network gets right
    count. ``score="gradient"`` is v1, reconstructed from its abstract and unchecked.

    The accuracy of a component is that among its classes. Compare it with the source restricted to the same classes
    (:func:`restricted`): that alone raises accuracy a lot.

    Args:
        source: a trained CNN that torch.fx can trace.
        classes: by name, in the order of the new logits; none: all, in the source's order, which with a larger beta
            compresses it.
        samples: images a class (the paper: 1 % of the training images, 50 on CIFAR-10).
        alpha, beta: thresholds of convolutions. Larger ones leave less; negative ones leave everything.
        alpha_linear, beta_linear: those of linear layers.
        score: contribution (v2) or gradient (v1, which knows no beta).
        tolerance: 0 takes the thresholds as they are. Otherwise alpha, of all layers, is the largest of 31
            between 0.7 and 0.1 at which accuracy on validation images of the classes falls by no more than this share
            (0.02: two points).
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
    card = Card(
        name="mda",
        title="Model LEGO: Creating Models Like Disassembling and Assembling Building Blocks",
        paper="Hu, Gao, Ye, Gao, Wang, Feng, Song; NeurIPS 2024; arXiv:2203.13453",
        verb="disassemble",
        needs=Needs(data="labelled", teacher="weights", architectures="a CNN of convolutions, BatchNorm, linear "
                    "layers, sums and concatenations"),
        summary="The part of a classifier that knows chosen classes, as a smaller network, without training.",
        cost="one forward over the training images of these classes; no training",
        published="components match or surpass the baseline (abstract of v2; no table at hand)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        require(self.samples >= 1, f"samples must be at least 1, not {self.samples}.")
        for name in ("alpha", "beta", "alpha_linear", "beta_linear"):
            value = getattr(self, name)
            require(value < 1, f"{name} must be below 1 (relative contributions are), not {value}.")
        require(0 <= self.tolerance < 1, f"tolerance must lie in [0, 1), not {self.tolerance}.")
        require(self.score in ("contribution", "gradient"), f"score is contribution or gradient, not '{self.score}'.")

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
            follow(source.module, source.example(2))
        except UserError as error:
            return [str(error).rstrip(".")]
        problems = []
        if source.input_shape[0] != data.shape[0]:
            problems.append(f"{source.name} takes {source.input_shape[0]} input channels and the images have "
                            f"{data.shape[0]}")  # fmt: skip
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
        module = copy_of(source.module).to(dtype=torch.float64 if run.precision == "64-true" else torch.float32)
        channels = follow(module, source.example(2))

        def surest() -> dict[str, Tensor]:
            found = confident(run.frozen(source, split), split, labels, self.samples, run.device)
            return {str(c): index for c, index in found.items()}

        samples = {int(c): index for c, index in run.stage("samples", surest).items()}
        for c, index in samples.items():
            require(len(index) > 0, f"{source.name} recognises no training image of class '{source.classes[c]}', so it "
                    "has no route; leave that class out, or check the network's normalisation.")  # fmt: skip

        def at(alpha: float, alpha_linear: float) -> Tensor:
            return routes(module, channels, split, samples, alpha=alpha, beta=self.beta, alpha_linear=alpha_linear,
                          beta_linear=self.beta_linear, score=self.score, device=run.device)  # fmt: skip

        def cut(found: Tensor) -> nn.Module:
            return component(module, channels, found, list(samples), example=source.example(4))

        def chosen() -> Tensor:
            if not self.tolerance:
                return at(self.alpha, self.alpha_linear)
            held = _of_classes(data.validation.normalised(source.mean, source.std), labels)
            least = evaluate(Columns(module, torch.tensor(list(samples))), held).accuracy - self.tolerance
            for alpha in ALPHAS:
                found = at(alpha, alpha)
                if evaluate(cut(found), held).accuracy >= least:
                    run.note(f"alpha = {alpha} is the largest of {len(ALPHAS)} at which validation accuracy falls by "
                             f"no more than {100 * self.tolerance:g} points.")  # fmt: skip
                    return found
            run.note(f"No alpha keeps validation accuracy within {100 * self.tolerance:g} points; the thresholds are "
                     "those given.")  # fmt: skip
            return at(self.alpha, self.alpha_linear)

        found = run.stage("routes", chosen)
        made = cut(found)
        run.picture("routes", route_picture(channels, found, [source.classes[c] for c in samples]))
        before, after = (sum(p.numel() for p in m.parameters()) for m in (module, made))
        run.note(f"The component for {len(samples)} of {len(source.classes)} classes has {si(after)} of {si(before)} "
                 f"parameters ({after / before:.0%}).")  # fmt: skip
        if note:
            run.note(note)
        few = min(samples.values(), key=len)
        if len(few) < self.samples:
            run.note(f"Some class has only {len(few)} training images that {source.name} recognises, fewer than "
                     f"{self.samples}; its route is less sure.")  # fmt: skip
        return run.plain(made)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The component with its classes; rebuilt from the source's architecture and its own widths."""
        source = self.model("source", data)
        names = tuple(source.classes[c] for c in chosen_classes(source, self.classes))
        part = f"{source.name}[{','.join(names)}]" if self.classes else f"{source.name}-mda"
        return recorded(dataclasses.replace(source, module=module, classes=names, lineage=None, name=part), source)

    def _labels(self, source: Model, data: Images) -> tuple[dict[int, int], str]:
        """The label in ``data`` of each chosen class, by its logit; and a note, where names did not decide."""
        chosen, note = chosen_classes(source, self.classes), ""
        if len(source.classes) == len(data.classes):
            labels, note = match_classes(data.classes, source.classes)
        else:
            labels = places(source.classes, data.classes)
        for c in chosen:
            if labels[c] < 0:
                raise unknown(f"class of {data.name}", source.classes[c], data.classes)
        return {c: int(labels[c]) for c in chosen}, note


def _of_classes(split: ImageSplit, labels: Mapping[int, int]) -> ImageSplit:
    """The images of some classes, labelled by their places among ``labels``: the label of each class, by its logit."""
    order = torch.tensor(list(labels.values()))
    index = torch.isin(split.labels, order).nonzero().flatten()
    places = (split.labels[index, None] == order).long().argmax(1)
    return dataclasses.replace(split.subset(index), labels=places)
