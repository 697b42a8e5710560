"""Scores of an accuracy matrix: limit cases and identities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upcycle.continual.protocol.scores import (
    average,
    backward_transfer,
    forgetting,
    forward_transfer,
    incremental,
    learning,
)
from upcycle.continual.protocol.tasks import accuracy_among

Known = list[list[float]]
SQUARE = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
)


def test_one_task_forgets_nothing() -> None:
    a = [[0.7]]
    assert backward_transfer(a) == forgetting(a) == forward_transfer(a, [0.1]) == 0
    assert average(a) == learning(a) == incremental(a) == 0.7


def test_by_hand() -> None:
    a = [[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.5, 0.7, 1.0]]
    assert average(a) == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert learning(a) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert backward_transfer(a) == pytest.approx((-0.4 - 0.1) / 2)
    assert forgetting(a) == pytest.approx((0.4 + 0.1) / 2)
    assert forward_transfer(a, [0.1, 0.05, 0.15]) == pytest.approx((0.05 + 0.15) / 2)
    assert incremental(a) == pytest.approx((0.9 + 0.7 + 2.2 / 3) / 3)
    assert forward_transfer([[0.9, None], [0.8, 0.9]], [0.1, 0.1]) is None


@given(SQUARE)
def test_backward_transfer_is_minus_forgetting_when_each_task_is_best_right_after_it(a: Known) -> None:
    best = [[min(x, a[j][j]) for j, x in enumerate(row)] for row in a]
    assert backward_transfer(best) == pytest.approx(-forgetting(best))


@given(SQUARE)
def test_forgetting_is_at_least_what_backward_transfer_lost(a: Known) -> None:
    assert forgetting(a) >= -backward_transfer(a) - 1e-12


@given(st.integers(0, 1000), st.integers(2, 4))
def test_told_the_task_is_never_worse(seed: int, per_task: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(50, 8, generator=g)
    columns = tuple(range(per_task))
    y = torch.randint(per_task, (50,), generator=g)
    told, all_ = accuracy_among(z, y, columns), accuracy_among(z, y, tuple(range(8)))
    assert told is not None and all_ is not None and told >= all_


def test_unlabelled_images_do_not_count() -> None:
    z = torch.eye(3)
    assert accuracy_among(z, torch.tensor([0, -1, 0]), (0, 1, 2)) == 0.5
    assert accuracy_among(z, torch.tensor([-1, -1, -1]), (0, 1, 2)) is None
