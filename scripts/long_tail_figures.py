"""The table of repairs of rare classes: mean recall of each group of classes, from the records of its two claims."""

from __future__ import annotations

import statistics
from typing import Any

from scripts.pages import figures as claim_figures
from scripts.tables import table
from upcycle.claims import find

GROUPS = ("all", "many", "medium", "few", "3 rarest")
SECOND = "*The second setting, CIFAR-10 and a ResNet-20, is not measured yet.*\n"


def groups_table(measured: dict[str, list[float]]) -> str:
    """One row an arm: mean and standard deviation of the recall of all classes, and the mean of each group."""
    arms = [name.removesuffix(", all (%)") for name in measured if name.endswith(", all (%)")]
    rows = [
        (arm, *(_cell(measured.get(f"{arm}, {group} (%)"), spread=group == "all") for group in GROUPS)) for arm in arms
    ]
    return table(("", *(f"{group} (%)" for group in GROUPS)), rows)


def _cell(values: list[float] | None, *, spread: bool) -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if spread and len(values) > 1 else text


def page(record: dict[str, Any] | None, second: dict[str, Any] | None, assets: str = "assets") -> str:
    """The tables of both settings, then the claim of the first one with its conditions."""
    text = ""
    if record is not None:
        text += f"Mean recall, {len(record['seeds'])} seeds:\n\n{groups_table(record['measured'])}\n"
    text += claim_figures(find("longtail"), record, "longtail", assets)
    if second is None:
        return f"{text}\n{SECOND}"
    setting, seeds = find("longtailcifar10").setting, len(second["seeds"])
    return f"{text}\nThe second setting, {seeds} seeds: {setting}\n\n{groups_table(second['measured'])}"
