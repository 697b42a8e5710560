"""Models: a network, and what one must know to use it."""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from upcycle.core import cells
from upcycle.core.errors import UserError, one_line, require_names
from upcycle.core.reading import Reading
from upcycle.core.takes import Pictures, Takes, described
from upcycle.core.task import CLASSIFICATION, Task

ANSWERING = "upcycle.verbs.predict:answer"
"""The home of the function that asks a model; imported when one is called."""


@dataclass(eq=False, kw_only=True)
class Model:
    """A network, and what one must know to use it.

    Called with images it answers as :func:`upcycle.predict` does, with its own preprocessing: ``model("cat.jpg")``.

    Args:
        module: maps float images (b, c, h, w), normalised with ``mean`` and ``std``, to logits (b, k); or the inputs
            and answers that ``inputs`` and ``task`` say.
        input_shape: (c, h, w) of one image; empty, as mean and std are, where the network takes something else.
        mean, std: per channel, of images in [0, 1]; what the network's inputs are normalised with.
        inputs: what it takes where that is no image; ``None``: images, as the three above say.
        task: what it answers.
        classes: the name of each of the k outputs.
        reference: what :func:`resolve` builds this architecture from, without weights, for example
            ``zoo:cifar10_resnet20``; ``None`` for a bare Python instance, which cannot be rebuilt from files.
        options: keyword arguments of the builder (``num_classes``, ``input_shape``, ...), as plain data.
        licence: SPDX identifier of the weights, or ``unknown``.
        lineage: the family tree as JSON data (:mod:`upcycle.core.lineage`); ``None`` when nothing is known.
        name: how tables and reports call it.
        notes: what a person must know of how it is used.
        reading: how image files become its inputs: as those did that it was trained on.
    """

    module: nn.Module
    input_shape: tuple[int, int, int] = ()  # type: ignore[assignment]  # so that who reads images need not ask
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    inputs: Takes | None = None
    task: Task = CLASSIFICATION
    reference: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    lineage: dict[str, Any] | None = None
    name: str = "model"
    notes: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)

    @property
    def takes(self) -> Takes:
        """A description of what the network takes."""
        return self.inputs or Pictures(self.input_shape, self.mean, self.std)

    def __post_init__(self) -> None:
        require_names((self.name, self.licence, *self.classes), f"The network {self.name}")

    def __call__(self, images: Any) -> Any:
        """Its answers to images, which it brings to its own size, channels and normalisation itself.

        Args:
            images: a path of an image or of a folder of images, a PIL image, a list of paths and PIL images, or pixels
                as a tensor (n, c, h, w) or (c, h, w): uint8, or floating in [0, 1].

        Returns:
            :class:`~upcycle.verbs.predict.Predictions`.

        Raises:
            UserError: it is no classifier of images, or images that cannot be used.
        """
        home, _, name = ANSWERING.partition(":")
        return getattr(importlib.import_module(home), name)(self, images)

    def __repr__(self) -> str:
        count = _size(self.module)
        return cells.line(self, f"{self.name}, {self.takes}, {len(self.classes)} classes, {count:,} parameters")

    def _repr_html_(self) -> str:
        made = self.lineage or {}
        facts = {
            "takes": self.takes,
            "answers": ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else ""),
            "parameters": f"{_size(self.module):,}",
            "architecture": self.reference or type(self.module).__name__,
            "made by": " ".join(str(made.get(key) or "") for key in ("verb", "method")).strip(),
            "licence": self.licence,
        }
        return cells.table(self.name, (), [(name, value) for name, value in facts.items() if value], self.notes)

    @property
    def ordinary(self) -> bool:
        """Whether it is a classifier of images."""
        return self.inputs is None and self.task == CLASSIFICATION

    def example(self, batch: int = 2) -> Any:
        """Fixed pseudo-random inputs to probe it with: of images a normalised batch (b, c, h, w) of the right shape.

        A network for one graph alone has a method ``own_example(takes, batch)``, which gives that.
        """
        own = getattr(self.module, "own_example", None)
        return self.takes.example(batch) if own is None else own(self.takes, batch)


def fields_of(takes: Takes) -> dict[str, Any]:
    """The fields of a :class:`Model` that say what it takes."""
    if isinstance(takes, Pictures):
        return {"input_shape": takes.shape, "mean": takes.mean, "std": takes.std, "inputs": None}
    return {"input_shape": (), "mean": (), "std": (), "inputs": takes}


# -- from a reference to a network ---------------------------------------------------------------------------


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


def source_of(model: Model) -> dict[str, Any] | None:
    """What an architecture is rebuilt from, as plain data for another's ``options``; ``None`` for a bare instance."""
    if model.reference is None:
        return None
    takes = {"takes": described(model.takes)} if model.inputs else {"input_shape": list(model.input_shape)}
    return {"reference": model.reference, "options": model.options, **takes}


def _size(module: nn.Module) -> int:
    """The number of parameters, but for those of lazy layers, which have none before their first forward."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))
