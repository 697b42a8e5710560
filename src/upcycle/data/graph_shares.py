"""Which graphs or nodes are trained on, validated on and tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.core.graph_inputs import Graphs
from upcycle.data.collection import stratified
from upcycle.data.parts import MAX_VALIDATION, SPLIT_SEED
from upcycle.data.shares import drawn, of_contents

Orders = dict[str, Tensor]
"""Positions of the samples of each split, int64, by its name."""
SPLITS = ("train", "validation", "test")


def brought(
    name: str, split: dict[str, Tensor], n: int, noun: str, shares: Callable[[], Tensor]
) -> tuple[Orders, list[str]]:
    """A split that came with the data, as positions; a validation part that it lacks is drawn from what is trained on.

    Args:
        name: of the set, for errors.
        split: masks (bool, (n,)) or positions by ``train``, ``validation`` and ``test``.
        n: samples in all.
        noun: ``graph`` or ``node``.
        shares: gives what :func:`upcycle.data.shares.of_contents` does, where it is needed.

    Returns:
        the positions, and what must be said.

    Raises:
        UserError: splits that overlap, lack, or name samples that there are not.
    """
    strange = set(split) - set(SPLITS)
    require(not strange, f"A split has the parts {', '.join(SPLITS)}, not {', '.join(sorted(strange))}.")
    orders = {key: _positions(name, key, torch.as_tensor(split[key]), n, noun) for key in SPLITS if key in split}
    for key in ("train", "test"):
        require(len(orders.get(key, ())) > 0, f"{name} has no {'training' if key == 'train' else 'test'} {noun}s.")
    counts = torch.zeros(len(SPLITS), n, dtype=torch.long)
    for key, order in orders.items():
        counts[SPLITS.index(key)].index_add_(0, order, torch.ones_like(order))
    for i, first in enumerate(SPLITS):
        for j in range(i + 1, len(SPLITS)):
            if both := ((counts[i] > 0) & (counts[j] > 0)).nonzero().flatten().tolist():
                raise UserError(
                    f"{len(both):,} {noun}{'' if len(both) == 1 else 's'} of {name} (number {both[0]}, say) are in "
                    f"both the {first} and the {SPLITS[j]} split; splits must not overlap."
                )
    if len(orders.get("validation", ())):
        return orders, []
    train = orders["train"]
    parts = drawn(name, shares()[train], ["validation"], MAX_VALIDATION, f"{noun}s")
    found = {**orders, "train": train[parts["train"]], "validation": train[parts["validation"]]}
    return found, [_said(name, "validation", len(found["validation"]), len(train), f"training {noun}s")]


def by_content(name: str, shares: Tensor, noun: str) -> tuple[Orders, list[str]]:
    """Draw all three splits by numbers that each sample has of its own, so that none moves when others are added."""
    orders = drawn(name, shares, ["test", "validation"], MAX_VALIDATION, f"{noun}s")
    return orders, [_said(name, s, len(orders[s]), len(shares), f"{noun}s") for s in ("test", "validation")]


def of_graphs(graphs: Graphs) -> Tensor:
    """Two numbers in [0, 1) for each graph, from its nodes' features and its edges."""
    nodes, edges = (t.tolist() for t in graphs.starts)
    local = (graphs.edge_index - graphs.starts[0][graphs.batch[graphs.edge_index[1]]]).T.contiguous()
    x = graphs.x.to_dense()
    attr = graphs.edge_attr

    def content(i: int) -> bytes:
        rows = [x[nodes[i] : nodes[i + 1]], local[edges[i] : edges[i + 1]]]
        rows += [] if attr is None else [attr[edges[i] : edges[i + 1]]]
        return b"".join(t.numpy().tobytes() for t in rows)

    return of_contents(content(i) for i in range(graphs.n))


def of_nodes(n: int) -> Tensor:
    """Two numbers in [0, 1) for each node, from its number: what it holds does not tell it from others."""
    return of_contents(i.to_bytes(8, "big") for i in range(n))


def fixed(labels: Tensor, number: int, test: int, validation: int) -> Orders:
    """A stratified split of a set that has a name, the same everywhere.

    Args:
        labels: int64 (n,).
        number: of the split; each is drawn anew.
        test, validation: how many samples.
    """
    left, orders = torch.arange(len(labels)), {}
    for key, size in (("test", test), ("validation", validation)):
        taken = stratified(labels[left], left, size, SPLIT_SEED + number, f"split {key}")
        orders[key] = left[taken]
        rest = torch.ones(len(left), dtype=torch.bool)
        rest[taken] = False
        left = left[rest]
    return {"train": left, **orders}


def require_trained(name: str, train: Tensor, labels: Tensor, classes: Sequence[str], noun: str) -> None:
    """Every class has a sample to train on, where there are labels.

    Args:
        name: of the set.
        train: positions of training samples.
        labels: of all samples.
        classes: their names.
        noun: ``graph`` or ``node``.
    """
    if not bool((labels >= 0).any()):
        return
    kept = labels[train]
    left = torch.bincount(kept[kept >= 0], minlength=len(classes)).tolist()
    without = [f"'{c}'" for c, n in zip(classes, left, strict=True) if not n]
    several = "classes" if len(without) > 1 else "class"
    shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    require(not without, f"No training {noun} of {name} belongs to the {several} {shown}.")


def _positions(name: str, key: str, which: Tensor, n: int, noun: str) -> Tensor:
    if which.dtype == torch.bool:
        require(
            which.shape == (n,),
            f"The mask of the {key} split of {name} has {tuple(which.shape)} entries for {n:,} {noun}s.",
        )
        return which.nonzero().flatten()
    which = which.long()
    wrong = which[(which < 0) | (which >= n)]
    require(
        not len(wrong),
        f"The {key} split of {name} names {noun} {int(wrong[0]) if len(wrong) else 0}, and there are 0 to {n - 1}.",
    )
    return which


def _said(name: str, split: str, count: int, n: int, of: str) -> str:
    how = "drawn so that none moves when others are added"
    return f"The {split} split of {name} is ours: {count:,} of its {n:,} {of}, {how}."
