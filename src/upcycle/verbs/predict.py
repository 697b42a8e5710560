"""``upcycle predict``: what a network says of a person's own images."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from upcycle.core import references, store
from upcycle.core.devices import device_of
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.models import Model
from upcycle.core.outputs import gives_probabilities
from upcycle.core.printable import cell, path_cell
from upcycle.core.progress import Count
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import answering, network_and_pictures

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
        z = predict_logits(net.module, split, device=device_of(accelerator), done=progress.at)
    scores = z.softmax(1) if gives_probabilities(net.module) else z
    found = Predictions(model=net, paths=paths, classes=net.classes, scores=scores, file=file)
    if file is not None:
        store.write_atomic(file, found.csv().encode())
    return found
