"""Arms, the ways to an end that a verb compares, and what their runs leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.core import cells
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.run import Run
from upcycle.core.task import Measured
from upcycle.verbs import figures

Make = Callable[[int], tuple[Method, Any]]
"""From a seed, a method on networks of its own, and the data that it runs on."""
Measure = Callable[[Model, Any], Sequence[Measured]]
"""From a product and the data that it was made on, one evaluation, or none where there is nothing to measure with."""


@dataclass(kw_only=True)
class Result:
    """The result of a verb: the directory, the product, and the numbers that its report shows.

    Args:
        figure: the name of what was measured.
    """

    directory: Path
    model: Model
    rows: list[dict[str, Any]]
    sentence: str
    figure: str = "accuracy"

    def __repr__(self) -> str:
        return cells.line(self, f"{self.directory}. {self.sentence or 'Nothing was written.'}")

    def _repr_html_(self) -> str:
        heads, *rows = figures.lines_of(self.rows, self.figure)
        return cells.table(
            self.sentence, heads, rows, [f"Report: {self.report}"] if self.rows else ["Nothing was written."]
        )

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.directory / "report.html"

    def record(self) -> dict[str, Any]:
        """Give what came out, as JSON data."""
        return {
            "directory": str(self.directory),
            "model": str(self.directory / "model"),
            "report": str(self.report),
            "sentence": self.sentence,
            "rows": self.rows,
        }

    @property
    def student(self) -> Model:
        """The product, by the name that ``distill`` has for it."""
        return self.model


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to the end, which is run with every seed.

    Args:
        name: of its runs in ``more/``.
        role: of its row in the comparison.
        make: its method and data, anew for each seed.
        words: what was done with the network, behind its name.
        after: from a finished run and its data, the data that its product is measured with.
    """

    name: str = "product"
    role: str = "product"
    make: Make
    words: str = ""
    after: Callable[[Run, Any], Any] = lambda run, data: data


@dataclass(kw_only=True)
class Fitted:
    """Results of the runs of an arm.

    Args:
        model: the product of the first seed.
        data: that it was measured with.
        measured: an evaluation for each seed; empty where there was nothing to measure with.
        left: for each seed, what its method left beside the network.
    """

    arm: Arm
    model: Model
    data: Any
    measured: list[Measured] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """Its line of the comparison, called ``name``."""
        like = figures.like_of(self.model, self.data)
        line = figures.row(name, self.arm.role, self.measured, self.model, like)
        return figures.showing({**line, **figures.spent(self.model, self.data)}, self.left)


def notes_of(method: Any, data: Any) -> list[str]:
    """Collect the notes on how a method's networks and data are used."""
    given = [getattr(method, role) for role in method.roles]
    networks = [network for found in given for network in (found if isinstance(found, tuple | list) else [found])]
    notes = [note for network in networks if isinstance(network, Model) for note in network.notes]
    if data.train.together and getattr(getattr(method, "recipe", None), "batch_size", 1) == 0:
        notes.append(f"All {data.takes.noun} are one batch, since one forward answers them all.")
    return notes


def answered_at_once(method: Any, data: Any) -> int:
    """The samples that one forward answers: of a graph's nodes a whole batch, else one."""
    batch_size = getattr(getattr(method, "recipe", None), "batch_size", 0)
    return max(batch_size or len(data.train), 1) if data.train.together else 1
