"""The pictures that a method or a verb left in a run, ``pictures/*.json``, one function for each kind."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from upcycle.core.errors import UserError
from upcycle.core.read import checked, contents, parsed
from upcycle.measure.units import si
from upcycle.reports import kinds, svg
from upcycle.reports.bars import Bar, bar_chart, blocks, routes
from upcycle.reports.figures import Figure, Table, is_number
from upcycle.reports.lines import Series, line_plot
from upcycle.reports.matrices import heatmap, mosaic
from upcycle.reports.paths import Centre, Walk, fans
from upcycle.reports.rings import Ring, rings
from upcycle.reports.scatter import Point, scatter_plot
from upcycle.reports.svg import HUES, Piece, percent
from upcycle.reports.trees import tree

HEAT_KEY = Markup('<p class="heat"><span>speaks little</span><i></i><span>speaks most for the answer</span></p>')
MARKS = 200_000  # values of a picture; with more a page takes seconds to open, and shows none of them
CELLS = 40_000  # of a matrix with names, whose cells are drawn one by one
OVERLAYS = 8  # as many heat maps over one image as the page has styles for


def picture(file: Path) -> Figure:
    """A picture from its file; one that cannot be drawn says so in its caption."""
    named = Path(file.name)  # in a page that others read, without the place on this machine
    try:
        if (marks := (content := contents(file)).count(b",")) > MARKS:
            raise ValueError(f"it has {marks:,} values, more than the {MARKS:,} that a page shows")
        data = parsed(content, named)
        drawn = _KINDS[kinds.check(checked(data, dict[str, Any], named), named)](data)
        body, table = drawn if isinstance(drawn, tuple) else (drawn, None)
        notes = tuple(Markup("{}").format(str(note).rstrip(".")) for note in data.get("notes", ()))
        return Figure(str(data.get("title", file.stem)), str(data.get("caption", "")), body, notes, table)
    except (UserError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # A picture must not cost a person the report of a long run, nor be missed in silence.
        return Figure(file.stem, f"This picture cannot be drawn: {str(error).rstrip('.')}.", Markup(""))


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
    return Markup(
        '<fieldset class="overlay"><legend>Drawn over the images</legend>{}<ul class="images">{}</ul>{}</fieldset>'
    ).format(Markup("").join(buttons), Markup("").join(items), HEAT_KEY)


def _heat(data: dict[str, Any]) -> Markup:
    rows, columns = [str(r) for r in data["rows"]], [str(c) for c in data["columns"]]
    if len(rows) * len(columns) > CELLS:
        raise ValueError(f"{len(rows):,} x {len(columns):,} cells are more than the {CELLS:,} that a page shows")
    digits = data.get("digits")

    def show(value: float) -> str:
        return svg.number(round(value, 3)) if digits is None else f"{value:.{int(digits)}f}".replace("-", "−")

    return heatmap(rows, columns, data["values"], label=_label(data), show=show)


def _lines(data: dict[str, Any]) -> Markup:
    lines = [(str(s["name"]), s["x"], [math.nan if v is None else v for v in s["y"]]) for s in data["series"] if s["x"]]
    series = [Series(name, x, y, svg.tone_of(i)) for i, (name, x, y) in enumerate(lines)]
    show = percent if data.get("unit") == "percent" else svg.number
    body = line_plot(series, label=_label(data), x=str(data.get("x", "")), y=str(data.get("y", "")), show=show)
    return svg.legend([(s.name, s.tone) for s in series]) + body


def _bars(data: dict[str, Any]) -> Markup:
    items = [Bar(str(i["name"]), float(i["value"]), spread=i.get("spread")) for i in data["items"]]
    return bar_chart(items, label=_label(data))


def _routes(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Which channels of each layer are private to a class, shared and unused; many classes count as one group."""
    layers = [
        (str(layer["name"]), {str(group["label"]): group["count"] for group in layer["groups"]})
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
    body = svg.legend(list(tones.items())) + routes(bars, label=f"{_label(data)}. Of all channels: {said}")
    cells = [
        [name, *(f"{groups.get(label, 0):,}" for label in tones), f"{sum(groups.values()):,}"]
        for name, groups in layers
    ]
    return body, (["layer", *tones, "channels"], cells)


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
    items = [i for i in data["items"] if is_number(i["x"]) and is_number(i["y"])]
    if log and any(i["x"] <= 0 for i in items):
        raise ValueError("a logarithmic axis has no room for zero or less")
    large = max(abs(i["x"]) for i in items) > 5_000  # whose axis may end at 10,000
    show = si if large else svg.number
    groups = list(dict.fromkeys(str(i.get("group", "")) for i in items))
    tones = {group: HUES[i % len(HUES)] for i, group in enumerate(groups)}
    points, cells = [], []
    for item in items:
        name, group, front = str(item["name"]), str(item.get("group", "")), bool(item.get("front"))
        words = [
            name,
            group,
            f"{x} {show(item['x'])}",
            f"{y} {svg.number(item['y'])}",
            "on the front" if front else "",
        ]
        hint = ", ".join(word for word in words if word)
        points.append(Point(name, item["x"], item["y"], tones[group], front, hint))
        cells.append([name, group, show(item["x"]), svg.number(item["y"]), "yes" if front else ""])
    best = [p.name for p in sorted(points, key=lambda p: p.x) if p.front]
    label = f"{_label(data)}: {y} against {x} of {len(points)} {data.get('noun', 'networks')}" + (
        f"; on the front {', '.join(best)}" if best else ""
    )
    key = svg.legend([(group, tone) for group, tone in tones.items() if group])
    body = key + scatter_plot(points, label=label, x=x, y=y, show_x=_round if large else show, log=log)
    heads = ["name", "group", x, y, "on the front"]
    told = [i for i in range(len(heads)) if i in (0, 2, 3) or any(line[i] for line in cells)]
    return body, ([heads[i] for i in told], [[line[i] for i in told] for line in cells])


def _round(value: float) -> str:
    """A large value on an axis: ``2 M`` where a table says ``2.00 M``."""
    digits, *unit = si(value).split()
    return " ".join([f"{float(digits):g}", *unit])


def _map(data: dict[str, Any]) -> tuple[Markup, Table]:
    rows, columns = [str(r) for r in data["rows"]], [str(c) for c in data["columns"]]
    x, y = str(data.get("x", "")), str(data.get("y", ""))
    body = mosaic(
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
        value, best = max(((v, c) for v, c in zip(line, columns, strict=True) if is_number(v)), default=(None, ""))
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
    body = svg.legend(key) + blocks(networks, label=f"{_label(data)}: {'; '.join(said)}")
    return body, (["network", "block", "set", "share"], cells)


def _tree(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Leaves, each with the number of its node at every level; those below one node have the same way to there."""
    levels, leaves = [str(name) for name in data["levels"]], [str(name) for name in data["leaves"]]
    paths = [[int(number) for number in path] for path in data["paths"]]
    named = list(zip(leaves, paths, strict=True))
    heading = str(data.get("leaf", "leaf"))
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, path in named:
        groups.setdefault(tuple(path), []).append(name)
    said = "; ".join(f"{' and '.join(map(str, path))} has {', '.join(groups[path])}" for path in sorted(groups))
    body = tree(levels, named, label=f"{_label(data)}. {', '.join(levels)}: {said}", leaf=heading)
    cells = [[name, *map(str, path)] for name, path in sorted(named, key=lambda pair: pair[1])]
    return body, ([heading, *levels], cells)


def _rings(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Graphs as rings of nodes, and their numbers."""
    groups = [str(name) for name in data.get("groups", ())]
    graphs = [Ring(str(g["label"]), g["nodes"], [(a, b) for a, b in g["edges"]]) for g in data["items"]]
    body = rings(graphs, label=_label(data), groups=groups)
    cells = [[g.label, str(len(g.nodes)), str(len(g.edges))] for g in graphs]
    return body, (["graph", "nodes", "edges"], cells)


def _paths(data: dict[str, Any]) -> tuple[Markup, Table]:
    """Paths that leave a node, with their weights."""
    groups = [str(name) for name in data.get("groups", ())]
    centres = [
        Centre(
            str(item["label"]),
            [Walk([str(v) for v in p["nodes"]], p["groups"], p["weight"]) for p in item["paths"]],
            str(item.get("more", "")),
        )
        for item in data["items"]
    ]
    seen = {group for centre in centres for walk in centre.walks for group in walk.groups}
    key = [(name, HUES[i % len(HUES)]) for i, name in enumerate(groups) if i in seen]
    body = svg.legend(key) + fans(centres, label=_label(data), groups=groups)
    cells = [[c.label, " – ".join(walk.nodes), percent(walk.weight)] for c in centres for walk in c.walks]
    return body, (["of", "path", "weight"], cells)


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
    "graphs": _rings,
    "paths": _paths,
}
