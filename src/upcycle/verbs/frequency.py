"""Figures of many, medium and few: the lines, the columns, the picture and the sentence of rare classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upcycle.core.frequency import Groups
from upcycle.core.task import Evaluation, Measured
from upcycle.diagnosis.errors.frequency import Following
from upcycle.verbs.figures import spread


def by_group(line: dict[str, Any], found: Sequence[Measured], by: Groups | None) -> dict[str, Any]:
    """A line of the comparison with the mean recall of each group; as it was where there are no groups.

    Args:
        line: see :func:`upcycle.verbs.figures.row`.
        found: what was measured, one for each seed.
        by: the groups of the classes.
    """
    if by is None or not found:
        return line
    means = [by.means(one.per_class) for one in found if isinstance(one, Evaluation)]
    groups = {name: [mean for one in means if (mean := one[name]) is not None] or None for name in means[0]}
    shown = {name: spread(values) if values else "none" for name, values in groups.items()}
    return {**line, "groups": groups, "shown": {**line.get("shown", {}), **shown}}


def group_lines(per_class: Sequence[float | None], by: Groups) -> list[str]:
    """Mean recall of each group for a terminal, a line each."""
    words, means = by.words(), by.means(per_class)
    width = max(map(len, words.values()))
    return [
        f"{words[name].ljust(width)}  {'no class' if mean is None else f'{mean:.1%}'}" for name, mean in means.items()
    ]


def recall_by_count(
    classes: Sequence[str], counts: Sequence[int], arms: Mapping[str, Sequence[float | None]]
) -> dict[str, Any]:
    """The picture of recall against the number of training images, a point for each class and arm.

    Args:
        classes: their names.
        counts: training images of each; classes with none are left out.
        arms: recall of each class by the name of what was measured, such as before and after a treatment.
    """
    items = [
        {"name": name, "x": n, "y": 100 * recall, **({"group": arm} if len(arms) > 1 else {})}
        for arm, per_class in arms.items()
        for name, n, recall in zip(classes, counts, per_class, strict=True)
        if n and recall is not None
    ]
    caption = "Each point is a class; the number of its training images is on a logarithmic scale."
    return {
        "kind": "scatter",
        "title": "Recall by number of training images",
        "caption": caption,
        "x": "training images",
        "y": "recall (%)",
        "noun": "points" if len(arms) > 1 else "classes",
        "log": True,
        "items": items,
    }


def sentence(found: Following, command: str) -> str:
    """Say whether recall follows the number of training images, and how to mend that.

    Args:
        command: that mends it.
    """
    if found.recall is None:
        text = " Whether recall follows the number of training images cannot be told: there are too few classes, or all"
        text += " are recognised equally often"
    else:
        does = "follows" if found.follows else "does not follow"
        text = f" Recall {does} the number of training images (rho {found.recall:.2f})"
    if found.norms is not None:
        text += f"; the norms of the classifier's rows correlate with its logarithm by {found.norms:.2f}"
    return f"{text}. To mend the rare classes: {command}." if found.follows else f"{text}."
