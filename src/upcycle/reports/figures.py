"""The figures that every report has, from ``result.json`` and the log: accuracy, training, classes, calibration."""

from __future__ import annotations

import csv
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from upcycle.core.read import require_file
from upcycle.measure.units import times
from upcycle.reports import svg
from upcycle.reports.bars import Bar, bar_chart, dumbbells, starts_late
from upcycle.reports.lines import Bin, Series, line_plot, reliability_diagram, settled
from upcycle.reports.matrices import heatmap
from upcycle.reports.svg import HUES, percent

MANY = 30  # more classes than that are not drawn in full
FEW = 20  # samples: bins of fewer are drawn together
FULL = 25.0  # per cent of a class: confusions of as many have the strongest colour
LOST = 0.5  # of the accuracy on all classes: one of less gets a sentence
Table = tuple[list[str], list[list[str]]]  # heads, and rows with their names


@dataclass(frozen=True)
class Figure:
    """A picture with its title and a caption that says how to read it."""

    title: str
    caption: str
    body: Markup
    notes: tuple[Markup, ...] = ()
    table: Table | None = None  # the same in numbers


@dataclass(frozen=True)
class Arm:
    """One row of the result, with the tone that it has in every picture."""

    row: dict[str, Any]
    tone: str

    @property
    def name(self) -> str:
        return str(self.row["name"])


_HOMES = {"teacher": "teacher", "source": "teacher", "student": "student", "product": "student", "alone": "alone"}


def arms(rows: list[dict[str, Any]]) -> list[Arm]:
    """The rows with their tones: by role, and for the second of a role another one.

    ``source`` is to ``product`` what ``teacher`` is to ``student``. Further sources, the parts that networks were
    cut into and the members of an ensemble can be many, so they get tones that are told apart.
    """
    arms: list[Arm] = []
    for row in rows:
        role = row.get("role")
        taken = {arm.tone for arm in arms}
        home = _HOMES.get(str(role), "other")
        spares = HUES[1:] if role in ("source", "part", "member", "product") else ("second", "other")
        free = home not in taken and role not in ("part", "member")
        arms.append(Arm(row, home if free else next((t for t in spares if t not in taken), "other")))
    return arms


def reference(arms: list[Arm]) -> dict[str, Any]:
    """The row that others are compared with: the teacher, or else the first source; empty where there is none."""
    return next((arm.row for role in ("teacher", "source") for arm in arms if arm.row.get("role") == role), {})


def product(arms: list[Arm]) -> Arm | None:
    """Find the row of the run's product: the student or the product, or else the last row."""
    return next((arm for arm in arms if arm.row.get("role") in ("student", "product")), arms[-1] if arms else None)


def headline(arms: list[Arm], figure: str) -> Figure | None:
    """The accuracy of every arm as bars, under the name ``figure``; nothing where none was measured."""
    items = [_accuracy_bar(arm) for arm in arms if arm.row.get("accuracy")]
    if not items:
        return None
    caption = "Dots are seeds, whiskers one standard deviation. " if any(b.spread for b in items) else ""
    caption += "The axis does not start at zero." if starts_late(items) else ""
    label = f"{figure}: " + ", ".join(f"{b.name} {percent(b.value)}" for b in items)
    return Figure(figure, caption.strip(), bar_chart(items, label=label, show=percent, top=1.0))


def _accuracy_bar(arm: Arm) -> Bar:
    seeds = arm.row["accuracy"]
    spread = statistics.stdev(seeds) if len(seeds) > 1 else None
    return Bar(arm.name, statistics.fmean(seeds), seeds, spread, arm.tone)


# -- training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One logged value over the epochs of one stage, of one arm and seed."""

    arm: str
    seed: str
    stage: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    unit: str


