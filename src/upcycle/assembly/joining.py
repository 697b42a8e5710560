"""Assembling of Model LEGO: several networks of one sequence of layers joined into one, block by block."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of, source_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.surgery.channels import Channels, Renormalise, Step, follow
from upcycle.surgery.resizing import TOLERANCE, Widths, joined, resized, widths

if TYPE_CHECKING:
    from upcycle.data.images import Images

RESIZED = "assembly:resized"


# -- assembling ----------------------------------------


def assemble(models: Sequence[Model]) -> Model:
    """One classifier from several of one sequence of layers; its logits are theirs, one after the other.

    Every layer is block diagonal with zeros between the parts, so that nothing changes for any of them: a part added
    later leaves the old logits as they were. Depthwise convolutions get more groups. First layers see the same image:
    their filters are stacked. Where parts expect it normalised differently, a
    :class:`~upcycle.surgery.channels.Renormalise` in front gives each its own copy, and the first layer is block
    diagonal too. (The paper's code assumes one normalisation; folding another into a first convolution would be wrong
    at its zero padding.)

    Args:
        models: two or more, with different class names; the result takes images normalised as the first one's.

    Raises:
        UserError: their layers, image shapes or class names do not fit together; the sentence names the first
            difference.
    """
    require(len(models) > 1, f"At least two networks are needed to assemble one, not {len(models)}.")
    first, *rest = models
    for other in rest:
        ours, theirs = (" x ".join(map(str, m.input_shape)) for m in (first, other))
        require(ours == theirs, f"{first.name} takes images of {ours} and {other.name} of {theirs}; only networks for "
                "one size can be assembled.")  # fmt: skip
    names = [name for model in models for name in model.classes]
    twice = [name for name in names if names.count(name) > 1]
    require(
        not twice, f"The class '{(twice or [''])[0]}' is in two of the networks; rename it in one, or leave it out."
    )

    core, shared = _join(models, [model.module for model in models])
    module = core if shared else _behind(_renormalise(models), core)
    _check_assembled(models, module)
    return _described(models, module)


def zero_blocks(models: Sequence[Model]) -> dict[str, Tensor]:
    """Where the zeros lie between the parts of :func:`assemble`'s network: a mask for each weight that has such zeros.

    Multiplying gradients with ``~mask`` keeps the parts apart in training.
    """
    ones = [copy_of(model.module) for model in models]
    for p in itertools.chain.from_iterable(module.parameters() for module in ones):
        nn.init.ones_(p)
    core, shared = _join(models, ones)
    masks = {name: p.detach() == 0 for name, p in core.named_parameters() if p.dim() > 1}
    return {name if shared else f"network.{name}": mask for name, mask in masks.items() if mask.any()}


def _join(models: Sequence[Model], modules: Sequence[nn.Module]) -> tuple[nn.Module, bool]:
    """The block-diagonal network behind its normalisation, and whether all parts look at the same images."""
    first = models[0]
    shared = all(_front(m) is None for m in modules) and all((m.mean, m.std) == (first.mean, first.std) for m in models)
    cores = [_core(module) for module in modules]
    c, h, w = first.input_shape
    images = [torch.zeros(2, c * (front.copies if (front := _front(m)) else 1), h, w) for m in modules]
    channels = [follow(core, x) for core, x in zip(cores, images, strict=True)]
    for model, found in zip(models[1:], channels[1:], strict=True):
        _same_steps(first.name, channels[0], model.name, found)
    return joined(cores, channels, shared, example=images[0] if shared else torch.cat(images, dim=1)), shared


def _same_steps(name: str, steps: Channels, other: str, theirs: Channels) -> None:
    """Refuse two networks that do not compute alike, but for widths."""
    for a, b in itertools.zip_longest(steps.steps, theirs.steps, fillvalue=Step("nothing more", "", "")):
        if a[:2] != b[:2]:
            where = f" at '{a.module or b.module}'" if a.module or b.module else ""
            ours, others = (a.what, b.what) if a.what != b.what else (f"{x.what} of {x.reads}" for x in (a, b))
            raise UserError(f"{name} and {other} cannot be assembled, for their layers differ{where}: "
                            f"{ours} in {name}, {others} in {other}.")  # fmt: skip


def _front(module: nn.Module) -> Renormalise | None:
    """The normalisation in front of a network that was assembled from differently normalised ones."""
    found = module[0] if isinstance(module, nn.Sequential) and len(module) else None
    return found if isinstance(found, Renormalise) else None


def _core(module: nn.Module) -> nn.Module:
    return module if _front(module) is None else module.get_submodule("network")


def _behind(front: Renormalise, core: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(front=front, network=core)).eval()


def _between(own: Model, other: Model) -> tuple[Tensor, Tensor]:
    """(c, 1, 1) each: scale and shift from images normalised as ``own``'s to those of ``other``."""
    mean, std, to_mean, to_std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (own.mean, own.std, other.mean, other.std)
    )
    return std / to_std, (mean - to_mean) / to_std


