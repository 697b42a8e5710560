"""Scores of an accuracy matrix, which say how much is left of each task: one definition for all methods.

Rows of a matrix are what was measured after each task, columns the tasks; ``None`` where nothing was. All means are
unweighted over tasks. Libraries differ here: Avalanche's stream accuracy is weighted by the tasks' sizes, its
forgetting is the value right after training less the last one; Mammoth's forgetting takes the maximum over the last
row too, so it is never negative; BLIP's code takes the mean of the backward transfer over all T tasks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Matrix = Sequence[Sequence[float | None]]


def average(a: Matrix) -> float:
    """ACC = 1/T Σ_j a[T-1][j]: the mean accuracy over all tasks after the last one."""
    return statistics.fmean(_known(a[-1]))


def learning(a: Matrix) -> float:
    """LA = 1/T Σ_j a[j][j]: the mean accuracy on each task right after it."""
    return statistics.fmean(_at(a, j, j) for j in range(len(a)))


def backward_transfer(a: Matrix) -> float:
    """BWT = 1/(T-1) Σ_{j<T-1} (a[T-1][j] - a[j][j]) (GEM, arXiv:1706.08840); 0 for one task."""
    return _mean([_at(a, -1, j) - _at(a, j, j) for j in range(len(a) - 1)])


def forward_transfer(a: Matrix, initial: Sequence[float | None]) -> float | None:
    """FWT = 1/(T-1) Σ_{j≥1} (a[j-1][j] - r_j) (GEM, arXiv:1706.08840).

    Args:
        initial: r, the accuracy on each task before the first.

    Returns:
        ``None`` where tasks that are still to come are not measured; 0 for one task.
    """
    pairs = [(a[j - 1][j], initial[j]) for j in range(1, len(a))]
    if any(x is None or r is None for x, r in pairs):
        return None
    return _mean([x - r for x, r in pairs])  # type: ignore[operator]


def forgetting(a: Matrix) -> float:
    """1/(T-1) Σ_{j<T-1} (max_{j≤i<T-1} a[i][j] - a[T-1][j]) (RWalk, ECCV 2018); may be negative, 0 for one task."""
    last = len(a) - 1
    return _mean([max(_at(a, i, j) for i in range(j, last)) - _at(a, -1, j) for j in range(last)])


def incremental(a: Matrix) -> float:
    """AAA: the mean over i of the mean accuracy on the tasks up to i, after task i."""
    return statistics.fmean(statistics.fmean(_at(a, i, j) for j in range(i + 1)) for i in range(len(a)))


def _at(a: Matrix, i: int, j: int) -> float:
    value = a[i][j]
    assert value is not None, f"task {j} was not measured after task {i}"
    return value


def _known(row: Sequence[float | None]) -> list[float]:
    return [x for x in row if x is not None]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0


@dataclass(kw_only=True)
class Scores:
    """The scores that a method left of a stream, as plain data.

    Args:
        protocol: one line: stream, scenario, and what the method was allowed.
        scenario: the key of the matrix that counts.
        matrices: accuracies in [0, 1], T rows of T, by scenario: ``class`` comes with ``task``, the same network told
            the task of each image. Joint training has one row.
        initial: accuracy of the network as it came on each task, by scenario.
        held: bytes kept beside the network after each task, for the next ones.
        updates: optimiser steps.
        passes: images that went forward and backward through the network, for one of the stream.
    """

    protocol: str
    scenario: str
    matrices: dict[str, list[list[float | None]]] = field(default_factory=dict)
    initial: dict[str, list[float | None]] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    updates: int = 0
    passes: float = 1.0

    @property
    def matrix(self) -> list[list[float | None]]:
        """The matrix of the protocol's own scenario."""
        return self.matrices[self.scenario]

    def summary(self, scenario: str | None = None) -> dict[str, float | None]:
        """All scores of one matrix, in [0, 1], by name; those that need all rows only where these are there."""
        key = scenario or self.scenario
        a = self.matrices[key]
        if len(a) < len(a[0]):
            return {"average accuracy": average(a)}
        return {
            "average accuracy": average(a),
            "learning accuracy": learning(a),
            "forgetting": forgetting(a),
            "backward transfer": backward_transfer(a),
            "forward transfer": forward_transfer(a, self.initial.get(key) or [None] * len(a)),
            "average incremental accuracy": incremental(a),
        }

    def record(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "protocol": self.protocol,
            "scenario": self.scenario,
            "matrices": self.matrices,
            "initial": self.initial,
            "held": self.held,
            "updates": self.updates,
            "passes": self.passes,
            "scores": {key: self.summary(key) for key in self.matrices},
        }
