"""Numbers as people write and read them: counts, sizes and times."""

from __future__ import annotations

import math

from upcycle.core.errors import UserError


def si(value: float) -> str:
    """A count with three digits: ``272 k``, ``1.28 M``, ``650``.

    >>> si(272474), si(1_280_000), si(65)
    ('272 k', '1.28 M', '65')
    """
    return _scaled(value, ("", "k", "M", "G", "T", "P"))


def amount(value: float | str) -> float:
    """A count that a person wrote, perhaps with k, M, G or T behind it.

    >>> amount("0.5M"), amount("60 M"), amount(1000)
    (500000.0, 60000000.0, 1000.0)

    Raises:
        UserError: it is no positive number.
    """
    text = str(value).strip()
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1:], 1.0)
    try:
        found = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise UserError(f"'{value}' is no amount; write a number such as 500000, 0.5M or 60M.")
    return found


def bytes_(value: float) -> str:
    """A size with three digits, in powers of 1000.

    >>> bytes_(1_234_567)
    '1.23 MB'
    """
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def joules(value: float) -> str:
    """An energy with three digits.

    >>> joules(4.6e-12), joules(1.23e-5)
    ('4.60 pJ', '12.3 µJ')
    """
    return _scaled(value * 1e12, ("pJ", "nJ", "µJ", "mJ", "J"))


def duration(seconds: float) -> str:
    """A time with two or three digits.

    >>> duration(0.00123), duration(75), duration(3720)
    ('1.23 ms', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 0.9995:
        return _scaled(seconds * 1e9, ("ns", "µs", "ms"))
    if seconds < 59.95:
        return f"{_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def times(n: int) -> str:
    """How often, in words.

    >>> times(0), times(1), times(2), times(1200)
    ('never', 'once', 'twice', '1,200 times')
    """
    return ("never", "once", "twice")[n] if n < 3 else f"{n:,} times"


def counted(n: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "image"), counted(2500, "image")
    ('1 image', '2,500 images')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step + 1 < len(units):
        value, step = value / 1000, step + 1
    number = f"{value:.0f}" if step == 0 and value == round(value) else _digits(value)
    return f"{number} {units[step]}".strip()


def _digits(value: float) -> str:
    """Three significant digits, without exponent."""
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"
