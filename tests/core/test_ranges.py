"""One phrasing for each rule, and no number that is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from upcycle.core.errors import UserError
from upcycle.core.ranges import ranges


@pytest.mark.parametrize(
    ("rule", "good", "bad", "said"),
    [
        (
            {"positive": ("x",)},
            (1, 1e-9, None, (1, 2)),
            (0, -1, float("nan"), float("inf"), (1, 0)),
            "must be positive",
        ),
        ({"not_negative": ("x",)}, (0, 3.5, ()), (-1e-9, float("nan"), (0, -1)), "must not be negative"),
        ({"share": ("x",)}, (0, 0.5, 1), (-0.1, 1.1), "must lie between 0 and 1"),
        ({"below_one": ("x",)}, (0, 0.99), (1, -1), "must be at least 0 and below 1"),
        ({"at_least": {"x": 2}}, (2, 7), (1, float("nan")), "must be at least 2"),
        ({"one_of": {"x": ("mean", "sum")}}, ("mean", None), ("means",), "There is no x 'means'. Did you mean 'mean'"),
    ],
)
def test_ranges(rule: dict[str, Any], good: tuple[Any, ...], bad: tuple[Any, ...], said: str) -> None:
    for value in good:
        ranges(SimpleNamespace(x=value), **rule)
    for value in bad:
        with pytest.raises(UserError, match=said):
            ranges(SimpleNamespace(x=value), **rule)
