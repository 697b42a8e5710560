"""The figures of a report: from the records of a run to pictures with a title and a caption."""

from __future__ import annotations

import base64
import csv
import hashlib
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from upcycle.core.errors import UserError
from upcycle.core.store import read_json
from upcycle.measure.units import si
from upcycle.report import plots
from upcycle.report.plots import HUES, Bar, Piece, Point, Series, percent

OVERLAYS = 8  # as many heat maps over one image as the page has styles for
MANY = 30  # more classes than that are not drawn in full
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
    """What the run made: the student or the product, or else the last row."""
    return next((arm for arm in arms if arm.row.get("role") in ("student", "product")), arms[-1] if arms else None)


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
        curves += _read_curves(file, arm.replace("-", " ") or seed, seed)
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
        losses = [c for c in logged if (c.arm, _home(c, tasks)) == (arm, stage) and "loss" in c.name]
        if losses:
            called = {c: _words(c.name) + (f", task {tasks[c.stage]}" if c.stage in tasks else "") for c in losses}
            names_here = list(dict.fromkeys(called.values()))
            tones_here = {name: plots.tone_of(i) for i, name in enumerate(names_here)}
            series = [Series(_seeded(called[c], c.seed), c.x, c.y, tones_here[called[c]]) for c in losses]
            label = f"Loss of {title(arm, stage)} over the epochs"
            body = plots.lines(series, label=label, x=losses[0].unit, y="loss")
            key = plots.legend(list(tones_here.items()))
            figures.append(Figure(f"Loss: {title(arm, stage)}", _one_line(losses), key + body))
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


def _pair(
    classes: list[str], matrix: list[list[int]], before: list[list[int]] | None, i: int, j: int, role: str
) -> Markup:
    count, total = matrix[i][j], sum(matrix[i])
    text = Markup("<b>{}</b> is called <b>{}</b> {:,} times in {:,}").format(classes[i], classes[j], count, total)
    if before is None:
        return text
    times = before[i][j]
    return text + Markup(" ({}: {})").format(role, f"{times:,}" if times else "never")


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
        drawn = _KINDS[data["kind"]](data)
        body, table = drawn if isinstance(drawn, tuple) else (drawn, None)
        notes = tuple(Markup("{}").format(str(note).rstrip(".")) for note in data.get("notes", ()))
        return Figure(str(data.get("title", file.stem)), str(data.get("caption", "")), body, notes, table)
    except (UserError, KeyError, TypeError, ValueError, IndexError) as error:
        # A picture must not cost a person the report of a long run, nor be missed in silence.
        return Figure(file.stem, f"This picture cannot be drawn: {type(error).__name__}: {error}.", Markup(""))


def _images(data: dict[str, Any]) -> Markup:
    """Small images side by side; with ``layout: rows`` wide ones below each other, their labels on the left."""
    rows = data.get("layout") == "rows"
    items = []
    for item in data["items"]:
        label = str(item.get("label", ""))
        picture = _png(item["png"], str(item.get("alt", label)))
        items.append(Markup("<li>{}<span>{}</span></li>").format(picture, label))
    return Markup('<ul class="images{}">{}</ul>').format(" rows" if rows else "", Markup("").join(items))


def _png(encoded: str, alt: str, kind: str = "") -> Markup:
    content = base64.b64decode(encoded, validate=True)
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("an item is no PNG image")
    size = "small" if int.from_bytes(content[16:20], "big") <= 96 else "large"
    template = Markup('<img class="{}" src="data:image/png;base64,{}" alt="{}">')
    return template.format(f"{size} {kind}".strip(), base64.b64encode(content).decode(), alt)


