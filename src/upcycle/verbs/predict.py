"""``upcycle predict``: what a network says of a person's own images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upcycle.core import cells, references, store
from upcycle.core.devices import device_of
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.models import Model
from upcycle.core.outputs import gives_probabilities
from upcycle.core.printable import cell, path_cell
from upcycle.core.progress import Count
from upcycle.data import ImageSplit
from upcycle.data.files import as_split, pixels_for
from upcycle.measure.units import counted
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import answering, network_and_pictures

SHOWN = 20
"""Images that are shown in a notebook, at most."""
SCORES = "scores alone, of which the highest decides, and no probabilities"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of a network for images.

    Args:
        model: the network that was asked.
        paths: of the images, relative to their folder.
        classes: the names of the k classes.
        scores: float32 (n, k), of which the highest decides: probabilities, or what a network answers that gives none.
        file: the CSV that they were written to, if any.
    """

    model: Model
    paths: list[str]
    classes: tuple[str, ...]
    scores: Tensor
    file: Path | None = None

    def __repr__(self) -> str:
        return cells.line(self, f"{counted(len(self.paths), 'image')} by {self.model.name}")

    def _repr_html_(self) -> str:
        best = self.scores.amax(1).tolist()
        found = [(path, name, f"{p:.3f}") for path, name, p in zip(self.paths, self.predicted, best, strict=True)]
        heads = ("image", "class", "probability" if self.sure else "score")
        rest = [f"and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
        return cells.table(f"The answers of {self.model.name}", heads, found[:SHOWN], [*rest, *self.model.notes])

    @property
    def sure(self) -> bool:
        """Whether the scores are probabilities; see :func:`~upcycle.core.outputs.gives_probabilities`."""
        return gives_probabilities(self.model.module)

    @property
    def probabilities(self) -> Tensor:
        """Float32 (n, k).

        Raises:
            UserError: the network answers with scores alone.
        """
        require(self.sure, f"{self.model.name} gives {SCORES}: take .scores in place of .probabilities.")
        return self.scores

    @property
    def predicted(self) -> list[str]:
        """The class with the highest score, for each image."""
        return [self.classes[k] for k in self.scores.argmax(1).tolist()]

    def csv(self) -> str:
        """A line an image: path, predicted class, its probability (or score), and that of every class."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "class", "probability" if self.sure else "score", *map(cell, self.classes)])
        for path, name, row in zip(self.paths, self.predicted, self.scores.tolist(), strict=True):
            writer.writerow([path_cell(path), cell(name), f"{max(row):.6f}", *(f"{p:.6f}" for p in row)])
        return text.getvalue()

    def record(self) -> dict[str, Any]:
        """The predictions as JSON data."""
        found = zip(self.paths, self.predicted, self.scores.amax(1).tolist(), strict=True)
        score = "probability" if self.sure else "score"
        return {
            "model": self.model.name,
            "file": None if self.file is None else str(self.file),
            "classes": list(self.classes),
            "images": [{"path": path, "class": name, score: round(best, 6)} for path, name, best in found],
            "notes": list(self.model.notes),
        }

    def text(self) -> str:
        """For a terminal: how many, and where they are."""
        said = f"{len(self.paths):,} image{'s' if len(self.paths) > 1 else ''} to {self.file}"
        notes = [*self.model.notes, *([] if self.sure else [f"{self.model.name} gives {SCORES}."])]
        return "\n".join([said if self.file is not None else self.csv(), *(f"note     {n}" for n in notes)])


def predict(
    model: Reference,
    images: Path | str,
    *,
    out: Path | str | None = None,
    overwrite: bool = False,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    **naming: Any,
) -> Predictions:
    """Apply a network to images of one's own, with its own preprocessing and class names.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model.
        images: an image, or a folder of images; sub-folders are searched too.
        out: a CSV file for the predictions: path, predicted class, its probability, and that of every class; scores in
            place of probabilities, where a network gives none.
        overwrite: write over the file that is there.
        accelerator: the kind of device, as in Lightning Fabric.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Raises:
        UserError: a network and images that do not fit each other, broken images, or a file that is there already.
    """
    said, place, file = options_as(Naming, "predict", naming), Path(images), Path(out) if out is not None else None
    if isinstance(model, str):
        references.check_reference(model)
    if not place.exists():
        raise UserError(f"There is no folder or image {place}.")
    if file is not None:
        store.require_free(file, overwrite)
    net, split, paths = network_and_pictures(model, place, said)
    net = answering(net, said)
    with Count("images", len(split)) as progress:
        found = _answered(net, split, paths, device_of(accelerator), file, progress.at)
    if file is not None:
        store.write_atomic(file, found.csv().encode())
    return found


def answer(model: Model, images: Any) -> Predictions:
    """Ask a model; see :meth:`upcycle.core.models.Model.__call__`."""
    require(model.ordinary, f"{model.name} takes {model.takes}; call its module: model.module(inputs).")
    if isinstance(images, str | Path):
        net, split, names = network_and_pictures(model, Path(images), Naming())
    else:
        pixels, names = pixels_for(model, images)
        net, split = model, as_split(pixels, model)
    return _answered(net, split, names, None, None)


def _answered(
    net: Model,
    split: ImageSplit,
    names: list[str],
    device: torch.device | None,
    file: Path | None,
    done: Callable[[int], None] = lambda n: None,
) -> Predictions:
    """The answers to images that are as the network takes them.

    Args:
        device: where; ``None`` leaves the network where it is.
        done: told how many images are answered, after every portion.
    """
    z = predict_logits(net.module, split, device=device, done=done)
    scores = z.softmax(1) if gives_probabilities(net.module) else z
    return Predictions(model=net, paths=names, classes=net.classes, scores=scores, file=file)
