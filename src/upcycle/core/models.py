"""Models, and the way to them from a reference: a name, a Python callable or the directory of a saved model."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.outputs import Logits
from upcycle.core.weights import load_weights, require_finite

# Imported by name at run time, so that core depends on nothing above it. Each module has
# build(name, *, pretrained, num_classes=None, input_shape=None) -> Model and check(name) -> None.
BUILDERS = {
    "zoo": "upcycle.zoo",
    "timm": "upcycle.zoo.from_timm",
    "torchvision": "upcycle.zoo.from_torchvision",
    "hf": "upcycle.zoo.from_transformers",
}
# What makes networks of others again, which are recorded in the options as ``source_of`` has them: OPERATIONS by name,
# each (**options, rebuild) -> nn.Module, where rebuild builds one of the others.
MADE = {"assembly": "upcycle.surgery.operations", "continual": "upcycle.continual.weights.operations"}
FORMS = (
    "zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, package.module:callable "
    "or the directory of a saved upcycle model"
)
_OBJECT = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")  # package.module:name


@dataclass(eq=False, kw_only=True)
class Model:
    """A network, and what one must know to use it.

    Args:
        module: maps float images (b, c, h, w), normalised with ``mean`` and ``std``, to logits (b, k).
        input_shape: (c, h, w) of one image.
        mean, std: per channel, of images in [0, 1]; what the network's inputs are normalised with.
        classes: the name of each of the k outputs.
        reference: what :func:`resolve` builds this architecture from, without weights, for example
            ``zoo:cifar10_resnet20``; ``None`` for a bare Python instance, which cannot be rebuilt from files.
        options: keyword arguments of the builder (``num_classes``, ``input_shape``, ...), as plain data.
        licence: SPDX identifier of the weights, or ``unknown``.
        lineage: the family tree as JSON data (:mod:`upcycle.core.lineage`); ``None`` when nothing is known.
        name: how tables and reports call it.
    """

    module: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    reference: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    lineage: dict[str, Any] | None = None
    name: str = "model"

    def example(self, batch: int = 2) -> Tensor:
        """A fixed pseudo-random normalised batch (b, c, h, w) of the right shape, to probe a network with."""
        images = torch.rand(batch, *self.input_shape, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std


# -- from a reference to a network ---------------------------------------------------------------------------


def resolve(
    reference: str | Path | nn.Module | Model,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    trust: tuple[str, ...] = (),
) -> Model:
    """A network from a reference, checked with one batch.

    What is built from a reference comes in evaluation mode; an ``nn.Module`` or :class:`Model` is taken as it
    is.

    Args:
        reference: ``zoo:NAME``, ``timm:NAME``, ``torchvision:NAME``, ``hf:ORG/NAME``,
            ``package.module:callable``, the directory of a saved upcycle model or of a run, an ``nn.Module``
            (that answers with logits, an object with ``.logits``, a dict or a tuple) or a :class:`Model`.
        pretrained: with trained weights; otherwise fresh ones, drawn from torch's global generator. A
            callable, a module or a ``Model`` decides for itself.
        weights: a file that fills the network (:func:`load_weights`); implies ``pretrained=False``.
        num_classes: outputs of a fresh network; of a trained one, what it must have.
        input_shape: (c, h, w); needed for a module and a callable, otherwise the reference's own by default.
        mean, std: replace what the reference says about its inputs; zeros and ones for a module or callable.
        classes: replace the class names.
        trust: Python packages that a saved model may be rebuilt from.

    Raises:
        UserError: an unknown name, a missing library, missing or unfitting weights, a network that does not
            take such images or does not answer with logits (b, k), lengths that don't fit.
    """
    given = {"input_shape": input_shape, "mean": mean, "std": std, "classes": classes}
    overrides: dict[str, Any] = {key: tuple(value) for key, value in given.items() if value is not None}
    if isinstance(reference, Model):
        model = reference
    elif isinstance(reference, nn.Module):
        model = _bare(reference, type(reference).__name__, input_shape)
    else:
        trained = pretrained and weights is None
        model = _build(str(reference), trained, num_classes, input_shape, trust)
        model.module.eval()
    if weights is not None:
        load_weights(model.module, weights)
        model = replace(model, licence="unknown", lineage=None)
    return _checked(replace(model, **overrides), num_classes)


def check_reference(reference: str) -> None:
    """Raise UserError at once for a reference that cannot resolve.

    Cheap: nothing is built, read or fetched. The library that a reference names is imported, a user's own
    module is only looked for.
    """
    kind, name = _parse(reference)
    if kind in BUILDERS:
        importlib.import_module(BUILDERS[kind]).check(name)
    elif kind == "directory":
        from upcycle.core import saved

        saved.directory_of(name)


def is_bare(reference: object) -> bool:
    """Whether a reference says nothing about its images: a module or a ``package.module:callable``."""
    if isinstance(reference, str):
        return _parse(reference)[0] == "callable"
    return isinstance(reference, nn.Module)


def import_object(name: str) -> Any:
    """What ``package.module:attribute`` names; modules in the current directory count."""
    module_name, _, attribute = name.partition(":")
    if not _OBJECT.fullmatch(name) or not _package_exists(name):
        raise UserError(f"There is no Python package for '{name}'; it should read package.module:name.")
    with _current_directory():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UserError(f"Cannot import {module_name} (in '{name}'): {one_line(error)}.") from error
    if not hasattr(module, attribute):
        raise unknown(f"name in {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, attribute)


def copy_of(module: nn.Module) -> nn.Module:
    """An independent copy of a network."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UserError(f"{type(module).__name__} cannot be copied: {one_line(error)}.") from error