def _overlay(data: dict[str, Any]) -> Markup:
    """Images with heat maps over them, one of several methods at a time; a switch of radio buttons chooses which.

    The page has no script: the choice is style alone, so arrow keys move it, and what is not shown is not read out.
    """
    methods = [str(m) for m in data["methods"]]
    name = f"overlay-{hashlib.sha256(_label(data).encode()).hexdigest()[:8]}"
    if not 1 <= len(methods) <= OVERLAYS:
        raise ValueError(f"from 1 to {OVERLAYS} methods can be drawn over images, not {len(methods)}")
    buttons = []
    for i, method in enumerate([*methods, "image alone"]):
        template = '<input type="radio" name="{0}" id="{0}-{1}"{2}><label for="{0}-{1}">{3}</label>'
        buttons.append(Markup(template).format(name, i, Markup(" checked") if i == 0 else "", method))
    items = []
    for item in data["items"]:
        label = str(item.get("label", ""))
        maps = [_png(item["maps"][m], f"where {m} sees the reason", "over") for m in methods]
        below = _png(item["png"], str(item.get("alt", label)))
        template = '<li><span class="stack">{}{}</span><span>{}</span></li>'
        items.append(Markup(template).format(below, Markup("").join(maps), label))
    return Markup('<fieldset class="overlay"><legend>Drawn over the images</legend>{}<ul class="images">{}</ul>'
                  "</fieldset>").format(Markup("").join(buttons), Markup("").join(items))  # fmt: skip


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


