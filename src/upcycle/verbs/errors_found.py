"""Errors that a diagnosis found, as pictures and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upcycle.core.models import Model
from upcycle.core.task import Evaluation
from upcycle.data import Images
from upcycle.diagnosis.errors.class_channels import channel_order
from upcycle.diagnosis.errors.findings import Diagnosis
from upcycle.measure.units import counted, times

NAMED = 8
"""How many pairs, classes and channels are named in words."""


# -- pictures -----------------------------------------------------------------------------------------------------


def channels(d: Diagnosis) -> dict[str, Any]:
    """A picture of the channels that speak for each class."""
    order = channel_order(d.scores)
    return {
        "kind": "map",
        "title": f"Channels that speak for each class ({d.layer.name if d.layer else ''})",
        "caption": "Gradient of each class's logit with respect to each channel, summed over the images that are "
        "recognised most surely; every row from 0 to 1. Channels in the order of their loudest class.",
        "rows": list(d.classes),
        "columns": [str(ch) for ch in order.tolist()],
        "values": d.scores[:, order].tolist(),
        "x": f"{len(order)} channels",
        "y": "class",
    }


def shares(d: Diagnosis, command: str) -> dict[str, Any]:
    """A picture of how much of a class rests on channels of its own; ``command`` would mend it."""
    return {
        "kind": "heatmap",
        "title": "Own and foreign channels",
        "digits": 2,
        "caption": "Of what speaks for the true class, the share in that class's own channels; and of what speaks for "
        "its strongest rival, the share in the rival's channels. High and low would be ideal.",
        "rows": list(d.classes),
        "columns": ["own", "rival's"],
        "values": [
            [a if a is not None else float("nan"), b if b is not None else float("nan")]
            for a, b in zip(d.concentration, d.wrong, strict=True)
        ],
        "notes": _advice(d, command),
    }


# -- words --------------------------------------------------------------------------------------------------------


def suspects(held: Evaluation, tested: Evaluation) -> list[int]:
    """Classes that are recognised far less often in test images than in validation images, the worst first.

    More than ten points, and more than three standard errors. Such a class rests on something that one of the two sets
    does not have (a watermark, a background, a way of taking the picture), or on memory of the former.
    """
    found = []
    for k, (v, t) in enumerate(zip(held.per_class, tested.per_class, strict=True)):
        if v is None or t is None:
            continue
        counts = (sum(held.confusion[k]), sum(tested.confusion[k]))
        if v - t > max(0.1, 3 * _error((v, t), counts)):
            found.append((t - v, k))
    return [k for _, k in sorted(found)]


def remembered(inside: Diagnosis, tested: Evaluation, doubted: list[int]) -> bool:
    """Whether what looks like a shortcut may be memory, because validation images were part of the training.

    That cannot be excluded where they are answered as training images are
    (:func:`~upcycle.diagnosis.errors.findings.familiar`), and the classes that are not in doubt, too, are recognised
    less often in test images: by more than two points and three standard errors. A network that learnt by heart does
    so with every class, a shortcut is that of some. Where all classes are in doubt there is none to compare with.
    """
    shares, counts = [], []
    for found in (inside.evaluation, tested):
        rows = [(row[k], sum(row)) for k, row in enumerate(found.confusion) if k not in doubted]
        right, n = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0)
        shares.append(right / n if n else 0.0)
        counts.append(n)
    alone = min(counts) > 0 and shares[0] - shares[1] <= max(0.02, 3 * _error(shares, counts))
    return bool(doubted) and inside.familiar and not alone


def _error(shares: Sequence[float], counts: Sequence[int]) -> float:
    """The standard error of the difference of two shares."""
    return math.sqrt(sum(p * (1 - p) / n for p, n in zip(shares, counts, strict=True)))


def sentence(net: Model, data: Images, measured: Evaluation, d: Diagnosis, doubted: list[int]) -> str:
    """Where a network errs.

    Args:
        measured: on test images.
        doubted: classes that may rest on a shortcut, see :func:`suspects`.
    """
    text = (
        f"{net.name} is right on {measured.accuracy:.1%} of the {counted(measured.count, 'test image')} of {data.name}"
    )
    recall = {name: r for name, r in zip(net.classes, measured.per_class, strict=True) if r is not None}
    worst = min(recall, key=lambda name: recall[name])
    text += f", least often on '{worst}' ({recall[worst]:.1%})." if recall[worst] else "."
    counts = torch.tensor(measured.confusion).fill_diagonal_(0)
    if int(counts.max()):
        a, b = divmod(int(counts.argmax()), len(net.classes))
        first, second = net.classes[a], net.classes[b]
        text += f" Its most frequent error is '{first}' taken for '{second}' ({times(int(counts[a, b]))})"
        if d.layer is None or {first, second} & set(d.unrecognised):
            text += "."
        else:
            share = next((j for x, y, j in d.shared if {x, y} == {first, second}), None)
            text += f"; the two share {share:.0%} of their channels." if share else "; they share no channels."
    text += _never(net, measured, counts, d)
    if d.layer is None and len(d.unrecognised) < len(net.classes):
        text += " It has no features between its images and its logits whose gradient could be looked at, so nothing is"
        text += " said of channels."
    if not doubted:
        return text
    if remembered(d, measured, doubted):
        text += f" Validation images are answered as training images are ({d.evaluation.accuracy:.1%} and"
        text += (
            f" {d.trained.accuracy:.1%} right), and test images worse: perhaps they were part of its training. So it"
        )
        text += (
            f" cannot be told whether {_listed([net.classes[k] for k in doubted])}, recognised far less often in test"
        )
        return f"{text} images, rest on a shortcut or on memory; validation images that it has never seen would tell."
    for k in doubted:
        held, tested = d.evaluation.per_class[k], measured.per_class[k]
        text += f" Beware of '{net.classes[k]}': it is recognised in {held:.1%} of the validation images and "
        text += f"{tested:.1%} of the test images, so it may rest on something that only the former have."
    return text


def _never(net: Model, measured: Evaluation, counts: Tensor, d: Diagnosis) -> str:
    """Classes that are never recognised, in test images or in training images."""
    text, never = "", [k for k, r in enumerate(measured.per_class) if r == 0]
    for k in never[:NAMED]:
        instead, n = int(counts[k].argmax()), sum(measured.confusion[k])
        text += f" It never recognises '{net.classes[k]}': of {counted(n, 'test image')} it takes "
        text += f"{int(counts[k, instead])} for '{net.classes[instead]}'."
    if len(never) > NAMED:
        text += f" It never recognises {len(never) - NAMED} more classes."
    unseen = [name for name, n in d.unrecognised.items() if not n]
    lost = [name for name, n in d.unrecognised.items() if n]
    if unseen:
        text += f" There is no training image of {_listed(unseen)} to find channels from."
    if lost:
        them = "it" if len(lost) == 1 else "them"
        text += f" No training image of {_listed(lost)} is recognised, so no channel speaks for {them}."
    return text


def _listed(classes: Sequence[str]) -> str:
    """Classes in a sentence, the first of many."""
    quoted = [f"'{name}'" for name in classes[:NAMED]]
    if len(classes) > NAMED:
        return f"{', '.join(quoted)} and {len(classes) - NAMED} more"
    return " and ".join([*([", ".join(quoted[:-1])] if quoted[1:] else []), quoted[-1]])


def _advice(d: Diagnosis, command: str) -> list[str]:
    """Say what a treatment would change, and how to ask for it."""
    pairs = [f"'{a}' and '{b}' ({j:.0%})" for a, b, j in d.shared[:NAMED]]
    notes = [f"Classes that share most channels: {', '.join(pairs)}."] if pairs else []
    weak = sorted((s, name) for name, s in zip(d.classes, d.concentration, strict=True) if s is not None)[:3]
    if weak:
        least = ", ".join(f"'{name}' ({s:.0%})" for s, name in weak)
        notes.append(
            f"Least of their support comes from channels of their own: {least}. Treating would move it there, "
            f"and quieten rivals' channels: {command}."
        )
    return notes
