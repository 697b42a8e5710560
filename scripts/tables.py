"""Cells, tables and lines of provenance, as the generated blocks of the documentation have them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any


def number(value: Any) -> str:
    """A cell: three digits, thousands apart; a list of numbers as mean ± sample standard deviation."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if not all(isinstance(v, int | float) for v in value):
            return ", ".join(map(number, value))
        spread = f" ± {number(statistics.stdev(value))}" if len(value) > 1 else ""
        return f"{number(statistics.fmean(value))}{spread}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def percent(values: list[float]) -> str:
    """Mean and sample standard deviation of figures with two digits after the point."""
    if not 0.01 <= abs(statistics.fmean(values)) < 1000 and any(values):
        return number(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", r"\|") for c in cells) + " |\n"

    headings = list(headings)
    return line(headings) + "|" + " --- |" * len(headings) + "\n" + "".join(line(row) for row in rows)


def interval(bounds: list[float]) -> str:
    """A confidence interval."""
    return f"{number(bounds[0])} to {number(bounds[1])}"


def words(key: str) -> str:
    """A key as a heading."""
    return key.replace("_", " ")


def provenance(record: dict[str, Any], command: str) -> str:
    """Where figures come from, in one line."""
    machine, versions = record.get("machine", {}), record.get("versions", {})
    facts = [f"{machine.get('cpu') or machine.get('processor')}, {machine.get('cores')} cores"]
    facts += [f"torch {versions['torch']}"] if "torch" in versions else []
    facts += [str(record.get("date", ""))[:10]]
    facts += [f"commit {record['commit']}"] if record.get("commit") else []
    facts += [f"`{command}`"]
    return "*" + "; ".join(fact for fact in facts if fact) + "*\n"
