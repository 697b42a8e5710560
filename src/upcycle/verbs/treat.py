"""``upcycle treat``: a network whose errors a method mends, beside the same training without the treatment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from upcycle.core import models
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.data import Images, describe
from upcycle.data.labels import relabelled
from upcycle.verbs import work
from upcycle.verbs.making import Result, Say, row
from upcycle.verbs.work import Reference, Work


@dataclass(kw_only=True)
class Setting(work.Setting):
    """Data, devices, and where it goes.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, or hub:ORG/NAME.
        augment: crop, flip, color, or none, for training; auto takes crop and flip for colour images.
        control: also the same training without the treatment, so that one sees which of the two helped.
    """

    control: bool = True


def treat(
    model: Reference, *, method: str | type[Method] = "modeldoctor", data: Any = None, say: Say = print, **options: Any
) -> Result:
    """The same architecture with weights that err less, and, beside it, plain continued training.

    Args:
        model: reference, module or :class:`~upcycle.core.models.Model` of a trained classifier.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; labelled images to train on. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    data = "digits" if data is None else data
    job = Work("treat", method, {"model": model}, data, say, options, kind=Setting)
    job.check({"source": nn.Identity()})
    source = models.resolve(model, trust=job.setting.trust)
    images = relabelled(job.load(data, source), source.classes)
    seen = job.augmented(images).normalised(source.mean, source.std)
    job.say(f"data     {describe(images)}")
    job.measure("source", source, images)
    made = job.cls(source=source, **job.own)

    def rows(product: Model, seen: Images, beside: dict[str, Model]) -> list[dict[str, Any]]:
        lines = [row(source.name, "source", job.measured(source, images), source)]
        lines += [row(f"{source.name}, trained on", "control", job.measured(other, images), other)
                  for other in beside.values()]  # fmt: skip
        return [*lines, row(f"{source.name}, treated", "product", job.measured(product, images), product)]

    control = {name: (c.method, seen) for name, c in made.controls().items()} if job.setting.control else {}  # type: ignore[attr-defined]
    return job.do(made, seen, [("source", source)], rows, positional=("model",), sentence=_sentence,
                  beside=control)  # fmt: skip


def _sentence(rows: list[dict[str, Any]], product: Model, data: Images) -> str:
    """Accuracies of source, control and product, and whether the test images can tell the last two apart."""
    made = {line["role"]: line["accuracy"][0] for line in rows if line["accuracy"]}
    if "product" not in made:
        return f"{product.name} was treated; there were no test images to measure it on."
    text = f"The treated network reaches {made['product']:.1%} on the test images of {data.name}; before "
    text += f"{made['source']:.1%}"
    if "control" not in made:
        return text + ". How much of the difference is the training's own was not measured (--control false)."
    gain, n = made["product"] - made["control"], len(data.test)
    # Of two independent shares; the images are the same, so the truth is narrower.
    bound = 1.96 * math.sqrt(sum(p * (1 - p) / n for p in (made["product"], made["control"])))
    verdict = "more than" if abs(gain) > bound else "within"
    return (f"{text}, and {made['control']:.1%} after the same training without the treatment. The treatment's own "
            f"part is {100 * gain:+.1f} points, {verdict} the {100 * bound:.1f} that chance makes of {n:,} "
            "images.")  # fmt: skip
