"""Disassembling of Model LEGO: the part of a CNN that knows chosen classes, as a smaller network.

What it is good for, each in one call:

- a smaller network for some classes, or for all of them with a larger ``beta`` (compression): :class:`MDA`
- a start for training on other data (transfer): the component is an ordinary student of every method
- a new class without touching the old ones (incremental learning): ``assemble((old, component))`` of
  :mod:`upcycle.assembly.joining` leaves the old logits as they are
- a drawing of which channels serve which class: :func:`route_picture`
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.assembly.channels import Channels, follow
from upcycle.assembly.joining import places, recorded
from upcycle.assembly.resizing import shrink
from upcycle.core.cost import si
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import evaluate
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.outputs import Columns
from upcycle.core.run import Run
from upcycle.data.labels import match_classes

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

EPSILON = 1e-5
"""Of every min-max; the official code's."""
CHUNK = 64
"""Images in one forward."""
ALPHAS = (0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.1)
"""What ``tolerance`` chooses from, the largest first."""
MEMORY = 2**28
"""Bytes of contributions that are held at once, for as many classes as fit."""

Score = Literal["contribution", "gradient"]


# -- 1. contribution ----------------------------------------


def contribution_conv(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i u v"],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b o i"]:
    """What input channel p adds to the spatial sum of output channel k: Σ_{h,w} (W[k,p] * x[b,p])[h,w], signed.

    With Z of :func:`tap_sums` this is Σ_{u,v} W[k,p,u,v] Z[b,p,u,v], so no map of one pair of channels is ever made.
    Bias is ignored: summed over p, and with h' w' times the bias, it is the spatial sum of the layer's output.

    The relative contribution of arXiv:2203.13453 takes its positive part, after the spatial sum.
    """
    z = tap_sums(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    return torch.einsum("bit,oit->boi", z.flatten(2), weight.flatten(2))


def contribution_linear(x: Float[Tensor, "b i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "b o i"]:
    """What input p adds to output k of a linear layer: W[k,p] x[b,p], signed; see :func:`contribution_conv`."""
    return x[:, None] * weight


def tap_sums(
    x: Float[Tensor, "b i h w"],
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Tensor, "b i u v"]:
    """Z[b,p,u,v]: the sum over output positions of the input under tap (u, v) of a kernel of ``size``.

    Taps are separable, so it is R x Cᵀ with 0/1 matrices R (u, h) and C (v, w) that say how often a tap sees a row.
    """
    rows, columns = (
        _seen(n, *of).to(x)
        for n, of in zip(x.shape[2:], zip(size, stride, padding, dilation, strict=True), strict=True)
    )
    return rows @ (x @ columns.T)


def _seen(n: int, size: int, stride: int, padding: int, dilation: int) -> Float[Tensor, "u n"]:
    """1 where a tap of a one-dimensional kernel meets one of ``n`` places, 0 elsewhere."""
    count = (n + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    places = torch.arange(count) * stride - padding + dilation * torch.arange(size)[:, None]
    return (places[:, :, None] == torch.arange(n)).sum(1).float()


def summed_contribution(z: Float[Tensor, "b i t"], weight: Float[Tensor, "o i t"]) -> Float[Tensor, "o i"]:
    """S[k,p] = Σ_b relu(Σ_t W[k,p,t] Z[b,p,t]), in chunks of samples; a linear layer has one tap, and Z is its input.

    With one tap the samples need not be told apart: relu(W Z) = relu(W) relu(Z) + relu(-W) relu(-Z).
    """
    if z.shape[2] == 1:
        z, w = z[:, :, 0], weight[:, :, 0]
        return w.relu() * z.relu().sum(0) + (-w).relu() * (-z).relu().sum(0)
    w = weight.permute(1, 2, 0)
    total = z.new_zeros(len(w), weight.shape[0])
    for part in z.transpose(0, 1).split(max(2**24 // total.numel(), 1), dim=1):
        total += torch.bmm(part, w).relu_().sum(1)
    return total.T


# -- 2. relative contribution ----------------------------------------


def relative(s: Float[Tensor, "*k p"]) -> Float[Tensor, "*k p"]:
    """Min-max over the last axis: (s - min) / (max - min + 1e-5)."""
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    return (s - low) / (high - low + EPSILON)


def _above(s: Float[Tensor, " p"], threshold: float) -> Bool[Tensor, " p"]:
    """Which are large, relatively; the largest ones where none is, for a route must not end."""
    mask = relative(s) > threshold
    return mask if mask.any() else s == s.max()


# -- 3. routes ----------------------------------------


def route(
    channels: Channels, s: Mapping[str, Float[Tensor, "o i"]], target: int, alpha: Mapping[str, float],
    beta: Mapping[str, float],
) -> Bool[Tensor, " n"]:  # fmt: skip
    """The decision route of one class, by backward accumulation from its logit to the first layer.

    A = 1 where the relative contribution exceeds alpha; v[p] = Σ_k m[k] A[k,p] over the wanted outputs k; input p is
    wanted where the min-max of v exceeds beta. A channel with several consumers is wanted when one of them wants it,
    and so is whatever a sum couples to it. Grouped convolutions want what is wanted of them. Where nothing would be
    left, the largest stay.

    Args:
        s: summed contributions of each layer with one group.
        target: the logit of the class.
        alpha, beta: by layer.

    Returns:
        for each channel id, whether it is on the route.
    """
    wanted = torch.zeros(channels.n, dtype=torch.bool)
    wanted[channels.logits[target]] = True
    for layer in reversed(channels.layers):
        if layer.name not in s:
            continue
        score = s[layer.name]
        if not wanted[layer.outputs].any():
            wanted[layer.outputs[score.sum(1).argmax()]] = True
        a = relative(score) > alpha[layer.name]
        v = (wanted[layer.outputs, None] & a).sum(0).float()
        wanted[layer.inputs[_above(v, beta[layer.name])]] = True
    return wanted


def gradient_route(
    channels: Channels, g: Mapping[str, Float[Tensor, " o"]], target: int, alpha: Mapping[str, float]
) -> Bool[Tensor, " n"]:
    """The route of v1 of the paper (FRAT), reconstructed from its abstract: an output channel is critical if its
    gradient score exceeds alpha, relatively; a kernel is kept where it joins two critical channels."""
    wanted = torch.zeros(channels.n, dtype=torch.bool)
    wanted[channels.logits[target]] = True
    for layer in channels.layers:
        if not channels.makes_logits(layer):
            score = g[layer.name] / g[layer.name].max().clamp_min(1e-30)  # slopes of confident answers are tiny
            wanted[layer.outputs[_above(score, alpha[layer.name])]] = True
    return wanted


def routes(
    module: nn.Module,
    channels: Channels,
    split: ImageSplit,
    samples: Mapping[int, Int[Tensor, " s"]],
    *,
    alpha: float = 0.3,
    beta: float = 0.2,
    alpha_linear: float = 0.4,
    beta_linear: float = 0.3,
    score: Score = "contribution",
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "k n"]:
    """The decision routes of several classes, from one forward (and backward, for gradients) of each sample.

    Args:
        module: the network; ``channels`` are its own.
        split: images, normalised as it expects.
        samples: for each class, by its logit, positions in ``split``.
        alpha, beta: thresholds of convolutions.
        alpha_linear, beta_linear: of linear layers.
        score: ``contribution`` as in v2 of the paper, or ``gradient`` as in v1, which has no beta.

    Returns:
        a row for each class, in the order of ``samples``: which channel ids are on its route.
    """
    network = copy_of(module).eval().requires_grad_(False).to(device)
    linear = {x.name: isinstance(network.get_submodule(x.name), nn.Linear) for x in channels.layers}
    alphas = {name: alpha_linear if flat else alpha for name, flat in linear.items()}
    betas = {name: beta_linear if flat else beta for name, flat in linear.items()}
    pairs = sum(len(x.inputs) * len(x.outputs) for x in channels.layers if x.groups == 1)
    measure = _Contributions if score == "contribution" else _Gradients
    meter = measure(network, channels)
    found = []
    at_once = max(MEMORY // (4 * pairs), 1)
    for first in range(0, len(samples), at_once):
        group = dict(itertools.islice(samples.items(), first, first + at_once))
        for target, totals in meter(split, group, torch.device(device)).items():
            found.append(route(channels, totals, target, alphas, betas) if score == "contribution" else
                         gradient_route(channels, totals, target, alphas))  # fmt: skip
    return torch.stack(found)


Totals = dict[int, dict[str, Tensor]]


class _Meter:
    """Sums something over the samples of each class while a network runs. The network is the meter's own."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        self.network = network
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.totals: Totals = {}
        self.spans: list[tuple[int, slice]] = []  # class and its place in the batch at hand

    def __call__(self, split: ImageSplit, samples: dict[int, Tensor], device: torch.device) -> Totals:
        self.totals = {target: {} for target in samples}
        for index, self.spans in _chunks(samples):
            self.run(split.batch(index, device=device).images.to(self.dtype))
        return self.totals

    def add(self, name: str, of: Callable[[slice], Tensor]) -> None:
        for target, span in self.spans:
            total, value = self.totals[target].get(name, 0.0), of(span).cpu()
            self.totals[target][name] = total + value

    def run(self, images: Tensor) -> None:
        raise NotImplementedError


class _Contributions(_Meter):
    """S_c[k,p] of every layer with one group; classes share a forward."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        super().__init__(network, channels)
        for layer in channels.layers:
            if layer.groups == 1:
                network.get_submodule(layer.name).register_forward_pre_hook(self._hook(layer.name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(m: nn.Module, args: Any) -> None:
            assert isinstance(m, nn.Conv2d | nn.Linear)
            z, weight = _tap_sums_of(m, args[0]), m.weight.reshape(*m.weight.shape[:2], -1)
            self.add(name, lambda span: summed_contribution(z[span], weight))

        return hook

    @torch.no_grad()
    def run(self, images: Tensor) -> None:
        self.network(images)


class _Gradients(_Meter):
    """g_c[o] = Σ_b Σ_{h,w} relu(d p_c / d F) for the output F of every layer; a backward beside each forward."""

    def __init__(self, network: nn.Module, channels: Channels) -> None:
        super().__init__(network, channels)
        for layer in channels.layers:
            network.get_submodule(layer.name).register_forward_hook(self._hook(layer.name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def seen(slope: Tensor) -> None:
            by_channel = slope.relu().flatten(2).sum(2) if slope.dim() > 2 else slope.relu()
            self.add(name, lambda span: by_channel[span].sum(0))

        # On the tensor itself, so that an activation in place comes later. The lambda returns nothing.
        return lambda m, args, output: (output.register_hook(seen), None)[1]

    def run(self, images: Tensor) -> None:
        with torch.enable_grad():
            z = self.network(images.requires_grad_())
            targets = torch.cat([torch.full((s.stop - s.start,), c) for c, s in self.spans]).to(z.device)
            z.backward(_softmax_slope(z.detach(), targets))


def _softmax_slope(z: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """d p_y / d z, without the cancellation in 1 - p_y of a confident answer."""
    p = z.double().softmax(1)
    own = F.one_hot(y, z.shape[1]).bool()
    others = p.masked_fill(own, 0.0)
    return (p[own][:, None] * torch.where(own, others.sum(1, keepdim=True), -others)).to(z.dtype)


def _tap_sums_of(m: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "b i t"]:
    if isinstance(m, nn.Linear):
        return x[:, :, None]
    padding = m.padding
    if isinstance(padding, str) or m.padding_mode != "zeros":
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        x, padding = F.pad(x, m._reversed_padding_repeated_twice, mode=mode), (0, 0)
    return tap_sums(x, m.kernel_size, m.stride, padding, m.dilation).flatten(2)  # type: ignore[arg-type]


def _chunks(samples: Mapping[int, Tensor]) -> Iterator[tuple[Tensor, list[tuple[int, slice]]]]:
    """Samples of all classes one after the other, in batches; and where in each batch each class lies."""
    index = torch.cat(list(samples.values()))
    owner = torch.cat([torch.full((len(s),), target) for target, s in samples.items()])
    for part, whose in zip(index.split(CHUNK), owner.split(CHUNK), strict=True):
        targets, counts = whose.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        yield part, [(c, slice(e - n, e)) for c, n, e in
                     zip(targets.tolist(), counts.tolist(), ends, strict=True)]  # fmt: skip


# -- 0. samples ----------------------------------------


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
        # The margin grows with the probability, and does not end at 1.
        others = z[own].clone()
        others[:, target] = -torch.inf
        margin = z[own, target] - others.logsumexp(1)
        found[target] = index[own[margin.argsort(descending=True, stable=True)[:n]]]
    return found


# -- 4. the component ----------------------------------------


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
        example: images on which the result is checked, see :func:`~upcycle.assembly.resizing.shrink`.
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


def route_picture(channels: Channels, routes: Bool[Tensor, "k n"], classes: Sequence[str]) -> dict[str, Any]:
    """The picture of decision routes: of each layer, how many output channels serve one class, several, none.

    Args:
        routes: a row for each class.
        classes: their names.
    """
    layers = []
    for layer in channels.layers:
        if not channels.makes_logits(layer):
            on = routes[:, layer.outputs]
            users = on.sum(0)
            counts = {f"only {name}": int((row & (users == 1)).sum()) for name, row in zip(classes, on, strict=True)}
            counts |= {"shared": int((users > 1).sum()), "unused": int((users == 0).sum())}
            groups = [{"label": label, "count": count} for label, count in counts.items() if count]
            layers.append({"name": layer.name, "groups": groups})
    return {"kind": "routes", "title": "Decision routes", "layers": layers,
            "caption": "Output channels of each layer that serve one class alone, several, or none."}  # fmt: skip


# -- the method ----------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class MDA(Method):
    """Disassembling of Model LEGO (Hu et al.; arXiv:2203.13453, v2): the part of a CNN that knows chosen classes.

    1. *Samples.* Of each class the images that the network recognises most surely.
    2. *Contribution.* s[b,k,p] = relu(Σ (W[k,p] * x[b,p])), summed over the samples of a class:
       :func:`contribution_conv`, :func:`summed_contribution`.
    3. *Routes.* Relative contributions above alpha, accumulated backward from the logit; inputs above beta stay:
       :func:`route`.
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
        tolerance: 0 takes the thresholds as they are. Otherwise alpha, of all layers, is the largest of ten at which
            accuracy on validation images of the classes falls by no more than this share (0.02: two points).
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