def curves(directory: Path) -> list[Curve]:
    """All logged values of a run: of its first seed, and of further seeds and arms below ``more``."""
    curves = _read_curves(directory / "metrics.csv", "student", "")
    for file in sorted(directory.glob("more/*/metrics.csv")):
        arm, _, seed = file.parent.name.rpartition("-")
        arm = "student" if arm == "product" else arm.replace("-", " ") or seed
        curves += _read_curves(file, arm, seed)
    return curves


def _read_curves(file: Path, arm: str, seed: str) -> list[Curve]:
    if not file.exists():
        return []
    points: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    require_file(file)
    with open(file, newline="", encoding="utf-8", errors="replace") as lines:
        for row in csv.DictReader(lines):
            try:
                point = (float(row["epoch"]), float(row["step"]), float(row["value"]))
                points.setdefault((row["stage"], row["name"]), []).append(point)
            except (KeyError, TypeError, ValueError):
                continue  # a line that a person has edited
    curves = []
    for (stage, name), found in points.items():
        by_step = len({epoch for epoch, _, _ in found}) == 1
        last = {(step if by_step else epoch + 1): value for epoch, step, value in found if math.isfinite(value)}
        if len(last) > 1:
            unit = "update" if by_step else "epoch"
            curves.append(Curve(arm, seed, stage, name, tuple(last), tuple(last.values()), unit))
    return curves


def training(logged: list[Curve], arms: list[Arm], measured: str = "accuracy") -> list[Figure]:
    """Validation accuracy of all arms in one plot; the losses of each arm and stage in one of their own.

    Args:
        measured: what the accuracy is called, or the figure that takes its place.
    """
    roles = {str(arm.row.get("role")): arm for arm in reversed(arms)}  # the first of a role
    if "product" in roles:
        roles.setdefault("student", roles["product"])  # as the first seed of what a run made is called
    # The tasks of a stream are stages by the dozen, and belong together.
    tasks = {c.stage: found.group(1) for c in logged if (found := re.search(r"(?:^|/)task(\d+)$", c.stage))}
    stages = list(dict.fromkeys((c.arm, _home(c, tasks)) for c in logged))
    several = len({stage for _, stage in stages}) > 1

    def title(arm: str, stage: str) -> str:
        name = roles[arm].name if arm in roles else arm
        return f"{name}, {stage}" if several and stage else name

    figures = []
    own = {"validation_accuracy", f"validation_{measured}"}
    accuracy = [c for c in logged if "accuracy" in c.name or c.name in own]
    if accuracy:
        kinds = list(dict.fromkeys((c.arm, c.stage, c.name) for c in accuracy))
        tones = {k: roles[k[0]].tone if k[0] in roles and not several else svg.tone_of(i) for i, k in enumerate(kinds)}
        names = {k: title(*k[:2]) + ("" if k[2] in own else f", {_words(k[2])}") for k in kinds}
        series = [
            Series(_seeded(names[k], c.seed), c.x, c.y, tones[k]) for c in accuracy if (k := (c.arm, c.stage, c.name))
        ]
        label = f"{measured[:1].upper()}{measured[1:]} over the epochs"
        body = line_plot(series, label=label, x=accuracy[0].unit, y=measured, show=percent)
        key = svg.legend([(names[k], tones[k]) for k in kinds])
        figures.append(Figure(f"Validation {measured}", _one_line(accuracy), key + body))
    for arm, stage in stages[:12]:
        losses = [c for c in logged if (c.arm, _home(c, tasks)) == (arm, stage) and "loss" in c.name]
        if losses:
            called = {c: _words(c.name) + (f", task {tasks[c.stage]}" if c.stage in tasks else "") for c in losses}
            names_here = list(dict.fromkeys(called.values()))
            tones_here = {name: svg.tone_of(i) for i, name in enumerate(names_here)}
            series = [Series(_seeded(called[c], c.seed), c.x, c.y, tones_here[called[c]]) for c in losses]
            label = f"Loss of {title(arm, stage)} over the epochs"
            top = settled(series)
            body = line_plot(series, label=label, x=losses[0].unit, y="loss", top=top)
            key = svg.legend(list(tones_here.items()))
            highest = max(v for c in losses for v in c.y)
            left = "" if top is None else f"First values, up to {svg.number(highest)}, lie above the plot."
            caption = f"{_one_line(losses)} {left}".strip()
            figures.append(Figure(f"Loss: {title(arm, stage)}", caption, key + body))
    if len(stages) > 12:
        figures[-1] = Figure(figures[-1].title, f"{len(stages) - 12} more stages are in metrics.csv.", figures[-1].body)
    return figures


