"""Plots as inline SVG: pure functions from numbers to markup, with colours left to the page's style sheet.

A plot is 400 units wide, so that on a phone it is drawn about as large as it is meant. Every mark carries a
``<title>`` that a browser shows on hover. All text is escaped. A *tone* is the name of a colour of the page:
``student``, ``teacher``, ``alone``, ``other``, ..., or of :data:`HUES`; the page's style sheet says which colour
that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

WIDTH = 400
Bin = tuple[float, float, float]
TONES = ("student", "teacher", "alone", "second", "other")
"""The tones of series that have no role of their own, in order."""
HUES = tuple(f"hue{i}" for i in range(10))
"""Ten tones that are told apart side by side, also by those who see red and green alike."""


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, its points and its tone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str = "student"


@dataclass(frozen=True)
class Bar:
    """One bar: a value, what it was measured as (one value for each seed), and its tone."""

    name: str
    value: float
    seeds: Sequence[float] = field(default_factory=tuple)
    spread: float | None = None
    tone: str = "student"


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot; ``front`` says whether no other point is better in both ways."""

    name: str
    x: float
    y: float
    tone: str = "hue0"
    front: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Piece:
    """One piece of a stacked bar: its size, its tone, what is written in it and what is said on hover."""

    size: float
    tone: str
    hint: str
    text: str = ""


def number(value: float) -> str:
    """A value as an axis or a hover text shows it: at most four significant digits, no trailing zeros."""
    text = f"{value:.4g}"
    return text.replace("-", "−") if "e" not in text else text


