"""Networks from code: the builders of named networks, and callables of a person's own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.models import Model
from upcycle.core.takes import Pictures, Takes

# Imported by name at run time, so that core depends on nothing above it. Each module has
# build(name, *, pretrained, num_classes=None, input_shape=None) -> Model, check(name) -> None, and
# spelled(name) -> str, the name as it is written there. One that also makes networks of other inputs has an argument
# ``takes``, a :class:`~upcycle.core.takes.Takes` or ``None``.
BUILDERS = {
    "zoo": "upcycle.zoo",
    "timm": "upcycle.zoo.from_timm",
    "torchvision": "upcycle.zoo.from_torchvision",
    "hf": "upcycle.zoo.from_transformers",
    "pyg": "upcycle.zoo.from_pyg",
}
# What makes networks of others again, which are recorded in the options as ``source_of`` has them: OPERATIONS by name,
# each (**options, rebuild) -> nn.Module, where rebuild builds one of the others, and tries it as runs will use it.
MADE = {
    "assembly": "upcycle.surgery.operations",
    "continual": "upcycle.continual.weights.operations",
    "diagnosis": "upcycle.diagnosis.long_tail.rebuild",
}


OBJECT = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")  # package.module:name


def import_object(name: str) -> Any:
    """Import the object that ``package.module:attribute`` names; modules in the current directory count."""
    module_name, _, attribute = name.partition(":")
    if not OBJECT.fullmatch(name) or not package_exists(name):
        raise UserError(f"There is no Python package for '{name}'; it should read package.module:name.")
    with _current_directory():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise UserError(f"Cannot import {module_name} (in '{name}'): {one_line(error)}.") from error
    if not hasattr(module, attribute):
        raise unknown(f"name in {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, attribute)


def package_exists(reference: str) -> bool:
    """Whether the package of ``package.module:name`` could be imported; nothing is."""
    package = reference.partition(":")[0].partition(".")[0]
    with _current_directory():
        return package in sys.modules or importlib.util.find_spec(package) is not None


def code_of(reference: str) -> Path | None:
    """The file of the module in ``package.module:name``, which was imported already; ``None`` where it has none."""
    file = getattr(sys.modules.get(reference.partition(":")[0]), "__file__", None)
    return Path(file) if file is not None and OBJECT.fullmatch(reference) else None


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


def call(
    reference: str,
    num_classes: int | None,
    input_shape: tuple[int, int, int] | None,
    takes: Takes | None = None,
) -> Model:
    """Call ``package.module:callable`` and take the network that it returns."""
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
    made = bare(module, reference.partition(":")[2], input_shape, takes)
    return replace(made, reference=reference, options=options)


def taken(build: Callable[..., Model], takes: Takes | None) -> dict[str, Takes]:
    """The argument of a builder that says what its network shall take; none where it makes networks of images alone."""
    asks = takes is not None and "takes" in inspect.signature(build).parameters
    return {"takes": takes} if takes is not None and asks else {}


def bare(module: nn.Module, name: str, input_shape: tuple[int, int, int] | None, takes: Takes | None = None) -> Model:
    """A network that says nothing of its inputs: it takes what is said here, images of no normalisation by default.

    Raises:
        UserError: nothing is said.
    """
    if takes is not None and not isinstance(takes, Pictures):
        return Model(module=module, inputs=takes, name=name)
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