def _home(curve: Curve, tasks: dict[str, str]) -> str:
    """The stage that a curve is drawn with: a task's is the one around it."""
    return curve.stage.rpartition("/")[0] if curve.stage in tasks else curve.stage


def _words(name: str) -> str:
    return "training loss" if name == "loss" else name.replace("_", " ")


def _seeded(name: str, seed: str) -> str:
    return f"{name}, seed {seed}" if seed else name


def _one_line(curves: list[Curve]) -> str:
    return "One line for each seed." if len({c.seed for c in curves}) > 1 else ""


# -- classes and calibration ---------------------------------------------------------------------------------


def per_class(classes: list[str], arms: list[Arm]) -> list[Figure]:
    """Accuracy by class, of all arms that have it."""
    with_classes = [a for a in arms if len(a.row.get("per_class") or ()) == len(classes) > 0]
    if not with_classes:
        return []
    values = [[v if is_number(v) else None for v in a.row["per_class"]] for a in with_classes]
    found = {i: [x for v in values if (x := v[i]) is not None] for i in range(len(classes))}
    order = [i for i in found if found[i]]
    caption = "Share of each class that is recognised" + _first_seed(with_classes) + "."
    if len(order) > MANY:
        order = sorted(order, key=lambda i: min(found[i]) - max(found[i]))[:MANY]
        caption = f"The {MANY} of {len(classes)} classes where the networks differ most. " + caption
    if not order:
        return []
    drawn = [(a.name, a.tone, [v[i] for i in order]) for a, v in zip(with_classes, values, strict=True)]
    label = "Accuracy by class: " + "; ".join(
        f"{name} between {percent(min(known))} and {percent(max(known))}"
        for name, _, shares in drawn
        if (known := [x for x in shares if x is not None])
    )
    body = svg.legend([(a.name, a.tone) for a in with_classes])
    body += dumbbells([classes[i] for i in order], drawn, label=label)
    cells = [[classes[i], *("" if (x := v[i]) is None else percent(x) for v in values)] for i in order]
    heads = ["class", *(a.name for a in with_classes)]
    made = product(with_classes)
    notes = _lost(classes, made) if made is not None else ()
    return [Figure("Accuracy by class", caption, body, notes, table=(heads, cells))]


def _lost(classes: list[str], arm: Arm) -> tuple[Markup, ...]:
    """A sentence on each class that a network hardly recognises, beside the others; three at most."""
    known = sorted((v, name) for v, name in zip(arm.row["per_class"], classes, strict=True) if is_number(v))
    notes = []
    for value, name in known[:3]:
        others = [v for v, other in known if other != name]
        if others and value < LOST * (mean := statistics.fmean(others)):
            said = Markup("{} recognises <b>'{}'</b> in {} of its samples, and the other classes in {} on average")
            notes.append(said.format(arm.name, name, percent(value), percent(mean)))
    return tuple(notes)


