"""A leaderboard over runs as a page: a table for each data set, and accuracy over cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from upcycle.measure.units import si
from upcycle.reports.figures import Figure
from upcycle.reports.scatter import Point, scatter_plot
from upcycle.reports.svg import percent


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network in a plot of accuracy over cost.

    Args:
        name: what stands beside its point.
        accuracy: its mean over seeds, from 0 to 1.
        costs: by the name of the cost, where it is known.
        spread: words on how it spreads over seeds.
        product: a run made it; others are what runs began with.
    """

    name: str
    accuracy: float
    costs: dict[str, float]
    spread: str
    product: bool = True


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that can be compared, since they were measured on the same data.

    Args:
        title: what they were measured on.
        sentence: what came out.
        heads, rows: the table; its first three columns are text.
        entries: what is drawn.
        figure: the name of what was measured.
        notes: what a reader must know.
    """

    title: str
    sentence: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    entries: Sequence[Entry]
    figure: str
    notes: Sequence[str] = ()

    @property
    def figures(self) -> list[Figure]:
        """Accuracy over each cost that two networks have."""
        return [drawn for cost in ("parameters", "multiply-adds") if (drawn := _over(cost, self)) is not None]


def leaderboard_page(heading: str, groups: Sequence[Group]) -> str:
    """The page, one HTML file that asks nothing of a network."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("compare.html.j2").render(heading=heading, groups=groups, result={})


def _over(cost: str, group: Group) -> Figure | None:
    """Accuracy over a cost, with a line through those that no other is better than in both."""
    found = [(entry, entry.costs[cost]) for entry in group.entries if entry.costs.get(cost, 0) > 0]
    if len(found) < 2:
        return None
    best = [
        not any(
            (c <= own and e.accuracy > entry.accuracy) or (c < own and e.accuracy == entry.accuracy) for e, c in found
        )
        for entry, own in found
    ]
    points = [
        Point(
            entry.name,
            own,
            entry.accuracy,
            tone="student" if entry.product else "teacher",
            front=front,
            hint=f"{entry.name}: {percent(entry.accuracy)} ({entry.spread}), {si(own)} {cost}",
        )
        for (entry, own), front in zip(found, best, strict=True)
    ]
    drawn = scatter_plot(
        points, label=f"{group.figure} over {cost}", x=cost, y=group.figure, show_x=si, show_y=percent, log=True
    )
    caption = "Of the networks on the line, none is better at less cost. The axis of accuracy does not start at zero."
    return Figure(f"{group.figure[:1].upper()}{group.figure[1:]} over {cost}", caption, drawn)
