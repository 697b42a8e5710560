"""The report of a run: one HTML file that opens anywhere and asks nothing of a network."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import jinja2
import yaml

from upcycle.core import licences, lineage
from upcycle.core.errors import UserError, one_line
from upcycle.core.read import Count, checked
from upcycle.core.store import read_json, write_atomic
from upcycle.measure.energy import joules_of
from upcycle.measure.units import bytes_, duration, joules, si
from upcycle.reports import figures
from upcycle.reports.figures import Arm
from upcycle.reports.pictures import picture

__all__ = ["read_result", "write_report"]

RESULT = "result.json"
"""The file of a run directory that holds what was measured."""


class Bins(TypedDict):
    """A reliability diagram as three lists."""

    confidence: list[float | None]
    accuracy: list[float | None]
    count: list[float]


class Row(TypedDict, total=False):
    """A line of the comparison."""

    name: Required[str]
    role: str
    accuracy: list[float] | None
    per_class: list[float | None] | None
    confusion: list[list[float]] | None
    reliability: list[dict[str, float | None]] | Bins | None
    ece: float | None
    parameters: float | None
    macs: float | None
    latency: float | None
    memory: float | None
    additions: float | None
    energy: float | None
    shown: dict[str, Any]


class Data(TypedDict, total=False):
    """The data of a run, in numbers."""

    name: str
    train: Count
    validation: Count
    test: Count
    labelled: Count | None
    classes: list[Any]
    notes: list[str]
    answered: list[str]


class Outcome(TypedDict, total=False):
    """``result.json``, as far as a report shows it."""

    format: Required[Literal[1]]
    verb: Required[str]
    title: str
    date: str
    figure: str
    shows: str
    sentence: str
    command: str
    seconds: float | None
    seeds: list[int]
    rows: list[Row]
    data: Data
    notes: list[str]
    config: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]


def read_result(run_directory: Path) -> dict[str, Any]:
    """Read what a finished run measured, as its directory holds it.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    file = run_directory / RESULT
    result = read_json(file)
    if not isinstance(result, dict) or result.get("format") != 1:
        raise UserError(f"{file} is no result that this version of upcycle can read.")
    checked(result, Outcome, file)
    return result


def write_report(run_directory: Path) -> Path:
    """Write ``report.html`` from what a run left, and return its path.

    Args:
        run_directory: holds ``result.json``; where present also ``metrics.csv`` (and that of each further
            seed and arm, ``more/ARM-SEED/metrics.csv``), ``model/lineage.json`` and ``pictures/*.json``.

    Raises:
        UserError: ``result.json`` is missing, damaged or of another format, or the page cannot be written.
    """
    file, tree = run_directory / RESULT, run_directory / "model" / "lineage.json"
    result = read_result(run_directory)
    family = lineage.read(tree) if tree.exists() else None
    try:
        page = _page(run_directory, result, family)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{file} is damaged, so that no report can be drawn: {one_line(error)}.") from error
    write_atomic(run_directory / "report.html", page.encode("utf-8", "replace"))
    return run_directory / "report.html"


def _page(run_directory: Path, result: dict[str, Any], family: lineage.Node | None) -> str:
    data, figure = result.get("data", {}), str(result.get("figure", "test accuracy"))
    arms = figures.arms(_beside_spikes(result.get("rows", [])))
    classes = [str(c) for c in data.get("classes", [])]
    by_class = [*figures.per_class(classes, arms), *figures.confusion(classes, arms, figures.product(arms))]
    pictures = [picture(file) for file in sorted(run_directory.glob("pictures/*.json"))]
    sections = [
        ("training", "Training", figures.training(figures.curves(run_directory), arms, _measured(data, figure))),
        ("classes", "Class by class", by_class),
        ("calibration", "Calibration", figures.calibration(arms)),
    ]
    inside = ("method", str(result.get("shows", "What the method shows")), pictures)
    # What a verb itself looked at comes first, what a method shows beside its product last.
    sections = [inside, *sections] if "shows" in result else [*sections, inside]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2").render(
        heading=_heading(result, family),
        result=result,
        facts=_facts(result),
        notes=list(dict.fromkeys([*result.get("notes", []), *data.get("notes", [])])),
        arms=arms,
        measures=_measures(arms, figure[:1].upper() + figure[1:]),
        headline=figures.headline(arms, figure[:1].upper() + figure[1:]),
        sections=[section for section in sections if section[2]],
        family=family,
        summary=lineage.summary,
        data_sentence=licences.data_sentence,
        notice=licences.NOTICE,
        config=yaml.safe_dump(result.get("config", {}), sort_keys=False, allow_unicode=True),
    )


