"""Matrices as coloured cells: small ones with their values written in, large ones without gaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import WIDTH, number


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
    full: float = 0.0,
) -> Markup:
    """A matrix as coloured cells: the stronger the colour, the larger the value; negative ones in grey.

    Args:
        rows, columns: names, from the top and from the left.
        values: a row of cells for each row; ``None`` leaves a cell empty.
        label: for those who cannot see it.
        show: how a value is written, in the cell where it fits and always on hover.
        x, y: what columns and rows mean.
        diagonal: whether the diagonal takes part in the colours; a strong one hides all others.
        full: the least value with the strongest colour; that of the largest if it is larger.
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
    largest = max(*shown, full, 0.0) or 1.0
    parts = [
        svg.write(left, 11, x, "note", "start"),
        svg.write(0, 0, y, "note", "middle", turn=(9, head + tall * len(rows) / 2, -90)),
    ]
    for j, name in enumerate(columns):
        at = left + (j + 0.5) * cell
        turn = (at + 3, head - 6, -50) if slanted else None
        short = svg.shorten(name, 100 if slanted else cell + 4)
        if cell >= 9:
            parts.append(svg.write(at, head - 6, short, "tick", "start" if slanted else "middle", turn=turn, full=name))
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        top = head + i * tall
        if tall >= 9:
            parts.append(svg.write(left - 6, top + tall / 2 + 4, svg.shorten(name, 104), "tick", "end", full=name))
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
                    kind,
                    left + j * cell,
                    top,
                    cell - 1,
                    tall - 1,
                    1.0 if muted else 0.06 + 0.94 * strength,
                    f"{name}, {columns[j]}: {show(value)}",
                )
            )
            text = show(value)
            if cell >= 7 * len(text) + 2 and (value or diagonal):
                kind = "tick on" if strength > 0.68 else "tick in"
                parts.append(svg.write(left + (j + 0.5) * cell - 0.5, top + tall / 2 + 4, text, kind, "middle"))
    return svg.drawing(head + tall * len(rows) + 4, label, parts)


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
        svg.write(left, 11, x, "note", "start"),
        svg.write(0, 0, y, "note", "middle", turn=(9, (head + bottom) / 2, -90)),
    ]
    for j in _labelled(len(columns), column_breaks, wide, 12):
        turn = (left + (j + 0.5) * wide + 3, head - 5, -50)
        parts.append(svg.write(0, 0, svg.shorten(columns[j], 100), "tick", "start", turn=turn, full=columns[j]))
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
        parts.append(
            svg.write(left - 5, head + (i + 0.5) * tall + 4, svg.shorten(rows[i], 108), "tick", "end", full=rows[i])
        )
    edges = [f"M{left:.1f} {head + i * tall:.1f}H{right:.1f}" for i in row_breaks if 0 < i < len(rows)]
    edges += [f"M{left + j * wide:.1f} {head:.1f}V{bottom:.1f}" for j in column_breaks if 0 < j < len(columns)]
    parts.append(Markup('<path class="edge" d="{}"/>').format("".join(edges)) if edges else Markup(""))
    return svg.drawing(
        max(bottom, head + 84) + 6, label, [*parts, _colours(right + 10, head, low, high, show, opacity)]
    )


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
    ends = svg.write(x + 15, y + 9, show(high), "tick", "start") + svg.write(
        x + 15, y + 6 * steps, show(low), "tick", "start"
    )
    return Markup('<g class="map">{}</g>').format(Markup("").join(parts)) + ends
