"""The parts that plots are made of, as inline SVG: text, dots, grids, scales, tones.

Plots are pure functions from numbers to markup, and leave colours to the page's style sheet.

A plot is 400 units wide, so that on a phone it is drawn about as large as it is meant. Every mark carries a
``<title>`` that a browser shows on hover. All text is escaped. A *tone* is the name of a colour of the page:
``student``, ``teacher``, ``alone``, ``other``, ..., or of :data:`HUES`; the page's style sheet says which colour
that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 400
TONES = ("student", "teacher", "alone", "second", "other")
"""The tones of series that have no role of their own, in order."""
HUES = tuple(f"hue{i}" for i in range(10))
"""Ten tones that are told apart side by side, also by those who see red and green alike."""


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


def draw_piece(piece: Piece, x: float, y: float, width: float, height: float) -> Markup:
    """A piece as a rectangle, its text within where there is room for it."""
    gap = [1.0 if side > 4 else 0.0 for side in (width, height)]  # the smallest pieces are drawn in full
    drawn = Markup(
        '<rect class="piece tone-{}" x="{:.1f}" y="{:.1f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
    ).format(piece.tone, x, y, width - gap[0], height - gap[1], piece.hint)
    text = shorten(piece.text, width - 4)
    if not text or len(text) < min(len(piece.text), 5):
        return drawn  # a letter or two would say nothing
    kind = f"tick inside tone-{piece.tone}"
    return drawn + write(x + width / 2, y + height / 2 + 4, text, kind, "middle", full=piece.hint)


@dataclass(frozen=True)
class Box:
    """Where data are drawn: pixel edges and the domains that they stand for."""

    left: float
    top: float
    right: float
    bottom: float
    domain_x: tuple[float, float]
    domain_y: tuple[float, float]
    log_x: bool = False

    def x(self, value: float) -> float:
        """The pixel of a value of the horizontal axis."""
        low, high = self.domain_x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """The pixel of a value of the vertical axis."""
        low, high = self.domain_y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def axis_ticks(values: Sequence[float], count: int, *, whole: bool = False) -> list[float]:
    """Round values around all of ``values``, both ends included; whole ones without a margin for ``whole`` numbers."""
    low, high = min(values), max(values)
    scale = ticks(low, high, count)
    if whole and all(v == int(v) for v in values) and high > low:  # epochs: no half ones, and no empty margin
        inner = [v for v in scale if v == int(v) and low <= v <= high]
        return sorted({low, *[v for v in inner if v - low > 0.04 * (high - low)], high})
    return scale


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from one at or below ``low`` to one at or above ``high``, two at least.

    Over more than three decades only the powers of ten, and both ends.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    steps = [s * 10.0**power for power in range(first, last + 1) for s in (1, 2, 5)]
    start = max(i for i, v in enumerate(steps) if v <= low * (1 + 1e-9))
    end = min(i for i, v in enumerate(steps) if v >= high * (1 - 1e-9))
    steps = steps[start : max(end, start + 1) + 1]
    return [v for i, v in enumerate(steps) if len(steps) <= 10 or i in (0, len(steps) - 1) or f"{v:e}"[0] == "1"]


def grid(
    box: Box,
    xs: Sequence[float],
    ys: Sequence[float],
    show: Callable[[float], str],
    show_x: Callable[[float], str] = number,
) -> Markup:
    """Horizontal lines at ``ys`` with their values on the left, and the values ``xs`` below, where there is room."""
    parts = []
    for v in ys:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(box.left, box.y(v), box.right))
        parts.append(write(box.left - 6, box.y(v) + 4, tick_label(show(v)), "tick", "end"))
    last = math.inf
    for v in reversed(xs):  # from the right, so that the last epoch keeps its label
        if last - box.x(v) > 7 * len(tick_label(show_x(v))) + 6:
            parts.append(write(box.x(v), box.bottom + 16, tick_label(show_x(v)), "tick", "middle"))
            last = box.x(v)
    return Markup("").join(parts)


def tick_label(text: str) -> str:
    """A written value as an axis shows it: whole per cents without a decimal."""
    return text.replace(".0 %", " %")


def vertical_grid(box: Box, xs: Sequence[float], show: Callable[[float], str]) -> Markup:
    """Vertical lines at ``xs`` with their values below."""
    parts = []
    for v in xs:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(box.x(v), box.top, box.bottom))
        text = tick_label(show(v))
        beyond = box.x(v) + 3.2 * len(text) > WIDTH  # half of it, at a tick that lies near the edge
        anchor = "start" if box.x(v) < 20 else "end" if beyond else "middle"
        parts.append(write(WIDTH if beyond else box.x(v), box.bottom + 16, text, "tick", anchor))
    return Markup("").join(parts)


def dot(x: float, y: float, radius: float, tone: str, hint: str) -> Markup:
    """A filled circle; ``hint`` is shown on hover."""
    return Markup('<circle class="dot tone-{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
        tone, x, y, radius, hint
    )


def write(
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
    """Text at a place, and nothing for no text.

    Args:
        kind: its classes in the style sheet.
        anchor: start, middle or end of the text is at ``x``.
        at: where it starts instead, if it is anchored there.
        turn: x, y and degrees, instead of ``x`` and ``y``.
        full: said on hover where it is another text.
    """
    if not text:
        return Markup("")
    place = (
        Markup('transform="translate({:.1f} {:.1f}) rotate({})"').format(*turn)
        if turn
        else Markup('x="{:.1f}" y="{:.1f}"').format(x if at is None or anchor != "start" else at, y)
    )
    hint = Markup("<title>{}</title>").format(full) if full and full != text else ""
    return Markup('<text class="{}" {} text-anchor="{}">{}{}</text>').format(kind, place, anchor, text, hint)


def shorten(text: str, pixels: float) -> str:
    """``text``, cut with an ellipsis to what fits in so many pixels."""
    fits = max(int(pixels / 6.6), 2)
    return text if len(text) <= fits else text[: fits - 1] + "…"


def drawing(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """The whole picture; ``label`` is for those who cannot see it."""
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )
