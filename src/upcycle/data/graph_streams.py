"""Streams of sets of graphs, a folder each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data import graph_shares
from upcycle.data.collection import Collection
from upcycle.data.decode import readable
from upcycle.data.graph_checks import of_parts
from upcycle.data.graph_files import read_sets
from upcycle.data.graphs import GraphSet
from upcycle.data.images import Images
from upcycle.data.listing import Left, subfolders
from upcycle.data.streams import Scenario, Stream


def graph_tasks(name: str, root: Path, scenario: Scenario, shuffle: int | None) -> Stream:
    """A set of graphs for each task, in the order of their folders' names.

    Each is read as :func:`upcycle.data.graph_files.read_graphs` reads one, but all with the same features. Labels are
    numbers, which say different things in different tasks, so a class is named by its task and its label; where the
    scenario is domain, by its label alone. What a graph holds decides which split it is in, as in a set by itself.

    Args:
        name: of the stream.
        root: the folder of folders.
        scenario: class, task or domain.
        shuffle: draws another order of tasks from this seed.

    Raises:
        UserError: no folder in ``root``, or sets that cannot be read or be one stream.
    """
    require(scenario != "general", "Folders are tasks: their scenario is class, task or domain.")
    places = subfolders(root, Left())
    require(bool(places), f"There is no folder in {root}, and each task is one.")
    if shuffle is not None:
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(shuffle))
        places = [places[i] for i in order.tolist()]
    called, own = [readable(place.name) for place in places], readable(root.resolve().name)
    found, counts = read_sets(places, own)
    graphs = of_parts(own, found.parts)
    task_of = torch.repeat_interleave(torch.arange(len(places)), torch.tensor(counts))
    present, labels = (task_of * len(found.classes) + found.labels).unique(return_inverse=True)
    task, value = present // len(found.classes), present % len(found.classes)
    classes = tuple(f"{called[t]} {found.classes[v]}" for t, v in zip(task.tolist(), value.tolist(), strict=True))
    tasks = tuple(tuple((task == t).nonzero().flatten().tolist()) for t in range(len(places)))
    if scenario == "domain":
        if (odd := next((t for t, columns in enumerate(tasks) if len(columns) < len(found.classes)), None)) is not None:
            raise UserError(
                f"The task {called[odd]} in {root} lacks some of the labels, which a domain-incremental stream has in "
                "every task; use --scenario class."
            )
        labels, classes, tasks = found.labels, found.classes, (tuple(range(len(found.classes))),) * len(places)
    split, notes = _split(called, graph_shares.of_graphs(graphs), task_of)
    base = GraphSet.of_graphs(own, graphs, labels, classes, split, notes=[*found.notes, *notes])
    require_two(base)

    def make(t: int) -> Images:
        def of(split: Any) -> Any:
            return split.subset((task_of[split.ids] == t).nonzero()[:, 0])

        train, validation, test = map(of, base.splits().values())
        return cast("Images", dataclasses.replace(base, train=train, validation=validation, test=test))

    return Stream(
        name=name,
        scenario=scenario,
        classes=classes,
        tasks=tasks,
        make=make,
        base=cast("Images", base),
        order={"folders": called},
        derived=True,
    )


def _split(called: list[str], shares: Tensor, task_of: Tensor) -> tuple[graph_shares.Orders, list[str]]:
    """The split of each set as it would be by itself, put together; and what must be said."""
    orders: dict[str, list[Tensor]] = {part: [] for part in graph_shares.SPLITS}
    notes = []
    for t, name in enumerate(called):
        mine = (task_of == t).nonzero().flatten()
        parts, said = graph_shares.by_content(name, shares[mine], "graph")
        for part, order in parts.items():
            orders[part].append(mine[order])
        notes += said
    return {part: torch.cat(found) for part, found in orders.items()}, notes


def require_two(data: Collection) -> None:
    """Every class of a stream has two samples to train on.

    Args:
        data: what the stream is made of.
    """
    labels = data.train.labels
    counts = torch.bincount(labels[labels >= 0], minlength=len(data.classes)).tolist()
    short = [(c, n) for c, n in zip(data.classes, counts, strict=True) if n < 2]
    one = data.noun.removesuffix("s")
    require(
        not short,
        f"{data.name} has {short[0][1] if short else 0} training {one} of the class '{short[0][0] if short else ''}', "
        f"and a stream needs 2 or more of each: add {data.noun}, or leave the class out.",
    )
