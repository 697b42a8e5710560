"""Model references: from a name, a callable, a directory or a module to a network that was checked with one batch."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from upcycle.core import saved
from upcycle.core.building import BUILDERS, MADE, OBJECT, bare, call, package_exists, taken
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.models import Model
from upcycle.core.probe import probe
from upcycle.core.synonyms import same_name
from upcycle.core.takes import Pictures, Takes
from upcycle.core.task import Task
from upcycle.core.weights import load_weights

FORMS = (
    "zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, pyg:NAME, package.module:callable "
    "or the directory of a saved upcycle model"
)


def resolve(
    reference: str | Path | nn.Module | Model,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    takes: Takes | None = None,
    task: Task | None = None,
    trust: tuple[str, ...] = (),
) -> Model:
    """A network from a reference, checked with one batch.

    What is built from a reference comes in evaluation mode; an ``nn.Module`` or :class:`Model` is taken as it
    is.

    Args:
        reference: ``zoo:NAME``, ``timm:NAME``, ``torchvision:NAME``, ``hf:ORG/NAME``, ``pyg:NAME``,
            ``package.module:callable``, the directory of a saved upcycle model or of a run, an ``nn.Module``
            (that answers with logits or probabilities, an object with ``.logits``, a dict or a tuple) or a
            :class:`Model`.
        pretrained: with trained weights; otherwise fresh ones, drawn from torch's global generator. A
            callable, a module or a ``Model`` decides for itself.
        weights: a file that fills the network (:func:`load_weights`); implies ``pretrained=False``.
        weights_key: the envelope or prefix of the weights to take from that file, where it holds several.
        num_classes: outputs of a fresh network; of a trained one, what it must have.
        input_shape: (c, h, w); needed for a module and a callable, otherwise the reference's own by default.
        mean, std: replace what the reference says about its inputs; zeros and ones for a module or callable.
        classes: replace the class names.
        takes: what a network takes that is not for images: a module or callable anything, a fresh one of a reference
            as far as it leaves that open. That of images says no more than ``input_shape``.
        task: what a module, a callable or a network without trained weights of its own answers; classes by default.
        trust: Python packages that a saved model may be rebuilt from.

    Raises:
        UserError: an unknown name, a missing library, missing or unfitting weights, a network that does not
            take such inputs or does not answer as its task asks for, lengths that don't fit.
    """
    if isinstance(takes, Pictures):
        input_shape, takes = input_shape or takes.shape, None
    given = {"input_shape": input_shape, "mean": mean, "std": std, "classes": classes}
    overrides: dict[str, Any] = {key: tuple(value) for key, value in given.items() if value is not None}
    if isinstance(reference, Model):
        model = reference
    elif isinstance(reference, nn.Module):
        model = bare(reference, type(reference).__name__, input_shape, takes)
    else:
        trained = pretrained and weights is None
        model = _build(str(reference), trained, num_classes, input_shape, takes, trust)
        model.module.eval()
    built = not isinstance(reference, Model | nn.Module) and not (pretrained and weights is None)
    if task is not None and (built or is_bare(reference)):
        model = replace(model, task=task)
    if weights is not None:
        notes = load_weights(model.module, weights, weights_key)
        model = replace(model, licence="unknown", lineage=None, notes=(*model.notes, *notes))
    return _checked(replace(model, **overrides), num_classes)


def check_reference(reference: str) -> None:
    """Raise UserError at once for a reference that cannot resolve.

    Cheap: nothing is built, read or fetched. The library that a reference names is imported, a user's own
    module is only looked for.
    """
    kind, name = _parse(reference)
    if kind in BUILDERS:
        builder = importlib.import_module(BUILDERS[kind])
        builder.check(builder.spelled(name))
    elif kind == "directory":
        saved.directory_of(name)


def spelled(reference: str) -> str:
    """A reference that can resolve, written as its library has it: ``zoo:convnet`` for ``Zoo:ConvNet``."""
    kind, name = _parse(reference)
    return f"{kind}:{importlib.import_module(BUILDERS[kind]).spelled(name)}" if kind in BUILDERS else reference


def is_bare(reference: object) -> bool:
    """Whether a reference says nothing about its inputs: a module or a ``package.module:callable``."""
    if isinstance(reference, str):
        return _parse(reference)[0] == "callable"
    return isinstance(reference, nn.Module)


def _parse(reference: str) -> tuple[str, str]:
    """The kind of a reference (a key of ``BUILDERS``, ``callable`` or ``directory``) and what it names."""
    prefix, colon, name = reference.partition(":")
    if colon and prefix in MADE:
        raise UserError(f"{reference} is no model by itself; give the directory that the model was saved in.")
    if colon and prefix in BUILDERS:
        require(bool(name), f"'{reference}' names no model: write {prefix}:NAME.")
        return prefix, name
    if Path(reference).exists():
        return "directory", reference
    if name and prefix.lower() in BUILDERS:
        return prefix.lower(), name
    if OBJECT.fullmatch(reference):
        if not package_exists(reference):
            error = unknown("kind of model and no Python package", prefix.partition(".")[0], BUILDERS)
            raise UserError(f"{error} A model is given as {FORMS}.")
        return "callable", reference
    known = importlib.import_module(BUILDERS["zoo"]).names()
    near = same_name(reference, known)
    hint = f" Did you mean zoo:{near}?" if near else ""
    raise UserError(f"'{reference}' is no model reference and no directory.{hint} A model is given as {FORMS}.")


def _build(
    reference: str,
    pretrained: bool,
    num_classes: int | None,
    input_shape: tuple[int, int, int] | None,
    takes: Takes | None,
    trust: tuple[str, ...],
) -> Model:
    kind, name = _parse(reference)
    if kind == "callable":
        return call(name, num_classes, input_shape, takes)
    if kind == "directory":
        if pretrained:
            return saved.load(name, trust=trust)
        return saved.rebuilt(name, num_classes, input_shape, takes, trust)
    builder = importlib.import_module(BUILDERS[kind])
    name = builder.spelled(name)
    wanted = None if pretrained else num_classes  # a trained classifier keeps its size
    more = taken(builder.build, takes)
    return builder.build(name, pretrained=pretrained, num_classes=wanted, input_shape=input_shape, **more)


def _checked(model: Model, num_classes: int | None) -> Model:
    """``model`` as it will be used, its outputs named, after its facts were checked and the network was tried."""
    model.takes.check()
    model, k = probe(model)
    if num_classes not in (None, k):
        raise UserError(
            f"{model.name} has {k} outputs, not {num_classes}: a teacher takes a label map, a student fresh weights."
        )
    classes = model.classes or tuple(map(str, range(k)))
    require(len(classes) == k, f"{model.name} has {k} outputs, but {len(classes)} class names.")
    return replace(model, classes=tuple(classes))
