"""``upcycle disassemble``: the part of a trained network that knows chosen classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upcycle.core import models
from upcycle.core.evaluate import evaluate
from upcycle.core.fetching import dry
from upcycle.core.method import Method
from upcycle.core.outputs import Columns
from upcycle.data import describe
from upcycle.data.pool_files import parent_node
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Result
from upcycle.verbs.figures import row, size_sentence
from upcycle.verbs.naming import Reference, Weights, naming_of
from upcycle.verbs.networks import in_classes_of, network_and_images
from upcycle.verbs.options import Say, tell
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(Weights, options.Setting):
    """Data, the network, devices, and where it goes.

    Args:
        model_classes: the names of all outputs of MODEL in their order, with commas between, or a text file with a name
            in each line; if not given, those of the reference, or else of the data.
        label_map: CSV with columns teacher,student (or source,target) that says which output of the network is which
            class of the data.
    """

    model_classes: tuple[str, ...] | None = None
    label_map: Path | None = None


@dry
def disassemble(
    model: Reference,
    *,
    method: str | type[Method] = DEFAULT_METHOD["disassemble"],
    data: Any = None,
    say: Say = tell,
    **options: Any,
) -> Result:
    """The part of a classifier that knows chosen classes, as a smaller network.

    Args:
        model: reference, module or :class:`~upcycle.core.models.Model` of a trained classifier.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; the images that the network was trained on, or such. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method, above all ``classes``.

    Raises:
        UserError: before any work where the request cannot work.
    """
    data = "digits" if data is None else data
    session = Session("disassemble", method, {"model": model}, data, say, options, kind=Setting, positional=("model",))
    naming = naming_of(session.setting, classes=session.setting.model_classes)
    session.check()
    source, images = network_and_images(model, data, naming)
    images = in_classes_of(source, images, naming).normalised(source.mean, source.std)
    session.say(f"data     {describe(images)}")
    session.show("source", source, images)
    product, beside = session.arms(lambda seed: (session.method(source=models.own_copy(source)), images))
    if session.setting.dry_run:
        return session.estimate([product, *beside], source)
    made, _ = session.run(product, beside, lambda part, _: session.measured(part, images.only(part.classes)))
    chosen = [source.classes.index(name) for name in made.model.classes]
    same, part = Columns(source.module, torch.tensor(chosen)), images.only(made.model.classes)
    # The source may choose among the same classes only: that alone makes a task easier.
    among = [evaluate(same, part.test, device=session.setting.device)] if len(part.test) else []
    name = source.name if len(chosen) == len(source.classes) else f"{source.name}, of these classes"
    rows = [row(name, "source", among, source), made.row(made.model.name)]
    said = size_sentence(rows, made.model)
    return session.leave(made, rows, said, parents=[parent_node(source, "source")], data=images)