def _measured(data: dict[str, Any], figure: str) -> str:
    """Give what is measured on validation images: agreement with the teacher where their labels are its answers."""
    if "validation" in data.get("answered", ()):
        return "agreement"
    return figure.removeprefix("test ") if figure.startswith("test ") else "accuracy"


def _heading(result: dict[str, Any], family: lineage.Node | None) -> str:
    if family is None:
        return str(result.get("title") or f"upcycle {result['verb']}")
    *most, last = dict.fromkeys(str(parent["name"]) for parent in family["parents"]) or [""]
    parents = f"{', '.join(most)} and {last}" if most else last
    return f"{family['name']}, made from {parents}" if parents else str(family["name"])


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    data, facts = result.get("data", {}), []
    if data.get("name"):
        sizes = [f"{data[split]:,} {split}" for split in ("train", "validation", "test") if data.get(split)]
        facts.append(("Data", f"{data['name']}: {', '.join(sizes)}" if sizes else data["name"]))
    if data.get("labelled") is not None and data.get("train"):
        every = data["labelled"] == data["train"]
        facts.append(("Labels used", "all" if every else f"{data['labelled']:,} of {data['train']:,}"))
    if result.get("seconds") is not None:
        seeds = len(result.get("seeds", []))
        facts.append(("Took", duration(result["seconds"]) + (f" for {seeds} seeds" if seeds > 1 else "")))
    if result.get("date"):
        facts.append(("Date", str(result["date"])))
    return facts


def _measures(arms: list[Arm], figure: str) -> list[dict[str, Any]]:
    """The comparison: one line for each measure that any arm has, one cell for each arm."""
    model = figures.reference(arms)
    shown: list[tuple[str, str, Callable[[Any], str], tuple[str, str]]] = [
        ("Parameters", "parameters", si, ("fewer", "more")),
        ("Multiply-adds", "macs", si, ("fewer", "more")),
        ("Synaptic operations", "additions", si, ("fewer", "more")),
        ("Energy of arithmetic, estimated", "energy", joules, ("less", "more")),
        ("Latency", "latency", duration, ("faster", "slower")),
        ("Memory", "memory", bytes_, ("less", "more")),
    ]
    lines = []
    if any(arm.row.get("accuracy") for arm in arms):
        cells = [_accuracy_cell(arm.row, model) for arm in arms]
        lines.append({"name": figure, "cells": cells})
    for name in dict.fromkeys(name for arm in arms for name in arm.row.get("shown", ())):  # a verb's own, in words
        words_of = [str(arm.row.get("shown", {}).get(name, "")) for arm in arms]
        lines.append({"name": name[:1].upper() + name[1:], "cells": [(text, "") for text in words_of]})
    for name, key, show, words in shown:
        if any(arm.row.get(key) is not None for arm in arms):
            cells = [
                (show(v), _ratio(model.get(key), v, words, NOISE if key == "latency" else LEAST))
                if (v := arm.row.get(key)) is not None
                else ("", "")
                for arm in arms
            ]
            lines.append({"name": name, "cells": cells})
    return lines


def _beside_spikes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a comparison, with the energy of multiply-adds where another network sends spikes."""
    if not any(row.get("energy") for row in rows):
        return rows
    return [{"energy": joules_of(row["macs"]), **row} if row.get("macs") else row for row in rows]


def _accuracy_cell(row: dict[str, Any], teacher: dict[str, Any]) -> tuple[str, str]:
    if not row.get("accuracy"):
        return "", ""
    difference = ""
    if teacher.get("accuracy") and row is not teacher:
        points = 100 * (statistics.fmean(row["accuracy"]) - statistics.fmean(teacher["accuracy"]))
        difference = "" if abs(points) < 0.05 else f"{points:+.1f} points".replace("-", "−")
    return lineage.figure("accuracy", row["accuracy"]), difference


LEAST, NOISE = 1.02, 1.15
"""Ratios below these are no difference; the second of two latencies, which vary from one measurement to the next."""


def _ratio(teacher: float | None, value: float, words: tuple[str, str], least: float) -> str:
    if not teacher or not value:
        return ""
    ratio, word = (teacher / value, words[0]) if teacher > value else (value / teacher, words[1])
    if ratio < least:
        return ""
    return f"{ratio:.3g}× {word}" if ratio < 100 else f"{ratio:,.0f}× {word}"
