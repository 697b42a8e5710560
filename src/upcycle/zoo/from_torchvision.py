"""Classifiers of torchvision: ``torchvision:NAME``."""

from __future__ import annotations

import contextlib
import difflib
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from upcycle.core.errors import UserError, one_line
from upcycle.core.fetching import may_fetch, not_here
from upcycle.core.models import Model

# These add outputs while they train, and with trained weights a step that is otherwise left out; the network
# must be the same with both.
_INCEPTIONS = ("googlenet", "inception_v3")
FILE = "Without a network, give its weights as a file."


def torchvision() -> Any:
    """The library, or one sentence on what is wrong with it."""
    try:
        import torchvision as library
        import torchvision.models
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision is missing or was built for another torch than the installed {torch.__version__} "
            f"({one_line(error)}): pip install --upgrade torch torchvision"
        ) from error
    return library


def spelled(name: str) -> str:
    """The name as torchvision has it: in small letters."""
    return name.lower().replace("-", "_")


def check(name: str) -> None:
    """Raise UserError for a name that is no classifier of torchvision."""
    library = torchvision().models
    known = library.list_models(module=library)
    if name not in known:
        raise no_such("torchvision", name, known)


def no_such(library: str, name: str, known: list[str]) -> UserError:
    """The error for a name that a large library does not have, with the nearest that it has."""
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.3) or known[:5]
    return UserError(f"There is no {library} model '{name}'. The nearest names are {', '.join(near)}.")


def build(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> Model:
    """A classifier of torchvision.

    Args:
        name: as ``torchvision.models.list_models`` has it.
        pretrained: with the library's default weights, which are fetched or come from torch's cache.
        num_classes: outputs of a fresh network; 1000 when not given. Trained ones keep theirs.
        input_shape: (c, h, w) with c = 3; what the trained weights expect when not given.

    Raises:
        UserError: unknown name, torchvision missing or broken, no network, or c other than 3.
    """
    check(name)
    library = torchvision().models
    weights = library.get_model_weights(name).DEFAULT
    recipe = weights.transforms()
    size = recipe.crop_size[0]
    shape = input_shape or (3, size, size)
    if shape[0] != 3:
        raise UserError(f"torchvision:{name} takes 3 input channels, not {shape[0]}; timm:NAME takes any number.")
    classes = tuple(weights.meta["categories"])
    k = len(classes) if pretrained else num_classes or len(classes)
    more = {"aux_logits": False, "transform_input": True, "init_weights": not pretrained} if name in _INCEPTIONS else {}
    if pretrained and not fetched(weights.url).is_file() and not may_fetch(weights.url):
        raise not_here(f"The weights file of torchvision:{name}", weights.url, FILE)
    try:
        with tensors_only():
            module = library.get_model(
                name, weights=weights if pretrained else None, num_classes=k, progress=False, **more
            )
    except Exception as error:
        raise UserError(f"torchvision:{name} cannot be built: {one_line(error)}. {FILE}") from error
    return Model(
        module=module,
        input_shape=shape,
        mean=tuple(recipe.mean),
        std=tuple(recipe.std),
        classes=classes if pretrained else tuple(map(str, range(k))),
        reference=f"torchvision:{name}",
        options={"num_classes": k, "input_shape": list(shape)},
        name=name,
    )


def fetched(url: str) -> Path:
    """Where torch keeps what it fetched from an address."""
    return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urllib.parse.urlsplit(url).path).name)


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """torch reads nothing but tensors, also where the library asks it to unpickle."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
