"""Local tandem learning: layer by layer, a spiking network's rates learn the activations of an ordinary network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.taps import Taps
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.spikes.layers import LOOKED_AT, copied, problems
from upcycle.distillation.spikes.rates import distances, firing, percentile, target
from upcycle.zoo.spiking import Spiking, check_steps, wide

if TYPE_CHECKING:
    from upcycle.data.images import Images


# -- losses -----------------------------------------------------------------------------------------------------------


def sums(x: Float[Tensor, "T b *n"], T_w: int, online: bool) -> Iterator[tuple[int, Float[Tensor, " b *n"]]]:
    """t and X[t] = x[1] + ... + x[t], for each t > T_w; ``online``: without a gradient to what came before t."""
    X = x[:T_w].sum(0)
    for t in range(T_w + 1, len(x) + 1):
        X = (X.detach() if online else X) + x[t - 1]
        yield t, X


def output_loss(
    y: Float[Tensor, "T b k"], labels: Int[Tensor, " b"], T_w: int, online: bool = False
) -> Float[Tensor, ""]:
    """Σ_{t > T_w} CE(Y[t] / t, labels), with Y[t] = y[1] + ... + y[t].

    Args:
        y: the currents that are read.
        labels: -1 where there is none.
        T_w: steps before the first that counts; T - 1 for the last alone.
        online: hold what came before a step constant.
    """
    return torch.stack([ce_loss(Y / t, labels) for t, Y in sums(y, T_w, online)]).sum()


def local_loss(
    s: Float[Tensor, "T b *n"], A: Float[Tensor, " b *n"], T_w: int, online: bool = False
) -> Float[Tensor, ""]:
    """Σ_{t > T_w} MSE(n[t] / t, A), with n[t] the spikes counted up to t; the mean over all elements.

    Args:
        s: spikes of one layer.
        A: the rates that it is to have.
        T_w, online: see :func:`output_loss`.
    """
    return torch.stack([F.mse_loss(n / t, A) for t, n in sums(s, T_w, online)]).sum()


class Local(nn.Module):
    """A spiking network cut between its layers: images to the currents y and the spikes of each layer.

    Args:
        network: the network.
        online: cut it between its steps too.
        T_w: steps that nothing is learnt from online.
    """

    def __init__(self, network: Spiking, online: bool, T_w: int = 0) -> None:
        super().__init__()
        self.network, self.online, self.quiet = network, online, T_w if online else 0

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.network.simulate(images, blocked=True, through_time=not self.online, quiet=self.quiet)


def activations(teacher: Frozen, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """a_l: what the layers of a teacher give, in float32 or better."""
    with Taps(teacher.network, names) as taps:
        teacher(images)
    return [wide(taps[name]) for name in names]


# -- the method -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class LTL(Method):
    """Training Spiking Neural Networks with Local Tandem Learning (Yang et al., NeurIPS 2022; arXiv:2210.04532).

    The teacher is an ordinary network without values below 0, the student a spiking one of the same shape, with weights
    of its own. For each batch, P_l is the q-th percentile of the teacher's activations a_l in layer l, and
    A_l = clip(a_l / P_l, 0, 1) are the rates that the neurons there are to fire with. All layers descend at once

        L = Σ_{t > T_w} [ CE(Y[t] / t, labels) + Σ_l c MSE(n_l[t] / t, A_l) ],

    with n_l[t] the spikes of layer l and Y[t] the currents at the output, counted up to step t of T. Spikes are
    detached where they enter a layer: each learns from its own term, and the output from the labels.

    - offline: T_w = T - 1, so that rates over all steps count; the gradient runs through the steps of a layer, and
      through its reset.
    - online: T_w = 3 T / 4; at each step everything earlier is held constant, so that nothing has to be remembered.

    The student then answers by Σ_{t > T_w} Y[t]. Its equations are in :mod:`upcycle.zoo.spiking`.

    Departures: dropout of the teacher rests, where it is left on in the authors' code; a percentile is taken of at most
    a million elements of a batch; the last epoch counts, where they keep the best on test images.

    Chosen here: the steps of the learning rate are those for VGG-11 offline; without recipes of their own for
    smaller networks, take Adam with 0.004 and a few epochs.

    Args:
        teacher: a trained network with ReLUs, best capped ones (``zoo:capped``); its activations are read.
        student: a spiking network of the teacher's shape, such as ``zoo:spiking``.
        time_steps: T, the steps that an image is shown for, in training and afterwards.
        form: offline, with gradients through the steps of a layer; or online, without.
        warmup_steps: T_w of online training: steps before the first that counts; three quarters of T if not given.
        q: the percentile of activations that stands for a spike at every step; 99.9 offline and 99 online if not given.
        c: the weight of the rates beside the labels.
        layers: of the teacher, one for each layer of neurons in their order; all of its activations if not given.
        recipe: training of the student, as in the authors' code for VGG-11, offline.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    time_steps: int = 16
    form: Literal["offline", "online"] = "offline"
    warmup_steps: int | None = None
    q: float | None = None
    c: float = 1.0
    layers: tuple[str, ...] = ()
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=100,
            batch_size=64,
            optimizer="adam",
            lr=1e-4,
            weight_decay=0.0,
            schedule="step",
            milestones=(10, 20, 30, 40, 50, 80, 90),
            decay=0.5,
        )
    )

    card = Card(
        name="ltl",
        title="Training Spiking Neural Networks with Local Tandem Learning",
        paper="Yang, Wu, Zhang, Chua, Wang, Li; NeurIPS 2022; arXiv:2210.04532",
        verb="distill",
        needs=Needs(
            data="labelled",
            teacher="features",
            architectures="a teacher with ReLUs and without max pooling, and a spiking student of its shape",
        ),
        summary="A network of spikes that answers within a few time steps, for devices that compute with spikes.",
        cost="T × student training, without gradients between layers",
        published="CIFAR-10: converges within five epochs, close to its teacher (abstract, which gives no figure)",
    )
    admits = frozenset({"sharpness", "dropping", "sampler"})
    refuses = {
        "selection": "its rates are scaled by a percentile of the whole batch",
        "mix": "its rates are scaled by a percentile of images as they are",
    }

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a network of spikes, and nothing else."""
        if have.goal in ("smaller", "better"):
            return "it makes a network of spikes, for devices that compute with them; ask for --goal spikes."
        if have.goal != "spikes":
            return None
        if have.architecture == "transformer":
            return "its networks are layers of convolutions and linear ones."
        reason = (
            "each layer learns to fire as the teacher's is active, without gradients between layers. The teacher needs "
            "ReLUs and no max pooling: if yours has others, train zoo:capped first, with plain or kd."
        )
        return Fit(0, reason, networks="--teacher TEACHER --student zoo:spiking")

    def __post_init__(self) -> None:
        self.layers = tuple(self.layers)
        check_steps(self)
        ranges(self, not_negative=("c",), positive=("q",), one_of={"form": ("offline", "online")})
        require(self.q is None or self.q <= 100, f"q must be at most 100, and it is {self.q}.")
        require(
            self.warmup_steps is None or self.form == "online",
            f"warmup_steps {self.warmup_steps} has no effect offline; leave it out, or take form online.",
        )
        self.student = with_steps(self.student, self.time_steps, None if self.form == "offline" else self.T_w)

    @property
    def T_w(self) -> int:  # noqa: N802  # as in the paper
        """Steps before the first that counts."""
        if self.form == "offline":
            return self.time_steps - 1
        return 3 * self.time_steps // 4 if self.warmup_steps is None else self.warmup_steps

    @property
    def percent(self) -> float:
        """The percentile: q, or that of the form."""
        return self.q or {"offline": 99.9, "online": 99.0}[self.form]

    def check(self, data: Images) -> list[str]:
        """The same classes, labels, and activations that the student's neurons can copy."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        if not bool((data.train.labels >= 0).any()):
            return ["there are no labels, and the output layer learns from nothing else"]
        apart = same_classes(teacher, student)
        return apart or problems(teacher, student, data, self.percent, self.layers)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the spiking network."""
        source, student = self.model("teacher", data), self.model("student", data)
        names, online, T_w = copied(source, self.layers), self.form == "online", self.T_w
        teacher = run.frozen(source, data.validation, keep_modules=True)
        net, optimizer = run.setup(Local(student.module, online, T_w), self.recipe)  # type: ignore[arg-type]
        held = _held(run, data)
        before = run.stage(
            "before", lambda: self._distances(teacher, names, net.network, held), tuple(float for _ in names)
        )
        for _ in run.epochs(self.recipe.epochs):
            net.train()
            for images, labels, _ in run.batches(data.train, self.recipe):
                A = self._targets(activations(teacher, names, images), run)
                y, spikes = net(images)
                L_ce = output_loss(y, labels, T_w, online)
                L_l = [local_loss(s, A_l, T_w, online) for s, A_l in zip(spikes, A, strict=True)]
                run.step(L_ce + self.c * torch.stack(L_l).sum(), optimizer, self.recipe)
                run.track(output_loss=L_ce, **{f"loss_of_layer_{i}": L for i, L in enumerate(L_l, 1)})
            run.evaluate(net.network, data.validation)
        after = self._distances(teacher, names, net.network, held)
        run.leave("distances", {"before": before, "after": after})
        _show(run, before, after, firing(net.network, held))
        return run.plain(net).network  # type: ignore[return-value]

    def _targets(self, a: Sequence[Tensor], run: Run | None = None) -> list[Tensor]:
        """A_l of activations a_l, in a run by percentiles over all its processes."""
        whole = a if run is None else [run.gather(one) for one in a]
        draw = None if run is None else run.generator("percentile")
        return [target(one, percentile(every, self.percent, draw)) for one, every in zip(a, whole, strict=True)]

    def _distances(self, teacher: Frozen, names: Sequence[str], network: Spiking, images: Tensor) -> list[float]:
        """mean |r_l - A_l| of each layer on some images."""
        with undisturbed(network):
            _, spikes = network.simulate(images)
        return distances(spikes, self._targets(activations(teacher, names, images)))


def with_steps(student: Any, time_steps: int, warmup_steps: int | None) -> Any:
    """A copy of a spiking network that runs for so many steps; another network as it is.

    Args:
        student: a model, or a bare module.
        time_steps: T.
        warmup_steps: T_w, where the answer is not the mean over all steps.

    Raises:
        UserError: a network that would not be rebuilt with these steps.
    """
    module = student.module if isinstance(student, Model) else student
    if not isinstance(module, Spiking):
        return student
    own, module = module.steps(), copy_of(module)
    assert isinstance(module, Spiking)
    module.run_for(time_steps, warmup_steps)
    if not isinstance(student, Model):
        return module
    if student.reference is None or own == module.steps():
        return replace(student, module=module)
    if not student.reference.startswith("zoo:"):
        raise UserError(
            f"{student.name} is built by code that lets it run with {own}, so it cannot have other steps here."
        )
    options = {name: value for name, value in student.options.items() if name not in own}
    return replace(student, module=module, options={**options, **module.steps()})


def _held(run: Run, data: Images) -> Tensor:
    """Some validation images, on which rates are looked at."""
    split = data.validation if len(data.validation) else data.train
    return split.batch(torch.arange(min(LOOKED_AT, len(split))), device=run.device).images.to(run.dtype)


def _show(run: Run, before: list[float], after: list[float], shares: list[list[float]]) -> None:
    """Leave pictures of how often each layer fires, and how far its rates are from those that it was to have."""
    if run.rank:
        return
    layers = [f"layer {i}" for i in range(1, len(shares) + 1)]
    means = ", ".join(f"{name} {sum(s) / len(s):.1%}" for name, s in zip(layers, shares, strict=True))
    run.picture(
        "firing",
        {
            "kind": "lines",
            "title": "Firing rates by layer",
            "caption": f"Share of the neurons that fire at each step, on {LOOKED_AT} validation images at most. Mean "
            f"over all steps: {means}.",
            "series": [
                {"name": name, "x": list(range(1, len(s) + 1)), "y": [round(v, 5) for v in s]}
                for name, s in zip(layers, shares, strict=True)
            ],
            "x": "step",
            "y": "neurons that fire",
            "unit": "percent",
        },
    )
    run.picture(
        "rates",
        {
            "kind": "heatmap",
            "title": "How far rates are from the activations that they stand for",
            "caption": "Mean distance |r - A| of a neuron's rate from its target, both between 0 and 1, before and "
            "after training, on the same images.",
            "rows": layers,
            "columns": ["before", "after"],
            "values": [[round(b, 4), round(a, 4)] for b, a in zip(before, after, strict=True)],
            "digits": 3,
        },
    )