def percent(value: float) -> str:
    """A share in per cent: ``98.4 %``."""
    return f"{100 * value:.1f} %"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values, from one at or below ``low`` to one at or above ``high``."""
    if not high - low > 1e-300:  # subnormal numbers have no digits to divide
        margin = (abs(low) if abs(low) > 1e-300 else 1) / 2
        low, high = low - margin, low + margin
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tone_of(index: int) -> str:
    """The tone of the ``index``-th of several equal series."""
    return TONES[index % len(TONES)]


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """A list of (name, tone) above a plot; in HTML, so that it wraps."""
    items = Markup("").join(Markup('<li><span class="key tone-{}"></span>{}</li>').format(t, n) for n, t in entries)
    return Markup('<ul class="legend">{}</ul>').format(items)


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x: str = "",
    y: str = "",
    show: Callable[[float], str] = number,
    height: int = 230,
    log: bool = False,
) -> Markup:
    """Lines over a common axis, each point with its own hover text.

    Args:
        series: at least one, with at least one finite point.
        label: what the picture shows, for those who cannot see it.
        x, y: what the axes mean.
        show: how a value of the vertical axis is written.
        log: a logarithmic horizontal axis; all x must be positive.
    """
    points = [(a, b) for s in series for a, b in _finite(s)]
    across = [a for a, _ in points]
    xs = _decades(min(across), max(across)) if log else _axis(across, 6, whole=True)
    ys = _axis([b for _, b in points], 5)
    left = 12 + 6.4 * max(len(_tick(show(v))) for v in ys)
    box = _Box(left, 20, WIDTH - 14, height - 36, (xs[0], xs[-1]), (ys[0], ys[-1]), log)
    parts = [
        _grid(box, xs, ys, show, _whole if log else number),
        _text(left - 6, 9, y, "note", "start" if left < 60 else "end", at=2),
    ]
    parts.append(_text(box.right, height - 4, x, "note", "end"))
    for one in series:
        at = [(box.x(a), box.y(b), a, b) for a, b in _finite(one)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in at)
        parts.append(Markup('<polyline class="line tone-{}" points="{}"/>').format(one.tone, path))
        radius = 2.4 if len(at) <= 12 else 1.4
        for px, py, a, b in at:
            hint = f"{one.name}: {show(b)}" + (f" at {x} {number(a)}" if x else f" at {number(a)}")
            parts.append(_dot(px, py, radius, f"{one.tone} point", hint))
    return _svg(height, label, parts)


def bars(
    items: Sequence[Bar], *, label: str, show: Callable[[float], str] = number, top: float | None = None
) -> Markup:
    """Horizontal bars with a whisker of one standard deviation and a dot for each seed.

    Bars start at zero. Where the values lie so close together that nothing would be seen, the axis starts
    later, and there are only whiskers and dots, which do not pretend to have a length.

    Args:
        items: at least one; names stand above their bars.
        label: for those who cannot see it.
        show: how a value is written.
        top: the highest value there can be, which the axis does not exceed.
    """
    low, high = _range(items)
    cut = starts_late(items)
    scale = ticks(low if cut else min(low, 0.0), high if cut else max(high, 0.0), 5)
    if top is not None:
        scale = [v for v in scale if v <= top + 1e-9]
        high = max(high, scale[-1])
    margin, row = 64, 50
    height = row * len(items) + 28
    box = _Box(6, 4, WIDTH - margin, height - 24, (scale[0], max(scale[-1], high)), (0, 1))
    parts = [_columns(box, scale, show)]
    for i, bar in enumerate(items):
        middle, end = 4 + row * i + 32, box.x(bar.value)
        parts.append(_text(6, middle - 16, _short(bar.name, WIDTH - 12), "name", "start", full=bar.name))
        values = ", ".join(show(v) for v in bar.seeds)
        hint = f"{bar.name}: {show(bar.value)}" + (f" (seeds: {values})" if len(bar.seeds) > 1 else "")
        if not cut:
            start = box.x(0.0)
            parts.append(
                Markup(
                    '<rect class="bar tone-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="16">'
                    "<title>{}</title></rect>"
                ).format(bar.tone, min(start, end), middle - 8, max(abs(end - start), 1), hint)
            )
        else:
            parts.append(Markup('<path class="rail" d="M{:.1f} {:.1f}H{:.1f}"/>').format(box.left, middle, box.right))
        if bar.spread:
            a, b = box.x(bar.value - bar.spread), box.x(min(bar.value + bar.spread, box.domain_x[1]))
            parts.append(
                Markup('<path class="whisker" d="M{:.1f} {}H{:.1f}M{:.1f} {}v8M{:.1f} {}v8"/>').format(
                    a, middle, b, a, middle - 4, b, middle - 4
                )
            )
        if cut:
            parts.append(
                Markup('<path class="mean tone-{}" d="M{:.1f} {}v16"><title>{}</title></path>').format(
                    bar.tone, end, middle - 8, hint
                )
            )
        if len(bar.seeds) > 1:
            parts += [_dot(box.x(v), middle, 3, f"{bar.tone} seed", f"{bar.name}: {show(v)}") for v in bar.seeds]
        parts.append(_text(WIDTH - 2, middle + 4, show(bar.value), "value", "end"))
    return _svg(height, label, parts)


def starts_late(items: Sequence[Bar]) -> bool:
    """Whether the values lie so close together that :func:`bars` does not begin at zero."""
    low, high = _range(items)
    return low > 0 and (high - low) < 0.25 * high


def _range(items: Sequence[Bar]) -> tuple[float, float]:
    seen = [v for b in items for v in (*b.seeds, b.value - (b.spread or 0), b.value + (b.spread or 0))]
    return min(seen), max(seen)


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    label: str,
    show: Callable[[float], str] = number,
    x: str = "",
    y: str = "",
    diagonal: bool = True,
) -> Markup:
    """A matrix as coloured cells: the stronger the colour, the larger the value; negative ones in grey.

    Args:
        rows, columns: names, from the top and from the left.
        values: a row of cells for each row; ``None`` leaves a cell empty.
        label: for those who cannot see it.
        show: how a value is written, in the cell where it fits and always on hover.
        x, y: what columns and rows mean.
        diagonal: whether the diagonal takes part in the colours; a strong one hides all others.
    """
    left = 10 + min(7 * max(len(n) for n in rows), 104) + (14 if y else 0)
    longest = min(6.2 * max(len(n) for n in columns), 96)
    slanted = longest > (WIDTH - left) / len(columns) - 6
    over = 0.64 * min(6.2 * len(columns[-1]), 96) if slanted else 4  # the last label leans out to the right
    cell = min((WIDTH - left - max(over - 12, 4)) / len(columns), 44.0)
    tall = max(min(cell, 30.0), 12.0) if len(rows) <= 30 else max(cell, 5.0)
    head = (18 if x else 4) + (longest * 0.77 + 12 if slanted else 18)
    shown = [
        abs(v)
        for i, line in enumerate(values)
        for j, v in enumerate(line)
        if v is not None and math.isfinite(v) and (diagonal or i != j)
    ]
    largest = max(shown, default=0.0) or 1.0
    parts = [
        _text(left, 11, x, "note", "start"),
        _text(0, 0, y, "note", "middle", turn=(9, head + tall * len(rows) / 2, -90)),
    ]
    for j, name in enumerate(columns):
        at = left + (j + 0.5) * cell
        turn = (at + 3, head - 6, -50) if slanted else None
        short = _short(name, 100 if slanted else cell + 4)
        if cell >= 9:
            parts.append(_text(at, head - 6, short, "tick", "start" if slanted else "middle", turn=turn, full=name))
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        top = head + i * tall
        if tall >= 9:
            parts.append(_text(left - 6, top + tall / 2 + 4, _short(name, 104), "tick", "end", full=name))
        for j, value in enumerate(line):
            if value is None or not math.isfinite(value):
                continue
            muted = not diagonal and i == j
            strength = 0.0 if muted else abs(value) / largest
            kind = "cell muted" if muted else "cell negative" if value < 0 else "cell"
            parts.append(
                Markup(
                    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
                    'fill-opacity="{:.2f}"><title>{}</title></rect>'
                ).format(
                    kind, left + j * cell, top, cell - 1, tall - 1, 1.0 if muted else 0.06 + 0.94 * strength,
                    f"{name}, {columns[j]}: {show(value)}",
                )
            )  # fmt: skip
            text = show(value)
            if cell >= 7 * len(text) + 2 and (value or diagonal):
                kind = "tick on" if strength > 0.68 else "tick in"
                parts.append(_text(left + (j + 0.5) * cell - 0.5, top + tall / 2 + 4, text, kind, "middle"))
    return _svg(head + tall * len(rows) + 4, label, parts)


def reliability(curves: Sequence[tuple[str, str, Sequence[Bin]]], *, label: str) -> Markup:
    """Accuracy against confidence; on the diagonal a network is as often right as it says.

    Args:
        curves: (name, tone, bins) of each network; a bin is (confidence, accuracy, count). The area of a dot
            is the share of samples in its bin.
        label: for those who cannot see it.
    """
    height = 300
    scale = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    box = _Box(52, 20, WIDTH - 14, height - 36, (0, 1), (0, 1))
    parts = [_grid(box, scale, scale, percent, show_x=percent), _text(2, 9, "accuracy", "note", "start")]
    parts.append(_text(box.right, height - 4, "confidence", "note", "end"))
    parts.append(
        Markup('<path class="diagonal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
            box.x(0), box.y(0), box.x(1), box.y(1)
        )
    )
    for name, tone, bins in curves:
        total = sum(count for _, _, count in bins) or 1
        at = [(box.x(c), box.y(a), c, a, n) for c, a, n in bins if n > 0]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in at)
        parts.append(Markup('<polyline class="line thin tone-{}" points="{}"/>').format(tone, path))
        for px, py, c, a, n in at:
            hint = f"{name}: {percent(a)} right at {percent(c)} confidence, {n:,.0f} samples"
            parts.append(_dot(px, py, 1.8 + 9 * math.sqrt(n / total), f"{tone} bubble", hint))
    return _svg(height, label, parts)


def dumbbells(names: Sequence[str], arms: Sequence[tuple[str, str, Sequence[float | None]]], *, label: str) -> Markup:
    """One line for each class with a dot for each network, so that what was lost and won can be seen.

    Args:
        names: the classes, from the top.
        arms: (name, tone, share right by class) of each network.
        label: for those who cannot see it.
    """
    known = [v for _, _, values in arms for v in values if v is not None]
    scale = [v for v in ticks(min(known), max(known), 5) if v <= 1 + 1e-9]
    left, row = 14 + min(6.8 * max(len(n) for n in names), 120), 21
    height = row * len(names) + 30
    box = _Box(left, 4, WIDTH - 20, height - 24, (scale[0], max(scale[-1], max(known))), (0, 1))
    parts = [_columns(box, scale, percent)]
    for i, name in enumerate(names):
        middle = 4 + row * (i + 0.5)
        parts.append(_text(left - 8, middle + 4, _short(name, 120), "tick", "end", full=name))
        here = [(arm, tone, values[i]) for arm, tone, values in arms]
        found = [(arm, tone, v) for arm, tone, v in here if v is not None]
        for (_, _, a), (_, _, b) in pairwise(sorted(found, key=lambda f: f[2])):
            parts.append(Markup('<path class="rail" d="M{:.1f} {:.1f}H{:.1f}"/>').format(box.x(a), middle, box.x(b)))
        parts += [_dot(box.x(v), middle, 4.2, tone, f"{name}, {arm}: {percent(v)}") for arm, tone, v in found]
    return _svg(height, label, parts)


def routes(layers: Sequence[tuple[str, Sequence[Piece], str]], *, label: str) -> Markup:
    """Whose channels the layers hold: each layer a stacked bar of the same length, cut into shares.

    Up to sixteen layers stand as columns, more lie as rows.

    Args:
        layers: (name, pieces, size in words) from the first to the last; a layer of no channels is an empty bar.
        label: for those who cannot see it.
    """
    scale = [0.0, 0.25, 0.5, 0.75, 1.0]
    longest = max(len(name) for name, _, _ in layers)
    if len(layers) > 16:
        row, left = 14.0, 14 + min(6.4 * longest, 120)
        right = WIDTH - 10 - 6.8 * max(len(size) for _, _, size in layers)
        box = _Box(left, 2, right, 6 + row * len(layers), (0, 1), (0, 1))
        parts = [_columns(box, scale, percent)]
        for i, (name, pieces, size) in enumerate(layers):
            top = 4 + row * i
            parts.append(_text(left - 6, top + 10, _short(name, 124), "tick", "end", full=name))
            parts += [
                _piece(p, left + a * (right - left), top + 1, b * (right - left), row - 2) for p, a, b in _cut(pieces)
            ]
            parts.append(_text(WIDTH - 2, top + 10, size, "tick", "end"))
        return _svg(box.bottom + 24, label, parts)
    slanted = 6.6 * longest > (WIDTH - 56) / len(layers) - 4
    reach = min(6.2 * longest, 96) if slanted else 0.0  # a slanted name leans out to the left of its column
    left = max(46.0, 0.64 * reach + 8)
    step = min((WIDTH - 4 - left) / len(layers), 64.0)
    box = _Box(left, 20, left + step * len(layers), 200, (0, 1), (0, 1))
    parts = [_grid(box, [], scale, percent)]
    for i, (name, pieces, size) in enumerate(layers):
        middle, wide = left + step * (i + 0.5), step * 0.8
        for piece, start, share in _cut(pieces):
            tall = share * (box.bottom - box.top)
            parts.append(_piece(piece, middle - wide / 2, box.y(start) - tall, wide, tall))
        if 6.6 * len(size) <= step + 2:
            parts.append(_text(middle, box.top - 6, size, "tick", "middle"))
        turn = (middle + 4, box.bottom + 13, -50) if slanted else None
        short = _short(name, 100 if slanted else step + 4)
        parts.append(
            _text(middle, box.bottom + 16, short, "tick", "end" if slanted else "middle", turn=turn, full=name)
        )
    return _svg(box.bottom + 24 + 0.77 * reach, label, parts)


def blocks(networks: Sequence[tuple[str, Sequence[Piece]]], *, label: str) -> Markup:
    """Each network as a bar of the same length, cut into its blocks.

    Args:
        networks: (name, blocks in the order in which they run); names stand above their bars.
        label: for those who cannot see it.
    """
    row, tall = 50, 24
    parts = []
    for i, (name, pieces) in enumerate(networks):
        top = row * i + 20
        parts.append(_text(2, top - 7, _short(name, WIDTH - 4), "name", "start", full=name))
        for piece, start, share in _cut(pieces):
            parts.append(_piece(piece, 2 + start * (WIDTH - 4), top, share * (WIDTH - 4), tall))
    return _svg(row * len(networks), label, parts)


def tree(levels: Sequence[str], leaves: Sequence[tuple[str, Sequence[int]]], *, label: str, leaf: str = "") -> Markup:
    """A tree that lies on its side, its root not drawn: nodes of each level below their heading, leaves on the right.

    Args:
        levels: headings, from the root on.
        leaves: (name, number of the node that it hangs on at each level), at least one; they are drawn in the order
            of their paths, so that no two branches cross, a row for each.
        label: for those who cannot see it.
        leaf: the heading of the leaves.
    """
    row, head = 20, 24
    leaves = sorted(leaves, key=lambda named: list(named[1]))
    step = min((WIDTH - 150) / len(levels), 84.0)  # the rest is for the names of the leaves
    end, wide = step * len(levels) + 4, min(26.0, 0.7 * step)
    found: dict[tuple[int, ...], list[int]] = {}  # the rows below each node, by its path
    for i, (_, path) in enumerate(leaves):
        for depth in range(len(levels)):
            found.setdefault(tuple(path[: depth + 1]), []).append(i)
    middle = {path: head + row * (sum(rows) / len(rows) + 0.5) for path, rows in found.items()}
    ends = [path for path in found if len(path) == len(levels)]
    tones = {path: HUES[i % len(HUES)] for i, path in enumerate(ends)}
    parts = [
        _text(2 + step * i, 11, _short(name, step - 4), "note", "start", full=name) for i, name in enumerate(levels)
    ]
    parts.append(_text(end, 11, _short(leaf, WIDTH - end), "note", "start", full=leaf))
    edges = [(path[:-1], middle[path], 2 + step * (len(path) - 1)) for path in found if len(path) > 1]
    edges += [(tuple(path), head + row * (i + 0.5), end - 4) for i, (_, path) in enumerate(leaves)]
    for parent, y, x in edges:
        start = 2 + step * (len(parent) - 1) + wide
        bend = (start + x) / 2
        curve = Markup('<path class="rail" d="M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}"/>')
        parts.append(curve.format(start, middle[parent], bend, middle[parent], bend, y, x, y))
    for path, rows in found.items():
        named = ", ".join(leaves[i][0] for i in rows)
        hint = f"{levels[len(path) - 1]}, {path[-1]}: {named}"
        x, number_here, tone = 2 + step * (len(path) - 1), str(path[-1]), tones.get(path)
        parts.append(
            _piece(Piece(1, tone or "unused", hint, number_here if tone else ""), x, middle[path] - 8, wide, 17)
        )
        if tone is None:
            parts.append(_text(x + wide / 2, middle[path] + 4, number_here, "tick in", "middle", full=hint))
    for i, (name, _) in enumerate(leaves):
        y = head + row * (i + 0.5) + 4
        parts.append(_text(end, y, _short(name, WIDTH - end), "tick", "start", full=name))
    return _svg(head + row * len(leaves) + 4, label, parts)


def _cut(pieces: Sequence[Piece]) -> Iterable[tuple[Piece, float, float]]:
    """Each piece that has a size, where it starts and how long it is, as shares of the whole."""
    whole, start = sum(piece.size for piece in pieces), 0.0
    for piece in pieces:
        if piece.size:
            yield piece, start, piece.size / whole
            start += piece.size / whole


def _piece(piece: Piece, x: float, y: float, width: float, height: float) -> Markup:
    gap = [1.0 if side > 4 else 0.0 for side in (width, height)]  # the smallest pieces are drawn in full
    drawn = Markup(
        '<rect class="piece tone-{}" x="{:.1f}" y="{:.1f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
    ).format(piece.tone, x, y, width - gap[0], height - gap[1], piece.hint)
    text = _short(piece.text, width - 4)
    if not text or len(text) < min(len(piece.text), 5):
        return drawn  # a letter or two would say nothing
    kind = f"tick inside tone-{piece.tone}"
    return drawn + _text(x + width / 2, y + height / 2 + 4, text, kind, "middle", full=piece.hint)


def scatter(
    points: Sequence[Point],
    *,
    label: str,
    x: str,
    y: str,
    show_x: Callable[[float], str] = number,
    show_y: Callable[[float], str] = number,
    log: bool = False,
    height: int = 320,
    most: int = 12,
) -> Markup:
    """Points in a plane with a line along the front, and names where there is room for them.

    Args:
        points: at least one, all finite.
        label: for those who cannot see it.
        x, y: what the axes mean.
        show_x, show_y: how values are written.
        log: a logarithmic horizontal axis; all x must be positive.
        most: how many names are written at most, those of the front first, then in the order of ``points``; all
            are shown on hover.
    """
    across = [p.x for p in points]
    xs = _decades(min(across), max(across)) if log else _axis(across, 6)
    ys = _axis([p.y for p in points], 5)
    left = 12 + 6.4 * max(len(_tick(show_y(v))) for v in ys)
    box = _Box(left, 38, WIDTH - 14, height - 36, (xs[0], xs[-1]), (ys[0], ys[-1]), log)
    front = sorted((box.x(p.x), box.y(p.y)) for p in points if p.front)
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in front)
    parts = [
        _grid(box, xs, ys, show_y, show_x),
        _text(left - 6, 9, y, "note", "start", at=2),
        _text(box.right, height - 4, x, "note", "end"),
    ]
    if len(front) > 1:
        parts.append(Markup('<polyline class="front" points="{}"/>').format(path))
    parts += [_dot(box.x(p.x), box.y(p.y), 4.4, p.tone, p.hint or p.name) for p in points]
    return _svg(height, label, parts + _names(points, box, front, most))


_Area = tuple[float, float, float, float]  # left, top, right, bottom


def _names(points: Sequence[Point], box: _Box, front: Sequence[tuple[float, float]], most: int) -> list[Markup]:
    """The names of points beside them, where they cover no point, no other name, and nothing of the front."""
    at = [(box.x(p.x), box.y(p.y)) for p in points]
    taken: list[_Area] = [(a - 5, b - 5, a + 5, b + 5) for a, b in at]
    steps = [i / 40 for i in range(41)]
    line = [(a + t * (c - a), b + t * (d - b)) for (a, b), (c, d) in pairwise(front) for t in steps]
    parts: list[Markup] = []
    for i in sorted(range(len(points)), key=lambda i: not points[i].front)[:most]:
        text, (px, py) = _short(points[i].name, 150), at[i]
        wide = 6.3 * len(text)
        places = [
            (px + shift, py + down, anchor, px + shift - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor])
            for shift, down, anchor in (
                *((8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle")),
                *((6, -8, "start"), (-6, -8, "end"), (6, 15, "start"), (-6, 15, "end")),
            )
        ]
        for tx, ty, anchor, start in places:
            area = (start, ty - 10, start + wide, ty + 3)
            inside = area[0] >= box.left and area[1] >= 14 and area[2] <= WIDTH and area[3] <= box.bottom - 1
            crossed = any(area[0] < a < area[2] and area[1] < b < area[3] for a, b in line)
            if inside and not crossed and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                parts.append(_text(tx, ty, text, "tick in tag", anchor, full=points[i].name))
                break
    return parts


def _overlap(a: _Area, b: _Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def mosaic(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    label: str,
    low: float,
    high: float,
    row_breaks: Sequence[int] = (),
    column_breaks: Sequence[int] = (),
    x: str = "",
    y: str = "",
    show: Callable[[float], str] = number,
) -> Markup:
    """A large matrix as coloured cells without gaps, with lines between blocks and a bar of the colours.

    Cells of the same written value that lie beside each other are drawn as one.

    Args:
        rows, columns: names, from the top and from the left; where cells are small only some are written, those
            that begin a block first.
        values: a row of cells for each row; ``None`` leaves a cell empty.
        label: for those who cannot see it.
        low, high: the values of the weakest and of the strongest colour; ``high`` is the larger one.
        row_breaks, column_breaks: the numbers of rows and columns that begin a block.
        x, y: what columns and rows are.
        show: how a value is written.
    """
    if not high > low:
        raise ValueError(f"the strongest colour must stand for more than the weakest, not {high} for {low}")
    left = 8 + min(6.4 * max(len(n) for n in rows), 104) + (16 if y else 0)
    reach = min(6.2 * max(len(n) for n in columns), 96)
    edge = 22 + 6.6 * max(len(show(low)), len(show(high)))  # for the bar of the colours, and for names that lean out
    wide = min((WIDTH - left - max(edge, 0.64 * reach)) / len(columns), 26.0)
    tall = min(wide, 26.0) if len(rows) * wide <= 480 else 480 / len(rows)
    head = (18 if x else 2) + reach * 0.77 + 12
    right, bottom = left + wide * len(columns), head + tall * len(rows)

    def opacity(value: float) -> float:
        return 0.05 + 0.95 * min(max((value - low) / (high - low), 0.0), 1.0)

    parts = [
        _text(left, 11, x, "note", "start"),
        _text(0, 0, y, "note", "middle", turn=(9, (head + bottom) / 2, -90)),
    ]
    for j in _labelled(len(columns), column_breaks, wide, 12):
        turn = (left + (j + 0.5) * wide + 3, head - 5, -50)
        parts.append(_text(0, 0, _short(columns[j], 100), "tick", "start", turn=turn, full=columns[j]))
    cells = []
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        known = [v if v is not None and math.isfinite(v) else None for v in line]
        texts = [None if v is None else show(v) for v in known]
        if len(texts) != len(columns):
            raise ValueError(f"row {i} has {len(texts)} values for {len(columns)} columns")
        start = 0
        for j in range(1, len(texts) + 1):
            if j < len(texts) and texts[j] == texts[start]:
                continue
            if (value := known[start]) is not None:
                beside = columns[start] + (f" to {columns[j - 1]}" if j - start > 1 else "")
                template = '<path d="M{} {}h{}v1H{}z" fill-opacity="{:.2f}"><title>{}</title></path>'
                hint = f"{name}, {beside}: {texts[start]}"
                cells.append(Markup(template).format(start, i, j - start, start, opacity(value), hint))
            start = j
    place = Markup('<g class="map" transform="translate({:.1f} {:.1f}) scale({:.3f} {:.3f})">{}</g>')
    parts.append(place.format(left, head, wide, tall, Markup("").join(cells)))
    for i in _labelled(len(rows), row_breaks, tall, 12):
        parts.append(_text(left - 5, head + (i + 0.5) * tall + 4, _short(rows[i], 108), "tick", "end", full=rows[i]))
    edges = [f"M{left:.1f} {head + i * tall:.1f}H{right:.1f}" for i in row_breaks if 0 < i < len(rows)]
    edges += [f"M{left + j * wide:.1f} {head:.1f}V{bottom:.1f}" for j in column_breaks if 0 < j < len(columns)]
    parts.append(Markup('<path class="edge" d="{}"/>').format("".join(edges)) if edges else Markup(""))
    return _svg(max(bottom, head + 84) + 6, label, [*parts, _colours(right + 10, head, low, high, show, opacity)])


def _labelled(count: int, breaks: Sequence[int], size: float, room: float) -> list[int]:
    """Which of ``count`` cells get their name written, if a name takes ``room`` and a cell ``size``."""
    chosen: list[int] = []
    starts = sorted({0, *(i for i in breaks if 0 < i < count)})
    for i in (*starts, *range(count)):
        if all(abs(i - other) * size >= room for other in chosen):
            chosen.append(i)
    return chosen


def _colours(
    x: float, y: float, low: float, high: float, show: Callable[[float], str], opacity: Callable[[float], float]
) -> Markup:
    """A bar of the colours of a map, the strongest on top, with its ends written beside it."""
    steps = 14
    parts = [
        Markup('<path d="M{:.1f} {:.1f}h10v6h-10z" fill-opacity="{:.2f}"/>').format(
            x, y + 6 * i, opacity(high - (high - low) * i / (steps - 1))
        )
        for i in range(steps)
    ]
    parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h10v{}h-10z"/>').format(x, y, 6 * steps))
    ends = _text(x + 15, y + 9, show(high), "tick", "start") + _text(x + 15, y + 6 * steps, show(low), "tick", "start")
    return Markup('<g class="map">{}</g>').format(Markup("").join(parts)) + ends


@dataclass(frozen=True)
class _Box:
    """Where data are drawn: pixel edges and the domains that they stand for."""

    left: float
    top: float
    right: float
    bottom: float
    domain_x: tuple[float, float]
    domain_y: tuple[float, float]
    log_x: bool = False

    def x(self, value: float) -> float:
        low, high = self.domain_x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.domain_y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _finite(series: Series) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _axis(values: Sequence[float], count: int, *, whole: bool = False) -> list[float]:
    low, high = min(values), max(values)
    scale = ticks(low, high, count)
    if whole and all(v == int(v) for v in values) and high > low:  # epochs: no half ones, and no empty margin
        inner = [v for v in scale if v == int(v) and low <= v <= high]
        return sorted({low, *[v for v in inner if v - low > 0.04 * (high - low)], high})
    return scale


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from one at or below ``low`` to one at or above ``high``, two at least.

    Over more than three decades only the powers of ten, and both ends.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    steps = [s * 10.0**power for power in range(first, last + 1) for s in (1, 2, 5)]
    start = max(i for i, v in enumerate(steps) if v <= low * (1 + 1e-9))
    end = min(i for i, v in enumerate(steps) if v >= high * (1 - 1e-9))
    steps = steps[start : max(end, start + 1) + 1]
    return [v for i, v in enumerate(steps) if len(steps) <= 10 or i in (0, len(steps) - 1) or f"{v:e}"[0] == "1"]


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else number(value)


def _grid(
    box: _Box,
    xs: Sequence[float],
    ys: Sequence[float],
    show: Callable[[float], str],
    show_x: Callable[[float], str] = number,
) -> Markup:
    parts = []
    for v in ys:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(box.left, box.y(v), box.right))
        parts.append(_text(box.left - 6, box.y(v) + 4, _tick(show(v)), "tick", "end"))
    last = math.inf
    for v in reversed(xs):  # from the right, so that the last epoch keeps its label
        if last - box.x(v) > 7 * len(_tick(show_x(v))) + 6:
            parts.append(_text(box.x(v), box.bottom + 16, _tick(show_x(v)), "tick", "middle"))
            last = box.x(v)
    return Markup("").join(parts)


def _tick(text: str) -> str:
    return text.replace(".0 %", " %")


def _columns(box: _Box, xs: Sequence[float], show: Callable[[float], str]) -> Markup:
    parts = []
    for v in xs:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(box.x(v), box.top, box.bottom))
        anchor = "start" if box.x(v) < 20 else "middle"
        parts.append(_text(box.x(v), box.bottom + 16, _tick(show(v)), "tick", anchor))
    return Markup("").join(parts)


def _dot(x: float, y: float, radius: float, tone: str, hint: str) -> Markup:
    return Markup('<circle class="dot tone-{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
        tone, x, y, radius, hint
    )


def _text(
    x: float,
    y: float,
    text: str,
    kind: str,
    anchor: str,
    *,
    at: float | None = None,
    turn: tuple[float, float, float] | None = None,
    full: str = "",
) -> Markup:
    if not text:
        return Markup("")
    place = (
        Markup('transform="translate({:.1f} {:.1f}) rotate({})"').format(*turn)
        if turn
        else Markup('x="{:.1f}" y="{:.1f}"').format(x if at is None or anchor != "start" else at, y)
    )
    hint = Markup("<title>{}</title>").format(full) if full and full != text else ""
    return Markup('<text class="{}" {} text-anchor="{}">{}{}</text>').format(kind, place, anchor, text, hint)


def _short(text: str, pixels: float) -> str:
    fits = max(int(pixels / 6.6), 2)
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _svg(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )
