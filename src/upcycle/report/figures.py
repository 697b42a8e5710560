"""The figures of a report: from the records of a run to pictures with a title and a caption."""

from __future__ import annotations

import base64
import csv
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from upcycle.core.errors import UserError
from upcycle.core.store import read_json
from upcycle.report import plots
from upcycle.report.plots import Bar, Series, percent

MANY = 30  # more classes than that are not drawn in full


@dataclass(frozen=True)
class Figure:
    """A picture with its title and a caption that says how to read it."""

    title: str
    caption: str
    body: Markup
    notes: tuple[Markup, ...] = ()
    table: tuple[list[str], list[list[str]]] | None = None  # the same in numbers: heads, and rows with their names


@dataclass(frozen=True)
class Arm:
    """One row of the result, with the tone that it has in every picture."""

    row: dict[str, Any]
    tone: str

    @property
    def name(self) -> str:
        return str(self.row["name"])


def arms(rows: list[dict[str, Any]]) -> list[Arm]:
    """The rows with their tones: by role, and for the second of a role another one."""
    arms: list[Arm] = []
    for row in rows:
        role = row["role"] if row.get("role") in ("teacher", "student", "alone") else "other"
        taken = {arm.tone for arm in arms}
        spare = next((t for t in ("second", "other") if t not in taken), "other")
        arms.append(Arm(row, spare if role in taken else role))
    return arms


def headline(arms: list[Arm], figure: str) -> Figure | None:
    items = [_accuracy_bar(arm) for arm in arms if arm.row.get("accuracy")]
    if not items:
        return None
    caption = "Dots are seeds, whiskers one standard deviation. " if any(b.spread for b in items) else ""
    caption += "The axis does not start at zero." if plots.starts_late(items) else ""
    label = f"{figure}: " + ", ".join(f"{b.name} {percent(b.value)}" for b in items)
    return Figure(figure, caption.strip(), plots.bars(items, label=label, show=percent, top=1.0))


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
    curves = _read_curves(directory / "metrics.csv", "student", "")
    for file in sorted(directory.glob("more/*/metrics.csv")):
        arm, _, seed = file.parent.name.rpartition("-")
        curves += _read_curves(file, arm or seed, seed)
    return curves


def _read_curves(file: Path, arm: str, seed: str) -> list[Curve]:
    if not file.exists():
        return []
    points: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
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


def training(logged: list[Curve], arms: list[Arm]) -> list[Figure]:
    """Validation accuracy of all arms in one plot; the losses of each arm and stage in one of their own."""
    roles = {str(arm.row.get("role")): arm for arm in reversed(arms)}  # the first of a role
    stages = list(dict.fromkeys((c.arm, c.stage) for c in logged))
    several = len({stage for _, stage in stages}) > 1

    def title(arm: str, stage: str) -> str:
        name = roles[arm].name if arm in roles else arm
        return f"{name}, {stage}" if several and stage else name

    figures = []
    accuracy = [c for c in logged if "accuracy" in c.name]
    if accuracy:
        kinds = list(dict.fromkeys((c.arm, c.stage, c.name) for c in accuracy))
        tones = {
            k: roles[k[0]].tone if k[0] in roles and not several else plots.tone_of(i) for i, k in enumerate(kinds)
        }
        names = {k: title(*k[:2]) + ("" if k[2] == "validation_accuracy" else f", {_words(k[2])}") for k in kinds}
        series = [
            Series(_seeded(names[k], c.seed), c.x, c.y, tones[k]) for c in accuracy if (k := (c.arm, c.stage, c.name))
        ]
        body = plots.lines(series, label="Accuracy over the epochs", x=accuracy[0].unit, y="accuracy", show=percent)
        key = plots.legend([(names[k], tones[k]) for k in kinds])
        figures.append(Figure("Validation accuracy", _one_line(accuracy), key + body))
    for arm, stage in stages[:12]:
        losses = [c for c in logged if (c.arm, c.stage) == (arm, stage) and "loss" in c.name]
        if losses:
            names_here = list(dict.fromkeys(c.name for c in losses))
            tones_here = {name: plots.tone_of(i) for i, name in enumerate(names_here)}
            series = [Series(_seeded(_words(c.name), c.seed), c.x, c.y, tones_here[c.name]) for c in losses]
            label = f"Loss of {title(arm, stage)} over the epochs"
            body = plots.lines(series, label=label, x=losses[0].unit, y="loss")
            key = plots.legend([(_words(name), tones_here[name]) for name in names_here])
            figures.append(Figure(f"Loss: {title(arm, stage)}", _one_line(losses), key + body))
    if len(stages) > 12:
        figures[-1] = Figure(figures[-1].title, f"{len(stages) - 12} more stages are in metrics.csv.", figures[-1].body)
    return figures


