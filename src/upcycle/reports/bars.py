"""Bars: one for each network, one for each class with a dot a network, and stacked ones of layers and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.svg import WIDTH, Piece, number, percent, ticks

SHORTEST = 0.1
"""The least that an axis spans: of the largest value, and of shares."""


@dataclass(frozen=True)
class Bar:
    """One bar: a value, what it was measured as (one value for each seed), and its tone."""

    name: str
    value: float
    seeds: Sequence[float] = field(default_factory=tuple)
    spread: float | None = None
    tone: str = "student"


def bar_chart(
    items: Sequence[Bar], *, label: str, show: Callable[[float], str] = number, top: float | None = None
) -> Markup:
    """Horizontal bars with a whisker of one standard deviation and a dot for each seed.

    Bars start at zero. Where the values lie so close together that nothing would be seen, the axis starts
    later, and there are only whiskers and dots, which do not pretend to have a length. It is never shorter than a tenth
    of the largest value, so that a small difference looks like one.

    Args:
        items: at least one; names stand above their bars.
        label: for those who cannot see it.
        show: how a value is written.
        top: the highest value there can be, which the axis does not exceed.
    """
    low, high = _range(items)
    cut = starts_late(items)
    scale = ticks(min(low, (1 - SHORTEST) * high) if cut else min(low, 0.0), high if cut else max(high, 0.0), 5)
    if top is not None:
        scale = [v for v in scale if v <= top + 1e-9]
        high = max(high, scale[-1])
    margin, row = 64, 50
    height = row * len(items) + 28
    box = svg.Box(6, 4, WIDTH - margin, height - 24, (scale[0], max(scale[-1], high)), (0, 1))
    parts = [svg.vertical_grid(box, scale, show)]
    for i, bar in enumerate(items):
        middle, end = 4 + row * i + 32, box.x(bar.value)
        parts.append(svg.write(6, middle - 16, svg.shorten(bar.name, WIDTH - 12), "name", "start", full=bar.name))
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
            parts += [svg.dot(box.x(v), middle, 3, f"{bar.tone} seed", f"{bar.name}: {show(v)}") for v in bar.seeds]
        parts.append(svg.write(WIDTH - 2, middle + 4, show(bar.value), "value", "end"))
    return svg.drawing(height, label, parts)


def starts_late(items: Sequence[Bar]) -> bool:
    """Whether the values lie so close together that :func:`bar_chart` does not begin at zero."""
    low, high = _range(items)
    return len(items) > 1 and low > 0 and (high - low) < 0.25 * high


def _range(items: Sequence[Bar]) -> tuple[float, float]:
    seen = [v for b in items for v in (*b.seeds, b.value - (b.spread or 0), b.value + (b.spread or 0))]
    return min(seen), max(seen)


def dumbbells(names: Sequence[str], arms: Sequence[tuple[str, str, Sequence[float | None]]], *, label: str) -> Markup:
    """One line for each class with a dot for each network, so that what was lost and won can be seen.

    Args:
        names: the classes, from the top.
        arms: (name, tone, share right by class) of each network.
        label: for those who cannot see it.
    """
    known = [v for _, _, values in arms for v in values if v is not None]
    low = max(min(*known, max(known) - SHORTEST), 0.0)
    scale = [v for v in ticks(low, max(*known, low + SHORTEST), 5) if v <= 1 + 1e-9]
    left, row = 14 + min(6.8 * max(len(n) for n in names), 120), 21
    height = row * len(names) + 30
    box = svg.Box(left, 4, WIDTH - 20, height - 24, (scale[0], max(scale[-1], max(known))), (0, 1))
    parts = [svg.vertical_grid(box, scale, percent)]
    for i, name in enumerate(names):
        middle = 4 + row * (i + 0.5)
        parts.append(svg.write(left - 8, middle + 4, svg.shorten(name, 120), "tick", "end", full=name))
        here = [(arm, tone, values[i]) for arm, tone, values in arms]
        found = [(arm, tone, v) for arm, tone, v in here if v is not None]
        for (_, _, a), (_, _, b) in pairwise(sorted(found, key=lambda f: f[2])):
            parts.append(Markup('<path class="rail" d="M{:.1f} {:.1f}H{:.1f}"/>').format(box.x(a), middle, box.x(b)))
        parts += [svg.dot(box.x(v), middle, 4.2, tone, f"{name}, {arm}: {percent(v)}") for arm, tone, v in found]
    return svg.drawing(height, label, parts)


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
        box = svg.Box(left, 2, right, 6 + row * len(layers), (0, 1), (0, 1))
        parts = [svg.vertical_grid(box, scale, percent)]
        for i, (name, pieces, size) in enumerate(layers):
            top = 4 + row * i
            parts.append(svg.write(left - 6, top + 10, svg.shorten(name, 124), "tick", "end", full=name))
            parts += [
                svg.draw_piece(p, left + a * (right - left), top + 1, b * (right - left), row - 2)
                for p, a, b in _cut(pieces)
            ]
            parts.append(svg.write(WIDTH - 2, top + 10, size, "tick", "end"))
        return svg.drawing(box.bottom + 24, label, parts)
    slanted = 6.6 * longest > (WIDTH - 56) / len(layers) - 4
    reach = min(6.2 * longest, 96) if slanted else 0.0  # a slanted name leans out to the left of its column
    left = max(46.0, 0.64 * reach + 8)
    step = min((WIDTH - 4 - left) / len(layers), 64.0)
    box = svg.Box(left, 20, left + step * len(layers), 200, (0, 1), (0, 1))
    parts = [svg.grid(box, [], scale, percent)]
    for i, (name, pieces, size) in enumerate(layers):
        middle, wide = left + step * (i + 0.5), step * 0.8
        for piece, start, share in _cut(pieces):
            tall = share * (box.bottom - box.top)
            parts.append(svg.draw_piece(piece, middle - wide / 2, box.y(start) - tall, wide, tall))
        if 6.6 * len(size) <= step + 2:
            parts.append(svg.write(middle, box.top - 6, size, "tick", "middle"))
        turn = (middle + 4, box.bottom + 13, -50) if slanted else None
        short = svg.shorten(name, 100 if slanted else step + 4)
        parts.append(
            svg.write(middle, box.bottom + 16, short, "tick", "end" if slanted else "middle", turn=turn, full=name)
        )
    return svg.drawing(box.bottom + 24 + 0.77 * reach, label, parts)


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
        parts.append(svg.write(2, top - 7, svg.shorten(name, WIDTH - 4), "name", "start", full=name))
        for piece, start, share in _cut(pieces):
            parts.append(svg.draw_piece(piece, 2 + start * (WIDTH - 4), top, share * (WIDTH - 4), tall))
    return svg.drawing(row * len(networks), label, parts)


def _cut(pieces: Sequence[Piece]) -> Iterable[tuple[Piece, float, float]]:
    """Each piece that has a size, where it starts and how long it is, as shares of the whole."""
    whole, start = sum(piece.size for piece in pieces), 0.0
    for piece in pieces:
        if piece.size:
            yield piece, start, piece.size / whole
            start += piece.size / whole
