"""The figures of a comparison: rows, the table of a terminal, and the words and numbers of a sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from upcycle.core.evaluate import measured
from upcycle.core.models import Model
from upcycle.core.outputs import gives_probabilities
from upcycle.core.spikes import sends_spikes
from upcycle.core.task import CLASSIFICATION, Evaluation, Measured, Task
from upcycle.core.world import first_process
from upcycle.data import Collection
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.energy import operations
from upcycle.measure.units import bytes_, counted, duration, si
from upcycle.verbs.options import Say

TOLD = "task-incremental accuracy"
"""The name of an accuracy that is measured with the task of each sample told."""
SHOWN = 1_000
"""Validation samples on which :func:`show_accuracy` measures, at most."""
NEAR = 0.1
"""How far above chance an accuracy is called near it at most; of many classes, less."""
SPIKING = 64
"""Test samples on which spikes are counted, at most."""


def show_accuracy(
    say: Say,
    role: str,
    model: Model,
    data: Collection,
    where: torch.device | Measured | Callable[[Any], Measured],
    hint: str = "",
) -> None:
    """Say how good a network is on these data, so that a wrong normalisation or order of classes shows at once.

    Of several processes the first does so.

    Args:
        where: to measure on up to 1,000 of the validation samples; how; or what was measured on all of them already.
        hint: options that would mend it.
    """
    known = data.task.known(data.validation.labels).nonzero()[:, 0]
    if not len(known) or "validation" in data.answered or not first_process():
        return
    if not isinstance(where, torch.device) and not callable(where):
        found = where
    else:
        some = data.validation.subset(known[torch.linspace(0, len(known) - 1, min(SHOWN, len(known))).long()])
        if isinstance(where, torch.device):
            found = measured(model.module, some.seen_by(model), device=where)
        else:
            found = where(some)
    count = f"{found.count:,}" if found.count == len(known) else f"{found.count:,} of {len(known):,}"
    say(f"{role.ljust(8)} {model.name}: {scored([found.score], data.task)} on {count} validation {data.noun}")
    k = max(len(data.classes), 1)
    if isinstance(found, Evaluation) and found.accuracy < min(2 / k, 1 / k + NEAR) and k > 2:
        of_images = f"Is its normalisation right, and the order of its classes?{hint}"
        say(f"         That is near chance. {'Is the order of its classes right?' if model.inputs else of_images}")


def told_the_task(model: Model) -> tuple[str, ...]:
    """A note on a network that was measured with the task of each sample told, which no other verb does."""
    metrics = (model.lineage or {}).get("metrics") or {}
    if TOLD not in metrics:
        return ()
    found = metrics[TOLD]
    return (
        f"{model.name} learnt one task after another and was measured with the task of each sample told, "
        f"{share(found if isinstance(found, list) else [found])} right; here it is not told, and chooses among all "
        f"its {len(model.classes)} classes.",
    )


def row(name: str, role: str, arms: Sequence[Measured], model: Model, like: Any = None) -> dict[str, Any]:
    """One line of the comparison.

    Args:
        arms: what was measured, one for each seed; empty where there is nothing to measure with.
        model: whose size and speed it shows.
        like: what they are measured on, see :func:`like_of`; by default as the network says it itself.
    """
    module, like = model.module, model.input_shape or model.example(1) if like is None else like
    cost = count(module, like)
    figures = {
        "name": name,
        "role": role,
        "accuracy": [],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "latency": latency(module, like) if first_process() else 1.0,  # others would only disturb it
        "memory": peak_memory(module, like) if first_process() else 1,
    }
    if not arms:
        return figures
    found = figures_of(arms, model.task)
    if not gives_probabilities(module):  # its scores have an order, and no confidence
        found = {name: value for name, value in found.items() if name not in ("ece", "reliability")}
    return {**figures, **found}


def like_of(model: Model, data: Any) -> Any:
    """Give what costs are measured on: an image's shape, or the first test sample; all that are answered together."""
    if model.input_shape:
        return model.input_shape
    split = data.test if len(data.test) else data.train
    if not len(split):  # a method makes its own
        return model.example(1)
    return split.batch(torch.arange(len(split) if split.together else 1), device=torch.device("cpu")).inputs


def spent(model: Model, data: Any) -> dict[str, float]:
    """Give what a network that sends spikes does for one sample, as further figures of its line; none of another.

    Args:
        data: on whose test samples spikes are counted.
    """
    if not sends_spikes(model.module):
        return {}
    data = getattr(data, "base", data)  # of a stream
    split = (data.test if len(data.test) else data.train).seen_by(model)
    if not len(split):
        return {}
    index = torch.arange(min(SPIKING, len(split)))
    found = operations(model, split.batch(index, device=torch.device("cpu")).inputs)
    return {"additions": found.additions, "energy": found.joules}


def showing(row: dict[str, Any], left: Sequence[dict[str, Any]], name: str = "shown") -> dict[str, Any]:
    """A line with further shares, in columns of their own, that a method left with its runs.

    Args:
        row: the line.
        left: what each run left; see :meth:`upcycle.core.run.Run.leave`.
        name: of the shares by their columns, among these.
    """
    found = [one[name] for one in left if name in one]
    columns = {column: spread([one[column] for one in found]) for column in (found[0] if found else ())}
    return {**row, "shown": {**row.get("shown", {}), **columns}} if columns else row