def _renormalise(models: Sequence[Model]) -> Renormalise:
    scales, shifts = [], []
    for model in models:
        a, b = _between(models[0], model)
        if front := _front(model.module):
            a, b = (v.repeat(front.copies, 1, 1) for v in (a, b))
            a, b = a * front.scale.double(), b * front.scale.double() + front.shift.double()
        scales.append(a)
        shifts.append(b)
    scale, shift = torch.cat(scales).float(), torch.cat(shifts).float()
    return Renormalise(scale, shift, len(scale) // models[0].input_shape[0])


@torch.no_grad()
def _check_assembled(models: Sequence[Model], module: nn.Module) -> None:
    """Both sides on random images, in float64."""
    x = models[0].example(4).double()
    right = []
    for model in models:
        a, b = _between(models[0], model)
        right.append(copy_of(model.module).to("cpu", torch.float64).eval()(x * a + b))
    z = torch.cat(right, dim=1)
    try:
        error = float((copy_of(module).double()(x) - z).abs().max() / z.abs().max().clamp_min(1e-30))
        problem = "" if error <= TOLERANCE else f"its logits are wrong by {error:.1e}"
    except (IndexError, RuntimeError, TypeError, ValueError) as failure:
        problem = one_line(failure)
    require(not problem, f"{' and '.join(m.name for m in models)} cannot be assembled: their forward counts on the "
            f"widths that they have ({problem}).")  # fmt: skip


def _described(models: Sequence[Model], module: nn.Module) -> Model:
    """An assembled module with what one must know of it."""
    licences = {model.licence for model in models}
    whole = dataclasses.replace(models[0], module=module, classes=tuple(c for m in models for c in m.classes),
                                licence=licences.pop() if len(licences) == 1 else "unknown", lineage=None,
                                name="+".join(m.name for m in models))  # fmt: skip
    return recorded(whole, models[0])


def recorded(model: Model, source: Model) -> Model:
    """``model``, whose architecture is ``source``'s with other widths, with what it is rebuilt from."""
    origin = source.options["source"] if source.reference == RESIZED else source_of(source)
    if origin is None:
        return dataclasses.replace(model, reference=None, options={})
    front = _front(model.module)
    options = {"source": origin, "widths": widths(_core(model.module)), "copies": front.copies if front else 0}
    return dataclasses.replace(model, reference=RESIZED, options=options)


def rebuild_resized(
    *, source: dict[str, Any], widths: Widths, copies: int = 0, rebuild: Callable[[dict[str, Any]], Model]
) -> nn.Module:
    """A component or an assembled network with fresh weights.

    Args:
        source: the architecture that it came from.
        widths: of its layers, see :func:`~upcycle.surgery.resizing.widths`.
        copies: how often :class:`~upcycle.surgery.channels.Renormalise` in front gives the image; 0 for none.
        rebuild: builds ``source``.

    Raises:
        AttributeError, TypeError, ValueError: they do not fit together.
    """
    if type(copies) is not int or not 0 <= copies <= 1000:
        raise ValueError(f"copies is {copies}")
    origin = rebuild(source)
    module = resized(_core(origin.module), widths)
    if copies:
        n = copies * origin.input_shape[0]
        module = _behind(Renormalise(torch.ones(n, 1, 1), torch.zeros(n, 1, 1), copies), module)
    try:
        with torch.no_grad():
            module.eval()(origin.example(2))
    except RuntimeError as error:
        raise ValueError(f"the widths do not fit together ({one_line(error)})") from error
    return module


# -- parameter scaling ----------------------------------------


def logit_scales(
    model: Model, data: Images, per_class: int = 500, device: torch.device | str = "cpu"
) -> Float[Tensor, " k"]:
    """r_c = n_c / Σ_i z_i[c] over the training images i of class c that a network gets right, n_c of them.

    1 where there is none, or where their mean logit is not positive: the paper's code has NaN, and turns the sign.

    Args:
        model: the component; classes and labels are matched by name.
        per_class: the first so many images of each class are looked at.
    """
    split = data.train.normalised(model.mean, model.std)
    network = copy_of(model.module).eval().to(device)
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    r = torch.ones(len(model.classes))
    for c, label in enumerate(places(model.classes, data.classes).tolist()):
        index = (split.labels == label).nonzero().flatten()[:per_class]
        if label < 0 or not len(index):
            continue
        won = []
        with torch.no_grad():
            for part in index.split(512):
                z = network(split.batch(part, device=torch.device(device)).images.to(dtype)).cpu()
                won.append(z[z.argmax(1) == c, c].double())
        if (mean := float(torch.cat(won).mean())) > 0:  # NaN for none, which is not above 0
            r[c] = 1 / mean
    return r


@torch.no_grad()
def scaled(model: Model, r: Float[Tensor, " k"]) -> Model:
    """``model`` with logit c times ``r[c]``: that row of its last weight and bias. See :func:`logit_scales`.

    Raises:
        UserError: its logits do not come from a last layer alone.
    """
    module = copy_of(model.module)
    channels = follow(module, model.example(2))
    last = [x for x in channels.layers if channels.makes_logits(x)]
    between = any(bool(torch.isin(o, channels.logits).any()) for _, o in channels.passes.values())
    require(len(last) > 0 and not between, f"The logits of {model.name} cannot be scaled: they do not come from a last "
            "layer alone; assemble it with scale=False.")  # fmt: skip
    for layer in last:
        m = module.get_submodule(layer.name)
        for p in m.parameters(recurse=False):
            p.mul_(r.to(p).view(-1, *[1] * (p.dim() - 1)))
    return dataclasses.replace(model, module=module, lineage=None)


def places(names: Sequence[str], among: Sequence[str]) -> Int[Tensor, " n"]:
    """For each name its place among others, -1 where it is not there."""
    return torch.tensor([among.index(name) if name in among else -1 for name in names])


# -- the method ----------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class MDAAssembly(Method):
    """Assembling of Model LEGO (Hu et al.; arXiv:2203.13453, v2): one classifier from the parts of several.

    1. *Scaling.* Of each part, the row of class c in the last layer times r_c = 1 / (mean winning logit of c), so
       that logits of different parts can be compared: :func:`logit_scales`.
    2. *Alignment padding.* Every layer becomes block diagonal: :func:`assemble`.
    3. *Fine-tuning*, if asked for: cross-entropy on the joint classes.

    Departures: scales come from training images (the paper's code takes test images), and are 1 for a class without
    a positive mean; parts may expect different normalisations; any number at once.

    Args:
        parts: two or more classifiers with one sequence of layers, for instance what :class:`MDA` made.
        scale: step 1; needs labelled training images of the parts' classes.
        tune: step 3.
        keep_zeros: fine-tuning leaves the zeros between parts as they are.
        recipe: of the fine-tuning.
    """

    parts: tuple[Model | nn.Module, ...]
    scale: bool = True
    tune: bool = False
    keep_zeros: bool = False
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, lr=0.01))

    roles: ClassVar[tuple[str, ...]] = ("parts",)
    card = Card(
        name="mdaassembly",
        title="Model LEGO: Creating Models Like Disassembling and Assembling Building Blocks",
        paper="Hu, Gao, Ye, Gao, Wang, Feng, Song; NeurIPS 2024; arXiv:2203.13453",
        verb="assemble",
        needs=Needs(data="labelled", teacher="weights", architectures="parts with one sequence of layers"),
        summary="One classifier from parts of several, without training or with a short one.",
        cost="one forward over some training images; with tune, that training",
        published="close to the source without fine-tuning, above it after one epoch (abstract of v1)",
    )

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        require(len(self.parts) > 1, f"parts must be two networks or more, not {len(self.parts)}.")

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """Two networks."""
        return {**super().stand_ins(), "parts": (nn.Identity(), nn.Identity())}

    def steps(self, n: int) -> int:
        """The updates of the fine-tuning, if any."""
        return self.recipe.steps(n) if self.tune else 0

    def check(self, data: Images) -> list[str]:
        """The parts must fit together, and where images are used, their classes must be among the data's."""
        parts, problems = self.models("parts", data), []
        try:
            whole = assemble(parts)
            if self.scale:
                scaled(parts[0], torch.ones(len(parts[0].classes)))
        except UserError as error:
            return [str(error).rstrip(".")]
        if self.scale or self.tune:
            if whole.input_shape[0] != data.shape[0]:
                problems.append(f"the parts take {whole.input_shape[0]} input channels and the images have "
                                f"{data.shape[0]}")  # fmt: skip
            labels = places(whole.classes, data.classes).tolist()
            none = [name for name, y in zip(whole.classes, labels, strict=True) if not (data.train.labels == y).any()]
            if none or -1 in labels:
                problems.append(f"{data.name} has no labelled training image of {', '.join(none[:3])}; give data with "
                                "the joint classes, or scale=False and tune=False")  # fmt: skip
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the assembled network."""
        parts = self.models("parts", data)
        if self.scale:
            scales = run.stage("scales", lambda: [logit_scales(part, data, device=run.device) for part in parts])
            parts = [scaled(part, r) for part, r in zip(parts, scales, strict=True)]
        whole = assemble(parts)
        if not self.tune:
            return run.plain(whole.module)
        zeros = zero_blocks(parts) if self.keep_zeros else {}
        data = data.only(whole.classes).normalised(whole.mean, whole.std)
        network, optimizer = run.setup(whole.module, self.recipe)
        between = [(p, zeros[name].to(run.device)) for name, p in network.named_parameters() if name in zeros]
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            for batch in run.batches(data.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = F.cross_entropy(network(batch.images), batch.labels)
                run.backward(loss)
                for p, mask in between:
                    assert p.grad is not None
                    p.grad.masked_fill_(mask, 0.0)
                run.update(optimizer)
                run.track(loss=loss)
            if len(data.validation):
                run.evaluate(network, data.validation)
        return run.plain(network)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The assembled network with the joint classes, rebuilt from the first part's architecture and its widths."""
        return _described(self.models("parts", data), module)
