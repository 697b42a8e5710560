"""Cells, tables and lines of provenance, as the generated blocks of the documentation have them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from typing import Any

RAW = ("seconds", "curves", "all")  # every repetition, kept in the file; the tables show what was made of them
DIGEST = re.compile(r"[0-9a-f]{40,}")


def number(value: Any) -> str:
    """A cell: three digits, thousands apart; a list as mean ± sample standard deviation, a digest cut short."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if not all(isinstance(v, int | float) for v in value):
            return ", ".join(map(number, value))
        spread = f" ± {number(statistics.stdev(value))}" if len(value) > 1 else ""
        return f"{number(statistics.fmean(value))}{spread}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(inner)}" for key, inner in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    text = "" if value is None else str(value)
    return text[:12] if DIGEST.fullmatch(text) else text


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


def flat(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures with no mapping further down than in a row: rows of a group stand for themselves, under both names."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if name in RAW:
            continue
        if isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values()):
            found |= {key if name == "arms" else f"{name}, {key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return {name: _row(value) if isinstance(value, dict) else value for name, value in found.items()}


def _row(figures: dict[str, Any]) -> dict[str, Any]:
    """A row without what is raw, and with mappings below it drawn into it."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {f"{name}, {key}": inner for key, inner in value.items()}
        elif name not in RAW:
            found[name] = value
    return found


def figures_table(figures: dict[str, Any]) -> str:
    """The figures of a benchmark.

    Mappings with the same keys share a table, whose longer side goes down; single figures share one at the end.
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    single = {}
    for name, value in flat(figures).items():
        if isinstance(value, dict):
            groups.setdefault(tuple(value), {})[name] = value
        else:
            single[name] = value
    parts = []
    for keys, group in groups.items():
        if len(group) > len(keys):
            rows = [(words(name), *(number(row[k]) for k in keys)) for name, row in group.items()]
            parts.append(table(("", *map(words, keys)), rows))
        else:
            rows = [(words(k), *(number(row[k]) for row in group.values())) for k in keys]
            parts.append(table(("", *map(words, group)), rows))
    if single:
        parts.append(
            table(
                ("", "figure"), [(words(k), interval(v) if k == "interval" else number(v)) for k, v in single.items()]
            )
        )
    return "\n".join(parts)


def provenance(record: dict[str, Any], command: str) -> str:
    """Where figures come from, in one line."""
    machine, versions = record.get("machine", {}), record.get("versions", {})
    facts = [f"{machine.get('cpu') or machine.get('processor')}, {machine.get('cores')} cores"]
    facts += [f"torch {versions['torch']}"] if "torch" in versions else []
    facts += [str(record.get("date", ""))[:10]]
    facts += [f"commit {record['commit']}"] if record.get("commit") else []
    facts += [f"`{command}`"]
    return "*" + "; ".join(fact for fact in facts if fact) + "*\n"
