"""Adapters of Hugging Face's ``peft``: where they may go, their training, and a merge that is checked.

They go on layers that :func:`layers` names, in a copy of the network with a classifier for the target's classes: its
own, or a fresh one, which is trained in full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.heads import classifier, for_classes
from upcycle.core.layers import base_of
from upcycle.core.losses import ce_loss
from upcycle.core.models import Model
from upcycle.core.norms import use_running
from upcycle.core.outputs import called
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.taps import observed
from upcycle.core.undisturbed import undisturbed

if TYPE_CHECKING:
    from upcycle.data.images import Images

Layer = nn.Linear | nn.Conv2d

MERGE_TOLERANCE = 1e-4
"""The largest change of an answer that merging may make, over the largest answer."""


def layers(model: Model) -> dict[str, Layer]:
    """Find the linear layers and convolutions that can take an adapter, by name; not the classifier.

    Left out is what would not merge, see :func:`left_out`.
    """
    return {name: m for name, m in _candidates(model).items() if not isinstance(m, str)}


def left_out(model: Model) -> dict[str, str]:
    """Say for each layer with a matrix of weights, but the classifier, why it takes no adapter.

    Layers that compute something else than torch's with their weight (parametrised, standardised, padded by
    themselves), weights that two layers share, layers whose weights the network reads without calling them, such as
    the projection in torch's MultiheadAttention, and weights of other kinds of layers.
    """
    return {name: m for name, m in _candidates(model).items() if isinstance(m, str)}


def _candidates(model: Model) -> dict[str, Layer | str]:
    """Each layer with a matrix of weights, or why it is left out."""
    head, module = classifier(model), model.module
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    with every_layer_called():
        calls = observed(model, model.example().to(next(module.parameters())))
    ran = {call.name for call in calls}
    found: dict[str, Layer | str] = {}
    for name, m in module.named_modules():
        weight = m._parameters.get("weight", m._parameters.get("in_proj_weight"))
        if isinstance(m, nn.Linear | nn.Conv2d):
            if name != head:
                found[name] = _taken(m, base_of(m), uses, name in ran)
        elif weight is not None and weight.dim() > 1 and name in ran:
            found[name] = f"{type(m).__name__} is neither a linear layer nor a convolution over images"
    return found


def _taken(m: Layer, base: type[nn.Module] | None, uses: Counter[int], ran: bool) -> Layer | str:
    """The layer, or why it is left out."""
    if base is None:
        return f"{type(m).__name__} does not compute what torch's layer does with its weight"
    if uses[id(m.weight)] > 1:
        return "its weight is used in another layer too"
    return m if ran else "the network does not call it"


def note_left_out(run: Run, source: Model, also: Mapping[str, str] | None = None) -> None:
    """Say in a note of the run which layers take no adapter, and why.

    Args:
        also: reasons of the method at hand, by layer.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in {**left_out(source), **(also or {})}.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        run.note(f"No adapter for {', '.join(names[:3])}{more}: {reason}.")


def matching(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    """List those of ``names`` that one of the patterns (``*`` and ``?``, as for files) matches.

    Raises:
        UserError: a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise unknown("layer to adapt", pattern, names)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


@contextlib.contextmanager
def every_layer_called() -> Iterator[None]:
    """Make torch's transformer layers call their linear layers in evaluation too, so that their adapters count."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def merge(tuner: Any, images: Tensor) -> tuple[nn.Module, float]:
    """Merge the tuner's adapters into its network's weights, in place, and measure by how much answers change.

    Args:
        tuner: what peft made, see :mod:`upcycle.adaptation.lora` and :mod:`upcycle.adaptation.ia3`.
        images: a batch to compare both on; the change is the largest one over the largest answer.

    Raises:
        UserError: it is more than rounding.
    """
    with undisturbed(tuner.model), every_layer_called():
        before = tuner.model(images)
        module = tuner.merge_and_unload()
        module.__dict__.pop("peft_config", None)
        after = module(images)
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    require(
        error <= MERGE_TOLERANCE,
        f"Merging changes the answers of {called(module)} by {error:.1e} of the "
        "largest, so it uses an adapted layer's weight in a second way; leave that out of targets.",
    )
    return module.requires_grad_(True), error


def exactly(names: list[str]) -> str:
    """Make an expression that peft takes for these layers and no others: a list would mean endings of names."""
    return "|".join(map(re.escape, names))


def import_peft() -> Any:
    """Import peft, or say which extra it comes with."""
    try:
        import peft
    except ImportError as error:
        raise UserError("lora and ia3 need Hugging Face's peft: pip install 'upcycle[peft]'.") from error
    return peft


def peft_problems(source: Model, data: Images, sites: Callable[[Model], Any]) -> list[str]:
    """List in words what is missing of labels, images that fit, a linear classifier, layers to adapt, and peft."""
    problems = []
    if unlabelled := int((data.train.labels < 0).sum()):
        problems.append(f"it learns from labels, and {unlabelled} of {len(data.train)} training images have none")
    if source.input_shape[0] != data.shape[0]:
        return [
            *problems,
            f"{source.name} takes {source.input_shape[0]} input channels and the images have {data.shape[0]}",
        ]
    try:
        import_peft()
        sites(dataclasses.replace(source, input_shape=data.shape))
    except UserError as error:
        problems.append(str(error).rstrip("."))
    except (RuntimeError, ValueError, AssertionError) as error:
        problems.append(
            f"{source.name} does not take images of {data.shape[1]} x {data.shape[2]} pixels "
            f"({one_line(error)}); load the data at {source.input_shape[1]}"
        )
    return problems


def tune_and_merge(
    run: Run,
    data: Images,
    recipe: Recipe,
    tuner: Any,
    head: str,
    optimizer: Recipe | Callable[[nn.Module], torch.optim.Optimizer],
) -> nn.Module:
    """Train adapters and classifier by cross-entropy, then merge; BatchNorm keeps its statistics."""
    tuner.model.get_submodule(head).requires_grad_(True)
    student, opt = run.setup(tuner.model, optimizer)
    with every_layer_called():
        for _ in run.epochs(recipe.epochs):
            student.train()
            use_running(student)
            for images, y, _ in run.batches(data.train, recipe):
                run.step(ce_loss(student(images), y, reduction=run.reduction), opt, recipe)
            run.evaluate(student, data.validation)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    some = data.validation.batch(torch.arange(min(16, len(data.validation))), device=torch.device("cpu")).images
    module, error = merge(tuner, some.to(next(run.plain(student).parameters())))
    run.note(
        f"{trained:,} numbers were trained beside {sum(p.numel() for p in module.parameters()):,} of the network; "
        f"merging them changed its answers by {error:.0e} of the largest."
    )
    return module


def peft_product(source: Model, module: nn.Module, data: Images, method: str) -> Model:
    """Describe the product: the source's architecture for the classes of the data."""
    made = for_classes(source, data.classes)
    return dataclasses.replace(made, module=module, lineage=None, name=f"{source.name}-{method}")


def peft_recipe(lr: float) -> Recipe:
    """Give the recipe of a short run, comparable to that of ssf; the papers tune language models."""
    return Recipe(epochs=20, batch_size=64, optimizer="adamw", lr=lr, weight_decay=0.05, warmup=1)