def _routes(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Which channels of each layer are private to a class, shared and unused; many classes count as one group."""
    layers = [
        (str(layer["name"]), {str(group["label"]): _count(group["count"]) for group in layer["groups"]})
        for layer in data["layers"]
    ]
    found = list(dict.fromkeys(label for _, groups in layers for label in groups))
    private = [label for label in found if label not in ("shared", "unused")]
    if len(private) > len(HUES):
        layers = [(name, _together(groups, private)) for name, groups in layers]
        private = ["of one class only"]
    tones = dict(zip(private, HUES, strict=False)) | {label: label for label in ("shared", "unused") if label in found}
    totals = {label: sum(groups.get(label, 0) for _, groups in layers) for label in tones}
    bars = [(name, _layer(name, groups, tones), f"{sum(groups.values()):,}") for name, groups in layers]
    whole = sum(totals.values()) or 1
    said = ", ".join(f"{label} {percent(count / whole)}" for label, count in totals.items())
    body = plots.legend(list(tones.items())) + plots.routes(bars, label=f"{_label(data)}. Of all channels: {said}")
    cells = [
        [name, *(f"{groups.get(label, 0):,}" for label in tones), f"{sum(groups.values()):,}"]
        for name, groups in layers
    ]
    return body, (["layer", *tones, "channels"], cells)


def _count(value: Any) -> int:
    if not _is_number(value) or value < 0:
        raise ValueError(f"{value!r} is no number of channels")
    return int(value)


def _together(groups: dict[str, int], private: list[str]) -> dict[str, int]:
    others = {label: count for label, count in groups.items() if label not in private}
    return {"of one class only": sum(groups.get(label, 0) for label in private), **others}


def _layer(name: str, groups: dict[str, int], tones: dict[str, str]) -> list[Piece]:
    total = sum(groups.values())
    return [
        Piece(count, tone, f"{name}, {label}: {count:,} of {total:,} channels ({percent(count / total)})")
        for label, tone in tones.items()
        if (count := groups.get(label, 0))
    ]


def _scatter(data: dict[str, Any]) -> tuple[Markup, Table]:
    x, y, log = str(data["x"]), str(data["y"]), bool(data.get("log"))
    items = [i for i in data["items"] if _is_number(i["x"]) and _is_number(i["y"])]
    if log and any(i["x"] <= 0 for i in items):
        raise ValueError("a logarithmic axis has no room for zero or less")
    large = max(abs(i["x"]) for i in items) >= 10_000
    show = si if large else plots.number
    groups = list(dict.fromkeys(str(i.get("group", "")) for i in items))
    tones = {group: HUES[i % len(HUES)] for i, group in enumerate(groups)}
    points, cells = [], []
    for item in items:
        name, group, front = str(item["name"]), str(item.get("group", "")), bool(item.get("front"))
        words = [
            name,
            group,
            f"{x} {show(item['x'])}",
            f"{y} {plots.number(item['y'])}",
            "on the front" if front else "",
        ]
        hint = ", ".join(word for word in words if word)
        points.append(Point(name, item["x"], item["y"], tones[group], front, hint))
        cells.append([name, group, show(item["x"]), plots.number(item["y"]), "yes" if front else ""])
    best = [p.name for p in sorted(points, key=lambda p: p.x) if p.front]
    label = f"{_label(data)}: {y} against {x} of {len(points)} networks" + (
        f"; on the front {', '.join(best)}" if best else ""
    )
    key = plots.legend([(group, tone) for group, tone in tones.items() if group])
    body = key + plots.scatter(points, label=label, x=x, y=y, show_x=_round if large else show, log=log)
    return body, (["name", "group", x, y, "on the front"], cells)


def _round(value: float) -> str:
    """A large value on an axis: ``2 M`` where a table says ``2.00 M``."""
    digits, *unit = si(value).split()
    return " ".join([f"{float(digits):g}", *unit])


def _map(data: dict[str, Any]) -> tuple[Markup, Table]:
    rows, columns = [str(r) for r in data["rows"]], [str(c) for c in data["columns"]]
    x, y = str(data.get("x", "")), str(data.get("y", ""))
    body = plots.mosaic(
        rows,
        columns,
        data["values"],
        label=f"{_label(data)}: {len(rows)} rows"
        + f" of {y}" * bool(y)
        + f", {len(columns)} columns"
        + f" of {x}" * bool(x),
        low=float(data.get("low", 0)),
        high=float(data.get("high", 1)),
        row_breaks=[int(i) for i in data.get("row_breaks", ())],
        column_breaks=[int(i) for i in data.get("column_breaks", ())],
        x=f"{x} →" if x else "",
        y=f"← {y}" if y else "",
        show=_hundredths,
    )
    cells = []
    for name, line in zip(rows, data["values"], strict=True):
        value, best = max(((v, c) for v, c in zip(line, columns, strict=True) if _is_number(v)), default=(None, ""))
        cells.append([name, best, "" if value is None else _hundredths(value)])
    return body, ([y or "row", f"largest in {x}" if x else "largest in column", "value"], cells)


def _hundredths(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _blocks(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Networks cut into blocks; those of the same set can stand in for each other and have the same colour."""
    sets = sorted({int(b["set"]) for network in data["networks"] for b in network["blocks"]})
    tones = {number: HUES[i % len(HUES)] for i, number in enumerate(sets)}
    networks, cells, said = [], [], []
    for network in data["networks"]:
        name, found = str(network["name"]), network["blocks"]
        if not all(_is_number(b["width"]) and b["width"] >= 0 for b in found):
            raise ValueError(f"a block of {name} has no width")
        whole = sum(b["width"] for b in found) or 1
        pieces = []
        for b in found:
            label, share, number = str(b["label"]), percent(b["width"] / whole), int(b["set"])
            hint = f"{name}, {label}: set {number}, {share} of the network"
            pieces.append(Piece(b["width"], tones[number], hint, label))
            cells.append([name, label, str(number), share])
        networks.append((name, pieces))
        said.append(f"{name} in {len(found)} blocks of the sets {', '.join(str(int(b['set'])) for b in found)}")
    key = [(f"set {number}", tone) for number, tone in tones.items()] if len(sets) <= len(HUES) else []
    body = plots.legend(key) + plots.blocks(networks, label=f"{_label(data)}: {'; '.join(said)}")
    return body, (["network", "block", "set", "share"], cells)


def _tree(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Leaves, each with the number of its node at every level; those below one node have the same way to there."""
    levels, leaves = [str(name) for name in data["levels"]], [str(name) for name in data["leaves"]]
    paths = [[int(number) for number in path] for path in data["paths"]]
    if not levels or not leaves or any(len(path) != len(levels) for path in paths):
        raise ValueError(f"each leaf needs the number of its node at each of {len(levels)} levels")
    named = list(zip(leaves, paths, strict=True))
    heading = str(data.get("leaf", "leaf"))
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, path in named:
        groups.setdefault(tuple(path), []).append(name)
    said = "; ".join(f"{' and '.join(map(str, path))} has {', '.join(groups[path])}" for path in sorted(groups))
    body = plots.tree(levels, named, label=f"{_label(data)}. {', '.join(levels)}: {said}", leaf=heading)
    cells = [[name, *map(str, path)] for name, path in sorted(named, key=lambda pair: pair[1])]
    return body, ([heading, *levels], cells)


def _label(data: dict[str, Any]) -> str:
    return str(data.get("title") or data["kind"])


_KINDS: dict[str, Callable[[dict[str, Any]], Markup | tuple[Markup, Table]]] = {
    "images": _images,
    "overlay": _overlay,
    "heatmap": _heat,
    "lines": _lines,
    "bars": _bars,
    "routes": _routes,
    "scatter": _scatter,
    "map": _map,
    "blocks": _blocks,
    "tree": _tree,
}