def confusion(classes: list[str], arms: list[Arm], student: Arm | None) -> list[Figure]:
    """The confusion matrix of what the run made, and its five most frequent errors in words."""
    if student is None or not (matrix := student.row.get("confusion")) or len(matrix) != len(classes):
        return []
    model = reference(arms)
    before = model.get("confusion") if model is not student.row else None
    before = before if before and len(before) == len(classes) else None
    shares = [[count / sum(line) if sum(line) else 0.0 for count in line] for line in matrix]
    errors = sorted(
        ((shares[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j and matrix[i][j]),
        reverse=True,
    )
    notes = [_pair(classes, matrix, before, i, j, str(model.get("role"))) for _, i, j in errors[:5]]
    chosen, caption = (
        list(range(len(classes))),
        "Of each class (row), the share in per cent that is called another",
    )
    if len(classes) > MANY:
        chosen = sorted(list(dict.fromkeys(k for _, i, j in errors for k in (i, j)))[:MANY])
        caption = f"The {len(chosen)} of {len(classes)} classes that are confused most. " + caption
    if len(chosen) < 2:
        return []
    names = [classes[i] for i in chosen]
    body = heatmap(
        names,
        names,
        [[100 * shares[i][j] for j in chosen] for i in chosen],
        label=f"Confusions of {student.name}, in per cent of each class",
        show=lambda v: f"{v:.0f}" if v >= 9.95 or v == 0 else f"{v:.1f}",
        x="called →",
        diagonal=False,
        full=FULL,
    )
    return [Figure(f"Confusions of {student.name}", caption + _first_seed([student]) + ".", body, tuple(notes))]


def _pair(
    classes: list[str], matrix: list[list[int]], before: list[list[int]] | None, i: int, j: int, role: str
) -> Markup:
    count, total = matrix[i][j], sum(matrix[i])
    text = Markup("<b>'{}'</b> is called <b>'{}'</b> {} in {:,}").format(classes[i], classes[j], times(count), total)
    return text if before is None else text + Markup(" ({}: {})").format(role, times(before[i][j]))


def _first_seed(arms: list[Arm]) -> str:
    return ", for the first seed" if any(len(a.row.get("accuracy") or ()) > 1 for a in arms) else ""


def calibration(arms: list[Arm]) -> list[Figure]:
    """The reliability diagram of all arms that have one."""
    found = [(a, bins) for a in arms if (bins := _bins(a.row.get("reliability")))]
    curves = [(a, pooled(bins)) for a, bins in found]
    if not curves:
        return []
    label = "Reliability: accuracy against confidence of " + ", ".join(a.name for a, _ in curves)
    body = reliability_diagram([(a.name, a.tone, bins) for a, bins in curves], label=label)
    caption = (
        "On the line, a network is right as often as its confidence says; below it, it is too sure. "
        "The larger a dot, the more samples" + _first_seed(arms) + "."
    )
    if [bins for _, bins in found] != [bins for _, bins in curves]:
        caption += f" Dots of fewer than {FEW} samples are drawn as one with their neighbours."
    notes = [
        Markup("<b>{}</b> is off by {} on average (expected calibration error)").format(a.name, percent(a.row["ece"]))
        for a in arms
        if is_number(a.row.get("ece"))
    ]
    key = svg.legend([(a.name, a.tone) for a, _ in curves])
    return [Figure("Confidence and accuracy", caption, key + body, tuple(notes))]


def _bins(found: Any) -> list[Bin]:
    if isinstance(found, dict):  # three lists, as an Evaluation has them
        found = [
            {"confidence": c, "accuracy": a, "count": n}
            for c, a, n in zip(found["confidence"], found["accuracy"], found["count"], strict=True)
        ]
    return [(b["confidence"], b["accuracy"], b["count"]) for b in found or () if b["count"]]


def pooled(bins: list[Bin], least: int = FEW) -> list[Bin]:
    """Bins of ``least`` samples or more: each of fewer is put together with the next, the last with the one before."""
    groups: list[list[Bin]] = [[]]
    for one in sorted(bins):
        if sum(n for *_, n in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(one)
    if len(groups) > 1 and sum(n for *_, n in groups[-1]) < least:
        last = groups.pop()
        groups[-1] += last
    return [_mean(group) for group in groups]


def _mean(group: list[Bin]) -> Bin:
    """Bins as one."""
    if len(group) == 1:
        return group[0]
    n = sum(count for *_, count in group)
    return sum(c * m for c, _, m in group) / n, sum(a * m for _, a, m in group) / n, n


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