def _words(name: str) -> str:
    return "training loss" if name == "loss" else name.replace("_", " ")


def _seeded(name: str, seed: str) -> str:
    return f"{name}, seed {seed}" if seed else name


def _one_line(curves: list[Curve]) -> str:
    return "One line for each seed." if len({c.seed for c in curves}) > 1 else ""


# -- classes and calibration ---------------------------------------------------------------------------------


def per_class(classes: list[str], arms: list[Arm]) -> list[Figure]:
    with_classes = [a for a in arms if len(a.row.get("per_class") or ()) == len(classes) > 0]
    if not with_classes:
        return []
    values = [[v if _is_number(v) else None for v in a.row["per_class"]] for a in with_classes]
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
    body = plots.legend([(a.name, a.tone) for a in with_classes])
    body += plots.dumbbells([classes[i] for i in order], drawn, label=label)
    cells = [[classes[i], *("" if (x := v[i]) is None else percent(x) for v in values)] for i in order]
    heads = ["class", *(a.name for a in with_classes)]
    return [Figure("Accuracy by class", caption, body, table=(heads, cells))]


def confusion(classes: list[str], arms: list[Arm], student: Arm | None) -> list[Figure]:
    if student is None or not (matrix := student.row.get("confusion")) or len(matrix) != len(classes):
        return []
    teacher = next((a.row.get("confusion") for a in arms if a.row.get("role") == "teacher"), None)
    teacher = teacher if teacher and len(teacher) == len(classes) else None
    shares = [[count / sum(line) if sum(line) else 0.0 for count in line] for line in matrix]
    errors = sorted(
        ((shares[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j and matrix[i][j]),
        reverse=True,
    )
    notes = [_pair(classes, matrix, teacher, i, j) for _, i, j in errors[:5]]
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
    body = plots.heatmap(
        names,
        names,
        [[100 * shares[i][j] for j in chosen] for i in chosen],
        label=f"Confusions of {student.name}, in per cent of each class",
        show=lambda v: f"{v:.0f}" if v >= 9.95 or v == 0 else f"{v:.1f}",
        x="called →",
        diagonal=False,
    )
    return [Figure(f"Confusions of {student.name}", caption + _first_seed([student]) + ".", body, tuple(notes))]


def _pair(classes: list[str], matrix: list[list[int]], teacher: list[list[int]] | None, i: int, j: int) -> Markup:
    count, total = matrix[i][j], sum(matrix[i])
    text = Markup("<b>{}</b> is called <b>{}</b> {:,} times in {:,}").format(classes[i], classes[j], count, total)
    if teacher is None:
        return text
    times = teacher[i][j]
    return text + Markup(" (teacher: {})").format(f"{times:,}" if times else "never")


def _first_seed(arms: list[Arm]) -> str:
    return ", for the first seed" if any(len(a.row.get("accuracy") or ()) > 1 for a in arms) else ""


def calibration(arms: list[Arm]) -> list[Figure]:
    curves = [(a, bins) for a in arms if (bins := _bins(a.row.get("reliability")))]
    if not curves:
        return []
    label = "Reliability: accuracy against confidence of " + ", ".join(a.name for a, _ in curves)
    body = plots.reliability([(a.name, a.tone, bins) for a, bins in curves], label=label)
    caption = (
        "On the line, a network is right as often as its confidence says; below it, it is too sure. "
        "The larger a dot, the more samples" + _first_seed(arms) + "."
    )
    notes = [
        Markup("<b>{}</b> is off by {} on average (expected calibration error)").format(a.name, percent(a.row["ece"]))
        for a in arms
        if _is_number(a.row.get("ece"))
    ]
    key = plots.legend([(a.name, a.tone) for a, _ in curves])
    return [Figure("Confidence and accuracy", caption, key + body, tuple(notes))]


def _bins(found: Any) -> list[plots.Bin]:
    if isinstance(found, dict):  # three lists, as an Evaluation has them
        found = [
            {"confidence": c, "accuracy": a, "count": n}
            for c, a, n in zip(found["confidence"], found["accuracy"], found["count"], strict=True)
        ]
    return [(b["confidence"], b["accuracy"], b["count"]) for b in found or () if b["count"]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# -- the method's own pictures -------------------------------------------------------------------------------


def picture(file: Path) -> Figure:
    try:
        data = read_json(file)
        draw = _KINDS[data["kind"]]
        return Figure(str(data.get("title", file.stem)), str(data.get("caption", "")), draw(data))
    except (UserError, KeyError, TypeError, ValueError, IndexError) as error:
        # A picture must not cost a person the report of a long run, nor be missed in silence.
        return Figure(file.stem, f"This picture cannot be drawn: {type(error).__name__}: {error}.", Markup(""))


def _images(data: dict[str, Any]) -> Markup:
    """Small images side by side; with ``layout: rows`` wide ones below each other, their labels on the left."""
    rows = data.get("layout") == "rows"
    items = []
    for item in data["items"]:
        content = base64.b64decode(item["png"], validate=True)
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError("an item is no PNG image")
        small = int.from_bytes(content[16:20], "big") <= 96
        template = '<li><img class="{}" src="data:image/png;base64,{}" alt="{}"><span>{}</span></li>'
        label = str(item.get("label", ""))
        source = base64.b64encode(content).decode()
        items.append(Markup(template).format("small" if small else "large", source, str(item.get("alt", label)), label))
    return Markup('<ul class="images{}">{}</ul>').format(" rows" if rows else "", Markup("").join(items))


def _heat(data: dict[str, Any]) -> Markup:
    rows, columns = [str(r) for r in data["rows"]], [str(c) for c in data["columns"]]
    digits = data.get("digits")

    def show(value: float) -> str:
        return plots.number(round(value, 3)) if digits is None else f"{value:.{int(digits)}f}".replace("-", "−")

    return plots.heatmap(rows, columns, data["values"], label=_label(data), show=show)


def _lines(data: dict[str, Any]) -> Markup:
    series = [Series(str(s["name"]), s["x"], s["y"], plots.tone_of(i)) for i, s in enumerate(data["series"]) if s["x"]]
    show = percent if data.get("unit") == "percent" else plots.number
    body = plots.lines(series, label=_label(data), x=str(data.get("x", "")), y=str(data.get("y", "")), show=show)
    return plots.legend([(s.name, s.tone) for s in series]) + body


def _bars(data: dict[str, Any]) -> Markup:
    items = [Bar(str(i["name"]), float(i["value"]), spread=i.get("spread")) for i in data["items"]]
    return plots.bars(items, label=_label(data))


def _label(data: dict[str, Any]) -> str:
    return str(data.get("title") or data["kind"])


_KINDS: dict[str, Callable[[dict[str, Any]], Markup]] = {
    "images": _images,
    "heatmap": _heat,
    "lines": _lines,
    "bars": _bars,
}