def figures_of(arms: Sequence[Measured], task: Task = CLASSIFICATION) -> dict[str, Any]:
    """The measured part of a line: scores of all seeds, the details of the first.

    A share stands under ``accuracy``, whatever it is one of; another score is a text under its own name.
    """
    scores = [a.score for a in arms]
    if task.unit != "share":
        return {"shown": {task.figure: scored(scores, task)}}
    first = arms[0]
    if not isinstance(first, Evaluation):
        return {"accuracy": scores}
    bins = zip(*(first.confidence[k] for k in ("confidence", "accuracy", "count")), strict=True)
    return {
        "accuracy": scores,
        "per_class": first.per_class,
        "ece": first.ece,
        "confusion": first.confusion,
        "reliability": [dict(zip(("confidence", "accuracy", "count"), b, strict=True)) for b in bins],
    }


def hundredths(values: Sequence[float], sign: str = "") -> str:
    """A hundred times the mean, and the sample standard deviation of several; ``sign="+"`` also shows a plus."""
    text = f"{100 * statistics.fmean(values):{sign}.1f}"
    return f"{text} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else text


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and spread of shares in per cent; empty where there are none."""
    return f"{hundredths(values, sign)} %" if values else ""


def scored(values: Sequence[float], task: Task = CLASSIFICATION) -> str:
    """A score in its unit, with the spread of several seeds: ``95.0%``, ``0.123``, ``31.2 dB``."""
    if task.unit == "share":
        return share(values)
    text = f"{statistics.fmean(values):.4g}"
    text += f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{text} dB" if task.unit == "dB" else text


def share(values: Sequence[float]) -> str:
    """A share in per cent within a sentence, with the spread of several seeds."""
    return f"{values[0]:.1%}" if len(values) == 1 else f"{hundredths(values)}%"


def points(difference: float) -> str:
    """A difference of two shares in words: ``1.2 points above``, or ``level with``."""
    if abs(difference) < 0.0005:
        return "level with"
    return f"{abs(100 * difference):.1f} points {'above' if difference >= 0 else 'below'}"


def chance(own: float, other: float, n: int) -> str:
    """A difference of two accuracies on the same ``n`` images in words, beside what chance makes of so many."""
    # Of two independent shares; the images are the same, so the truth is narrower.
    bound = 1.96 * math.sqrt(sum(p * (1 - p) / n for p in (own, other)))
    verdict = "more than" if abs(own - other) > bound else "within"
    images = counted(n, "image")
    return f"{100 * (own - other):+.1f} points, {verdict} the {100 * bound:.1f} that chance makes of {images}."


def alike(rows: list[dict[str, Any]]) -> None:
    """Give rows of networks that cost the same, as two of one architecture do, one latency: the least of theirs."""
    least: dict[tuple[Any, ...], float] = {}
    cost = [tuple(row.get(key) for key in ("parameters", "macs", "memory")) for row in rows]
    for key, row in zip(cost, rows, strict=True):
        if row.get("latency") is not None:
            least[key] = min(row["latency"], least.get(key, math.inf))
    for key, row in zip(cost, rows, strict=True):
        if row.get("latency") is not None:
            row["latency"] = least[key]


def lines_of(rows: list[dict[str, Any]], figure: str) -> list[tuple[str, ...]]:
    """The comparison as text, its heads first: what a row has to show, by the name of its column, or else its costs."""
    own = list(dict.fromkeys(name for r in rows for name in r.get("shown", ())))
    costs = [
        ("parameters", "parameters", si),
        ("macs", "multiply-adds", si),
        *([("additions", "synaptic operations", si)] if any("additions" in r for r in rows) else []),
        ("latency", "latency", duration),
        ("memory", "memory", bytes_),
    ]
    lines = [("", figure, *(own or (name for _, name, _ in costs)))]
    for r in rows:
        cells = [show(r[key]) if key in r else "" for key, _, show in costs]  # none of a black box
        cells = [r.get("shown", {}).get(name, "") for name in own] if own else cells
        lines.append((r["name"], spread(r["accuracy"]), *cells))
    return lines


def table(rows: list[dict[str, Any]], figure: str) -> str:
    """The comparison for a terminal."""
    lines = lines_of(rows, figure)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    made = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join(["", made[0], "─" * len(made[0]), *made[1:], ""])


def macs(model: Model) -> int:
    """The multiply-adds of one sample."""
    return count(model.module, model.input_shape or model.example(1)).macs


def size_sentence(rows: list[dict[str, Any]], product: Model) -> str:
    """Put accuracy and size of a network that was cut out or put together into a sentence, against its source."""
    made, others = rows[-1], rows[:-1]
    size = f"{si(made['parameters'])} parameters and {si(made['macs'])} multiply-adds"
    if not made["accuracy"]:
        return f"{product.name} tells {len(product.classes)} classes apart with {size}; nothing was measured."
    text = f"{product.name} reaches {spread(made['accuracy'])} on the test images of its {len(product.classes)} "
    text += f"classes with {size}"
    source = next((line for line in others if line["role"] == "source" and line["accuracy"]), None)
    if source is not None:
        gain = statistics.fmean(made["accuracy"]) - statistics.fmean(source["accuracy"])
        text += f", {points(gain)} its source on the same classes"
        text += f" and with {made['parameters'] / source['parameters']:.0%} of its parameters"
    return text + "."