def own_copy(found: Model | nn.Module) -> Model | nn.Module:
    """The same with a copy of its network, for another method to train."""
    return replace(found, module=copy_of(found.module)) if isinstance(found, Model) else copy_of(found)


def fresh_copy_of(module: nn.Module) -> nn.Module:
    """A copy of a network with new random weights, by each submodule's own ``reset_parameters``."""
    made = copy.deepcopy(module)
    for m in made.modules():
        if callable(reset := getattr(m, "reset_parameters", None)):
            reset()
    return made


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
    if _OBJECT.fullmatch(reference):
        if not _package_exists(reference):
            error = unknown("kind of model and no Python package", prefix.partition(".")[0], BUILDERS)
            raise UserError(f"{error} A model is given as {FORMS}.")
        return "callable", reference
    known = importlib.import_module(BUILDERS["zoo"]).names()
    hint = f" Did you mean zoo:{reference}?" if reference in known else ""
    raise UserError(f"'{reference}' is no model reference and no directory.{hint} A model is given as {FORMS}.")


def _package_exists(reference: str) -> bool:
    """Whether the package of ``package.module:name`` could be imported; nothing is."""
    package = reference.partition(":")[0].partition(".")[0]
    with _current_directory():
        return package in sys.modules or importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def _current_directory() -> Iterator[None]:
    """Modules in the current directory can be imported, as in a script that is run there."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _build(
    reference: str,
    pretrained: bool,
    num_classes: int | None,
    input_shape: tuple[int, int, int] | None,
    trust: tuple[str, ...],
) -> Model:
    kind, name = _parse(reference)
    if kind == "callable":
        return call(name, num_classes, input_shape)
    if kind == "directory":
        from upcycle.core import saved  # made of models

        if pretrained:
            return saved.load(name, trust=trust)
        return saved.rebuilt(name, num_classes, input_shape, trust)
    builder = importlib.import_module(BUILDERS[kind])
    wanted = None if pretrained else num_classes  # a trained classifier keeps its size
    return builder.build(name, pretrained=pretrained, num_classes=wanted, input_shape=input_shape)


def call(reference: str, num_classes: int | None, input_shape: tuple[int, int, int] | None) -> Model:
    """What ``package.module:callable`` returns."""
    function = import_object(reference)
    require(callable(function), f"{reference} is not a callable but a {type(function).__name__}.")
    options: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError):  # builtins without a signature take no arguments of ours
        if num_classes is not None and "num_classes" in inspect.signature(function).parameters:
            options["num_classes"] = num_classes
    with _current_directory():
        try:
            module = function(**options)
        except Exception as error:
            raise UserError(f"{reference} failed when it was called: {one_line(error)}.") from error
    require(
        isinstance(module, nn.Module),
        f"{reference} returned a {type(module).__name__}, not a torch.nn.Module.",
    )
    return replace(_bare(module, reference.partition(":")[2], input_shape), reference=reference, options=options)


def _bare(module: nn.Module, name: str, input_shape: tuple[int, int, int] | None) -> Model:
    if input_shape is None:
        raise UserError(f"{name} does not say what images it takes: give input_shape=(channels, height, width).")
    channels = input_shape[0]
    return Model(
        module=module,
        input_shape=input_shape,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        classes=(),
        name=name,
    )


def _checked(model: Model, num_classes: int | None) -> Model:
    """``model`` with its outputs reduced to logits and named, after one example batch has gone through."""
    shape = model.input_shape
    require(
        len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape),
        f"input_shape must be three positive numbers (channels, height, width), not {shape}.",
    )
    for what, values in (("mean", model.mean), ("std", model.std)):
        require(
            len(values) == shape[0] and all(map(math.isfinite, values)),
            f"{what} must have one number for each of the {shape[0]} channels of {model.name}, not {values}.",
        )
    require(min(model.std) > 0, f"std must be positive, not {model.std}.")
    require_finite(model.module.state_dict(), model.name)
    output = _answer(model)
    if not isinstance(output, Tensor):
        wraps = hasattr(output, "logits") or (isinstance(output, dict) and "logits" in output)
        if wraps or (isinstance(output, tuple | list) and output and isinstance(output[0], Tensor)):
            model = replace(model, module=Logits(model.module).train(model.module.training))
            output = _answer(model)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        raise UserError(
            f"{model.name} is no classifier of images: two images give {found} instead of logits of shape (2, classes)."
        )
    k = output.shape[1]
    if num_classes not in (None, k):
        raise UserError(
            f"{model.name} has {k} outputs, not {num_classes}: a teacher takes a label map, a student fresh weights."
        )
    classes = model.classes or tuple(map(str, range(k)))
    require(len(classes) == k, f"{model.name} has {k} outputs, but {len(classes)} class names.")
    return replace(model, classes=tuple(classes))


def _answer(model: Model) -> Any:
    """What the network answers to two images in evaluation mode; its modes stay as they are."""
    module, images = model.module, model.example(2)
    like = next((t for t in module.state_dict().values() if t.is_floating_point()), images)
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return module(images.to(like))
    except Exception as error:
        channels, height, width = model.input_shape
        raise UserError(
            f"{model.name} does not take images with {channels} channels of {height} x {width} pixels "
            f"({one_line(error)}); give the input_shape that it expects."
        ) from error
    finally:
        for m, training in modes:
            m.training = training


def source_of(model: Model) -> dict[str, Any] | None:
    """What an architecture is rebuilt from, as plain data for another's ``options``; ``None`` for a bare instance."""
    if model.reference is None:
        return None
    return {"reference": model.reference, "options": model.options, "input_shape": list(model.input_shape)}
