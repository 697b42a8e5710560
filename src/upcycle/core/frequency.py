"""Rare classes: how many training samples each class has, and figures of many, medium and few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from upcycle.core.errors import require

RARE = 5
"""A class is rare when the largest class has more than so many times its training samples."""


def counts_of(labels: Int[Tensor, " n"], classes: int) -> list[int]:
    """n_j, the number of samples of each class; those without a label (-1) are of none."""
    return labels[labels >= 0].bincount(minlength=classes).tolist()


def rare(counts: Sequence[int]) -> list[int]:
    """The classes that are rare, see :data:`RARE`; empty where the classes are about equally frequent.

    A class without any sample is left out: it was not learnt, or is only measured.
    """
    return [k for k, n in enumerate(counts) if n and n * RARE < max(counts)]


@dataclass(frozen=True)
class Groups:
    """Classes by the number of their training samples: many, medium and few.

    Args:
        counts: n_j of each class.
        borders: (low, high): many have more than ``high``, few have fewer than ``low``, medium are in between.
    """

    counts: tuple[int, ...]
    borders: tuple[int, int]

    def members(self) -> dict[str, list[int]]:
        """The classes of each group."""
        low, high = self.borders
        found: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
        for k, n in enumerate(self.counts):
            found["many" if n > high else "few" if n < low else "medium"].append(k)
        return found

    def means(self, per_class: Sequence[float | None]) -> dict[str, float | None]:
        """The mean recall of each group's classes, and of all classes as ``all``.

        ``None`` for a group without a class that was measured; the released code of Kang et al. (arXiv:1910.09217)
        gives 0 there, which pulls means down.

        Args:
            per_class: recall of each class, ``None`` for a class without test samples.
        """
        groups = {**self.members(), "all": list(range(len(self.counts)))}
        return {
            name: _mean([r for k in classes if (r := per_class[k]) is not None]) for name, classes in groups.items()
        }

    def words(self) -> dict[str, str]:
        """The meaning of each name, for a heading."""
        low, high = self.borders
        return {
            "many": f"many (more than {high:,})",
            "medium": f"medium ({low:,} to {high:,})",
            "few": f"few (fewer than {low:,})",
            "all": "all (mean over classes)",
        }

    def plain(self) -> dict[str, Any]:
        """Counts and borders as JSON data."""
        return {"borders": list(self.borders), "counts": list(self.counts)}


def groups(counts: Sequence[int], borders: Sequence[int] | None = None, *, name: str = "The data") -> Groups | None:
    """Classes in groups by ``borders``; ``None`` where these are not given and no class is rare.

    Where they are not given, they are a third and two thirds of the way from the rarest class to the most frequent one
    on a logarithmic scale. Departure: Kang et al. have 20 and 100, below which small sets of images have no class.

    Args:
        counts: training samples of each class.
        borders: (low, high), as a person typed them.
        name: of the data, for errors.

    Raises:
        UserError: borders that are not two ascending numbers, or leave a group empty.
    """
    if borders is None:
        return Groups(tuple(counts), usual_borders(counts)) if rare(counts) else None
    text = ",".join(map(str, borders))
    require(len(borders) == 2, f"borders are two numbers of training samples, LOW,HIGH, not {text}.")
    low, high = borders
    require(0 < low < high, f"borders must ascend from above 0, and {text} do not; for example 100,1000.")
    require(any(counts), f"{name} has no labelled training samples to divide classes by; leave out borders.")
    found = Groups(tuple(counts), (low, high))
    empty = next((group for group, classes in found.members().items() if not classes), None)
    require(
        empty is None,
        f"The borders {text} leave no class in '{empty}': classes of {name} have from {min(counts):,} to "
        f"{max(counts):,} training samples; choose borders between.",
    )
    return found


def usual_borders(counts: Sequence[int]) -> tuple[int, int]:
    """The borders of :func:`groups` where none are given; classes without samples are left out."""
    known = [n for n in counts if n]
    least, most = min(known), max(known)
    return round(least ** (2 / 3) * most ** (1 / 3)), round(least ** (1 / 3) * most ** (2 / 3))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
